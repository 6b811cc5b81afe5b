//! `weightfs cat`: a file of a model, or a part of it, on standard output, without a mount.

use futures_util::{StreamExt, TryStreamExt, stream};

use super::ls::find;
use super::print::Reader;
use super::{args, open, print, reference, runtime};
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::fs::{Model, NodeId, NodeKind};
use crate::oci::Digest;
use crate::range::ContentRange;

/// How much is asked for at once.
const PIECE: u64 = 4 << 20;

/// How many pieces are under way at once; with [`PIECE`] the most that is held in memory.
const AT_ONCE: usize = 4;

/// Writes the bytes as they come.
///
/// # Errors
/// Those of opening the model and reading it; `Integrity` where the layer turned out not to be what the manifest
/// says, which under `deferred` may be known only once its last byte is here.
pub(super) fn run(command: &args::Cat, settings: &Settings) -> Result<()> {
    let reference = reference(&command.reference)?;
    runtime()?.block_on(async {
        let model = open(reference, settings).await?;
        let written = write(&model, command).await;
        if let Some(extent) = written.as_ref().ok().and_then(|node| model.extent(*node)) {
            model.loader.conclude(extent.layer).await;
        }
        model.close().await;
        let node = written?;
        model.poisoned(node).map_or(Ok(()), |digest| Err(poisoned(&command.path, digest)))
    })
}

fn poisoned(path: &str, layer: &Digest) -> Error {
    let doing = format!("{}: the bytes written are not what {layer} says", print::safe(path));
    Error::new(Kind::Integrity, doing).hint("throw them away")
}

async fn write(model: &Model, command: &args::Cat) -> Result<NodeId> {
    let node = find(model, &command.path).await?;
    let Some(NodeKind::File { size, .. }) = model.tree.node(node).map(|node| &node.kind) else {
        return Err(Error::new(Kind::Invalid, format!("{:?} is a folder", command.path)));
    };
    let range = match &command.range {
        Some(text) => parse(text, *size)?,
        None => ContentRange::new(0, *size),
    };
    let pieces = stream::iter(pieces(range)).map(|piece| model.read(node, piece.start(), piece.len()));
    let mut pieces = pieces.buffered(AT_ONCE);
    while let Some(bytes) = pieces.try_next().await? {
        if print::bytes(&bytes)? == Reader::Gone {
            break;
        }
    }
    Ok(node)
}

fn pieces(range: ContentRange) -> impl Iterator<Item = ContentRange> {
    let mut at = range.start();
    std::iter::from_fn(move || {
        let piece = ContentRange::new(at, at.saturating_add(PIECE).min(range.end()));
        at = piece.end();
        (!piece.is_empty()).then_some(piece)
    })
}

/// `A-B`, `A-` or `-N` of a file of `size` bytes, as HTTP means them (RFC 9110 §14.1.2): both ends are included, what
/// is beyond the file's end is cut off.
fn parse(text: &str, size: u64) -> Result<ContentRange> {
    let invalid = || {
        let doing = format!("--range: {text:?} is no range");
        Error::new(Kind::Invalid, doing).hint("write it as A-B with both bytes included, A- or -N")
    };
    let (first, last) = text.split_once('-').ok_or_else(invalid)?;
    let number = |digits: &str| -> Result<u64> {
        let plain = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
        plain.then(|| digits.parse().ok()).flatten().ok_or_else(invalid)
    };
    let (start, end) = match (first, last) {
        ("", last) => (size.saturating_sub(number(last)?), size),
        (first, "") => (number(first)?, size),
        (first, last) => (number(first)?, number(last)?.saturating_add(1)),
    };
    if start >= end || start >= size {
        return Err(Error::new(Kind::Invalid, format!("--range: {text} has no byte of the file's {size}")));
    }
    Ok(ContentRange::new(start, end.min(size)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Option<(u64, u64)> {
        parse(text, 100).ok().map(|range| (range.start(), range.end()))
    }

    #[test]
    fn a_range_includes_both_ends_and_is_cut_at_the_end_of_the_file() {
        assert_eq!(range("0-0"), Some((0, 1)));
        assert_eq!(range("10-19"), Some((10, 20)));
        assert_eq!(range("90-"), Some((90, 100)));
        assert_eq!(range("-10"), Some((90, 100)));
        assert_eq!(range("-1000"), Some((0, 100)));
        assert_eq!(range("50-18446744073709551615"), Some((50, 100)));
    }

    #[test]
    fn a_range_without_a_byte_of_the_file_is_refused() {
        for text in
            ["", "-", "5", "9-3", "100-", "100-200", "-0", "a-b", "+1-2", "1-2-3", "99999999999999999999-"]
        {
            assert_eq!(range(text), None, "{text}");
        }
        assert!(parse("0-", 0).is_err());
    }

    #[test]
    fn pieces_cover_the_range_once() {
        let all: Vec<_> = pieces(ContentRange::new(5, 2 * PIECE + 6)).collect();
        assert_eq!(all.len(), 3);
        assert_eq!(all.iter().map(|piece| piece.len()).sum::<u64>(), 2 * PIECE + 1);
        assert!(all.windows(2).all(|pair| pair[0].end() == pair[1].start()));
        assert_eq!(pieces(ContentRange::new(7, 7)).count(), 0);
    }
}
