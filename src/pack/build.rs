//! The index of an artifact that is in a repository, made by reading every layer once.
//!
//! Nothing of it is given before the layers were what their digests say. Called by [`add`](super::add), which makes it part of
//! the artifact, and by the commands that publish it beside the artifact or keep it in a file.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc::{Receiver, channel};

use super::Watch;
use super::digest::Chunks;
use crate::error::{Error, Kind, Result};
use crate::index::diff_ids::{self, disagreement};
use crate::index::format::{Encoded, encode};
use crate::index::pass::{Digesting, Event, Pass, Spacing};
use crate::index::spool::Spool;
use crate::index::{self, Allowance, ChunkDigest, Coding, Entry, Headers, Index, Layer, sections};
use crate::oci::artifact::ModelLayer;
use crate::oci::config::{CONFIG_LIMIT, Description};
use crate::oci::digest::{Algorithm, Hasher};
use crate::oci::manifest::Document;
use crate::oci::{Artifact, Blob, Descriptor, Digest, Platform, Reference, Which};
use crate::range::StoredRange;
use crate::repository::{Pinned, Repository, read_all};

/// How many layers are read at once.
const SIDE_BY_SIDE: usize = 4;

/// How many pieces of a layer, of at most 1 MiB, wait for being digested.
const WAITING: usize = 4;

/// How an index is made.
#[derive(Clone, Debug)]
pub struct Making {
    /// How much content lies between two places of a compressed layer where reading can start.
    pub spacing: Spacing,
    /// A folder for files without names, in which checkpoints are put aside.
    pub scratch: PathBuf,
    /// Of which compressed layers the content is digested.
    pub contents: Contents,
}

/// Of which compressed layers the content is digested, which takes a third as long as decoding it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Contents {
    /// Those whose diffID is known, to compare it.
    #[default]
    Compared,
    /// All of them.
    All,
}

/// The index of an artifact.
#[derive(Debug)]
pub struct Built {
    /// Every layer's.
    pub index: Index,
    /// The digests of each layer's chunks.
    pub digests: Vec<Vec<ChunkDigest>>,
    /// All of it as it is published.
    pub encoded: Encoded,
    /// The digest of each layer's content; `None` where nobody asked for that of a compressed one.
    pub contents: Vec<Option<Digest>>,
}

/// An artifact that was asked for.
pub struct Opened {
    /// Where it is.
    pub repository: Arc<dyn Repository>,
    /// Its manifest; of a list of manifests the one that was chosen.
    pub pinned: Pinned,
    /// What that means.
    pub artifact: Artifact,
}

/// An artifact without an index, of which one is made.
pub struct Source {
    /// Where it is.
    pub repository: Arc<dyn Repository>,
    /// Its manifest.
    pub pinned: Pinned,
    /// What that means.
    pub artifact: Artifact,
    /// What is known of its files before a layer is read.
    pub found: Index,
}

impl Opened {
    /// The artifact that `reference` names, for `platform` where it names a list of manifests. Costs a request, or two where
    /// there is a list.
    ///
    /// # Errors
    /// Those of the repository, of reading manifests, and of choosing one.
    pub async fn open(
        repository: Arc<dyn Repository>,
        reference: &Reference,
        platform: Option<&Platform>,
    ) -> Result<Self> {
        let opened = async {
            let pinned = repository.manifest(&reference.which()).await?;
            match Document::parse(&pinned.bytes, &pinned.media_type)? {
                Document::Manifest(manifest) => Ok((pinned, Artifact::read(manifest)?)),
                Document::Index(choice) => {
                    let chosen = Which::Digest(choice.choose(platform)?.digest.clone());
                    let pinned = repository.manifest(&chosen).await?;
                    match Document::parse(&pinned.bytes, &pinned.media_type)? {
                        Document::Manifest(manifest) => Ok((pinned, Artifact::read(manifest)?)),
                        Document::Index(_) => {
                            Err(Error::new(Kind::Unsupported, "it is a list of lists of manifests"))
                        }
                    }
                }
            }
        };
        let opened = opened.await.map_err(|error: Error| error.context(format!("cannot open {reference}")));
        let (pinned, artifact) = opened?;
        Ok(Self { repository, pinned, artifact })
    }
}

