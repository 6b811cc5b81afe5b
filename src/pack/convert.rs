//! A model's artifact as a container image: the same blobs, under a config and a manifest that programs for containers read.
//!
//! Nothing is copied that the target has. What an image says of its layers' content is theirs: of one that is not compressed it
//! is the layer's own digest, of others it is found by reading them once. Whoever reads the image in place finds its index
//! by its manifest, which pins it; who unpacks it does not see it. Called by the command `convert`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::json;

use super::Watch;
use super::attach::{attach, pins};
use super::build::{Built, Contents, Making, Opened, build, config};
use super::manifest::json as written;
use super::publish::{Destination, UPLOADS};
use crate::error::{Error, Kind, Result};
use crate::fs;
use crate::index::format::{Encoded, encode};
use crate::index::{self, ChunkDigest, Coding, Entry, EntryKind, ExtentId, Index, diff_ids, sections};
use crate::oci::artifact::{INDEX_DIGEST_KEY, INDEX_SIZE_KEY, ModelLayer, Packaging};
use crate::oci::config::Description;
use crate::oci::manifest::{Manifest, OCI_MANIFEST};
use crate::oci::{Artifact, Blob, Descriptor, Digest, Platform, Reference};
use crate::repository::push::Piece;
use crate::repository::{Pinned, Repository};

const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// The annotation of an image that says which manifest it was made of.
const SOURCE_KEY: &str = "dev.weightfs.converted.from";

/// How many names of files that are called otherwise are said.
const SAID: usize = 8;

/// An artifact that can be a container image, opened.
#[derive(Debug)]
pub struct Convertible {
    repository: Arc<dyn Repository>,
    pinned: Pinned,
    artifact: Artifact,
    /// What its layers are called as those of an image.
    layers: Vec<Descriptor>,
    /// The image without its config, for reading.
    image: Artifact,
    /// The image's files, as far as they are known before a compressed layer is read.
    found: Index,
    /// The digests of all chunks, where the artifact brings them.
    chunks: Option<Vec<Vec<ChunkDigest>>>,
    warnings: Vec<String>,
}

/// An image that was made.
#[derive(Clone, Debug)]
pub struct Converted {
    /// The manifest of the artifact that it was made of.
    pub from: Digest,
    /// The manifest's digest.
    pub digest: Digest,
    /// The index that it pins, if it has one.
    pub index: Option<Blob>,
    /// What a person should know.
    pub warnings: Vec<String>,
}

impl Convertible {
    /// Opens the artifact that `reference` names in `repository`, for `platform` where it names a list of manifests, and looks
    /// whether an image shows all of its files.
    ///
    /// Costs the requests of opening it twice: once as what it is, and once as an image.
    ///
    /// # Errors
    /// `Unsupported` for an image, a kit that is built upon another, and an artifact with layers that are no archives, or that
    /// an image would not show all files of; those of the repository and of finding files.
    pub async fn open(
        repository: Arc<dyn Repository>,
        reference: &Reference,
        platform: Option<&Platform>,
    ) -> Result<Self> {
        let opening = |error: Error| error.context(format!("cannot convert {reference}"));
        let Opened { repository, pinned, artifact } = Opened::open(repository, reference, platform).await?;
        refuse_image(&artifact).map_err(opening)?;
        if let Some(parent) = fs::parent(&*repository, &artifact).await.map_err(opening)? {
            let doing = format!("{reference} is built upon {parent}, which is another artifact");
            return Err(Error::new(Kind::Unsupported, doing)
                .hint("mount it, and pack its files with 'weightfs pack --tar'"));
        }
        let layers = artifact.visible().map(retyped).collect::<Result<Vec<_>>>().map_err(opening)?;
        let image = as_image(&layers).map_err(opening)?;
        let (own, found) = tokio::join!(
            index::find(&*repository, &artifact, &|_| Vec::new()),
            index::find_with(&*repository, &image, &|_| Vec::new(), None),
        );
        let (own, found) = (own.map_err(opening)?, found.map_err(opening)?);
        let warnings = compare(&own, &found).map_err(opening)?;
        let chunks = chunks(&*repository, &own, &found).await.map_err(opening)?;
        Ok(Self { repository, pinned, artifact, layers, image, found, chunks, warnings })
    }

