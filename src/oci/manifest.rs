//! Manifests and indexes as JSON: what is in them, read leniently, bounded and without ambiguity.
//!
//! Not what they mean as a model: that is [`artifact`](super::artifact). Whoever opens an artifact parses what
//! the repository gave, and follows [`Choice::choose`] from an index to its manifest.

use std::collections::BTreeMap;

use serde::Deserialize;

pub use super::choice::{Choice, Choosable};
use super::digest::Digest;
use super::family::Family;
use super::platform::Platform;
use crate::error::{Error, Kind, Result};

/// What a repository is asked for: a digest and the size it must have.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Blob {
    /// The digest of the stored bytes.
    pub digest: Digest,
    /// How many stored bytes there are.
    pub size: u64,
}

/// An OCI descriptor (image specification, descriptor.md). `urls` are never followed, so not even read.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The media type, empty where the writer left it out.
    #[serde(default)]
    pub media_type: String,
    /// The digest of the stored bytes.
    pub digest: Digest,
    /// Size in stored bytes.
    pub size: u64,
    /// The annotations, sorted by key.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// Digest and size alone.
    #[must_use]
    pub fn blob(&self) -> Blob {
        Blob { digest: self.digest.clone(), size: self.size }
    }
}

/// The key under which a descriptor's own `name`, which Ollama writes and the specification does not know, stands among
/// its annotations.
pub(super) const NAME_KEY: &str = "name";

/// The most layers, or manifests in an index, that are read.
pub const LAYER_LIMIT: usize = 10_000;

/// The media types under which a repository is asked for a manifest, most wanted first.
pub const ACCEPT: [&str; 7] = [
    OCI_MANIFEST,
    OCI_INDEX,
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.cncf.model.manifest.v1+json",
    "application/vnd.cnai.model.manifest.v1+json",
    "application/vnd.cncf.modelpack.manifest.v1+json",
];

/// The media type of an OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The media type of an OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What a repository keeps under a manifest's digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// One artifact.
    Manifest(Manifest),
    /// A choice of several.
    Index(Choice),
}

/// An image manifest (image specification, manifest.md).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// The media type as it is written inside, or else as the repository gave it; empty where neither is.
    pub media_type: String,
    /// The artifact type, empty where there is none.
    pub artifact_type: String,
    /// The config's descriptor, if there is one.
    pub config: Option<Descriptor>,
    /// The layers, at most [`LAYER_LIMIT`].
    pub layers: Vec<Descriptor>,
    /// The manifest's annotations, sorted by key.
    pub annotations: BTreeMap<String, String>,
}

impl Document {
    /// Reads a manifest or index; `content_type` is what the repository gave with it, empty where nothing.
    ///
    /// Costs one pass; allocates a small multiple of `bytes`, which is at most 4 MiB.
    ///
    /// # Errors
    /// [`Kind::Invalid`]: too large, not JSON, too deep, more than [`LAYER_LIMIT`] layers, a bad digest or
    /// size (naming the layer), media types that disagree, or a document that could be read both ways
    /// (CVE-2021-41190). [`Kind::Unsupported`]: a media type that is neither, or the retired schema 1.
    pub fn parse(bytes: &[u8], content_type: &str) -> Result<Self> {
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > SIZE_LIMIT {
            return Err(Error::new(Kind::Invalid, "the manifest is larger than 4 MiB"));
        }
        let wire: Wire = serde_json::from_slice(bytes)
            .map_err(|error| Error::from_source(Kind::Invalid, "the manifest can't be read", error))?;
        match wire.shape(content_type)? {
            Shape::Manifest => wire.manifest(content_type).map(Self::Manifest),
            Shape::Index => wire.choice().map(Self::Index),
        }
    }
}

const SIZE_LIMIT: u64 = 4 << 20;

/// Which of the two documents a media type, or the fields that are there, speak of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Manifest,
    Index,
}

/// Whether it is the media type of a manifest or of an index.
pub(super) fn is_document(media_type: &str) -> bool {
    Shape::of_type(media_type).is_some()
}