impl Source {
    /// The artifact that `reference` names, as [`Opened::open`] has it. Costs what [`Opened::open`] and [`find`](index::find()) do,
    /// and a request for the config.
    ///
    /// # Errors
    /// `Invalid` where it has an index; as those two.
    pub async fn open(
        repository: Arc<dyn Repository>,
        reference: &Reference,
        platform: Option<&Platform>,
    ) -> Result<Self> {
        let Opened { repository, pinned, artifact } = Opened::open(repository, reference, platform).await?;
        if let Some(index) = artifact.bound_index()? {
            let doing = format!("{reference} has an index of its own: {}", index.blob.digest);
            return Err(Error::new(Kind::Invalid, doing));
        }
        let found = find(&*repository, &artifact).await;
        let found = found.map_err(|error| error.context(format!("cannot open {reference}")))?;
        Ok(Self { repository, pinned, artifact, found })
    }

    /// How many stored bytes its layers have.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.found.layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.blob.size))
    }
}

/// What is known of an artifact's files before its layers are read, with the diffIDs that its config gives.
async fn find(repository: &dyn Repository, artifact: &Artifact) -> Result<Index> {
    let (found, config) = tokio::join!(
        index::find_with(repository, artifact, &|_| Vec::new(), None),
        config(repository, artifact.config.as_ref()),
    );
    let mut found = found?;
    let warnings = match config {
        Ok(Some(config)) => diff_ids::note(&mut found, artifact, &Description::parse(&config).diff_ids),
        Ok(None) => Vec::new(),
        Err(error) => vec![format!("its diffIDs are not compared: {error}")],
    };
    found.warnings.extend(warnings);
    Ok(found)
}

/// The config's bytes; `None` where there is none, or one that is larger than any that is read.
///
/// # Errors
/// `Integrity` where its bytes are not what its digest says; those of reading.
pub(super) async fn config(
    repository: &dyn Repository,
    config: Option<&Descriptor>,
) -> Result<Option<Bytes>> {
    let Some(config) = config.filter(|config| config.size <= CONFIG_LIMIT) else { return Ok(None) };
    let bytes = read_all(repository, &config.blob(), StoredRange::new(0, config.size)).await?;
    if config.digest.matches(&bytes) {
        return Ok(Some(bytes));
    }
    let doing = format!("the bytes of the config are not what {} names", config.digest);
    Err(Error::new(Kind::Integrity, doing))
}

/// How an index compares with the layers that it is of.
#[derive(Debug, Default)]
pub struct Compared {
    /// In what they differ; `None` where they do not.
    pub differs: Option<String>,
    /// What a person should know of the layers.
    pub warnings: Vec<String>,
}

/// In what `said`, an index's word of the layers of `artifact`, differs from the layers, which are read, and what
/// their diffIDs are worth. `watch` is told of twice their bytes.
///
/// # Errors
/// As [`build`]; those of reading the index.
pub async fn compare(
    repository: &dyn Repository,
    artifact: &Artifact,
    said: &Index,
    scratch: PathBuf,
    watch: &Watch,
) -> Result<Compared> {
    let making = Making { spacing: Spacing::default(), scratch, contents: Contents::Compared };
    let found = find(repository, artifact).await?;
    let built = build(repository, artifact, found, &making, watch).await?;
    let differs = differs(repository, said, &built, watch).await?;
    Ok(Compared { differs, warnings: built.index.warnings })
}

async fn differs(
    repository: &dyn Repository,
    said: &Index,
    built: &Built,
    watch: &Watch,
) -> Result<Option<String>> {
    for (number, layer) in said.layers.iter().enumerate().filter(|(_, layer)| layer.is_covered()) {
        let own = |entries: &[Entry]| {
            entries.iter().filter(|entry| entry.layer == number).cloned().collect::<Vec<_>>()
        };
        let (name, found) = (&layer.blob.digest, built.index.layers.get(number));
        let differs =
            |what: &str| Ok(Some(format!("it says other {what} of layer {name} than the layer has")));
        if own(&said.entries) != own(&built.index.entries) {
            return differs("names");
        }
        if found.map(|found| &found.extents) != Some(&layer.extents) {
            return differs("places of files");
        }
        if !chunks_agree(repository, layer, built.digests.get(number)).await? {
            return differs("chunk digests");
        }
        if !spans_agree(repository, layer, watch).await? {
            return differs("spans");
        }
    }
    Ok(None)
}

async fn chunks_agree(
    repository: &dyn Repository,
    layer: &Layer,
    digests: Option<&Vec<ChunkDigest>>,
) -> Result<bool> {
    let Some(bound) = &layer.bound else { return Ok(layer.extents.is_empty()) };
    let said = sections::bytes(Some(repository), &bound.chunks).await?;
    let found = digests.into_iter().flatten().flat_map(|digest| *digest.bytes());
    Ok(said.iter().copied().eq(found))
}