    /// How many stored bytes are read: those of compressed layers.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let compressed = self.found.layers.iter().filter(|layer| !matches!(layer.coding, Coding::Stored));
        compressed.fold(0, |sum, layer| sum.saturating_add(layer.blob.size))
    }

    /// How many stored bytes the image's layers have.
    #[must_use]
    pub fn stored(&self) -> u64 {
        self.layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.size))
    }

    /// Publishes the image, for machines of `platform`: a model is the same on all. Reads compressed layers once. `watch` is told
    /// of the bytes that are read, and of all that need not be or are copied. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// `Integrity` where a layer's bytes are not what its digest says, or its content not what the artifact's config says;
    /// those of reading and of the destination.
    pub async fn convert(
        &self,
        destination: &Destination,
        platform: &Platform,
        making: &Making,
        watch: &Watch,
    ) -> Result<Converted> {
        let mut warnings = self.warnings.clone();
        let said = self.said().await?;
        let (contents, index) = if self.bytes() > 0 {
            let built = self.build(making, watch).await?;
            warnings.extend(built.index.warnings);
            (built.contents, Some(built.encoded))
        } else {
            let contents = self.layers.iter().map(|layer| Some(layer.digest.clone())).collect();
            (contents, self.index()?)
        };
        let contents = agreed(&self.layers, contents, &said)?;
        self.copy(destination, watch).await?;
        let config = destination.put_bytes("the config", &image_config(platform, &contents)?, watch).await?;
        if let Some(index) = &index {
            destination.put_index(index, watch).await?;
        }
        let manifest = self.manifest(&config, index.as_ref())?;
        let digest = destination.tag(OCI_MANIFEST, &manifest).await?;
        if let Some(index) = &index {
            // So that a registry that looks for what nobody needs finds that somebody does.
            let subject =
                Pinned { digest: digest.clone(), media_type: OCI_MANIFEST.to_owned(), bytes: manifest };
            attach(&subject, index, destination, watch).await?;
        }
        let index = index.map(|index| index.blob);
        Ok(Converted { from: self.pinned.digest.clone(), digest, index, warnings })
    }

    /// What the artifact's config says its layers hold, one for each of the image's; none where it does not say it.
    async fn said(&self) -> Result<Vec<Option<Digest>>> {
        let config = config(&*self.repository, self.artifact.config.as_ref()).await?;
        let said = config.map(|config| Description::parse(&config).diff_ids).unwrap_or_default();
        let mut noted = Index { layers: self.found.layers.clone(), ..Index::default() };
        noted.layers.iter_mut().for_each(|layer| layer.diff_id = None);
        let _compared_below = diff_ids::note(&mut noted, &self.artifact, &said);
        Ok(noted.layers.into_iter().map(|layer| layer.diff_id).collect())
    }

    async fn build(&self, making: &Making, watch: &Watch) -> Result<Built> {
        let making = Making { contents: Contents::All, ..making.clone() };
        let mut found = self.found.clone();
        found.layers.iter_mut().for_each(|layer| layer.diff_id = None);
        found.warnings.clear();
        build(&*self.repository, &self.image, found, &making, watch).await
    }

    /// The image's index, of the digests that the artifact brings.
    fn index(&self) -> Result<Option<Encoded>> {
        let Some(chunks) = &self.chunks else { return Ok(None) };
        encode(&self.found, chunks).map(Some).map_err(|error| error.context("cannot write the index"))
    }

    async fn copy(&self, destination: &Destination, watch: &Watch) -> Result<()> {
        let copies: Vec<_> = self
            .layers
            .iter()
            .map(|layer| async {
                let blob = layer.blob();
                let piece = Piece::Blob { repository: self.repository.clone(), blob: blob.clone() };
                let put = destination.put(&blob, vec![piece], watch).await;
                put.map_err(|error| {
                    error.context(format!("cannot copy {} to {}", blob.digest, destination.place()))
                })
            })
            .collect();
        stream::iter(copies).buffer_unordered(UPLOADS).try_collect().await
    }

    fn manifest(&self, config: &Blob, index: Option<&Encoded>) -> Result<Bytes> {
        let mut annotations = BTreeMap::from([(SOURCE_KEY.to_owned(), self.pinned.digest.to_string())]);
        if let Some(index) = index {
            annotations.extend(pins(index));
            annotations.insert(INDEX_DIGEST_KEY.to_owned(), index.blob.digest.to_string());
            annotations.insert(INDEX_SIZE_KEY.to_owned(), index.blob.size.to_string());
        }
        let layer = |layer: &Descriptor| json!({ "mediaType": layer.media_type, "digest": layer.digest, "size": layer.size });
        written(&json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": { "mediaType": CONFIG_TYPE, "digest": config.digest, "size": config.size },
            "layers": self.layers.iter().map(layer).collect::<Vec<_>>(),
            "annotations": annotations,
        }))
    }
}

fn refuse_image(artifact: &Artifact) -> Result<()> {
    if artifact.is_layered() {
        return Err(Error::new(Kind::Unsupported, "it is a container image already"));
    }
    if artifact.visible().next().is_none() {
        return Err(Error::new(Kind::Unsupported, "it has no layers, and there are no images without"));
    }
    Ok(())
}

/// The layer as one of an image.
fn retyped(layer: &ModelLayer) -> Result<Descriptor> {
    let end = match layer.packaging {
        Packaging::Tar => "",
        Packaging::TarGzip => "+gzip",
        Packaging::TarZstd => "+zstd",
        Packaging::Raw => {
            let doing = format!("{} is a file as it is, and an image's layers are archives", layer.name());
            return Err(Error::new(Kind::Unsupported, doing)
                .hint("pack the model's files with 'weightfs pack --tar' and convert that"));
        }
    };
    if !layer.members.below.is_empty() {
        let doing = format!(
            "{} is unpacked into the folder {:?}, and in an image into its root",
            layer.name(),
            layer.members.below
        );
        return Err(Error::new(Kind::Unsupported, doing)
            .hint("mount it, and pack its files with 'weightfs pack --tar'"));
    }
    let descriptor = layer.descriptor.clone();
    Ok(Descriptor { media_type: format!("{LAYER_TYPE}{end}"), annotations: BTreeMap::new(), ..descriptor })
}

