//! What the manifests and index heads that are kept say of the kept files: their names, and what their chunks must be.
//!
//! For people, and for checking: readers never ask here. A manifest that is not kept any more leaves its files without a
//! name. Called by the `cache` commands.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use bytes::Bytes;

use super::budget::entries;
use super::{SMALL_LIMIT, Store, attached, private};
use crate::index::format::{self, HEAD_LIMIT};
use crate::index::{ChunkDigest, EntryKind, Grid, Layer};
use crate::oci::artifact::{BoundIndex, Packaging};
use crate::oci::manifest::Document;
use crate::oci::{Artifact, Digest};
use crate::range::ContentRange;
use crate::repository::MANIFEST_LIMIT;

/// What is known of kept layers by what names them in the store.
#[derive(Debug, Default)]
pub struct Catalogue(HashMap<Digest, Known>);

/// What is known of one.
#[derive(Debug)]
struct Known {
    layer: Digest,
    /// For each file, which of the layer's chunks is its first.
    first: HashMap<ContentRange, usize>,
    /// By where the file begins.
    names: HashMap<u64, String>,
    section: Option<Section>,
}

/// The digests of all chunks of a bound layer, read when they are first asked for.
#[derive(Debug)]
struct Section {
    path: PathBuf,
    digest: Digest,
    bytes: OnceLock<Option<Bytes>>,
}

impl Store {
    /// What the manifests that are kept say. Reads them all, and the heads of their indexes.
    #[must_use]
    pub fn catalogue(&self) -> Catalogue {
        let mut catalogue = Catalogue::default();
        for who in entries(&self.folder.join("small")) {
            for file in entries(&who).into_iter().flat_map(|algorithm| entries(&algorithm)) {
                if let Some(artifact) = digest_of(&file).and_then(|digest| manifest(&who, &digest)) {
                    catalogue.add(&who, &artifact);
                }
            }
        }
        catalogue
    }
}

impl Catalogue {
    /// The path of a kept file in its artifact, as the manifest or its index has it.
    #[must_use]
    pub fn name(&self, kept_as: &Digest, extent: ContentRange) -> Option<&str> {
        self.0.get(kept_as)?.names.get(&extent.start()).map(String::as_str)
    }

    /// The digest of the layer that is kept under this name.
    #[must_use]
    pub fn layer(&self, kept_as: &Digest) -> Option<&Digest> {
        self.0.get(kept_as).map(|known| &known.layer)
    }

    /// Whether the layer that is kept under this name is a bound one.
    #[must_use]
    pub fn is_bound(&self, kept_as: &Digest) -> bool {
        self.0.get(kept_as).is_some_and(|known| known.section.is_some())
    }

    /// What the chunks of a file must be; `None` where the layer is not bound, or its section is not kept.
    #[must_use]
    pub fn digests(&self, kept_as: &Digest, extent: ContentRange) -> Option<Vec<ChunkDigest>> {
        let known = self.0.get(kept_as)?;
        let section = known.section.as_ref()?.bytes()?;
        let chunks = |extent: &ContentRange| Grid::new(extent.len()).chunks();
        let first = *known.first.get(&extent)?;
        let digests = section.as_chunks::<32>().0;
        let own = digests.get(first..first.checked_add(usize::try_from(chunks(&extent)).ok()?)?)?;
        Some(own.iter().copied().map(ChunkDigest::recorded).collect())
    }

    fn add(&mut self, who: &Path, artifact: &Artifact) {
        for layer in artifact.visible().filter(|layer| layer.packaging == Packaging::Raw) {
            let digest = layer.descriptor.digest.clone();
            let known = self.0.entry(digest.clone()).or_insert_with(|| Known::plain(digest));
            known.names.extend(layer.path.clone().map(|path| (0, path)));
        }
        let Some(head) = head(who, artifact) else { return };
        for (number, layer) in head.layers.iter().enumerate() {
            let named = head.entries.iter().filter(|entry| entry.layer == number);
            let names = named.filter_map(|entry| match entry.kind {
                EntryKind::File { extent: Some(id), .. } => {
                    Some((layer.extents.get(id.extent)?.start(), entry.path.clone()))
                }
                _ => None,
            });
            let known = self.0.entry(layer.kept_as().clone()).or_insert_with(|| Known::of(layer));
            known.names.extend(names);
            known.section = known.section.take().filter(Section::is_kept).or_else(|| Section::of(who, layer));
        }
    }
}

