//! A blob that should be zstd: refused, or its spans decode to what the pass gave.
//!
//! Content past 16 MiB is not looked at, since a few bytes can decode to any amount.

use weightfs::codec::zstd::{Decoder, Scanner};

/// Runs the input, and panics where it shows a fault.
pub fn run(data: &[u8]) {
    let mut scanner = Scanner::with_window_limit(1 << 16, 8 << 20).expect("a scanner");
    let (mut left, mut content, mut buffer) = (data, Vec::new(), vec![0; 70_000]);
    while content.len() < 16 << 20 {
        let Ok(moved) = scanner.push(left, &mut buffer) else { return };
        content.extend_from_slice(&buffer[..moved.content]);
        left = &left[moved.stored..];
        if left.is_empty() && moved.content < buffer.len() {
            break;
        }
    }
    let Ok(spans) = scanner.finish() else { return };
    assert_eq!((spans.stored(), spans.content()), (data.len() as u64, content.len() as u64));
    let mut decoder = Decoder::new().expect("a decoder");
    for span in spans.iter() {
        let mut found = vec![0; span.content.len() as usize];
        let stored = &data[span.stored.start() as usize..span.stored.end() as usize];
        decoder.span(stored, &mut found).expect("what the pass decoded");
        assert!(content[span.content.start() as usize..].starts_with(&found));
    }
}
