//! What decoding needs at the start of a span: had on first touch, verified, and done without where it is lost.
//!
//! Those of an index of this machine lie in a file of its disk, which may be damaged at any time. Then decoding starts at an
//! earlier span, at worst where a member of the compressed layer begins, and the file is let go of: for the next mount the layer
//! goes by again. Called by `reader` and `part`.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use bytes::Bytes;

use super::bound::ATTEMPTS;
use super::loader::Loader;
use super::spans::Table;
use crate::codec::gzip;
use crate::error::{Error, Kind, Result};
use crate::index::{Home, Section};
use crate::range::StoredRange;

impl Loader {
    /// The window that decoding needs at the start of a span, verified; `None` where it needs none.
    ///
    /// # Errors
    /// `Integrity` where its bytes are not what the table says, else what the repository says, or `Storage`.
    pub(super) async fn window(&self, layer: usize, table: &Table, span: usize) -> Result<Option<Bytes>> {
        let Some(place) = table.window(span) else { return Ok(None) };
        let no_layer = || Error::new(Kind::Invalid, "no such layer");
        let decoding = self.decoding(layer).ok_or_else(no_layer)?;
        if let Some(window) = decoding.windows.lock().get(&span) {
            return Ok(Some(window.clone()));
        }
        let (home, range) = self.place_of(layer, &place)?;
        for _ in 0..attempts(home) {
            let window = self.read_index(home, range).await?;
            if *blake3::hash(&window).as_bytes() == place.digest {
                decoding.windows.lock().put(span, window.clone());
                return Ok(Some(window));
            }
            tracing::warn!(span, "a window of the index is wrong");
        }
        Err(Error::new(Kind::Integrity, format!("the window of span {span} is not what the index says"))
            .hint("push the artifact again; 'weightfs index add' writes a new index"))
    }

    /// The span that decoding has to start at to come to `span`: itself, or where its window is lost with a part of an index
    /// of this machine, the nearest one before that it can start at. Costs a look at the local disk.
    pub(super) async fn start_for(&self, layer: usize, table: &Table, span: usize) -> usize {
        let file = match self.checkpoints(layer).map(|section| &section.home) {
            Some(Home::File(file)) => file,
            Some(Home::Repository(_)) | None => return span,
        };
        let Some(decoding) = self.decoding(layer) else { return span };
        let mut start = span;
        // The first one needs no window.
        while start > 0 {
            let is_lost = decoding.lost.lock().contains(&start);
            if !is_lost {
                let Err(error) = self.window(layer, table, start).await else { return start };
                tracing::warn!(layer, span = start, %error, "a checkpoint is lost; decoding starts before it");
                decoding.lost.lock().insert(start);
                // What can't be read now may be read another time.
                if error.kind() == Kind::Integrity {
                    self.let_go_of_index(layer, file);
                }
            }
            start -= 1;
        }
        start
    }

    /// Takes a damaged index out of the store, beside the readers.
    fn let_go_of_index(&self, layer: usize, file: &Arc<File>) {
        let is_kept = file.metadata().is_ok_and(|metadata| metadata.nlink() > 0);
        let Some(digest) = self.layer(layer).map(|layer| layer.blob.digest.clone()).filter(|_| is_kept)
        else {
            return;
        };
        let (store, who, file) = (Arc::clone(&self.shelf.store), self.shelf.who.clone(), Arc::clone(file));
        drop(tokio::task::spawn_blocking(move || store.drop_index(&who, &digest, &file)));
    }

    fn checkpoints(&self, layer: usize) -> Option<&Section> {
        self.spans_of(layer)?.checkpoints.as_ref()
    }

    /// Where a window lies in its index.
    fn place_of(&self, layer: usize, place: &gzip::WindowPlace) -> Result<(&Home, StoredRange)> {
        let missing =
            || Error::new(Kind::Invalid, "the index has not the windows that its table of spans says");
        let all = self.checkpoints(layer).ok_or_else(missing)?;
        let start = all.range.start().checked_add(place.range.start());
        let range = start.and_then(|start| StoredRange::at(start, place.range.len()));
        let range = range.filter(|range| all.range.covers(*range)).ok_or_else(missing)?;
        Ok((&all.home, range))
    }
}

/// How often is asked: a disk gives the same again.
fn attempts(home: &Home) -> usize {
    match home {
        Home::Repository(_) => ATTEMPTS,
        Home::File(_) => 1,
    }
}