impl Known {
    fn plain(layer: Digest) -> Self {
        Self { layer, first: HashMap::new(), names: HashMap::new(), section: None }
    }

    fn of(layer: &Layer) -> Self {
        let mut chunks = 0;
        let first = layer.extents.iter().map(|extent| {
            let first = chunks;
            chunks = usize::try_from(Grid::new(extent.len()).chunks())
                .map_or(usize::MAX, |more| first.saturating_add(more));
            (*extent, first)
        });
        Self { first: first.collect(), ..Self::plain(layer.blob.digest.clone()) }
    }
}

impl Section {
    fn of(who: &Path, layer: &Layer) -> Option<Self> {
        let digest = layer.bound.as_ref()?.chunks.digest.clone();
        Some(Self { path: path(who, &digest), digest, bytes: OnceLock::new() })
    }

    fn is_kept(&self) -> bool {
        self.path.exists()
    }

    fn bytes(&self) -> Option<&Bytes> {
        let read =
            || private::read_small(&self.path, SMALL_LIMIT).ok().filter(|bytes| self.digest.matches(bytes));
        self.bytes.get_or_init(|| read().map(Bytes::from)).as_ref()
    }
}

/// The small files of `who` that opening this manifest takes: itself, its config, and what is kept of its index, bound or
/// attached.
pub(super) fn needed(who: &Path, digest: &Digest) -> Vec<PathBuf> {
    let Some(artifact) = manifest(who, digest) else { return Vec::new() };
    let mut needed = vec![path(who, digest)];
    needed.extend(artifact.config.as_ref().map(|config| path(who, &config.digest)));
    if let Ok(Some(index)) = artifact.bound_index() {
        needed.push(path(who, &index.head.digest));
    }
    let mut heads: Vec<_> = head(who, &artifact).into_iter().collect();
    if let Some((note, index)) = attached::noted(who, digest) {
        needed.extend([note, path(who, &index.head.digest)]);
        heads.extend(read_head(who, &index));
    }
    let sections = heads.into_iter().flat_map(|head| head.layers);
    needed.extend(sections.filter_map(|layer| Some(path(who, &layer.bound?.chunks.digest))));
    needed
}

fn manifest(who: &Path, digest: &Digest) -> Option<Artifact> {
    let bytes = private::read_small(&path(who, digest), MANIFEST_LIMIT).ok()?;
    match Document::parse(&bytes, "").ok().filter(|_| digest.matches(&bytes))? {
        Document::Manifest(manifest) => Artifact::read(manifest).ok(),
        Document::Index(_) => None,
    }
}

fn head(who: &Path, artifact: &Artifact) -> Option<format::Head> {
    read_head(who, &artifact.bound_index().ok()??)
}

fn read_head(who: &Path, index: &BoundIndex) -> Option<format::Head> {
    let bytes = private::read_small(&path(who, &index.head.digest), HEAD_LIMIT).ok()?;
    let bytes = Some(Bytes::from(bytes)).filter(|bytes| index.head.digest.matches(bytes))?;
    format::decode(&bytes, &index.blob).ok()
}

fn path(who: &Path, digest: &Digest) -> PathBuf {
    who.join(digest.algorithm().name()).join(digest.hex())
}

