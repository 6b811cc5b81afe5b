//! A plan carried out: layers are digested and uploaded side by side, then come index and config, the manifest last.
//!
//! A layer is uploaded while others are still digested, soon after it was read, when the system still has its bytes.
//! What the target has is not sent again, so that a run that was ended goes on where it was. Called by the command
//! `pack`; [`add`](super::add) uploads through [`Destination`] too.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::Watch;
use super::compress::{Compressed, compress};
use super::digest::{Digested, Stop, digest};
use super::layer::Layer;
use super::manifest::{Written, config, manifest};
use super::plan::Plan;
use crate::error::{Error, Kind, Result};
use crate::index::format::{Encoded, Part, encode};
use crate::index::local::renumbered;
use crate::index::{ChunkDigest, Index, compression};
use crate::oci::artifact::Family;
use crate::oci::manifest::OCI_MANIFEST;
use crate::oci::{Blob, Digest};
use crate::repository::MANIFEST_LIMIT;
use crate::repository::push::{Piece, Target, Upload};

/// How many blobs are uploaded at once.
pub(super) const UPLOADS: usize = 4;

/// Where an artifact is put.
#[derive(Debug)]
pub struct Destination {
    target: Target,
    /// The tag that is moved to it; `None`: it has its digest only.
    tag: Option<String>,
    /// Repositories of the same registry that may have its blobs.
    mount_from: Vec<String>,
    /// Digests that were put or are being put by this value.
    claimed: Mutex<HashSet<Digest>>,
    done: Mutex<Done>,
}

/// What became of the blobs, in stored bytes; of equal ones, which are one blob, once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Sent.
    pub uploaded: u64,
    /// Taken from another repository of the registry.
    pub mounted: u64,
    /// There before.
    pub present: u64,
}

/// An artifact that was put somewhere.
#[derive(Clone, Debug)]
pub struct Published {
    /// The manifest's digest.
    pub digest: Digest,
    /// The index, if it has one.
    pub index: Option<Blob>,
    /// What became of its blobs.
    pub done: Done,
}

impl Destination {
    /// A destination for one artifact: `target`, under `tag`. Blobs that `mount_from` has, repositories of the same
    /// registry, are taken from there.
    #[must_use]
    pub fn new(target: Target, tag: Option<String>, mount_from: Vec<String>) -> Self {
        let (claimed, done) = (Mutex::default(), Mutex::default());
        Self { target, tag, mount_from, claimed, done }
    }

    /// What became of the blobs so far.
    #[must_use]
    pub fn done(&self) -> Done {
        *self.done.lock()
    }

    /// Sees to it that the blob is there, or will be once the call that was first with its digest returns. Costs one
    /// request where it is; nothing where it was seen to before, which is not counted again either.
    ///
    /// # Errors
    /// Those of [`Target::has`], [`Target::mount`] and [`Target::put`].
    pub(super) async fn put(&self, blob: &Blob, pieces: Vec<Piece>, watch: &Watch) -> Result<()> {
        if !self.claimed.lock().insert(blob.digest.clone()) {
            watch(blob.size);
            return Ok(());
        }
        if self.target.has(blob).await? {
            watch(blob.size);
            self.done.lock().present += blob.size;
            return Ok(());
        }
        for from in &self.mount_from {
            if self.target.mount(blob, from).await? {
                watch(blob.size);
                self.done.lock().mounted += blob.size;
                return Ok(());
            }
        }
        self.target.put(&Upload { blob: blob.clone(), pieces }, &**watch).await?;
        self.done.lock().uploaded += blob.size;
        Ok(())
    }

    /// [`put`](Self::put) of bytes in memory, which are `what`.
    pub(super) async fn put_bytes(&self, what: &str, bytes: &Bytes, watch: &Watch) -> Result<Blob> {
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let blob = Blob { digest: Digest::of(bytes), size };
        let put = self.put(&blob, vec![Piece::Bytes(bytes.clone())], watch).await;
        put.map_err(|error| error.context(format!("cannot upload {what} to {}", self.target.place())))?;
        Ok(blob)
    }

