//! Config and manifest as JSON, in the words of the specification and in the order of modctl's own structures.
//!
//! Nothing is decided here but how things are written. [`publish`](super::publish()) writes artifacts of the
//! `cncf.model` dialect; [`add`](super::add) describes an index in the dialect of the artifact that gets one.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use serde::Serialize;

use super::attach::pins;
use super::describe::Described;
use super::layer::Layer;
use super::plan::Plan;
use crate::error::{Error, Kind, Result};
use crate::index::ARTIFACT_TYPE;
use crate::index::format::Encoded;
use crate::oci::artifact::{Family, INDEX_PATH};
use crate::oci::manifest::OCI_MANIFEST;
use crate::oci::{Blob, Digest};

const MODEL_TYPE: &str = "application/vnd.cncf.model.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.cncf.model.config.v1+json";

/// A descriptor as it is written.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Written {
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

impl Written {
    /// The descriptor of a packed layer.
    ///
    /// # Errors
    /// Never in practice: what is written is text and numbers.
    pub fn layer(layer: &Layer, blob: &Blob) -> Result<Self> {
        let file = &layer.file;
        let metadata = Metadata::new(&file.path, layer.mode, file.size, layer.mtime);
        let annotations = file_annotations(Family::Cncf, &file.path, &metadata)?;
        Ok(Self::new(layer.media_type(), blob, annotations))
    }

    /// The descriptor of an index in the words of `dialect`, of the time `mtime` in seconds since 1970.
    ///
    /// # Errors
    /// Never in practice.
    pub fn index(index: &Encoded, dialect: Family, mtime: u64) -> Result<Self> {
        let metadata = Metadata::new(INDEX_PATH, 0o644, index.blob.size, mtime);
        let mut annotations = file_annotations(dialect, INDEX_PATH, &metadata)?;
        annotations.extend(pins(index));
        let media_type = format!("application/vnd.{}.model.doc.v1.raw", word(dialect));
        Ok(Self::new(media_type, &index.blob, annotations))
    }

    /// The descriptor of an index that is published beside its artifact.
    #[must_use]
    pub fn attached(index: &Encoded) -> Self {
        Self::new(ARTIFACT_TYPE.to_owned(), &index.blob, pins(index))
    }

    fn new(media_type: String, blob: &Blob, annotations: BTreeMap<String, String>) -> Self {
        Self { media_type, digest: blob.digest.clone(), size: blob.size, annotations }
    }
}

/// What tells the identifiers of one dialect from another's; the flat form has none for files.
fn word(dialect: Family) -> &'static str {
    match dialect {
        Family::Cnai => "cnai",
        _ => "cncf",
    }
}

fn file_annotations(
    dialect: Family,
    path: &str,
    metadata: &Metadata<'_>,
) -> Result<BTreeMap<String, String>> {
    let key = |what: &str| format!("org.{}.model.{what}", word(dialect));
    let metadata = String::from_utf8_lossy(&json(metadata)?).into_owned();
    Ok([(key("filepath"), path.to_owned()), (key("file.metadata+json"), metadata)].into())
}

/// The specification's FileMetadata (annotations.go), keys in its order.
#[derive(Serialize)]
struct Metadata<'a> {
    name: &'a str,
    mode: u32,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: String,
    typeflag: u8,
}

impl<'a> Metadata<'a> {
    /// Of a regular file of root.
    fn new(path: &'a str, mode: u32, size: u64, mtime: u64) -> Self {
        let name = path.rsplit('/').next().unwrap_or(path);
        Self { name, mode, uid: 0, gid: 0, size, mtime: rfc3339(mtime), typeflag: 0 }
    }
}

/// RFC 3339 in UTC, whole seconds.
fn rfc3339(since_1970: u64) -> String {
    // The end of what a calendar of four digits has.
    const LAST: u64 = 253_402_300_799;
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(since_1970.min(LAST))).unwrap_or(UNIX_EPOCH);
    humantime::format_rfc3339_seconds(time).to_string()
}

#[derive(Serialize)]
struct Config<'a> {
    descriptor: Descriptor<'a>,
    config: Model<'a>,
    modelfs: Modelfs<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<String>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    authors: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    family: Option<&'a String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a String>,
    #[serde(rename = "docURL", skip_serializing_if = "Option::is_none")]
    doc_url: Option<&'a String>,
    #[serde(rename = "sourceURL", skip_serializing_if = "Option::is_none")]
    source_url: Option<&'a String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'a String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<&'a String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vendor: Option<&'a String>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    licenses: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<&'a String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Model<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    architecture: Option<&'a String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<&'a String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    param_size: Option<&'a String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    precision: Option<&'a String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantization: Option<&'a String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Modelfs<'a> {
    r#type: &'static str,
    diff_ids: &'a [Digest],
}

/// The config of an artifact whose layers have these diffIDs (specification, config.md).
///
/// # Errors
/// Never in practice.
pub fn config(plan: &Plan, diff_ids: &[Digest]) -> Result<Bytes> {
    let Described { name, version, family, architecture, format, .. } = &plan.described;
    let Described { param_size, precision, quantization, title, description, .. } = &plan.described;
    let Described { vendor, source_url, doc_url, revision, licenses, authors, .. } = &plan.described;
    json(&Config {
        descriptor: Descriptor {
            created_at: plan.created.map(rfc3339),
            authors,
            family: family.as_ref(),
            name: name.as_ref(),
            doc_url: doc_url.as_ref(),
            source_url: source_url.as_ref(),
            version: version.as_ref(),
            revision: revision.as_ref(),
            vendor: vendor.as_ref(),
            licenses,
            title: title.as_ref(),
            description: description.as_ref(),
        },
        config: Model {
            architecture: architecture.as_ref(),
            format: format.as_ref(),
            param_size: param_size.as_ref(),
            precision: precision.as_ref(),
            quantization: quantization.as_ref(),
        },
        modelfs: Modelfs { r#type: "layers", diff_ids },
    })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest<'a> {
    schema_version: u8,
    media_type: &'static str,
    artifact_type: &'static str,
    config: Written,
    layers: &'a [Written],
}

/// The manifest (image specification, manifest.md) of an artifact of the `cncf.model` dialect.
///
/// # Errors
/// Never in practice.
pub fn manifest(config: &Blob, layers: &[Written]) -> Result<Bytes> {
    let config = Written::new(CONFIG_TYPE.to_owned(), config, BTreeMap::new());
    let (media_type, artifact_type) = (OCI_MANIFEST, MODEL_TYPE);
    json(&Manifest { schema_version: 2, media_type, artifact_type, config, layers })
}

/// A value as JSON with nothing between, as Go's encoder writes it.
///
/// # Errors
/// `Invalid`; never for what is only text and numbers.
pub(super) fn json(value: &impl Serialize) -> Result<Bytes> {
    let bytes = serde_json::to_vec(value);
    bytes.map(Bytes::from).map_err(|error| Error::from_source(Kind::Invalid, "cannot write JSON", error))
}