fn digest_of(file: &Path) -> Option<Digest> {
    let algorithm = file.parent()?.file_name()?.to_str()?;
    format!("{algorithm}:{}", file.file_name()?.to_str()?).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::audit::tests::{WHO, store};
    use super::*;
    use crate::index::{Coding, Entry, ExtentId, Index, Section};
    use crate::oci::Blob;
    use crate::range::StoredRange;

    /// A file of three chunks in a layer, and its index.
    fn index() -> (format::Encoded, Vec<ChunkDigest>, Layer) {
        let digests: Vec<_> = [1, 2, 3].map(|byte| ChunkDigest::recorded([byte; 32])).to_vec();
        let blob = Blob { digest: Digest::of(b"layer"), size: (2 << 20) + 5 };
        let layer = Layer {
            media_type: String::new(),
            diff_id: None,
            coding: Coding::Stored,
            extents: vec![ContentRange::new(0, blob.size)],
            gaps: Vec::new(),
            bound: None,
            blob,
        };
        let extent = Some(ExtentId { layer: 0, extent: 0 });
        let kind = EntryKind::File { extent, size: layer.blob.size };
        let entry = Entry { path: "a.bin".into(), kind, mode: 0o644, mtime: 0, layer: 0 };
        let index = Index { entries: vec![entry], layers: vec![layer.clone()], warnings: Vec::new() };
        let encoded = format::encode(&index, std::slice::from_ref(&digests)).unwrap();
        let head = encoded.bytes().unwrap().slice(..usize::try_from(encoded.head.size).unwrap());
        let bound = format::decode(&head, &encoded.blob).unwrap();
        (encoded, digests, Layer { bound: bound.layers[0].bound.clone(), ..layer })
    }

    fn manifest(layer: &Layer, index: &format::Encoded) -> Bytes {
        let (blob, size, head) = (&index.blob.digest, index.blob.size, &index.head);
        let layer = format!(
            r#"{{"mediaType":"application/vnd.cncf.model.weight.v1.raw","digest":"{}","size":{},
            "annotations":{{"org.cncf.model.filepath":"a.bin"}}}}"#,
            layer.blob.digest, layer.blob.size
        );
        let index = format!(
            r#"{{"mediaType":"application/vnd.cncf.model.doc.v1.raw","digest":"{blob}","size":{size},
            "annotations":{{"dev.weightfs.index":"v1","dev.weightfs.index.head.digest":"{}",
            "dev.weightfs.index.head.size":"{}"}}}}"#,
            head.digest, head.size
        );
        format!(r#"{{"schemaVersion":2,"layers":[{layer},{index}]}}"#).into()
    }

    #[test]
    fn kept_files_have_the_names_and_digests_that_kept_manifests_and_indexes_give_them() {
        let (_dir, store) = store();
        let (encoded, digests, layer) = index();
        let extent = layer.extents[0];
        let keep = |bytes: &Bytes| store.keep_small(WHO, &Digest::of(bytes), bytes);
        let manifest = manifest(&layer, &encoded);
        keep(&manifest);
        assert_eq!(store.catalogue().name(&layer.blob.digest, extent), Some("a.bin"));
        assert!(store.catalogue().name(layer.kept_as(), extent).is_none(), "the index is not here yet");
        keep(&encoded.bytes().unwrap().slice(..usize::try_from(encoded.head.size).unwrap()));
        let catalogue = store.catalogue();
        assert_eq!(catalogue.name(layer.kept_as(), extent), Some("a.bin"));
        assert_eq!(catalogue.layer(layer.kept_as()), Some(&layer.blob.digest));
        assert!(catalogue.is_bound(layer.kept_as()) && !catalogue.is_bound(&layer.blob.digest));
        assert_eq!(catalogue.digests(layer.kept_as(), extent), None, "the section is not here yet");
        let Section { range, digest, .. } = layer.bound.clone().unwrap().chunks;
        keep(&section(&encoded.bytes().unwrap(), range));
        assert_eq!(store.catalogue().digests(layer.kept_as(), extent), Some(digests));
        let who = entries(&store.folder.join("small"))[0].clone();
        let needed = needed(&who, &Digest::of(&manifest));
        assert_eq!(needed.len(), 3);
        assert!(needed.iter().all(|path| path.exists()) && needed.contains(&store.small_path(WHO, &digest)));
    }

    fn section(index: &Bytes, range: StoredRange) -> Bytes {
        index.slice(usize::try_from(range.start()).unwrap()..usize::try_from(range.end()).unwrap())
    }

    #[test]
    fn a_damaged_manifest_names_nothing() {
        let (_dir, store) = store();
        let (encoded, _, layer) = index();
        let manifest = manifest(&layer, &encoded);
        store.keep_small(WHO, &Digest::of(&manifest), &manifest);
        let path = store.small_path(WHO, &Digest::of(&manifest));
        std::fs::write(&path, [&manifest[..], b" "].concat()).unwrap();
        assert!(store.catalogue().0.is_empty());
    }
}