impl Shape {
    fn of_type(media_type: &str) -> Option<Self> {
        match media_type {
            OCI_MANIFEST | "application/vnd.docker.distribution.manifest.v2+json" => Some(Self::Manifest),
            OCI_INDEX | "application/vnd.docker.distribution.manifest.list.v2+json" => Some(Self::Index),
            other => is_model_manifest(other).then_some(Self::Manifest),
        }
    }
}

/// Whether it is an artifact type of a model, which some writers put where a manifest's media type belongs.
fn is_model_manifest(media_type: &str) -> bool {
    Family::of_type(media_type).is_some() && media_type.contains(".manifest.")
}

/// The document as it is written: both shapes at once, so that one that claims to be both is seen.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    schema_version: Option<serde_json::Number>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<WireDescriptor>,
    layers: Option<Capped>,
    manifests: Option<Capped>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireDescriptor {
    media_type: Option<String>,
    digest: Option<String>,
    size: Option<serde_json::Number>,
    annotations: Option<BTreeMap<String, String>>,
    name: Option<Lenient>,
    artifact_type: Option<String>,
    platform: Option<WirePlatform>,
}

#[derive(Default, Deserialize)]
struct WirePlatform {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
}

impl Wire {
    fn shape(&self, content_type: &str) -> Result<Shape> {
        if self.manifests.is_some() && (self.layers.is_some() || self.config.is_some()) {
            return Err(Error::new(Kind::Invalid, "the document is a manifest and an index at once"));
        }
        if self.schema_version.as_ref().and_then(serde_json::Number::as_u64) == Some(1) {
            return Err(Error::new(Kind::Unsupported, "the manifest is of the retired schema 1"));
        }
        if self.manifests.is_none() && self.layers.is_none() && self.config.is_none() {
            return Err(Error::new(Kind::Invalid, "the document is neither a manifest nor an index"));
        }
        let found = if self.manifests.is_some() { Shape::Index } else { Shape::Manifest };
        let (inside, outside) = (self.media_type.as_deref().unwrap_or(""), essence(content_type));
        for claim in [inside, &outside].into_iter().filter(|claim| !claim.is_empty()) {
            let claimed = Shape::of_type(claim).ok_or_else(|| {
                Error::new(Kind::Unsupported, format!("{claim:?} is no media type of a manifest"))
            })?;
            if claimed != found {
                let doing = format!("the document's fields are not those of its media type {claim}");
                return Err(Error::new(Kind::Invalid, doing));
            }
        }
        agree(inside, &outside)?;
        Ok(found)
    }

    fn manifest(self, content_type: &str) -> Result<Manifest> {
        let config = self.config.map(|config| config.descriptor("config")).transpose()?;
        let layers = self.layers.map(|Capped(layers)| layers).unwrap_or_default();
        let layers =
            layers.into_iter().enumerate().map(|(at, layer)| layer.descriptor(&format!("layer {at}")));
        Ok(Manifest {
            media_type: self.media_type.unwrap_or_else(|| essence(content_type)),
            artifact_type: self.artifact_type.unwrap_or_default(),
            config,
            layers: layers.collect::<Result<_>>()?,
            annotations: self.annotations.unwrap_or_default(),
        })
    }

    fn choice(self) -> Result<Choice> {
        let manifests = self.manifests.map(|Capped(manifests)| manifests).unwrap_or_default();
        let manifests = manifests.into_iter().enumerate().map(|(at, mut one)| {
            let artifact_type = one.artifact_type.take().unwrap_or_default();
            let platform = one.platform.take().map(WirePlatform::platform);
            let descriptor = one.descriptor(&format!("manifest {at} of the index"))?;
            Ok(Choosable { descriptor, artifact_type, platform })
        });
        Ok(Choice { manifests: manifests.collect::<Result<_>>()? })
    }
}

impl WirePlatform {
    fn platform(self) -> Platform {
        let [os, architecture, variant] =
            [self.os, self.architecture, self.variant].map(Option::unwrap_or_default);
        Platform::new(&os, &architecture, &variant)
    }
}

