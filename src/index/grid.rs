//! The grid of index format v1: chunks of 1 MiB, counted from the start of each file.
//!
//! Pure arithmetic; every other module asks it instead of dividing by itself.

use super::CHUNK;
use crate::range::ContentRange;

/// The grid over one file of `len` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    len: u64,
}

impl Grid {
    /// The grid of a file of `len` bytes.
    #[must_use]
    pub fn new(len: u64) -> Self {
        Self { len }
    }

    /// The file's size in bytes.
    #[must_use]
    pub fn len(self) -> u64 {
        self.len
    }

    /// Whether the file has no byte, so no chunk.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// How many chunks the file has.
    #[must_use]
    pub fn chunks(self) -> u64 {
        self.len.div_ceil(CHUNK)
    }

    /// Where `chunk` lies in the file; the last one is shorter, one past the end is empty.
    #[must_use]
    pub fn range(self, chunk: u64) -> ContentRange {
        let start = chunk.saturating_mul(CHUNK).min(self.len);
        ContentRange::new(start, start.saturating_add(CHUNK).min(self.len))
    }

    /// The chunks that hold any byte of `range`, clamped to the file.
    #[must_use]
    pub fn covering(self, range: ContentRange) -> std::ops::Range<u64> {
        let range = range.meet(ContentRange::new(0, self.len));
        if range.is_empty() {
            return 0..0;
        }
        range.start() / CHUNK..range.end().div_ceil(CHUNK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_a_file_exactly() {
        for len in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7] {
            let grid = Grid::new(len);
            let mut at = 0;
            for chunk in 0..grid.chunks() {
                assert_eq!(grid.range(chunk).start(), at);
                assert!(!grid.range(chunk).is_empty());
                at = grid.range(chunk).end();
            }
            assert_eq!(at, len);
            assert!(grid.range(grid.chunks()).is_empty());
        }
    }

    #[test]
    fn a_range_is_covered_by_the_chunks_it_touches_and_no_other() {
        let grid = Grid::new(3 * CHUNK + 7);
        assert_eq!(grid.covering(ContentRange::new(0, 1)), 0..1);
        assert_eq!(grid.covering(ContentRange::new(CHUNK - 1, CHUNK + 1)), 0..2);
        assert_eq!(grid.covering(ContentRange::new(CHUNK, 2 * CHUNK)), 1..2);
        assert_eq!(grid.covering(ContentRange::new(3 * CHUNK, u64::MAX)), 3..4);
        assert_eq!(grid.covering(ContentRange::new(9 * CHUNK, 10 * CHUNK)), 0..0);
    }
}