/// The image as a reader takes it, but for its config, which says nothing of files.
fn as_image(layers: &[Descriptor]) -> Result<Artifact> {
    let config = Descriptor {
        media_type: CONFIG_TYPE.to_owned(),
        digest: Digest::of(b""),
        size: 0,
        annotations: BTreeMap::new(),
    };
    Artifact::read(Manifest { config: Some(config), layers: layers.to_vec(), ..Manifest::default() })
}

/// Sees to it that all files that the artifact shows are the image's too, and says which of them are called otherwise there. Of
/// compressed layers that nobody has read nothing is known.
fn compare(own: &Index, image: &Index) -> Result<Vec<String>> {
    let named: HashMap<ExtentId, &str> = image.entries.iter().filter_map(file).collect();
    let mut shown: HashMap<&str, ExtentId> = HashMap::new();
    for (extent, path) in own.entries.iter().filter_map(file) {
        // Of a path that comes twice the higher layer's is shown.
        shown.insert(path, extent);
    }
    let is_known =
        |extent: &ExtentId| image.layers.get(extent.layer).is_some_and(|layer| !layer.is_growing());
    let mut renamed = Vec::new();
    for (path, extent) in shown.into_iter().filter(|(_, extent)| is_known(extent)) {
        match named.get(&extent) {
            Some(name) if *name == path => {}
            Some(name) => renamed.push(format!("{path} is {name}")),
            None => {
                let doing = format!("an image of these layers would not show the file {path:?}");
                return Err(Error::new(Kind::Unsupported, doing));
            }
        }
    }
    renamed.sort();
    let more = renamed.len().saturating_sub(SAID);
    let said = renamed.iter().take(SAID).map(String::as_str).collect::<Vec<_>>().join(", ");
    Ok(match (renamed.is_empty(), more) {
        (true, _) => Vec::new(),
        (false, 0) => vec![format!("files are called otherwise in the image: {said}")],
        (false, more) => vec![format!("files are called otherwise in the image: {said} and {more} more")],
    })
}

fn file(entry: &Entry) -> Option<(ExtentId, &str)> {
    match entry.kind {
        EntryKind::File { extent: Some(extent), .. } => Some((extent, &entry.path)),
        _ => None,
    }
}

/// The digests of all chunks of the image's files, where the artifact's index has those of every layer and none is compressed;
/// costs a request for each layer whose digests did not come along with the index's head.
async fn chunks(
    repository: &dyn Repository,
    own: &Index,
    image: &Index,
) -> Result<Option<Vec<Vec<ChunkDigest>>>> {
    let mut chunks = Vec::with_capacity(own.layers.len());
    for (layer, found) in own.layers.iter().zip(&image.layers) {
        let is_same = matches!(layer.coding, Coding::Stored) && layer.extents == found.extents;
        let Some(bound) = layer.bound.as_ref().filter(|_| is_same) else { return Ok(None) };
        let bytes = sections::bytes(Some(repository), &bound.chunks).await?;
        let (digests, _) = bytes.as_chunks::<32>();
        chunks.push(digests.iter().map(|digest| ChunkDigest::recorded(*digest)).collect());
    }
    Ok(Some(chunks))
}

/// What the layers hold, once nobody says otherwise.
fn agreed(
    layers: &[Descriptor],
    contents: Vec<Option<Digest>>,
    said: &[Option<Digest>],
) -> Result<Vec<Digest>> {
    let mut agreed = Vec::with_capacity(layers.len());
    for ((layer, content), said) in layers.iter().zip(contents).zip(said) {
        let content = content.ok_or_else(|| {
            Error::new(Kind::Unsupported, format!("nobody knows what layer {} holds", layer.digest))
        })?;
        let differs =
            said.as_ref().filter(|said| said.algorithm() == content.algorithm() && **said != content);
        if let Some(said) = differs {
            let doing = format!("layer {} holds {content}, and the model's config says {said}", layer.digest);
            return Err(Error::new(Kind::Integrity, doing).hint("pack the model again"));
        }
        agreed.push(content);
    }
    Ok(agreed)
}

/// The config of an image that runs nothing by itself (image specification, config.md). The same for the same layers.
fn image_config(platform: &Platform, diff_ids: &[Digest]) -> Result<Bytes> {
    let text = platform.to_string();
    let mut parts = text.split('/');
    let mut part = || parts.next().unwrap_or_default();
    let (os, architecture, variant) = (part(), part(), part());
    let mut config = json!({
        "architecture": architecture,
        "os": os,
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    if let (false, Some(object)) = (variant.is_empty(), config.as_object_mut()) {
        object.insert("variant".to_owned(), variant.into());
    }
    written(&config)
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
