//! The kernel serves what is whole by itself, also what became whole while it was open; and replies serve what it may not have.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use rustix::io::{IoSliceMut, ReadWriteFlags, preadv2};
use weightfs::content::{Config, Warm};
use weightfs::mount::{Mapping, Mount, Options, Passthrough};

use super::library::{Bench, reading, until};
use crate::support::pack::{self, Dialect, Packing};
use crate::support::place::{PROGRAM, Place};
use crate::support::registry::{Registry, flip};
use crate::support::wait;

/// Loads nothing that is not read.
fn lazy() -> Config {
    Config { warm: Warm::None, ..Config::default() }
}

fn count(mount: &Mount, counter: &str) -> u64 {
    mount.status().metrics[counter]
}

/// Drops what the kernel keeps of an open file, so that it is asked for again.
fn forget(file: &File) {
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
}

fn whole(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn number(file: &File) -> u64 {
    file.metadata().unwrap().ino()
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether the kernel can take files here; says so where not.
fn may_pass_through() -> bool {
    if !is_root() {
        println!("not run: only root may give files to the kernel");
    }
    is_root()
}

/// A mount that gives the kernel also what becomes whole while it is open.
async fn swapping(bench: &Bench) -> Mount {
    let options = Options { passthrough: Passthrough::Swap, ..Options::default() };
    Mount::open(bench.model(lazy()).await, &bench.dir(), &options).await.unwrap()
}

/// The image of the bench's one file in its store.
fn image(bench: &Bench) -> PathBuf {
    let mut folders = vec![bench.store().join("layers")];
    let mut images = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|kind| kind == "data")
                && path.metadata().unwrap().len() == bench.weights.len() as u64
            {
                images.push(path);
            }
        }
    }
    assert_eq!(images.len(), 1, "{images:?}");
    images.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_becomes_whole_while_it_is_open_is_the_kernels_own_for_who_opens_it_next() {
    if !may_pass_through() {
        return;
    }
    let bench = Bench::new();
    let mount = swapping(&bench).await;
    let path = bench.file();
    let at = path.clone();
    let (old, map) = reading(move || (File::open(&at).unwrap(), Mapping::open(&at).unwrap())).await;
    let (old, weights) = (Arc::new(old), bench.weights.clone());
    let reader = Arc::clone(&old);
    reading(move || assert!(whole(&reader) == weights)).await;
    until("it has another number", || count(&mount, "renumbered_files") > 0).await;
    assert_eq!(count(&mount, "passthrough_opens"), 0);
    until("listed as the kernel's own", || mount.status().native.files == 1).await;

    let (at, weights) = (path.clone(), bench.weights.clone());
    let new = reading(move || {
        let new = File::open(&at).unwrap();
        assert!(whole(&new) == weights && *Mapping::open(&at).unwrap() == *weights);
        assert_eq!(std::fs::metadata(&at).unwrap().ino(), number(&new));
        new
    })
    .await;
    assert!(count(&mount, "passthrough_opens") >= 2);
    assert_ne!(number(&new), number(&old));

    // Who has it open goes on, through us: with a page cache of its own, and no error.
    let before = count(&mount, "reads");
    let (reader, weights) = (Arc::clone(&old), bench.weights.clone());
    reading(move || {
        forget(&reader);
        assert!(whole(&reader) == weights && *map == *weights);
        drop(map);
    })
    .await;
    assert!(count(&mount, "reads") > before);
    assert_eq!(count(&mount, "renumbered_files"), 1);
    assert_eq!(count(&mount, "read_errors"), 0);
    drop((old, new));
    mount.unmount().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_read_and_closed_is_in_memory_for_who_opens_it_from_the_kernel() {
    if !may_pass_through() {
        return;
    }
    let bench = Bench::new();
    let mount = Mount::open(bench.model(lazy()).await, &bench.dir(), &Options::default()).await.unwrap();
    let (at, weights) = (bench.file(), bench.weights.clone());
    reading(move || assert!(whole(&File::open(at).unwrap()) == weights)).await;
    until("it was exchanged", || count(&mount, "exchanged_files") == 1).await;
    assert_eq!(count(&mount, "passthrough_opens"), 0);

    let image = File::open(image(&bench)).unwrap();
    if statfs(&bench.store()).unwrap().filesystem_type() != TMPFS_MAGIC {
        let mut pages = (0..bench.weights.len() as u64).step_by(4096);
        assert!(pages.all(|at| is_cached(&image, at)), "its next reader would wait for the disk");
    }
    let (at, weights) = (bench.file(), bench.weights.clone());
    let before = count(&mount, "reads");
    reading(move || assert!(whole(&File::open(at).unwrap()) == weights)).await;
    assert_eq!((count(&mount, "passthrough_opens"), count(&mount, "reads")), (1, before));
    assert_eq!(count(&mount, "exchanged_files"), 1, "nothing is left by who reads from the kernel");
    mount.unmount().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_nobody_has_open_keeps_its_number() {
    let bench = Bench::new();
    let mount = bench.mount_with(Config { warm: Warm::All, ..Config::default() }).await;
    let stat = {
        let path = bench.file();
        move || std::fs::metadata(path).unwrap().ino()
    };
    let before = reading(stat.clone()).await;
    until("read back and sealed", || mount.status().native.why_not == [("unasked".to_owned(), 1)].into())
        .await;
    let (path, weights) = (bench.file(), bench.weights.clone());
    reading(move || assert!(std::fs::read(path).unwrap() == weights)).await;
    assert_eq!(count(&mount, "passthrough_opens"), u64::from(is_root()));
    assert_eq!(mount.status().native.files, u64::from(is_root()));
    assert_eq!((reading(stat).await, count(&mount, "renumbered_files")), (before, 0));
    mount.unmount().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_loses_its_trust_after_it_was_given_to_the_kernel_is_served_by_replies_and_then_given_again()
 {
    if !may_pass_through() {
        return;
    }
    let bench = Bench::new();
    let mount = swapping(&bench).await;
    let path = bench.file();
    let (at, weights) = (path.clone(), bench.weights.clone());
    let old = reading(move || {
        let old = File::open(at).unwrap();
        assert!(whole(&old) == weights);
        old
    })
    .await;
    until("it has another number", || count(&mount, "renumbered_files") == 1).await;
    let at = path.clone();
    let native = reading(move || File::open(at).unwrap()).await;
    assert_eq!(count(&mount, "passthrough_opens"), 1);

    flip(&image(&bench), (1 << 20) + 5);
    let (at, weights) = (path.clone(), bench.weights.clone());
    let mended = reading(move || {
        let mended = File::open(at).unwrap();
        assert!(whole(&mended) == weights, "not what somebody wrote into the store");
        mended
    })
    .await;
    assert_eq!(count(&mount, "passthrough_opens"), 1);
    let numbers = [number(&old), number(&native), number(&mended)];
    assert!(numbers[0] != numbers[1] && numbers[1] != numbers[2]);
    until("mended, and given to the kernel again", || count(&mount, "renumbered_files") == 2).await;
    let (at, weights) = (path.clone(), bench.weights.clone());
    reading(move || assert!(whole(&File::open(at).unwrap()) == weights)).await;
    assert_eq!(count(&mount, "passthrough_opens"), 2);
    drop((old, native, mended));
    mount.unmount().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn passthrough_that_is_turned_off_leaves_everything_to_replies() {
    let bench = Bench::new();
    let options = Options { passthrough: Passthrough::Off, ..Options::default() };
    let mount = Mount::open(bench.model(Config::default()).await, &bench.dir(), &options).await.unwrap();
    let (path, weights) = (bench.file(), bench.weights.clone());
    let open = reading(move || {
        let open = File::open(&path).unwrap();
        assert!(whole(&open) == weights);
        open
    })
    .await;
    until("proved", || mount.status().standing == "verified").await;
    let (path, weights) = (bench.file(), bench.weights.clone());
    reading(move || {
        forget(&open);
        drop(open);
        assert!(*Mapping::open(&path).unwrap() == *weights);
    })
    .await;
    let status = mount.status();
    assert_eq!((status.native.files, status.native.total), (0, 1));
    assert_eq!(status.native.why_not, [("off".to_owned(), 1)].into());
    assert_eq!((status.metrics["passthrough_opens"], status.metrics["renumbered_files"]), (0, 0));
    mount.unmount().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_of_an_image_before_it_was_whole_leaves_the_kernels_cache() {
    let bench = Bench::new();
    let mount = bench.mount_with(lazy()).await;
    let path = bench.file();
    reading(move || File::open(&path).unwrap().read_exact_at(&mut [0], 0).unwrap()).await;
    until("kept", || mount.status().metrics["kept_bytes"] > 0).await;
    let image = File::open(image(&bench)).unwrap();
    image.read_exact_at(&mut [0], 0).unwrap();
    assert!(is_cached(&image, 0));
    if statfs(bench.store().as_path()).unwrap().filesystem_type() == TMPFS_MAGIC {
        println!("not run: the store is in memory, all of it");
        return mount.unmount().await.unwrap();
    }
    let (path, weights) = (bench.file(), bench.weights.clone());
    // It stays open: once it is closed the image comes into memory again, for its next reader.
    let open = reading(move || {
        let open = File::open(&path).unwrap();
        assert!(whole(&open) == weights);
        open
    })
    .await;
    until("forgotten when it is sealed", || !is_cached(&image, 0)).await;
    drop(open);
    mount.unmount().await.unwrap();
}

/// Whether the kernel has this byte of a file in memory.
fn is_cached(file: &File, at: u64) -> bool {
    preadv2(file, &mut [IoSliceMut::new(&mut [0])], at, ReadWriteFlags::NOWAIT) == Ok(1)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_process_completes_is_given_to_the_kernel_here_too() {
    if !may_pass_through() {
        return;
    }
    let bench = Bench::new();
    let mount = swapping(&bench).await;
    let path = bench.file();
    let old = reading(move || {
        let old = File::open(path).unwrap();
        old.read_exact_at(&mut [0], 0).unwrap();
        old
    })
    .await;
    // Another store of the same folder, as another process has it.
    let other = bench.model(Config { warm: Warm::All, ..Config::default() }).await;
    other.loader.warm();
    until("it has another number here", || count(&mount, "renumbered_files") == 1).await;
    let (path, weights) = (bench.file(), bench.weights.clone());
    reading(move || assert!(std::fs::read(path).unwrap() == weights)).await;
    assert_eq!(count(&mount, "passthrough_opens"), 1);
    other.close().await;
    drop(old);
    mount.unmount().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_come_and_go_while_a_file_becomes_whole_read_its_bytes_and_no_error() {
    for _ in 0..5 {
        let bench = Bench::new();
        let mount = swapping(&bench).await;
        let over = Arc::new(AtomicBool::new(false));
        let readers: Vec<_> = (0..4)
            .map(|reader| {
                let (path, weights, over) = (bench.file(), bench.weights.clone(), Arc::clone(&over));
                tokio::task::spawn_blocking(move || {
                    let mut round = reader;
                    while !over.load(Ordering::Relaxed) {
                        round += 1;
                        match round % 3 {
                            0 => assert!(std::fs::read(&path).unwrap() == weights),
                            1 => assert!(*Mapping::open(&path).unwrap() == *weights),
                            _ => drop(std::fs::metadata(&path).unwrap()),
                        }
                    }
                })
            })
            .collect();
        until("given to the kernel", || count(&mount, "passthrough_opens") > 8 || !is_root()).await;
        over.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.await.unwrap();
        }
        assert_eq!(count(&mount, "read_errors"), 0);
        mount.unmount().await.unwrap();
    }
}

/// Puts an overlay above the bench's mount, and gives where.
fn overlaid(bench: &Bench, place: &Place) -> PathBuf {
    let [upper, work, merged] = ["upper", "work", "merged"].map(|name| place.folder(name));
    let layers =
        format!("lowerdir={},upperdir={},workdir={}", bench.dir().display(), upper.display(), work.display());
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("overlay"), &merged, Some("overlay"), flags, Some(layers.as_str())).unwrap();
    merged
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_becomes_whole_while_an_overlay_has_it_open_goes_on_being_read_through_that() {
    if !may_pass_through() {
        return;
    }
    let (bench, place) = (Bench::new(), Place::new());
    let mount = bench.mount_with(lazy()).await;
    let merged = overlaid(&bench, &place);
    let (path, weights) = (merged.join("a/weights.bin"), bench.weights.clone());
    let (at, right) = (path.clone(), weights.clone());
    let old = reading(move || {
        let old = File::open(at).unwrap();
        assert!(whole(&old) == right);
        old
    })
    .await;
    until("read back and sealed", || mount.status().native.why_not.contains_key("open")).await;
    reading(move || {
        for _ in 0..50 {
            assert!(std::fs::read(&path).unwrap() == weights);
            assert_eq!(std::fs::metadata(&path).unwrap().len(), weights.len() as u64);
        }
        assert!(whole(&old) == weights);
    })
    .await;
    assert_eq!((count(&mount, "renumbered_files"), count(&mount, "read_errors")), (0, 0));
    reading(move || nix::mount::umount(&merged).unwrap()).await;
    mount.unmount().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overlay_above_is_told_that_a_file_is_stale_that_got_another_number_and_so_that_is_not_the_default()
 {
    if !may_pass_through() {
        return;
    }
    let (bench, place) = (Bench::new(), Place::new());
    let mount = swapping(&bench).await;
    let merged = overlaid(&bench, &place);
    let (path, weights) = (merged.join("a/weights.bin"), bench.weights.clone());
    let at = path.clone();
    let old = reading(move || {
        let old = File::open(at).unwrap();
        assert!(whole(&old) == weights);
        old
    })
    .await;
    until("it has another number", || count(&mount, "renumbered_files") == 1).await;
    let weights = bench.weights.clone();
    let again = reading(move || {
        assert!(whole(&old) == weights, "who has it open goes on");
        File::open(path).err().and_then(|error| error.raw_os_error())
    })
    .await;
    assert_eq!(again, Some(nix::libc::ESTALE));
    reading(move || nix::mount::umount(&merged).unwrap()).await;
    mount.unmount().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_something_is_mounted_over_keeps_its_number_and_the_mount_over_it() {
    if !may_pass_through() {
        return;
    }
    let (bench, place) = (Bench::new(), Place::new());
    let mount = swapping(&bench).await;
    let (path, weights) = (bench.file(), bench.weights.clone());
    let other = place.folder("other").join("file");
    std::fs::write(&other, "other").unwrap();
    let (at, over) = (path.clone(), other.clone());
    let old = reading(move || {
        let old = File::open(&at).unwrap();
        let flags = nix::mount::MsFlags::MS_BIND;
        nix::mount::mount(Some(&over), &at, None::<&str>, flags, None::<&str>).unwrap();
        assert!(whole(&old) == weights);
        old
    })
    .await;
    until("whole and open", || mount.status().native.why_not.contains_key("open")).await;
    let at = path.clone();
    reading(move || assert_eq!(std::fs::read(&at).unwrap(), b"other")).await;
    assert_eq!(count(&mount, "renumbered_files"), 0);
    reading(move || nix::mount::umount(&path).unwrap()).await;
    until("it has another number", || count(&mount, "renumbered_files") == 1).await;
    drop(old);
    mount.unmount().await.unwrap();
}

/// A small model, complete in the place's store, and what mounts it.
fn kept(place: &Place, options: &[&str]) -> (Registry, String) {
    let registry = Registry::start();
    let files = [pack::File::new("config.json", "{}"), pack::File::new("weights.bin", vec![3; 2 << 20])];
    let artifact = pack::pack(&files, Packing::Raw, Dialect::Upstream, Path::new("/nowhere"));
    registry.push("acme/llm", "v1", &artifact);
    let reference = registry.reference("acme/llm:v1");
    let all: Vec<&str> = options.iter().copied().chain(["--warm", "all", "--passthrough", "auto"]).collect();
    place.mount(&reference, &all);
    place.wait_until_complete();
    (registry, reference)
}

#[test]
fn a_store_on_a_stacked_file_system_is_served_by_replies_and_listed_so() {
    if !may_pass_through() {
        return;
    }
    let place = Place::new();
    let [lower, upper, work, merged] = ["lower", "upper", "work", "merged"].map(|name| place.folder(name));
    let layers =
        format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("overlay"), &merged, Some("overlay"), flags, Some(layers.as_str())).unwrap();
    let store = merged.join("store");
    let (_registry, _) = kept(&place, &["--store", store.to_str().unwrap()]);
    wait::until("listed as not the kernel's own", Duration::from_secs(60), || {
        assert_eq!(std::fs::read(place.path("weights.bin")).unwrap(), vec![3; 2 << 20]);
        place.status()["native"]["why_not"]["stacked"] == 2
    });
    let listed = place.run(["list"]).ok().stdout;
    assert!(listed.contains("0 of 2 (stacked)"), "{listed}");
    place.unmount();
}

#[test]
fn who_may_not_give_files_to_the_kernel_serves_them_by_replies_and_is_listed_so() {
    let place = Place::new();
    let (_registry, reference) = kept(&place, &[]);
    place.unmount();
    // Root of a user namespace of its own may mount, and is nobody to the kernel where it comes to passthrough.
    let script = r#"
        "$0" mount --passthrough auto "$1" "$2" || exit 1
        for _ in $(seq 600); do
            cmp "$2/weights.bin" "$3" || exit 1
            "$0" list --json | grep -q '"permission": 2' && "$0" list | grep -q '0 of 2 (permission)' &&
                exec "$0" unmount "$2"
            sleep 0.1
        done
        "$0" list --json
        exit 1"#;
    let same = place.folder("same").join("weights.bin");
    std::fs::write(&same, vec![3; 2 << 20]).unwrap();
    let ours = place.command();
    let mut command = Command::new("unshare");
    command.envs(ours.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, PROGRAM, &reference]);
    command.arg(place.dir()).arg(same);
    place.finish(command, Duration::from_secs(120)).ok();
}
