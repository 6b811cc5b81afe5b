//! What refers to a manifest: the referrers API (distribution specification 1.1, "Listing Referrers").

use std::path::Path;

use axum::body::Body;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderMap, HeaderName};
use axum::response::Response;
use serde_json::{Value, json};

use super::reply::{response, set};
use crate::error::{Error, Kind, Result, StorageContext};
use crate::oci::Digest;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");

/// How a registry says what refers to a manifest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Referrers {
    /// By the API.
    #[default]
    Api,
    /// It has no API: who attaches something keeps an index under the tag `sha256-HEX`.
    Tags,
}

/// The manifests of the layout folder that have `subject` for their subject, as an index.
///
/// # Errors
/// `Storage` where the folder cannot be read, `Invalid` where its index is none.
pub(super) fn answer(folder: &Path, subject: &Digest, query: Option<&str>) -> Result<Response> {
    let mut pairs = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let wanted = pairs.find(|(name, _)| name == "artifactType").map(|(_, value)| value.into_owned());
    let mut found = referring(folder, subject)?;
    if let Some(wanted) = &wanted {
        found.retain(|one| at(one, "/artifactType").as_str() == Some(wanted));
    }
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": found });
    let mut headers = HeaderMap::new();
    set(&mut headers, CONTENT_TYPE, INDEX);
    if wanted.is_some() {
        set(&mut headers, FILTERS, "artifactType");
    }
    Ok(response(StatusCode::OK, headers, Body::from(index.to_string())))
}

fn referring(folder: &Path, subject: &Digest) -> Result<Vec<Value>> {
    let index = read(&folder.join("index.json"))?;
    let manifests = at(&index, "/manifests").as_array().cloned().unwrap_or_default();
    let mut found: Vec<Value> = Vec::new();
    for listed in manifests {
        let Some(digest) = at(&listed, "/digest").as_str().and_then(|text| text.parse::<Digest>().ok())
        else {
            continue;
        };
        let manifest = read(&folder.join("blobs").join(digest.algorithm().name()).join(digest.hex()))?;
        if *at(&manifest, "/subject/digest") == subject.to_string()
            && found.iter().all(|one| at(one, "/digest") != at(&listed, "/digest"))
        {
            found.push(described(&listed, &manifest));
        }
    }
    Ok(found)
}

/// The descriptor of a manifest that refers to another, with its artifact type and annotations.
fn described(listed: &Value, manifest: &Value) -> Value {
    let artifact_type = match at(manifest, "/artifactType").as_str() {
        Some(own) => own,
        None => at(manifest, "/config/mediaType").as_str().unwrap_or_default(),
    };
    let mut descriptor = json!({
        "mediaType": at(listed, "/mediaType"), "digest": at(listed, "/digest"), "size": at(listed, "/size"), "artifactType": artifact_type,
    });
    if let (Some(annotations), Some(fields)) = (manifest.get("annotations"), descriptor.as_object_mut()) {
        fields.insert("annotations".to_owned(), annotations.clone());
    }
    descriptor
}

/// What lies at the pointer; null where nothing does.
fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or(&Value::Null)
}

fn read(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).storage(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::from_source(Kind::Invalid, format!("{} is no JSON", path.display()), error))
}
