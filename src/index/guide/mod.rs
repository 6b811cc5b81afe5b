//! What a compressed layer says itself of where its frames or members lie: a zstd seek table, or a table of contents as
//! zstd:chunked and eStargz have it. With it the layer's files are known and read before the layer has gone by.
//!
//! Nothing of it is believed that few small reads can check: the places must cover the blob, and the archive's headers, which
//! are read through them, must follow one another to its end. Names, sizes and extents are those of the headers. Where that
//! does not come out, or would take too much, there is no guide and the layer goes by once as any other. What it can't
//! check is found out later: by who decodes with it, and when the layer goes by. Called by [`streamed`](super::streamed).

mod contents;
mod decode;
mod front;
mod hop;
mod probe;
mod room;
mod segments;

use std::sync::Arc;

use super::plain::Task;
use super::sections::Table;
use super::{Allowance, Entry, Layer, compression, cover};
use crate::codec::toc::ContentDigest;
use crate::error::Result;
use crate::oci::artifact::ModelLayer;
use crate::range::ContentRange;
use crate::repository::Repository;
use contents::Found;
use hop::{Hopped, Said, Source};
use probe::Probe;
use room::Desk;
pub(super) use room::Room;

/// The smallest layer that is looked into: a smaller one is here as soon as its table would be.
const LEAST: u64 = 1 << 20;

/// What a span takes of memory: here, and once more where it is read by.
const SPAN: usize = 64;

/// The longest part of a file that is held to its digest before it is served: what is in memory at once for it.
const PART: u64 = 8 << 20;

/// What a layer says of itself, as far as it was checked.
#[derive(Debug)]
pub struct Guide {
    /// Where its frames or members lie. Without digests: whether they are there is found out when they are decoded.
    pub table: Arc<Table>,
    /// Its entries, as they must turn out to be when it has gone by; with no times where those that nobody vouches for are
    /// not to be shown.
    pub entries: Vec<Entry>,
    /// Where the manifest pins the table of contents: the parts that make up all of its files, in order, each with the digest
    /// that its content must have. `None` where nobody vouches for them.
    pub parts: Option<Vec<Part>>,
}

impl Guide {
    /// Whether `found`, the entries of the layer when it has gone by, are those that it was guided by.
    #[must_use]
    pub fn is_of(&self, found: &[Entry]) -> bool {
        let same = |(said, found): (&Entry, &Entry)| {
            let mtime = if said.mtime == 0 { 0 } else { found.mtime };
            *said == Entry { mtime, ..found.clone() }
        };
        self.entries.len() == found.len() && self.entries.iter().zip(found).all(same)
    }
}

/// A stretch of a layer's content whose digest is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where it lies in the layer's content.
    pub content: ContentRange,
    /// The SHA-256 of its content.
    pub digest: ContentDigest,
}

/// Which guides count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Guides {
    /// All that could be checked.
    #[default]
    Checked,
    /// Those alone whose table the manifest pins.
    Pinned,
    /// None: nobody is asked.
    None,
}

/// A guide and what the layer is by it.
pub(super) struct Guided {
    pub(super) guide: Guide,
    pub(super) extents: Vec<ContentRange>,
    pub(super) entries: Vec<Entry>,
    pub(super) warnings: Vec<String>,
}

/// The guide of the compressed `layer` of `task`; `None` where it has none, or none that is of use, which is logged.
///
/// Costs a read of the layer's end, one of its table where that is longer, and one for each stretch of headers, 256 at most
/// and a sixteenth of the layer, or 8 MiB where that is more; memory of 64 MiB at most meanwhile, of all layers together. Waits
/// no longer than the [room](Room) of the artifact has time: a repository that gives no ranges, or nothing, keeps no mount
/// waiting. Decodes on threads that may be busy.
pub(super) async fn find(task: &Task<'_>, layer: &Layer) -> Option<Guided> {
    if layer.blob.size < LEAST || task.guides == Guides::None {
        return None;
    }
    found(task, layer).await
}

