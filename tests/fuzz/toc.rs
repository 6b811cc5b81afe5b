//! Tables of contents and footers from anybody: refused, or files whose parts cover them and lie in the blob.

use weightfs::codec::toc::{EntryKind, read};
use weightfs::codec::{estargz, zstd::chunked};

/// Runs the input, and panics where it shows a fault.
pub fn run(data: &[u8]) {
    let size = data.len() as u64;
    let _ = (estargz::footer(data, size), chunked::footer(data, size));
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = chunked::annotated(|key| (key == chunked::POSITION_KEYS[0]).then_some(text), 1 << 20);
    }
    let Ok(toc) = read(data, 1 << 20) else { return };
    for entry in toc.entries {
        let EntryKind::File(file) = entry.kind else { continue };
        let mut at = 0;
        for part in file.parts {
            assert_eq!(part.content.start(), at);
            assert!(!part.stored.is_empty() && part.stored.end() <= 1 << 20);
            at = part.content.end();
        }
        assert_eq!(at, file.size);
    }
}
