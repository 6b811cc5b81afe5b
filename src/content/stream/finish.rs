//! What a layer that has gone by leaves behind: a proof, or word of what is wrong with it, and its index.

use std::fs::File;
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::drive::Driven;
use super::{Names, State, Stream};
use crate::content::extent::Extent;
use crate::content::loader::Loader;
use crate::error::{Error, Kind, Result};
use crate::index::spool::Spool;
use crate::index::{Coding, Layer, local};
use crate::oci::Digest;

/// How many bytes of windows are held in memory where the store fails: those of some 8 GiB of content.
const IN_MEMORY: u64 = 64 << 20;

/// What going by has come to.
pub(super) struct Gone {
    pub(super) decoded: Result<Driven>,
    pub(super) digest: Result<Digest>,
}

impl Loader {
    /// Takes down what has gone by. Blocks.
    pub(super) fn finish_pass(&self, layer: usize, stream: &Stream, gone: Gone) {
        if self.board.closed() {
            return;
        }
        match self.settle_pass(layer, stream, gone) {
            Ok(()) => stream.change(|now| {
                (now.settled, now.state) = (u64::MAX, State::Over);
            }),
            Err(error) => {
                tracing::error!(layer, %error, "a compressed layer has not gone by well");
                stream.change(|now| {
                    if matches!(now.names, Names::Coming) {
                        now.names = Names::Lost(error.clone());
                    }
                    now.state = State::Broken(error);
                });
            }
        }
    }

    fn settle_pass(&self, layer: usize, stream: &Stream, gone: Gone) -> Result<()> {
        let described = self.index.layers.get(layer);
        let described = described.ok_or_else(|| Error::new(Kind::Invalid, "no such layer"))?;
        let digest = gone.digest?;
        if digest != described.blob.digest {
            if stream.is_pinned() {
                return Err(self.doubt(layer, &digest));
            }
            self.poison(layer, &format!("its bytes are {digest}"));
            return self.refuse_poisoned(layer);
        }
        let driven = gone.decoded?;
        if let Some(guided) = &stream.guided
            && (!guided.guide.is_of(&driven.passed.entries) || described.extents != driven.passed.extents)
        {
            return Err(self.contradicted(layer, &stream.layer.name()));
        }
        self.set_proved(layer);
        // Names last: who waits for them in strict finds the layer proved.
        stream.change(|now| {
            if matches!(now.names, Names::Coming) {
                now.names = Names::Known;
            }
        });
        match self.keep_index(layer, stream, driven) {
            Ok(passed) => drop(stream.passed.set(passed)),
            Err(error) => {
                tracing::warn!(layer = %described.blob.digest, %error, "its index can't be kept; it goes by again when it must");
            }
        }
        Ok(())
    }
}

impl Loader {
    /// What went by of a layer with pinned parts is not the layer. What was served was held to its parts, and is right. Blocks.
    fn doubt(&self, layer: usize, digest: &Digest) -> Error {
        self.discard(layer);
        self.extents(layer).for_each(Extent::keep_vouched);
        let doing = format!("all of the layer as {} gave it is {digest}", self.repository.place());
        Error::new(Kind::Integrity, doing).hint("what its table of contents vouches for is read all the same")
    }

    /// Writes the index of a layer that was proved, and gives the layer as the index has it. Blocks.
    fn keep_index(&self, number: usize, stream: &Stream, driven: Driven) -> Result<Layer> {
        let Driven { passed, windows, digests } = driven;
        let windows =
            windows.ok_or_else(|| Error::new(Kind::Storage, "its checkpoints could not be put aside"))?;
        let layer = windows.layer(&stream.layer, &passed);
        let write = |file: &File| local::write(file, &layer, &passed.entries, digests.clone());
        let (store, who) = (&self.shelf.store, &self.shelf.who);
        let kept = store.keep_index(who, &layer.blob.digest, &stream.layer.reading(), write).or_else(|error| {
            if checkpoints(&layer) > IN_MEMORY {
                return Err(error);
            }
            tracing::warn!(layer = %layer.blob.digest, %error, "its index is kept in memory, for this mount");
            let file = in_memory()?;
            write(&file).map(|()| file)
        })?;
        let (mut found, _) = local::open(Arc::new(kept), &layer.blob, number)?;
        found.media_type.clone_from(&stream.layer.descriptor.media_type);
        Ok(found)
    }

    /// Where the windows of a layer are put aside while it goes by, and how many bytes of them; `None` where there is no place.
    /// Blocks.
    pub(super) fn spool(&self, layer: &Digest) -> Option<(Spool, u64)> {
        match self.shelf.store.scratch(&self.shelf.who, layer) {
            Ok(file) => Some((Spool::new(file), u64::MAX)),
            Err(_) => Some((Spool::new(in_memory().ok()?), IN_MEMORY)),
        }
    }
}

/// How many bytes of windows a layer's index has.
fn checkpoints(layer: &Layer) -> u64 {
    match &layer.coding {
        Coding::Spans(spans) => spans.checkpoints.as_ref().map_or(0, |section| section.range.len()),
        Coding::Stored | Coding::Streamed(..) => 0,
    }
}

/// A file without a disk, for what the store cannot have.
fn in_memory() -> Result<File> {
    let made = memfd_create("weightfs-index", MFdFlags::MFD_CLOEXEC);
    made.map(File::from)
        .map_err(|error| Error::from_source(Kind::Storage, "cannot make a file in memory", error))
}