impl WireDescriptor {
    /// `name` is how an error calls it: `layer 3`.
    fn descriptor(self, name: &str) -> Result<Descriptor> {
        let digest = self.digest.unwrap_or_default();
        let digest: Digest = digest.parse().map_err(|error: Error| error.context(name))?;
        // Linux counts file sizes in 63 bits.
        let size = self
            .size
            .as_ref()
            .and_then(serde_json::Number::as_u64)
            .filter(|size| i64::try_from(*size).is_ok());
        let size = size.ok_or_else(|| {
            let written = self.size.map_or("no size".to_owned(), |size| format!("the size {size}"));
            Error::new(Kind::Invalid, format!("{name} ({digest}) has {written}, not a number of bytes"))
        })?;
        let media_type = self.media_type.unwrap_or_default();
        let mut annotations = self.annotations.unwrap_or_default();
        if let Some(Lenient(Some(name))) = self.name {
            annotations.insert(NAME_KEY.to_owned(), name);
        }
        Ok(Descriptor { media_type, digest, size, annotations })
    }
}

/// A text. Anything else in its place counts as none, and is not kept: it might be of any size.
struct Lenient(Option<String>);

impl<'de> Deserialize<'de> for Lenient {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LenientVisitor)
    }
}

struct LenientVisitor;