/// The guide of a compressed layer of whatever size, and the layer by it; `None` where it has none, or none that is of use.
///
/// What [`find`](super::find()) does for each layer that is worth it, with the same bounds.
pub async fn of(repository: &dyn Repository, layer: &ModelLayer, guides: Guides) -> Option<(Guide, Layer)> {
    let (allowance, room, mut bare) = (Allowance::headers(0), Room::default(), cover::bare(layer));
    let task = Task { repository, layer, number: 0, allowance: &allowance, guides, room: &room };
    let Guided { guide, extents, .. } = found(&task, &bare).await?;
    bare.extents = extents;
    Some((guide, bare))
}

async fn found(task: &Task<'_>, layer: &Layer) -> Option<Guided> {
    let Some(found) = task.room.in_time(look(task, layer)).await else {
        let layer = task.layer.name();
        tracing::info!(layer, "what it says of its parts does not come soon enough: it goes by once instead");
        return None;
    };
    let of_no_use = |error: &crate::Error| {
        let layer = task.layer.name();
        tracing::info!(layer, %error, "what it says of its parts is of no use: it goes by once instead");
    };
    found.inspect_err(of_no_use).ok().flatten().filter(|guided| match task.guides {
        Guides::Checked => true,
        Guides::Pinned => guided.guide.parts.is_some(),
        Guides::None => false,
    })
}

/// Looks with a share of the memory, and once more with all of it where the other layers had left too little.
async fn look(task: &Task<'_>, layer: &Layer) -> Result<Option<Guided>> {
    let desk = task.room.share();
    match look_at(task, layer, desk.clone()).await {
        Err(_) if desk.is_crowded() => look_at(task, layer, task.room.all().await?).await,
        found => found,
    }
}

async fn look_at(task: &Task<'_>, layer: &Layer, desk: Desk) -> Result<Option<Guided>> {
    let Some(how) = compression(task.layer.packaging) else { return Ok(None) };
    let probe = Probe::new(task.repository, &layer.blob, desk);
    match contents::find(&probe, task.layer, how).await? {
        None => Ok(None),
        Some(Found::Frames(spans)) => {
            task.room.hold(spans.len(), SPAN)?;
            let mut source = Source::Frames(Box::new(front::Front::new(&probe, &spans)));
            let hopped = hop::hop(task, &mut source, spans.content(), Said::default()).await?;
            Ok(Some(guided(task, hopped, Table::Zstd(spans), None)))
        }
        Some(Found::Contents(mut contents)) => {
            let after = contents.after.take();
            let contents = Arc::new(contents);
            let laid = segments::lay_out(&probe, &contents, after).await?;
            task.room.hold(laid.parts.len(), SPAN + size_of::<Part>())?;
            let content = laid.content;
            let mut source = Source::Pieces(laid.pieces);
            let entries = if contents.is_pinned { contents.toc.entries.as_slice() } else { &[] };
            let said = Said { entries, table: laid.after };
            let hopped = hop::hop(task, &mut source, content, said).await?;
            let vouched = contents.is_pinned && hopped.agrees;
            let parts = if vouched { segments::covering(laid.parts, &hopped) } else { None };
            if contents.is_pinned && parts.is_none() {
                tracing::info!(
                    layer = task.layer.name(),
                    "its table of contents has no digest for all of its files"
                );
            }
            Ok(Some(guided(task, hopped, laid.table, parts)))
        }
    }
}

fn guided(task: &Task<'_>, hopped: Hopped, table: Table, parts: Option<Vec<Part>>) -> Guided {
    let Hopped { extents, mut entries, warnings, .. } = hopped;
    if task.guides == Guides::Pinned {
        // Names, kinds, sizes and permissions are the table's as well; times are the headers' alone.
        entries.iter_mut().for_each(|entry| entry.mtime = 0);
    }
    Guided {
        guide: Guide { table: Arc::new(table), entries: entries.clone(), parts },
        extents,
        entries,
        warnings,
    }
}

#[cfg(test)]
pub(crate) mod forms;
#[cfg(test)]
mod tests;
