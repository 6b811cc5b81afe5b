//! A layer's gaps (archive headers and padding) as one small file, so that a known layer needs no hop.
//!
//! Layout, little endian: for each gap its start (u64), its length (u64) and its bytes; at the end the BLAKE3 of
//! all before it. A file that does not end in its own digest counts as absent.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::index::Gap;
use crate::range::StoredRange;

/// The file's bytes for the gaps that have bytes.
#[must_use]
pub fn encode(gaps: &[Gap]) -> Bytes {
    let mut out = BytesMut::new();
    for gap in gaps {
        if let Some(bytes) = &gap.bytes {
            out.put_u64_le(gap.range.start());
            out.put_u64_le(bytes.len() as u64);
            out.put_slice(bytes);
        }
    }
    let digest = blake3::hash(&out);
    out.put_slice(digest.as_bytes());
    out.freeze()
}

/// The gaps in a file's bytes; empty where the file is damaged.
#[must_use]
pub fn decode(file: &Bytes) -> Vec<(StoredRange, Bytes)> {
    let Some(end) = file.len().checked_sub(32) else { return Vec::new() };
    let mut body = file.slice(..end);
    if blake3::hash(&body).as_bytes() != file.get(end..).unwrap_or_default() {
        return Vec::new();
    }
    let mut gaps = Vec::new();
    while body.remaining() >= 16 {
        let (start, len) = (body.get_u64_le(), body.get_u64_le());
        let range = StoredRange::at(start, len);
        match (range, usize::try_from(len).ok().filter(|len| *len <= body.remaining())) {
            (Some(range), Some(len)) => gaps.push((range, body.split_to(len))),
            _ => return Vec::new(),
        }
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::range::ContentRange;

    #[test]
    fn gaps_come_back_as_they_went_in_and_a_damaged_file_is_none() {
        let gap = |at: u64, text: &'static [u8]| Gap {
            range: ContentRange::new(at, at + text.len() as u64),
            bytes: Some(Bytes::from_static(text)),
        };
        let unread = Gap { range: ContentRange::new(900, 1000), bytes: None };
        let file = encode(&[gap(0, b"head"), gap(512, b"padding"), unread]);
        let back = decode(&file);
        assert_eq!(back.len(), 2);
        assert_eq!(back[1], (StoredRange::new(512, 519), Bytes::from_static(b"padding")));
        for at in 0..file.len() {
            let mut damaged = file.to_vec();
            damaged[at] ^= 1;
            assert!(decode(&damaged.into()).is_empty(), "byte {at}");
        }
        assert!(decode(&Bytes::from_static(b"short")).is_empty());
    }
}
