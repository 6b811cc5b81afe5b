//! A compressed layer that has no index: it goes by once, which is not done here.
//!
//! Where it has a [guide](super::guide), its files are known at once. Else they become known as it goes by; but where an
//! annotation names the layer's file, its first header says whether that is so, and how large the file is. Called by
//! [`find`](super::find()).

use std::sync::Arc;

use futures_util::future::join;

use super::guide::{self, Guided};
use super::pass::{Event, Pass, Spacing};
use super::plain::{Derived, Task};
use super::{Coding, Entry, Layer, between};
use crate::error::{Error, Kind, Result};
use crate::range::{ContentRange, StoredRange};
use crate::repository::read_all;

/// How much of the layer's start is read: headers are at most some KiB.
const START: u64 = 64 << 10;

/// How much of it is decoded at once, so that what decodes to much is given up early.
const PIECE: usize = 4 << 10;

/// The layer `layer` of `task`, which is compressed, with the files that are known of it.
///
/// # Errors
/// Those of reading. What can't be decoded is whoever streams the layer to say.
pub(super) async fn derive(task: Task<'_>, mut layer: Layer) -> Result<Derived> {
    let described = Arc::new(task.layer.clone());
    let (guided, found) = join(guide::find(&task, &layer), start(&task, &layer)).await;
    // A tree that has no name of it can't tell that none is to come.
    if let Some(guided) = guided.filter(|guided| !guided.entries.is_empty()) {
        let Guided { guide, extents, entries, warnings } = guided;
        layer.gaps = between(&extents, guide.table.content());
        layer.extents = extents;
        layer.coding = Coding::Streamed(described, Some(Arc::new(guide)));
        return Ok(Derived { layer, entries, warnings });
    }
    layer.coding = Coding::Streamed(described, None);
    let mut entries = Vec::new();
    if let Some((entry, extent)) = found? {
        layer.extents.extend(extent);
        entries.push(entry);
    }
    Ok(Derived { layer, entries, warnings: Vec::new() })
}

/// The file that an annotation names, where it does and the layer begins with it.
async fn start(task: &Task<'_>, layer: &Layer) -> Result<Option<Found>> {
    if task.layer.path.is_none() || layer.blob.size == 0 {
        return Ok(None);
    }
    let start = StoredRange::new(0, START.min(layer.blob.size));
    let start = read_all(task.repository, &layer.blob, start).await?;
    Ok(first(task, &start))
}

/// A file and where it lies in the content; `None` where it is empty.
type Found = (Entry, Option<ContentRange>);

/// The one file of the layer whose stored bytes begin so; `None` where the annotation does not name it.
fn first(task: &Task<'_>, start: &[u8]) -> Option<Found> {
    let mut pass = Pass::new(task.layer, task.number, Spacing::default()).ok()?;
    let (mut extent, mut entry) = (None, None);
    let mut sink = |event: Event<'_>| match event {
        Event::Extent(_, range) => {
            extent = Some(range);
            Ok(())
        }
        Event::Entry(found) => {
            entry = Some(found.clone());
            Err(enough())
        }
        Event::Content { .. } => Err(enough()),
        Event::Window(_) => Ok(()),
    };
    for piece in start.chunks(PIECE) {
        if pass.step(piece, &mut sink).is_err() {
            break;
        }
    }
    entry.filter(|_| pass.is_one_file()).map(|entry| (entry, extent))
}

/// Ends a pass that has shown what it was begun for.
fn enough() -> Error {
    Error::new(Kind::Invalid, "the first file is known")
}
