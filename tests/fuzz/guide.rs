//! A compressed layer from anybody that says itself where its parts lie: refused, or read by what it says as it goes by.
//!
//! The first byte says how the layer is compressed and whether the manifest pins its table; the rest is the layer.

use std::sync::LazyLock;

use tokio::runtime::{Builder, Runtime};
use weightfs::codec::estargz::{self, Footer};
use weightfs::codec::gzip::Members;
use weightfs::codec::toc::ContentDigest;
use weightfs::codec::zstd::{Scanner, chunked};
use weightfs::index::guide::{self, Guide};
use weightfs::index::pass::{Pass, Passed, Spacing};
use weightfs::index::sections::Table;
use weightfs::index::{Guides, Layer};
use weightfs::oci::artifact::ModelLayer;
use weightfs::oci::manifest::Manifest;
use weightfs::oci::{Artifact, Descriptor};
use weightfs::range::{ContentRange, StoredRange};
use weightfs::repository::Memory;

/// As much content as one input may lead to: a bomb is no finding.
const LIMIT: usize = 4 << 20;

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_time().build().expect("a runtime"));

/// Runs the input, and panics where it shows a fault.
pub fn run(data: &[u8]) {
    let Some((form, stored)) = data.split_first() else { return };
    let (is_zstd, is_pinned) = (form & 1 == 1, form & 2 == 2);
    let memory = Memory::new();
    let blob = memory.put(stored.to_vec());
    let annotations = if is_pinned { pinned(stored, is_zstd) } else { None };
    let suffix = if is_zstd { "tar+zstd" } else { "tar+gzip" };
    let descriptor = Descriptor {
        media_type: format!("application/vnd.cncf.model.weight.v1.{suffix}"),
        digest: blob.digest,
        size: blob.size,
        annotations: annotations.into_iter().flatten().collect(),
    };
    let Ok(artifact) = Artifact::read(Manifest { layers: vec![descriptor], ..Manifest::default() }) else {
        return;
    };
    let Some(described) = artifact.layers.first() else { return };
    let found = RUNTIME.block_on(guide::of(&memory, described, Guides::Checked));
    let Some((guide, layer)) = found else { return };
    lies_in(&guide, &layer, stored.len() as u64);
    if let Some(content) = content(stored, is_zstd)
        && leads_right(&guide, stored, &content, is_zstd)
        && let Some(passed) = passed(described, stored)
    {
        assert!(guide.is_of(&passed.entries), "{:?} and not {:?}", guide.entries, passed.entries);
        assert_eq!(layer.extents, passed.extents);
    }
}

/// The annotations of a manifest that pins the table that stands at the layer's end.
fn pinned(stored: &[u8], is_zstd: bool) -> Option<Vec<(String, String)>> {
    let size = stored.len() as u64;
    let slice = |range: StoredRange| stored.get(range.start() as usize..range.end() as usize);
    if is_zstd {
        let position = chunked::footer(stored, size).ok()??;
        let digest = ContentDigest::of(slice(position.stored)?);
        let numbers = [position.stored.start(), position.stored.len(), position.content, 1];
        let numbers = numbers.map(|number| number.to_string()).join(":");
        let key = usize::from(position.dialect == chunked::Dialect::Stargz);
        let annotation = |keys: [&str; 2], value: String| (keys[key].to_owned(), value);
        return Some(vec![
            annotation(chunked::POSITION_KEYS, numbers),
            annotation(chunked::CHECKSUM_KEYS, digest.to_string()),
        ]);
    }
    let Footer::Table(range) = estargz::footer(stored, size).ok()?? else { return None };
    let content = content(slice(range)?, false)?;
    let digits = content.get(124..135)?.iter().take_while(|byte| (b'0'..=b'7').contains(byte));
    let len = digits.fold(0_usize, |len, digit| len.saturating_mul(8) + usize::from(digit - b'0'));
    let json = content.get(512..512_usize.checked_add(len)?)?;
    Some(vec![(estargz::DIGEST_KEY.to_owned(), ContentDigest::of(json).to_string())])
}

/// Everything that a guide says lies in the layer, in order.
fn lies_in(guide: &Guide, layer: &Layer, size: u64) {
    let content = guide.table.content();
    let (mut at, mut end) = (0, 0);
    for (stored, _) in guide.table.spans() {
        assert!(stored.start() >= at && stored.end() <= size);
        at = stored.end();
    }
    for extent in &layer.extents {
        assert!(!extent.is_empty() && extent.start() >= end && extent.end() <= content);
        end = extent.end();
    }
    let mut end = 0;
    for part in guide.parts.iter().flatten() {
        assert!(part.content.start() >= end && part.content.end() <= content);
        end = part.content.end();
    }
}

/// What the bytes decode to; `None` where that is an error, or too much.
fn content(stored: &[u8], is_zstd: bool) -> Option<Vec<u8>> {
    let (mut content, mut room, mut left) = (Vec::new(), vec![0; 70_000], stored);
    let mut members = Members::new().ok()?;
    let mut frames = Scanner::of_known().ok()?;
    loop {
        let (read, written) = match is_zstd {
            true => frames.push(left, &mut room).map(|moved| (moved.stored, moved.content)).ok()?,
            false => members.step(left, &mut room).map(|moved| (moved.read, moved.written)).ok()?,
        };
        left = &left[read..];
        content.extend_from_slice(&room[..written]);
        if content.len() > LIMIT {
            return None;
        }
        if left.is_empty() && written < room.len() {
            break;
        }
    }
    match is_zstd {
        true => frames.finish().map(drop).ok()?,
        false => members.finish().ok()?,
    }
    Some(content)
}

/// Whether every span decodes to what lies there.
fn leads_right(guide: &Guide, stored: &[u8], whole: &[u8], is_zstd: bool) -> bool {
    let spans: Vec<(StoredRange, ContentRange)> = match &*guide.table {
        Table::Gzip(table) => {
            (0..table.len()).map(|at| (table.stored(table.content(at)), table.content(at))).collect()
        }
        Table::Zstd(spans) => spans.iter().map(|span| (span.stored, span.content)).collect(),
    };
    guide.table.content() == whole.len() as u64
        && spans.into_iter().all(|(at, range)| {
            let found = content(&stored[at.start() as usize..at.end() as usize], is_zstd);
            found.is_some_and(|found| found == whole[range.start() as usize..range.end() as usize])
        })
}

/// What the layer is found to be as it goes by.
fn passed(layer: &ModelLayer, stored: &[u8]) -> Option<Passed> {
    let mut pass = Pass::new(layer, 0, Spacing::default()).ok()?;
    pass.step(stored, &mut |_| Ok(())).ok()?;
    pass.finish(&mut |_| Ok(())).ok()
}