impl<'de> serde::de::Visitor<'de> for LenientVisitor {
    type Value = Lenient;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E>(self, text: &str) -> Result<Lenient, E> {
        Ok(Lenient(Some(text.to_owned())))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Lenient, E> {
        Ok(Lenient(None))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Lenient, E> {
        Ok(Lenient(None))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Lenient, E> {
        Ok(Lenient(None))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Lenient, E> {
        Ok(Lenient(None))
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<Lenient, A::Error> {
        while list.next_element::<serde::de::IgnoredAny>()?.is_some() {}
        Ok(Lenient(None))
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Lenient, A::Error> {
        while map.next_entry::<serde::de::IgnoredAny, serde::de::IgnoredAny>()?.is_some() {}
        Ok(Lenient(None))
    }
}

/// A list that ends with an error once it has more than [`LAYER_LIMIT`] elements, before they take memory.
struct Capped(Vec<WireDescriptor>);

impl<'de> Deserialize<'de> for Capped {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(CappedVisitor)
    }
}

struct CappedVisitor;

impl<'de> serde::de::Visitor<'de> for CappedVisitor {
    type Value = Capped;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a list of at most {LAYER_LIMIT} descriptors")
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<Capped, A::Error> {
        let mut all = Vec::new();
        while let Some(one) = list.next_element()? {
            if all.len() == LAYER_LIMIT {
                return Err(serde::de::Error::custom(format!("more than {LAYER_LIMIT} layers")));
            }
            all.push(one);
        }
        Ok(Capped(all))
    }
}

/// A Content-Type without parameters; empty where it says no more than that there are bytes.
fn essence(content_type: &str) -> String {
    let plain = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match plain.as_str() {
        "application/json" | "application/octet-stream" | "text/plain" => String::new(),
        _ => plain,
    }
}

/// Both media types must be the same, where both are there. An artifact type may stand for the manifest's,
/// as some writers have it.
fn agree(inside: &str, outside: &str) -> Result<()> {
    let stands_in = |text: &str| is_model_manifest(text) || text == OCI_MANIFEST;
    if inside.is_empty()
        || outside.is_empty()
        || inside == outside
        || (stands_in(inside) && stands_in(outside))
    {
        return Ok(());
    }
    let doing = format!("the manifest says it is {inside}, and the repository says it is {outside}");
    Err(Error::new(Kind::Invalid, doing))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn refusal(json: &str) -> Error {
        Document::parse(json.as_bytes(), "").unwrap_err()
    }

    fn layer(digest: &str, size: &str) -> String {
        format!(
            r#"{{"layers":[{{"digest":"sha256:{HEX}","size":1}},{{"digest":"{digest}","size":{size}}}]}}"#
        )
    }

    #[test]
    fn a_manifest_is_read_with_unknown_fields_and_nulls() {
        let json = format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","artifactType":"a/b","x":[1],"annotations":null,
               "config":{{"mediaType":"c","digest":"sha256:{HEX}","size":0,"urls":["http://x"]}},"layers":[]}}"#
        );
        let Document::Manifest(manifest) =
            Document::parse(json.as_bytes(), &format!("{OCI_MANIFEST}; charset=utf-8")).unwrap()
        else {
            panic!("not read as a manifest")
        };
        assert_eq!((manifest.artifact_type.as_str(), manifest.layers.len()), ("a/b", 0));
        assert_eq!(manifest.config.unwrap().media_type, "c");
    }

    #[test]
    fn a_descriptors_name_is_a_text_or_nothing() {
        for (name, read) in [
            (r#""a/b""#, Some("a/b")),
            ("null", None),
            ("7", None),
            ("-1.5", None),
            ("true", None),
            (r#"[1,["x"]]"#, None),
            (r#"{"a":{"b":[]}}"#, None),
        ] {
            let json = format!(r#"{{"layers":[{{"digest":"sha256:{HEX}","size":1,"name":{name}}}]}}"#);
            let Document::Manifest(manifest) = Document::parse(json.as_bytes(), "").unwrap() else {
                panic!("not read as a manifest")
            };
            assert_eq!(manifest.layers[0].annotations.get(NAME_KEY).map(String::as_str), read, "{name}");
        }
    }

    #[test]
    fn a_document_that_is_both_manifest_and_index_is_refused() {
        for other in [r#""layers":[]"#, r#""config":{}"#] {
            let error = refusal(&format!(r#"{{"manifests":[],{other}}}"#));
            assert!(error.to_string().contains("at once"), "{error}");
        }
    }

    #[test]
    fn media_types_that_disagree_are_refused() {
        let json = format!(r#"{{"mediaType":"{OCI_MANIFEST}","layers":[]}}"#);
        let docker = "application/vnd.docker.distribution.manifest.v2+json";
        for (content_type, kind) in
            [(docker, Kind::Invalid), (OCI_INDEX, Kind::Invalid), ("text/html", Kind::Unsupported)]
        {
            assert_eq!(
                Document::parse(json.as_bytes(), content_type).unwrap_err().kind(),
                kind,
                "{content_type}"
            );
        }
        for same in [OCI_MANIFEST, "", "application/json", "application/vnd.cncf.modelpack.manifest.v1+json"]
        {
            Document::parse(json.as_bytes(), same).unwrap();
        }
    }

    #[test]
    fn a_bad_digest_or_size_names_its_layer() {
        let good = format!("sha256:{HEX}");
        let upper = format!("sha256:{}", HEX.to_uppercase());
        let bad = [("sha1:00", "1"), (&upper, "1"), ("sha256:../../x", "1"), ("", "1")];
        let sizes = ["-1", "9223372036854775808", "1.5", "null"];
        let cases = bad.into_iter().chain(sizes.map(|size| (good.as_str(), size)));
        for (digest, size) in cases {
            let error = refusal(&layer(digest, size));
            assert!(error.to_string().starts_with("layer 1"), "{error}");
        }
    }

    #[test]
    fn hostile_documents_are_refused_before_they_cost_memory() {
        let many = format!(r#"{{"layers":[{}{{}}]}}"#, "{},".repeat(LAYER_LIMIT));
        assert!(refusal(&many).to_string().contains("more than 10000 layers"));
        assert!(refusal(&" ".repeat(4 << 20 | 1)).to_string().contains("4 MiB"));
        assert_eq!(refusal(&format!(r#"{{"x":{}"#, "[".repeat(100_000))).kind(), Kind::Invalid);
        assert_eq!(refusal(r#"{"layers":[],"layers":[]}"#).kind(), Kind::Invalid);
        assert_eq!(refusal(r#"{"schemaVersion":1,"layers":[]}"#).kind(), Kind::Unsupported);
        assert_eq!(refusal("[]").kind(), Kind::Invalid);
        assert!(refusal(r#"{"errors":[]}"#).to_string().contains("neither"));
    }
}
