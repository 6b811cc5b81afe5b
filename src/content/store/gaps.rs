//! A layer's gaps (archive headers and padding) as one small file, so that a known layer needs no hop; and what tells those
//! apart that two mounts have read names from.
//!
//! Layout, little endian: for each gap its start (u64), its length (u64) and its bytes; at the end the BLAKE3 of
//! all before it. A file that does not end in its own digest counts as absent. What one place was given it keeps for itself.
//! Beside what all share lie none but those that the layer was [proved with](Store::note_paid).

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{Store, private};
use crate::index::{Gap, Layer};
use crate::oci::Digest;
use crate::range::StoredRange;

/// Room for the headers of a very large archive: index/plain stops reading them at 64 MiB.
const LIMIT: u64 = 80 << 20;

/// The BLAKE3 of those gaps of a layer that its names were read from, each with its place and length. Whoever reads the same
/// bytes has the same, by whatever requests: what follows the archive's end, which some have read and others not, is not
/// among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GapsDigest(blake3::Hash);

impl GapsDigest {
    /// That of a layer's gaps; `None` where no bytes of them are held, so that no name was read from any. Hashes all that are.
    #[must_use]
    pub fn of(gaps: &[Gap]) -> Option<Self> {
        Self::of_held(gaps.iter().filter_map(|gap| Some((gap.range.start(), gap.bytes.as_ref()?))))
    }

    fn of_kept(gaps: &[(StoredRange, Bytes)]) -> Option<Self> {
        Self::of_held(gaps.iter().map(|(range, bytes)| (range.start(), bytes)))
    }

    fn of_held<'a>(gaps: impl Iterator<Item = (u64, &'a Bytes)>) -> Option<Self> {
        let (mut hasher, mut last) = (blake3::Hasher::new(), None);
        for (start, bytes) in gaps {
            let len = bytes.len() as u64;
            // No file lies between it and the one before: the archive has ended there.
            if last != Some(start) {
                hasher.update(&start.to_le_bytes()).update(&len.to_le_bytes()).update(bytes);
            }
            last = Some(start.saturating_add(len));
        }
        last.map(|_| Self(hasher.finalize()))
    }
}

impl fmt::Display for GapsDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blake3:{}", self.0.to_hex())
    }
}

impl Store {
    /// The gaps of a layer that were kept for `who` before; empty where none are. Of a layer that he shares with others none but
    /// those that it was proved with.
    #[must_use]
    pub fn gaps(&self, who: &str, layer: &Digest) -> Vec<(StoredRange, Bytes)> {
        let home = self.home(who, layer);
        let file = private::read_small(&home.join("gaps"), LIMIT).unwrap_or_default();
        let gaps = decode(&file.into());
        let counts =
            !self.is_shared(layer, &home) || self.is_paid(who, layer, layer, GapsDigest::of_kept(&gaps));
        if counts { gaps } else { Vec::new() }
    }

    /// Keeps the gaps of a layer for `who`, unless they are kept already; beside what others see, where it was proved with them.
    pub fn keep_gaps(&self, who: &str, layer: &Layer) {
        let digest = &layer.blob.digest;
        if layer.gaps.iter().all(|gap| gap.bytes.is_none()) || !self.gaps(who, digest).is_empty() {
            return;
        }
        let home = self.home(who, digest);
        if !self.is_shared(digest, &home) || self.is_paid(who, digest, digest, GapsDigest::of(&layer.gaps)) {
            self.note(private::write_small(&home.join("gaps"), &encode(&layer.gaps)), "keep archive headers");
        }
    }

    /// Drops the gaps of a layer that were kept for `who` alone: they may not be the layer's.
    pub fn drop_gaps(&self, who: &str, layer: &Digest) {
        let _ = std::fs::remove_file(self.own(who, layer).join("gaps"));
    }
}

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
    use super::super::audit::tests::{WHO, store};
    use super::*;
    use crate::index::Coding;
    use crate::oci::Blob;
    use crate::range::ContentRange;

    fn gap(at: u64, bytes: &'static [u8]) -> Gap {
        let range = ContentRange::new(at, at + bytes.len() as u64);
        Gap { range, bytes: Some(Bytes::from_static(bytes)) }
    }

    fn unread(start: u64, end: u64) -> Gap {
        Gap { range: ContentRange::new(start, end), bytes: None }
    }

    fn layer(gaps: Vec<Gap>) -> Layer {
        Layer {
            blob: Blob { digest: Digest::of(b"layer"), size: 1000 },
            media_type: String::new(),
            diff_id: None,
            coding: Coding::Stored,
            extents: vec![ContentRange::new(4, 512)],
            gaps,
            bound: None,
        }
    }

    #[test]
    fn gaps_with_other_bytes_or_at_other_places_have_another_digest_and_what_follows_the_end_is_none_of_it() {
        let of = |gaps: &[Gap]| GapsDigest::of(gaps).unwrap();
        let one = of(&[gap(0, b"head"), gap(512, b"end")]);
        for other in [
            vec![gap(0, b"haed"), gap(512, b"end")],
            vec![gap(0, b"head"), gap(513, b"end")],
            vec![gap(0, b"hea"), gap(511, b"dend")],
            vec![gap(0, b"head")],
            vec![gap(0, b"head"), unread(512, 515)],
        ] {
            assert_ne!(of(&other), one, "{other:?}");
        }
        for behind in [gap(515, b"padding"), unread(515, 1000)] {
            assert_eq!(of(&[gap(0, b"head"), gap(512, b"end"), behind]), one);
        }
        assert_eq!(GapsDigest::of(&[unread(0, 4)]), None);
        let file = encode(&[gap(0, b"head"), gap(512, b"end"), gap(515, b"padding")]);
        assert_eq!(GapsDigest::of_kept(&decode(&file)), Some(one));
    }

    #[test]
    fn of_a_layer_that_is_shared_only_the_headers_that_it_was_proved_with_are_kept() {
        let (_dir, store) = store();
        let (right, wrong) = (layer(vec![gap(0, b"head")]), layer(vec![gap(0, b"haed")]));
        let digest = &right.blob.digest;
        let kept = || store.gaps(WHO, digest).into_iter().map(|(_, bytes)| bytes).collect::<Vec<_>>();
        // Those of another mount of the same place, which read its own.
        store.keep_gaps(WHO, &wrong);
        assert_eq!(kept(), ["haed"]);
        store.note_paid(WHO, digest, digest, GapsDigest::of(&right.gaps));
        store.set_proved(WHO, digest);
        assert!(store.proved(WHO, digest) && kept().is_empty());
        store.keep_gaps(WHO, &wrong);
        assert!(kept().is_empty());
        store.keep_gaps(WHO, &right);
        assert_eq!(kept(), ["head"]);
        store.keep_gaps(WHO, &wrong);
        store.drop_gaps(WHO, digest);
        assert_eq!(kept(), ["head"], "they are not his alone");
    }

    #[test]
    fn gaps_come_back_as_they_went_in_and_a_damaged_file_is_none() {
        let file = encode(&[gap(0, b"head"), gap(512, b"padding"), unread(900, 1000)]);
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