/// Whether every span's stored bytes are what its digest says.
async fn spans_agree(repository: &dyn Repository, layer: &Layer, watch: &Watch) -> Result<bool> {
    let Coding::Spans(spans) = &layer.coding else { return Ok(true) };
    let table = sections::table(Some(repository), layer, spans).await?;
    for (range, digest) in table.spans() {
        let (mut bytes, mut hasher) = (repository.read(&layer.blob, range).await?, blake3::Hasher::new());
        while let Some(piece) = bytes.next().await {
            let piece = piece?;
            hasher.update(&piece);
            watch(u64::try_from(piece.len()).unwrap_or(0));
        }
        if digest != Some(*hasher.finalize().as_bytes()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Reads every layer of `artifact` once and gives its index. A layer whose content is not what its diffID in `found` says is a
/// warning. `found` is what [`find`](crate::index::find()) says of it: layers
/// that are not compressed stay as they are there, of others it is known only now. `watch` is told of the bytes read. Must be
/// called within a tokio runtime.
///
/// Holds some MiB for each of four layers, and what entries need.
///
/// # Errors
/// `Integrity` where a layer's bytes are not what its digest says, naming it; `Invalid` and `Unsupported` as
/// [`Pass::step`]; `Storage` where checkpoints can't be put aside; those of reading.
pub async fn build(
    repository: &dyn Repository,
    artifact: &Artifact,
    found: Index,
    making: &Making,
    watch: &Watch,
) -> Result<Built> {
    let layers = found.layers.into_iter().enumerate();
    let allowance = Arc::new(Allowance::headers(0));
    let headers = || Headers::of(&allowance);
    let each: Vec<_> = artifact
        .visible()
        .zip(layers)
        .map(|(described, (number, layer))| {
            gone_by(repository, described, (number, layer), headers(), making, watch)
        })
        .collect();
    let gone: Vec<Gone> = stream::iter(each).buffered(SIDE_BY_SIDE).try_collect().await?;
    let mut entries = found.entries.into_iter().peekable();
    let mut index = Index { warnings: found.warnings, ..Index::default() };
    let (mut digests, mut contents) = (Vec::with_capacity(gone.len()), Vec::with_capacity(gone.len()));
    for (number, gone) in gone.into_iter().enumerate() {
        let own = std::iter::from_fn(|| entries.next_if(|entry| entry.layer == number));
        let known: Vec<Entry> = own.collect();
        index.entries.extend(gone.entries.unwrap_or(known));
        index.warnings.extend(gone.warnings);
        index.layers.push(gone.layer);
        digests.push(gone.chunks);
        contents.push(gone.content);
    }
    let encoding = tokio::task::spawn_blocking(move || {
        let encoded = encode(&index, &digests).map_err(|error| error.context("cannot write the index"))?;
        Ok(Built { index, digests, encoded, contents })
    });
    encoding.await.map_err(|error| Error::from_source(Kind::Kernel, "digesting was interrupted", error))?
}

/// A layer that has gone by.
struct Gone {
    layer: Layer,
    /// Its entries, where they were not known before.
    entries: Option<Vec<Entry>>,
    warnings: Vec<String>,
    chunks: Vec<ChunkDigest>,
    content: Option<Digest>,
}

async fn gone_by(
    repository: &dyn Repository,
    described: &ModelLayer,
    (number, layer): (usize, Layer),
    headers: Headers,
    making: &Making,
    watch: &Watch,
) -> Result<Gone> {
    let blob = layer.blob.clone();
    let reading = |error: Error| error.context(format!("cannot read layer {}", blob.digest));
    let work = Work::of(described, (number, layer), headers, making).map_err(reading)?;
    let mut bytes = repository.read(&blob, StoredRange::new(0, blob.size)).await.map_err(reading)?;
    let (give, take) = channel::<Bytes>(WAITING);
    let working = tokio::task::spawn_blocking(move || work.run(take));
    while let Some(piece) = bytes.next().await {
        let piece = piece.map_err(reading)?;
        watch(u64::try_from(piece.len()).unwrap_or(u64::MAX));
        if give.send(piece).await.is_err() {
            break;
        }
    }
    drop(give);
    let gone = working.await;
    gone.map_err(|error| Error::from_source(Kind::Kernel, "digesting was interrupted", error))?
        .map_err(reading)
}

/// What is done with a layer's bytes.
enum Work {
    /// They are its content.
    Stored(Layer),
    /// They are decoded.
    Compressed { described: Box<ModelLayer>, diff_id: Option<Digest>, pass: Box<Pass>, spool: Spool },
}

impl Work {
    fn of(
        described: &ModelLayer,
        (number, layer): (usize, Layer),
        headers: Headers,
        making: &Making,
    ) -> Result<Self> {
        if matches!(layer.coding, Coding::Stored) {
            return Ok(Self::Stored(layer));
        }
        let pass = Pass::beside(described, number, making.spacing, headers)?;
        let pass = Box::new(match (&layer.diff_id, making.contents) {
            (Some(diff_id), _) => pass.digesting(diff_id.algorithm()),
            (None, Contents::All) => pass.digesting(Algorithm::Sha256),
            (None, Contents::Compared) => pass,
        });
        let spool = Spool::new(nameless(&making.scratch)?);
        let described = Box::new(described.clone());
        Ok(Self::Compressed { described, diff_id: layer.diff_id, pass, spool })
    }

    /// Takes what comes, to its end. Blocks.
    fn run(self, take: Receiver<Bytes>) -> Result<Gone> {
        match self {
            Self::Stored(layer) => {
                let mut chunks = Chunks::new(layer.extents.clone());
                all(&layer.blob, take, &mut |piece| {
                    chunks.update(piece);
                    Ok(())
                })?;
                let content = Some(layer.blob.digest.clone());
                Ok(Gone { layer, entries: None, warnings: Vec::new(), chunks: chunks.finish(), content })
            }
            Self::Compressed { described, diff_id, pass, spool } => {
                compressed(&described, diff_id, *pass, spool, take)
            }
        }
    }
}

fn compressed(
    described: &ModelLayer,
    diff_id: Option<Digest>,
    mut pass: Pass,
    mut spool: Spool,
    take: Receiver<Bytes>,
) -> Result<Gone> {
    let mut digesting = Digesting::default();
    let mut sink = |event: Event<'_>| match event {
        Event::Content { extent, bytes, .. } => {
            digesting.update(extent, bytes);
            Ok(())
        }
        Event::Window(window) => spool.push(&window),
        Event::Extent(..) | Event::Entry(_) => Ok(()),
    };
    all(&described.descriptor.blob(), take, &mut |piece| pass.step(piece, &mut sink))?;
    let passed = pass.finish(&mut sink)?;
    let mut layer = spool.layer(described, &passed);
    let mut warnings = passed.warnings;
    let compared = diff_id.as_ref().zip(passed.digest.as_ref());
    warnings.extend(compared.and_then(|(said, found)| disagreement(&layer.blob.digest, said, found)));
    layer.diff_id = diff_id;
    let (entries, content) = (Some(passed.entries), passed.digest);
    Ok(Gone { layer, entries, warnings, chunks: digesting.finish(), content })
}

/// Gives every piece to `each`, and compares the digest of all of them with the blob's. What `each` finds wrong counts only in
/// bytes that are right.
fn all(blob: &Blob, mut take: Receiver<Bytes>, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let (mut stored, mut size, mut done) = (Hasher::new(blob.digest.algorithm()), 0_u64, Ok(()));
    while let Some(piece) = take.blocking_recv() {
        stored.update(&piece);
        size = size.saturating_add(u64::try_from(piece.len()).unwrap_or(u64::MAX));
        done = done.and_then(|()| each(&piece));
    }
    if stored.finish() != blob.digest || size != blob.size {
        let doing = format!("the bytes of layer {} are not what its digest says", blob.digest);
        return Err(Error::new(Kind::Integrity, doing).hint("push the layer again; nothing was changed"));
    }
    done
}

/// A file in `folder` that has no name, so that nobody has to take it away. Makes the folder where it is missing.
///
/// # Errors
/// `Storage` where it can't be made.
pub fn nameless(folder: &Path) -> Result<File> {
    let failed = |error| {
        let doing = format!("cannot put anything aside in {}", folder.display());
        Error::from_source(Kind::Storage, doing, error)
    };
    std::fs::create_dir_all(folder).map_err(failed)?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    let flags = nix::fcntl::OFlag::O_TMPFILE.bits();
    if let Ok(file) = options.clone().custom_flags(flags).open(folder) {
        return Ok(file);
    }
    // Some file systems have no files without names.
    let path = folder.join(format!(".weightfs-{}-{:p}.tmp", std::process::id(), Arc::new(0_u8)));
    let file = options.create_new(true).open(&path).map_err(failed)?;
    std::fs::remove_file(&path).map_err(failed)?;
    Ok(file)
}