    /// [`put`](Self::put) of an index.
    pub(super) async fn put_index(&self, index: &Encoded, watch: &Watch) -> Result<()> {
        let piece = |part: &Part| match part.clone() {
            Part::Bytes(bytes) => Piece::Bytes(bytes),
            Part::File(file, range) => Piece::Open { file, range },
        };
        let put = self.put(&index.blob, index.parts.iter().map(piece).collect(), watch).await;
        put.map_err(|error| error.context(format!("cannot upload the index to {}", self.target.place())))
    }

    /// Puts the manifest there, once all that it names is.
    pub(super) async fn tag(&self, media_type: &str, manifest: &Bytes) -> Result<Digest> {
        let tagged = self.target.tag(self.tag.as_deref(), media_type, manifest).await;
        tagged
            .map_err(|error| error.context(format!("cannot publish the manifest in {}", self.target.place())))
    }

    /// Where it is, as messages name it.
    pub(super) fn place(&self) -> String {
        self.target.place()
    }
}

/// Makes the artifact that was planned, and gives its digest. `watch` is told of twice the plan's bytes, and a little
/// more: once where they are digested, once where they are uploaded.
///
/// The same files give the same digest. A run that was ended before leaves blobs that the next one finds. Must be called
/// within a tokio runtime; holds 12 MiB for each core, and what four uploads hold.
///
/// # Errors
/// `Busy` where a file changed meanwhile, naming it; `Storage` where one can't be read; those of the target;
/// `Unsupported` where the manifest would be larger than registries take.
pub async fn publish(plan: &Plan, destination: &Destination, watch: &Watch) -> Result<Published> {
    refuse_too_many(plan)?;
    let made = make_and_upload(plan, destination, watch).await?;
    let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
    for (layer, made) in plan.layers.iter().zip(&made) {
        layers.push(Written::layer(layer, made.blob())?);
        diff_ids.push(made.diff_id().clone());
    }
    let index = if plan.index { Some(index(plan, &made)?) } else { None };
    if let Some(index) = &index {
        destination.put_index(index, watch).await?;
        layers.push(Written::index(index, Family::Cncf, plan.time)?);
        diff_ids.push(index.blob.digest.clone());
    }
    let config = destination.put_bytes("the config", &config(plan, &diff_ids)?, watch).await?;
    let digest = destination.tag(OCI_MANIFEST, &manifest(&config, &layers)?).await?;
    Ok(Published { digest, index: index.map(|index| index.blob), done: destination.done() })
}

/// The artifact's index: entries and extents as they would be found in the published layers.
fn index(plan: &Plan, made: &[Made]) -> Result<Encoded> {
    let (mut index, mut chunks) = (Index::default(), Vec::new());
    for (number, (layer, made)) in plan.layers.iter().zip(made).enumerate() {
        let (layer, entries) = match made {
            Made::AsItIs(digested) => {
                let (layer, entry) = layer.indexed(&digested.blob, number);
                (layer, vec![entry])
            }
            Made::Compressed(compressed) => {
                let entries = compressed.entries.iter().cloned();
                (compressed.layer.clone(), entries.map(|entry| renumbered(entry, number)).collect())
            }
        };
        index.layers.push(layer);
        index.entries.extend(entries);
        chunks.push(made.chunks().to_vec());
    }
    encode(&index, &chunks).map_err(|error| error.context("cannot write the index"))
}

/// Digests are all of one length, so that the manifest's size is known before there is any.
fn refuse_too_many(plan: &Plan) -> Result<()> {
    let any = Digest::of(b"");
    let written = |layer: &Layer| Written::layer(layer, &Blob { digest: any.clone(), size: layer.size() });
    let layers = plan.layers.iter().map(written).collect::<Result<Vec<_>>>()?;
    let len = manifest(&Blob { digest: any.clone(), size: 0 }, &layers)?.len();
    // The index's own descriptor takes less than the kilobyte.
    if u64::try_from(len).is_ok_and(|len| len.saturating_add(1024) <= MANIFEST_LIMIT) {
        return Ok(());
    }
    let count = plan.layers.len();
    let doing = format!("{count} files make a manifest of {len} bytes, and registries take {MANIFEST_LIMIT}");
    Err(Error::new(Kind::Unsupported, doing).hint("put small files into an archive"))
}

