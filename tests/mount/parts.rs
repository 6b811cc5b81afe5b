//! Parts of other tests that run in a process of their own, since a failed page fault ends it. See `support::child`.

use std::path::Path;

use crate::support::child::{given, wait_for_parent};
use crate::support::read;

const PAGE: usize = 4096;
const THREADS: u64 = 32;
const FAULTS: usize = 150;

/// Faults at random places of the mounted files in many threads, each page compared with the original.
pub(super) fn random_faults() {
    let (mounted, original, files) = (given("PART_MOUNT"), given("PART_ORIGINAL"), given("PART_FILES"));
    let names: Vec<&str> = files.split(':').collect();
    let maps: Vec<_> = names
        .iter()
        .map(|name| (read::map(&Path::new(&mounted).join(name)), read::map(&Path::new(&original).join(name))))
        .collect();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let maps = &maps;
            scope.spawn(move || {
                let mut numbers = vec![0; FAULTS * 8];
                crate::support::sample::fill(&mut numbers, thread);
                for (number, bytes) in numbers.chunks_exact(8).enumerate() {
                    let (got, right) = &maps[number % maps.len()];
                    let page =
                        u64::from_le_bytes(bytes.try_into().unwrap()) as usize % right.len().div_ceil(PAGE);
                    let span = page * PAGE..((page + 1) * PAGE).min(right.len());
                    read::assert_same(
                        Path::new("mapping"),
                        span.start as u64,
                        &got[span.clone()],
                        &right[span],
                    );
                }
            });
        }
    });
}

/// Maps a file and touches one byte.
pub(super) fn touch_once() {
    let map = read::map(Path::new(&given("PART_FILE")));
    let offset: usize = given("PART_OFFSET").parse().unwrap();
    println!("TOUCHED {}", std::hint::black_box(map[offset]));
}

/// Maps a file, touches one page, says so, waits, and touches the page again.
pub(super) fn touch_twice() {
    let map = read::map(Path::new(&given("PART_FILE")));
    let offset: usize = given("PART_OFFSET").parse().unwrap();
    let before = std::hint::black_box(map[offset]);
    println!("TOUCHED");
    wait_for_parent();
    let after = std::hint::black_box(map[offset]);
    println!("AGAIN {}", before == after);
}
