//! The artifact's config as a description of the model, read leniently in every form.
//!
//! Two forms nest (`descriptor`, `config`, `modelfs`), one is flat; a Kitfile has `package` and `model`, Ollama's names
//! begin with `model_`, and an image's says nothing of a model. No config is ever required to parse: what can't
//! be read is left out, and a description is for people. Only the diffIDs are used, for warnings.

use serde::Serialize;
use serde_json::Value;

use super::bounded;
use super::digest::Digest;
use crate::error::Result;

/// The largest config that is worth asking a repository for: 4 MiB, as for manifests.
pub const CONFIG_LIMIT: u64 = 4 << 20;

/// What the config says of the model; `None` for what it does not say. Numbers stand as text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "each field is the property of that name in the specification's config.md")]
pub struct Description {
    pub name: Option<String>,
    pub title: Option<String>,
    pub description: Option<String>,
    pub version: Option<String>,
    pub revision: Option<String>,
    pub family: Option<String>,
    pub vendor: Option<String>,
    pub architecture: Option<String>,
    pub format: Option<String>,
    pub precision: Option<String>,
    /// `paramSize`, or the flat form's `parameters`.
    pub parameters: Option<String>,
    pub quantization: Option<String>,
    pub framework: Option<String>,
    pub framework_version: Option<String>,
    /// Joined by `, `.
    pub licenses: Option<String>,
    /// Joined by `, `.
    pub authors: Option<String>,
    /// `createdAt`.
    pub created: Option<String>,
    /// `docURL`.
    pub documentation: Option<String>,
    /// `sourceURL`.
    pub source: Option<String>,
    /// The digests of the layers' content, in order; empty where they are not given or one of them is none.
    pub diff_ids: Vec<Digest>,
}

impl Description {
    /// What `json` says; an empty description where it is no JSON object, or one of more values than any config has.
    #[must_use]
    pub fn parse(json: &[u8]) -> Self {
        let root = bounded::json(json).unwrap_or_default();
        // A container image's architecture is a processor's.
        let flat = root.get("os").is_none() && root.get("rootfs").is_none();
        let text = |keys: &[&str]| keys.iter().find_map(|key| root.pointer(key).and_then(as_text));
        Self {
            name: text(&["/descriptor/name", "/name", "/package/name"]),
            title: text(&["/descriptor/title", "/title"]),
            description: text(&["/descriptor/description", "/description", "/package/description"]),
            version: text(&["/descriptor/version", "/version", "/package/version"]),
            revision: text(&["/descriptor/revision", "/revision"]),
            family: text(&["/descriptor/family", "/family", "/model_family"]),
            vendor: text(&["/descriptor/vendor", "/vendor"]),
            architecture: text(&["/config/architecture"])
                .or_else(|| text(&["/architecture"]).filter(|_| flat)),
            format: text(&["/config/format", "/format", "/model/format", "/model_format"]),
            precision: text(&["/config/precision", "/precision"]),
            parameters: text(&[
                "/config/paramSize",
                "/config/param_size",
                "/config/parameters",
                "/parameters",
                "/model_type",
            ]),
            quantization: text(&["/config/quantization", "/quantization", "/file_type"]),
            framework: text(&["/framework", "/model/framework"]),
            framework_version: text(&["/frameworkVersion"]),
            licenses: text(&["/descriptor/licenses", "/licenses", "/license", "/package/license"]),
            authors: text(&["/descriptor/authors", "/authors", "/package/authors"]),
            created: text(&[
                "/descriptor/createdAt",
                "/descriptor/created_at",
                "/descriptor/created",
                "/createdAt",
                "/created",
            ]),
            documentation: text(&["/descriptor/docURL", "/descriptor/doc_url"]),
            source: text(&["/descriptor/sourceURL", "/descriptor/source_url"]),
            diff_ids: diff_ids(&root),
        }
    }
}

/// The digests of the layers' content that a container image's config gives (image specification, config.md, `rootfs`), in order;
/// none where they are not given or one of them is none.
///
/// # Errors
/// `Invalid` where it is no JSON, or has more values than any config.
pub fn image_diff_ids(json: &[u8]) -> Result<Vec<Digest>> {
    let root = bounded::json(json)?;
    Ok(digests(root.pointer("/rootfs/diff_ids")))
}

/// Text, a number, or a list of these joined; `None` for anything else and for what is empty.
fn as_text(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Array(all) => all.iter().filter_map(as_text).collect::<Vec<_>>().join(", "),
        _ => String::new(),
    };
    (!text.is_empty()).then_some(text)
}

/// All or none: one that is missing would shift the others to wrong layers.
fn diff_ids(root: &Value) -> Vec<Digest> {
    digests(root.pointer("/modelfs/diffIds").or_else(|| root.pointer("/modelfs/diff_ids")))
}

fn digests(list: Option<&Value>) -> Vec<Digest> {
    let parse = |value: &Value| value.as_str().and_then(|text| text.parse().ok());
    list.and_then(Value::as_array).and_then(|all| all.iter().map(parse).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nested_forms_are_read() {
        let digest = Digest::of(b"x");
        for (diff_ids, created) in [("diffIds", "createdAt"), ("diff_ids", "created_at")] {
            let json = format!(
                r#"{{"descriptor":{{"{created}":"2025-01-01T00:00:00Z","name":"n","family":"llama","licenses":["a","b"]}},
                "config":{{"architecture":"transformer","paramSize":"7b","capabilities":{{}}}},
                "modelfs":{{"type":"layers","{diff_ids}":["{digest}"]}}}}"#
            );
            let description = Description::parse(json.as_bytes());
            assert_eq!(description.name.as_deref(), Some("n"));
            assert_eq!(description.licenses.as_deref(), Some("a, b"));
            assert_eq!(description.parameters.as_deref(), Some("7b"));
            assert_eq!(description.created.as_deref(), Some("2025-01-01T00:00:00Z"));
            assert_eq!(description.diff_ids, std::slice::from_ref(&digest));
        }
    }

    #[test]
    fn the_flat_form_is_read() {
        let json = br#"{"name":"llama","version":"3.1","framework":"pytorch","frameworkVersion":"2.4","format":"safetensors",
            "architecture":"transformer","parameters":7000000000,"precision":"float16"}"#;
        let description = Description::parse(json);
        assert_eq!(description.parameters.as_deref(), Some("7000000000"));
        assert_eq!(description.framework_version.as_deref(), Some("2.4"));
        assert_eq!(description.precision.as_deref(), Some("float16"));
        assert!(description.diff_ids.is_empty());
    }

    #[test]
    fn an_image_says_what_its_layers_hold_or_nothing() {
        let digest = Digest::of(b"x");
        let json =
            |list: &str| format!(r#"{{"os":"linux","rootfs":{{"type":"layers","diff_ids":[{list}]}}}}"#);
        let said = |list: &str| image_diff_ids(json(list).as_bytes()).unwrap();
        assert_eq!(said(&format!("\"{digest}\"")), std::slice::from_ref(&digest));
        assert!(
            said(&format!("\"{digest}\",\"no\"")).is_empty() && image_diff_ids(b"{}").unwrap().is_empty()
        );
        assert!(image_diff_ids(b"no").is_err());
    }

    #[test]
    fn what_is_no_description_is_an_empty_one() {
        for json in ["{}", "", "null", "[1]", "\u{0}", r#"{"name":{},"modelfs":{"diffIds":["sha256:x"]}}"#] {
            assert_eq!(Description::parse(json.as_bytes()), Description::default(), "{json}");
        }
    }
}
