//! The end of a blob with a seek table from anybody: refused, or a table that covers the blob.

use weightfs::codec::zstd::Spans;
use weightfs::codec::zstd::seekable::{Step, read};

/// Runs the input, and panics where it shows a fault.
pub fn run(data: &[u8]) {
    for size in [data.len() as u64, 1 << 30] {
        if let Ok(Step::Table(spans)) = read(data, size, 1 << 20) {
            assert_eq!(spans.stored(), size);
            assert_eq!(Spans::decode(&spans.encode(), size, spans.content()).expect("our own table"), spans);
        }
    }
    let _ = Spans::decode(data, 1 << 20, 1 << 21);
}
