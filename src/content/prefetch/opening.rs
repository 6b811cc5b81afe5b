//! What a fresh mount loads before anybody reads: what every engine reads first, within a budget.
//!
//! Engines open the small JSON files whole, then the head of each weight file; readers of GGUF look at the last
//! page first (docs/semantics.md has the order). So: small files whole, then the first chunk of each weight file,
//! and the last one of a GGUF. Weights are read file by file, in the order of their names.

use std::collections::HashMap;

use crate::index::{CHUNK, EntryKind, ExtentId, Grid, Index};
use crate::range::ContentRange;

/// A file up to this size is loaded whole.
const SMALL: u64 = 4 << 20;
/// The most that is loaded, however many files there are.
const BUDGET: u64 = 64 << 20;
/// The most of it that goes to small files, so that heads of weight files get their part.
const SMALL_BUDGET: u64 = 32 << 20;

/// Whether a file's name says that it holds weights.
#[must_use]
pub fn is_weight(path: &str) -> bool {
    [".safetensors", ".gguf", ".bin", ".pt", ".pth", ".onnx", ".onnx_data"]
        .iter()
        .any(|end| path.ends_with(end))
}

/// What to load, in this order, as ranges of files.
#[must_use]
pub fn plan(index: &Index) -> Vec<(ExtentId, ContentRange)> {
    let files = || {
        index.entries.iter().filter_map(|entry| match entry.kind {
            EntryKind::File { extent: Some(extent), size } => Some((entry.path.as_str(), extent, size)),
            _ => None,
        })
    };
    let small =
        files().filter(|(.., size)| *size <= SMALL).map(|(_, id, size)| (id, ContentRange::new(0, size)));
    let small = within(SMALL_BUDGET, small);
    let mut weights: Vec<_> = files().filter(|(path, _, size)| *size > SMALL && is_weight(path)).collect();
    weights.sort_unstable();
    let heads = weights.into_iter().flat_map(|(path, id, size)| {
        let grid = Grid::new(size);
        let last = grid.range(grid.chunks().saturating_sub(1));
        let tail = path.ends_with(".gguf").then_some((id, last));
        std::iter::once((id, ContentRange::new(0, CHUNK.min(size)))).chain(tail)
    });
    within(BUDGET, small.chain(heads)).collect()
}

/// The file that who reads a model in order reads after each: the next one with weights in the same folder, by name.
#[must_use]
pub fn following(index: &Index) -> HashMap<ExtentId, ExtentId> {
    fn folder(path: &str) -> &str {
        path.rsplit_once('/').map_or("", |(folder, _)| folder)
    }
    let weights = index.entries.iter().filter_map(|entry| match entry.kind {
        EntryKind::File { extent: Some(id), size } if size > SMALL && is_weight(&entry.path) => {
            Some((folder(&entry.path), entry.path.as_str(), id))
        }
        _ => None,
    });
    let mut weights: Vec<_> = weights.collect();
    weights.sort_unstable();
    let pairs = weights.iter().zip(weights.iter().skip(1));
    pairs
        .filter(|((here, ..), (there, ..))| here == there)
        .map(|((_, _, id), (_, _, next))| (*id, *next))
        .collect()
}

/// The ranges that fit a budget, in order; one that does not is passed over.
fn within(
    mut left: u64,
    ranges: impl Iterator<Item = (ExtentId, ContentRange)>,
) -> impl Iterator<Item = (ExtentId, ContentRange)> {
    ranges.filter(move |(_, range)| {
        let fits = range.len() <= left;
        left -= if fits { range.len() } else { 0 };
        fits
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Entry;

    fn index(files: &[(&str, u64)]) -> Index {
        let entry = |(extent, (path, size)): (usize, &(&str, u64))| Entry {
            path: (*path).into(),
            kind: EntryKind::File { extent: Some(ExtentId { layer: 0, extent }), size: *size },
            mode: 0,
            mtime: 0,
            layer: 0,
        };
        Index { entries: files.iter().enumerate().map(entry).collect(), ..Index::default() }
    }

    #[test]
    fn small_files_come_first_and_whole_then_heads_then_the_tail_of_a_gguf() {
        let plan =
            plan(&index(&[("b.gguf", 10 * CHUNK + 5), ("a.safetensors", 9 * CHUNK), ("config.json", 700)]));
        let ranges: Vec<_> = plan.iter().map(|(id, range)| (id.extent, range.start(), range.end())).collect();
        let expected = [(2, 0, 700), (1, 0, CHUNK), (0, 0, CHUNK), (0, 10 * CHUNK, 10 * CHUNK + 5)];
        assert_eq!(ranges, expected);
    }

    #[test]
    fn after_a_file_with_weights_comes_the_next_one_of_its_folder() {
        let files = [
            ("b-2.bin", 9 * CHUNK),
            ("b-1.bin", 9 * CHUNK),
            ("b-1.json", 9 * CHUNK),
            ("x/b-3.bin", 9 * CHUNK),
        ];
        let id = |extent| ExtentId { layer: 0, extent };
        assert_eq!(following(&index(&files)), HashMap::from([(id(1), id(0))]));
    }

    #[test]
    fn however_many_files_there_are_the_budget_holds() {
        let names: Vec<String> = (0..4096).map(|n| format!("model-{n:05}.safetensors")).collect();
        let files: Vec<_> = names.iter().map(|name| (name.as_str(), 1 << 28)).collect();
        let total: u64 = plan(&index(&files)).iter().map(|(_, range)| range.len()).sum();
        assert!(total <= BUDGET);
    }
}
