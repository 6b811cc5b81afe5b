//! Who reads at random through a map costs little more than the chunks that he touches, and nobody is given an error for it.
//!
//! What the kernel wishes to read around a page fault is declined then. That is an error to the kernel, which it gives to nobody as
//! long as nobody waits for those pages; here is every way of reading at once, to see that it does not.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use memmap2::{Advice, Mmap, MmapOptions, UncheckedAdvice};
use nix::libc;
use weightfs::content::{Config, Warm};
use weightfs::mount::{Mapping, Mount, Options, ReadAround};

use super::library::{Bench, reading};
use crate::support::{heavy, read};

const MIB: usize = 1 << 20;
const PAGE: usize = 4096;

/// A source of numbers, the same each time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap() % end
    }
}

fn noise(size: usize) -> Vec<u8> {
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        bytes.extend_from_slice(&chance.below(usize::MAX).to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

async fn mount_with(bench: &Bench, read_around: ReadAround) -> Mount {
    let options = Options { read_around, ..Options::default() };
    Mount::open(bench.model(Config::default()).await, &bench.dir(), &options).await.unwrap()
}

fn count(mount: &Mount, counter: &str) -> u64 {
    mount.status().metrics[counter]
}

/// Touches random pages through a map with the kernel's default advice.
///
/// Gives how many chunks these lie in.
async fn fault(bench: &Bench, faults: usize) -> usize {
    let (path, weights) = (bench.file(), bench.weights.clone());
    let touched = reading(move || {
        let (map, mut chance) = (Mapping::open(&path).unwrap(), Chance(12345));
        let fault = |_| {
            let at = chance.below(weights.len() / PAGE) * PAGE;
            assert_eq!(map[at..at + PAGE], weights[at..at + PAGE], "at {at}");
            at / MIB
        };
        (0..faults).map(fault).collect::<BTreeSet<_>>()
    });
    touched.await.len()
}

/// Runs a test that needs the machine for itself.
fn alone(test: impl Future<Output = ()>) {
    let _alone = heavy();
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(test);
}

#[test]
fn two_hundred_random_faults_over_256_mib_fetch_little_more_than_the_chunks_they_touch() {
    alone(random_faults());
}

async fn random_faults() {
    let bench = Bench::of(noise(256 * MIB));
    let mount = mount_with(&bench, ReadAround::Auto).await;
    let touched = fault(&bench, 200).await;
    let (fetched, declined) = (count(&mount, "fetched_bytes"), count(&mount, "declined_reads"));
    println!("200 faults in {touched} chunks: {} MiB fetched, {declined} reads declined", fetched >> 20);
    assert!(fetched <= 150 << 20, "{fetched} bytes, {declined} reads declined");
    assert!(fetched <= (touched as u64 + 6) << 20, "{fetched} bytes for {touched} chunks");
    assert!(declined > 0);
    assert_eq!(count(&mount, "read_errors"), 0);
    mount.unmount().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_declined_where_it_is_turned_off() {
    let bench = Bench::of(noise(64 * MIB));
    let mount = mount_with(&bench, ReadAround::Always).await;
    fault(&bench, 40).await;
    assert_eq!(count(&mount, "declined_reads"), 0);
    mount.unmount().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_on_through_a_map_or_by_reads_has_nothing_declined() {
    let bench = Bench::of(noise(64 * MIB));
    let mount = mount_with(&bench, ReadAround::Auto).await;
    let (path, weights) = (bench.file(), bench.weights.clone());
    reading(move || {
        // Two who begin at odd places, one after the other, and one from the start.
        let map = Mapping::open(&path).unwrap();
        let touched = |from: usize| (from..weights.len()).step_by(PAGE).all(|at| map[at] == weights[at]);
        assert!(touched(33 * MIB + 5 * PAGE) && touched(7 * MIB + PAGE));
        assert!(std::fs::read(&path).unwrap() == weights);
    })
    .await;
    assert_eq!(count(&mount, "declined_reads"), 0);
    mount.unmount().await.unwrap();
}

/// One of the ways to read a file, on a random place of it.
struct Reader {
    path: PathBuf,
    file: File,
    map: Mmap,
    right: Arc<Bench>,
    chance: Chance,
    /// Of a thousand steps how many are single faults.
    faults: usize,
}

impl Reader {
    fn new(right: Arc<Bench>, seed: u64, faults: usize) -> Self {
        let path = right.file();
        let file = File::open(&path).unwrap();
        let map = read::map(&path);
        let chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        Self { path, file, map, right, chance, faults }
    }

    fn check(&self, what: &str, at: usize, got: &[u8]) {
        let right = &self.right.weights[at..at + got.len()];
        assert!(got == right, "{what} at {at}, {} bytes", got.len());
    }

    /// A random place, of at most so many bytes.
    fn place(&mut self, most: usize) -> (usize, usize) {
        let at = self.chance.below(self.right.weights.len());
        let size = (1 + self.chance.below(most)).min(self.right.weights.len() - at);
        (at, size)
    }

    fn step(&mut self) {
        if self.chance.below(1000) < self.faults {
            return self.touch();
        }
        match self.chance.below(10) {
            0 | 1 => self.read_at(8 * PAGE),
            2 => self.read_at(3 * MIB),
            3 => self.touch_on(),
            4 => self.populate(),
            5 => self.map_populated(),
            6 => self.send(),
            7 => self.splice(),
            8 => self.read_direct(),
            _ => self.forget(),
        }
    }

    fn touch(&mut self) {
        let at = self.chance.below(self.right.weights.len() / PAGE) * PAGE;
        self.check("a fault", at, &self.map[at..at + PAGE]);
    }

    fn touch_on(&mut self) {
        let (at, size) = self.place(4 * MIB);
        self.check("faults in order", at, &self.map[at..at + size]);
    }

    fn read_at(&mut self, most: usize) {
        let (at, size) = self.place(most);
        let got = read::range(&self.file, at as u64, size as u64);
        self.check("pread", at, &got.unwrap());
    }

    fn populate(&mut self) {
        let (at, size) = self.place(2 * MIB);
        self.map.advise_range(Advice::PopulateRead, at, size).unwrap();
        self.check("MADV_POPULATE_READ", at, &self.map[at..at + size]);
    }

    fn map_populated(&mut self) {
        let (at, size) = self.place(4 * MIB);
        #[allow(unsafe_code, reason = "mapping a file is what is tested")]
        // SAFETY: nobody changes the files of a read-only mount.
        let map = unsafe { MmapOptions::new().offset(at as u64).len(size).populate().map(&self.file) };
        self.check("MAP_POPULATE", at, &map.unwrap());
    }

    fn send(&mut self) {
        let (at, size) = self.place(2 * MIB);
        let sent = through_pipe(size, |pipe, left, done| {
            let mut offset = i64::try_from(at + done).unwrap();
            #[allow(unsafe_code, reason = "the call is what is tested")]
            // SAFETY: both descriptors are open and the offset is ours.
            unsafe {
                libc::sendfile(pipe, self.file.as_raw_fd(), &raw mut offset, left)
            }
        });
        self.check("sendfile", at, &sent);
    }

    fn splice(&mut self) {
        let (at, size) = self.place(2 * MIB);
        let sent = through_pipe(size, |pipe, left, done| {
            let mut offset = i64::try_from(at + done).unwrap();
            #[allow(unsafe_code, reason = "the call is what is tested")]
            // SAFETY: both descriptors are open, the offset is ours, and a pipe has none.
            unsafe {
                libc::splice(self.file.as_raw_fd(), &raw mut offset, pipe, std::ptr::null_mut(), left, 0)
            }
        });
        self.check("splice", at, &sent);
    }

    fn read_direct(&mut self) {
        let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(&self.path).unwrap();
        let mut room = vec![0; 2 * MIB + PAGE];
        let start = room.as_ptr().align_offset(PAGE);
        let at = self.chance.below(self.right.weights.len() / PAGE - 2 * MIB / PAGE) * PAGE;
        let size = (1 + self.chance.below(2 * MIB / PAGE)) * PAGE;
        file.read_exact_at(&mut room[start..start + size], at as u64).unwrap();
        self.check("O_DIRECT", at, &room[start..start + size]);
    }

    /// Has the kernel give up what it keeps, so that there is something to be asked for; and opens anew, so that it forgets that
    /// most faults of this map missed, which makes it read around them no more.
    fn forget(&mut self) {
        #[allow(unsafe_code, reason = "what is given up is read again from the file")]
        // SAFETY: the map is of a file and shared: nothing that was written is lost.
        unsafe { self.map.unchecked_advise(UncheckedAdvice::DontNeed) }.unwrap();
        read::forget(&self.file);
        self.file = File::open(&self.path).unwrap();
        self.map = read::map(&self.path);
    }
}

/// What `send` puts into a pipe, of `size` bytes in all; it is given the pipe, what is left, and what is done.
fn through_pipe(size: usize, send: impl Fn(i32, usize, usize) -> isize) -> Vec<u8> {
    let (mut from, to) = std::io::pipe().unwrap();
    let receiving = std::thread::spawn(move || {
        let mut got = Vec::new();
        from.read_to_end(&mut got).unwrap();
        got
    });
    let mut done = 0;
    while done < size {
        let sent = send(to.as_raw_fd(), size - done, done);
        assert!(sent > 0, "{}", std::io::Error::last_os_error());
        done += usize::try_from(sent).unwrap();
    }
    drop(to);
    receiving.join().unwrap()
}

/// Every way of reading at once, on a store that keeps nothing, so that there is always something to decline.
#[test]
fn every_way_of_reading_at_once_gives_the_right_bytes_and_no_error() {
    alone(every_way());
}

async fn every_way() {
    let steps: usize = match std::env::var("WEIGHTFS_TEST_READS") {
        Ok(asked) => asked.parse().unwrap(),
        Err(_) => 4000,
    };
    let bench = Arc::new(Bench::of(noise(96 * MIB)));
    let (left, mut declined) = (Arc::new(AtomicUsize::new(steps)), 0);
    // In turn: hardly anything but single faults, and all ways about equally often.
    for faults in [990, 500].into_iter().cycle() {
        if left.load(Ordering::Relaxed) == 0 {
            break;
        }
        let config = Config { warm: Warm::None, ..Config::default() };
        let model = bench.model_kept(config, Some(1)).await;
        let mount = Mount::open(model, &bench.dir(), &Options::default()).await.unwrap();
        let round = left.load(Ordering::Relaxed).saturating_sub(1000);
        let readers = (1..=4).map(|seed| {
            let (bench, left) = (Arc::clone(&bench), Arc::clone(&left));
            tokio::task::spawn_blocking(move || {
                let mut reader = Reader::new(bench, seed + round as u64, faults);
                let next = |left: usize| (left > round).then(|| left - 1);
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok() {
                    reader.step();
                }
            })
        });
        for reader in readers.collect::<Vec<_>>() {
            reader.await.unwrap();
        }
        declined += count(&mount, "declined_reads");
        assert_eq!(count(&mount, "read_errors"), 0);
        mount.unmount().await.unwrap();
    }
    println!("{steps} reads of every kind, {declined} wishes declined");
    assert!(declined > 0);
}