/// Largest first: a large one that came last would be digested while nothing is uploaded, and the other way round.
fn by_size(plan: &Plan) -> Vec<usize> {
    let mut order: Vec<(usize, u64)> = plan.layers.iter().map(Layer::size).enumerate().collect();
    order.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    order.into_iter().map(|(number, _)| number).collect()
}

/// A layer as it was made.
enum Made {
    /// Of its content, whose digests these are.
    AsItIs(Digested),
    /// Compressed.
    Compressed(Box<Compressed>),
}

impl Made {
    /// Digest and size of its stored bytes.
    fn blob(&self) -> &Blob {
        match self {
            Self::AsItIs(digested) => &digested.blob,
            Self::Compressed(compressed) => &compressed.blob,
        }
    }

    /// The digest of its content.
    fn diff_id(&self) -> &Digest {
        match self {
            Self::AsItIs(digested) => &digested.blob.digest,
            Self::Compressed(compressed) => &compressed.diff_id,
        }
    }

    fn chunks(&self) -> &[ChunkDigest] {
        match self {
            Self::AsItIs(digested) => &digested.chunks,
            Self::Compressed(compressed) => &compressed.chunks,
        }
    }

    fn pieces(&self, layer: &Layer) -> Vec<Piece> {
        match self {
            Self::AsItIs(_) => layer.pieces(),
            Self::Compressed(compressed) => compressed.pieces(),
        }
    }

    /// Digests the layer, or compresses it. Blocks.
    fn of(layer: &Layer, stop: &AtomicBool, read: &(dyn Fn(u64) + Sync)) -> Result<Self> {
        match compression(layer.packaging) {
            None => digest(layer, stop, read).map(Self::AsItIs),
            Some(how) => compress(layer, how, stop, read).map(Box::new).map(Self::Compressed),
        }
    }
}

async fn make_and_upload(plan: &Plan, to: &Destination, watch: &Watch) -> Result<Vec<Made>> {
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let turns =
        Turns { digest: Semaphore::new(cores), upload: Semaphore::new(UPLOADS), stop: Stop::default() };
    let turns = &turns;
    let each = by_size(plan).into_iter().filter_map(|number| Some((number, plan.layers.get(number)?)));
    let each: Vec<_> = each.map(|(number, layer)| one(number, layer, turns, to, watch)).collect();
    let each = stream::iter(each).buffer_unordered(cores + UPLOADS);
    let mut made: Vec<(usize, Made)> = each.try_collect().await?;
    made.sort_by_key(|(number, _)| *number);
    Ok(made.into_iter().map(|(_, made)| made).collect())
}

/// Leave to use what there is not much of.
struct Turns {
    digest: Semaphore,
    upload: Semaphore,
    stop: Stop,
}

async fn one(
    number: usize,
    layer: &Layer,
    turns: &Turns,
    to: &Destination,
    watch: &Watch,
) -> Result<(usize, Made)> {
    let made = {
        // Nobody closes the semaphores.
        let _turn = turns.digest.acquire().await;
        let (layer, stop, watch) = (layer.clone(), turns.stop.flag(), watch.clone());
        let making = tokio::task::spawn_blocking(move || Made::of(&layer, &stop, &*watch));
        making
            .await
            .map_err(|error| Error::from_source(Kind::Kernel, "digesting was interrupted", error))??
    };
    let _turn = turns.upload.acquire().await;
    // What compression has saved need not be sent.
    watch(layer.size().saturating_sub(made.blob().size));
    let put = to.put(made.blob(), made.pieces(layer), watch).await;
    put.map_err(|error| match layer.file.check() {
        Ok(()) => error.context(format!("cannot upload {} to {}", layer.file.path, to.place())),
        Err(changed) => changed,
    })?;
    Ok((number, made))
}

/// Nothing is said to anybody.
#[must_use]
pub fn unwatched() -> Watch {
    Arc::new(|_| {})
}
