//! Blobs of any size that take no room: each byte follows from its place.
//!
//! Every 4 KiB begin with their own number, so that no two of them are alike and a byte from a wrong place is seen; the rest
//! is noise that repeats every 64 KiB, which costs no more than copying.

use std::sync::OnceLock;

use bytes::Bytes;

use crate::oci::Digest;
use crate::range::StoredRange;

const PERIOD: usize = 64 << 10;
const PAGE: u64 = 4 << 10;

/// A blob that is made as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synthetic {
    /// What it is asked for by. Whoever makes the value has computed it over [`Synthetic::bytes`].
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// The number of its first 4 KiB: two blobs have no 4 KiB in common where they begin further apart than they are long.
    pub first: u64,
}

impl Synthetic {
    /// The bytes of `range` of this blob: they do not depend on its size, nor on its digest.
    #[must_use]
    pub fn part(&self, range: StoredRange) -> Bytes {
        let before = self.first.saturating_mul(PAGE);
        let shifted = |place: u64| place.saturating_add(before);
        Self::bytes(StoredRange::new(shifted(range.start()), shifted(range.end())))
    }

    /// The bytes of `range` of a blob that begins with number 0.
    #[must_use]
    pub fn bytes(range: StoredRange) -> Bytes {
        let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
        let mut all = Vec::with_capacity(len);
        let mut at = range.start();
        while at < range.end() {
            let within = usize::try_from(at % PAGE).unwrap_or_default();
            let number = (at / PAGE).to_le_bytes();
            let end = at.saturating_sub(at % PAGE).saturating_add(PAGE).min(range.end());
            let want = usize::try_from(end.saturating_sub(at)).unwrap_or_default();
            let marked = number.get(within..).unwrap_or_default();
            let marked = marked.get(..want.min(marked.len())).unwrap_or_default();
            all.extend_from_slice(marked);
            all.extend_from_slice(noise_at(at, marked.len(), want));
            at = end;
        }
        all.into()
    }
}

/// The noise of the `want` bytes from `at` on, but for the first `skip` of them. They lie in one page.
fn noise_at(at: u64, skip: usize, want: usize) -> &'static [u8] {
    let start = usize::try_from(at).unwrap_or_default() % PERIOD;
    noise().get(start.saturating_add(skip)..start.saturating_add(want)).unwrap_or_default()
}

fn noise() -> &'static [u8] {
    static NOISE: OnceLock<Vec<u8>> = OnceLock::new();
    NOISE.get_or_init(|| {
        let mut state = 0x5bf0_3635_u64;
        let mut all = Vec::with_capacity(PERIOD);
        while all.len() < PERIOD {
            // xorshift64*, by Vigna.
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            all.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
        }
        all
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_range_is_the_same_part_of_the_whole() {
        let whole = Synthetic::bytes(StoredRange::new(0, 300_000));
        assert_eq!(whole.len(), 300_000);
        for (start, end) in
            [(0_u32, 1_u32), (3, 7), (3, 5000), (4095, 4097), (65_530, 140_000), (299_999, 300_000)]
        {
            let part = Synthetic::bytes(StoredRange::new(start.into(), end.into()));
            assert_eq!(part, whole.slice(start as usize..end as usize), "{start}-{end}");
        }
    }

    #[test]
    fn one_that_begins_later_goes_on_where_an_earlier_one_is() {
        let blob = Synthetic { digest: Digest::of(b""), size: 1 << 20, first: 3 };
        let shifted = Synthetic::bytes(StoredRange::new((3 << 12) + 100, (3 << 12) + 9000));
        assert_eq!(blob.part(StoredRange::new(100, 9000)), shifted);
        assert_ne!(blob.part(StoredRange::new(0, 4096)), Synthetic::bytes(StoredRange::new(0, 4096)));
    }

    #[test]
    fn no_two_pages_are_alike() {
        let whole = Synthetic::bytes(StoredRange::new(0, 1 << 20));
        let pages: std::collections::HashSet<_> = whole.chunks(4096).collect();
        assert_eq!(pages.len(), 256);
    }
}
