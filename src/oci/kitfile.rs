//! The Kitfile: what a ModelKit's config says of its layers, and as the file that `kit unpack` writes.
//!
//! The config is the Kitfile as JSON. Read leniently: only what names files has to be what it should. Called by
//! [`complete`](super::complete) only.

use serde_json::{Map, Value};

use super::artifact::{LayerKind, ModelLayer};
use super::bounded;
use super::reference::{Place, Reference};
use super::yaml::{self, Yaml};
use crate::error::{Error, Kind, Result};

/// The name of the file.
pub(super) const NAME: &str = "Kitfile";

/// Keys in the order of the file, by what they belong to; others follow, sorted.
const ROOT: &[&str] = &["manifestVersion", "package", "model", "code", "datasets", "docs"];
const PACKAGE: &[&str] = &["name", "version", "description", "license", "authors"];
const MODEL: &[&str] =
    &["name", "path", "license", "framework", "format", "version", "description", "parts", "parameters"];
const PART: &[&str] = &["name", "path", "license", "type"];
const CODE: &[&str] = &["path", "description", "license"];
const DATASET: &[&str] = &["name", "path", "description", "license", "parameters"];

/// Keys that the config has and the file does not: which layer a part is.
const OF_LAYERS: [&str; 2] = ["digest", "diffId"];

/// A Kitfile.
#[derive(Clone, Debug)]
pub(super) struct Kitfile {
    root: Map<String, Value>,
    /// How many bytes it was read from.
    size: usize,
}

impl Kitfile {
    /// Reads the config's JSON.
    ///
    /// # Errors
    /// [`Kind::Invalid`] where it is no JSON object, or has more in it than any Kitfile.
    pub(super) fn parse(json: &[u8]) -> Result<Self> {
        match bounded::json(json) {
            Ok(Value::Object(root)) => Ok(Self { root, size: json.len() }),
            Ok(_) => Err(Error::new(Kind::Invalid, "the Kitfile is no JSON object")),
            Err(error) => Err(error.context("the Kitfile can't be read")),
        }
    }

    /// The kit that the model is taken from, where `model.path` is a reference and no path.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] where it names no registry, so that only who packed it has it; `of_layer` is whether the kit
    /// has a model of its own, which makes such a text a path.
    pub(super) fn parent(&self, layers: &[ModelLayer]) -> Result<Option<Reference>> {
        let Some(text) = self.root.get("model").and_then(|model| model.get("path")?.as_str()) else {
            return Ok(None);
        };
        // Further tags may follow the first.
        let text = text.split(',').next().unwrap_or_default();
        if !text.contains([':', '@']) {
            return Ok(None);
        }
        match text.parse::<Reference>() {
            Ok(reference) if matches!(reference.place, Place::Registry { .. }) => Ok(Some(reference)),
            _ if layers.iter().any(|layer| layer.kind == LayerKind::Weight) => Ok(None),
            _ => Err(Error::new(Kind::Unsupported, format!("the parent kit {text:?} is in no registry"))
                .hint("push the parent kit, and pack this one with its full reference")),
        }
    }

    /// Says of each layer into which folder its archive is unpacked. Kits of today have whole paths in their archives,
    /// and say so by a digest; older ones have paths below the folder that the part's own path lies in.
    ///
    /// # Errors
    /// [`Kind::Invalid`] where a path leaves the kit.
    pub(super) fn place(&self, layers: &mut [ModelLayer]) -> Result<()> {
        let mut seen = [0; 4];
        for layer in layers {
            let mut next = |list: usize| {
                let at = seen.get(list).copied().unwrap_or(0);
                seen.iter_mut().skip(list).take(1).for_each(|count| *count += 1);
                at
            };
            let part = match layer.kind {
                LayerKind::Weight => self.root.get("model"),
                LayerKind::WeightConfig => {
                    self.root.get("model").and_then(|model| model.get("parts")?.get(next(0)))
                }
                LayerKind::Code => self.root.get("code").and_then(|all| all.get(next(1))),
                LayerKind::Dataset => self.root.get("datasets").and_then(|all| all.get(next(2))),
                LayerKind::Doc => self.root.get("docs").and_then(|all| all.get(next(3))),
                LayerKind::Unknown => None,
            };
            let Some(part) = part.filter(|part| part.get("digest").is_none()) else { continue };
            if let Some(path) = part.get("path").and_then(Value::as_str) {
                layer.members.below = folder_of(path)?;
            }
        }
        Ok(())
    }

    /// The file's text.
    ///
    /// # Errors
    /// [`Kind::Invalid`] where it would be far longer than the config.
    pub(super) fn yaml(&self) -> Result<String> {
        let text = yaml::document(&Yaml::Map(fields(&self.root, ROOT)), self.size);
        text.map_err(|error| error.context("the Kitfile can't be written"))
    }
}

/// The folder that `path` lies in, cleaned; empty for the root.
fn folder_of(path: &str) -> Result<String> {
    let mut parts = Vec::new();
    for part in path.split('/').filter(|part| !matches!(*part, "" | ".")) {
        if part != ".." {
            parts.push(part);
        } else if parts.pop().is_none() {
            return Err(Error::new(
                Kind::Invalid,
                format!("refused path {path:?} of the Kitfile: it leaves the kit"),
            ));
        }
    }
    parts.pop();
    Ok(parts.join("/"))
}

/// What is to be written of an object: not what is empty, and not what says which layer it is.
fn fields<'a>(object: &'a Map<String, Value>, order: &[&str]) -> Vec<(&'a str, Yaml<'a>)> {
    let known = order.iter().filter_map(|key| object.get_key_value(*key));
    let others = object.iter().filter(|(key, _)| !order.contains(&key.as_str()));
    let shown =
        known.chain(others).filter(|(key, value)| !OF_LAYERS.contains(&key.as_str()) && !is_empty(value));
    shown.map(|(key, value)| (key.as_str(), field(key, value))).collect()
}

fn field<'a>(key: &str, value: &'a Value) -> Yaml<'a> {
    let (order, list) = match key {
        "package" => (PACKAGE, false),
        "model" => (MODEL, false),
        "parts" => (PART, true),
        "code" | "docs" => (CODE, true),
        "datasets" => (DATASET, true),
        "authors" => return flow(value),
        _ => return any(value),
    };
    match value {
        Value::Object(object) if !list => Yaml::Map(fields(object, order)),
        Value::Array(all) if list => Yaml::List(all.iter().map(|one| part(one, order)).collect()),
        other => any(other),
    }
}

fn part<'a>(value: &'a Value, order: &[&str]) -> Yaml<'a> {
    value.as_object().map_or_else(|| any(value), |object| Yaml::Map(fields(object, order)))
}

fn flow(value: &Value) -> Yaml<'_> {
    value.as_array().map_or_else(|| any(value), |all| Yaml::Flow(all.iter().map(any).collect()))
}

fn any(value: &Value) -> Yaml<'_> {
    match value {
        Value::Null => Yaml::Null,
        Value::Bool(yes) => Yaml::Bool(*yes),
        Value::Number(number) => Yaml::Number(number),
        Value::String(text) => Yaml::Text(text),
        Value::Array(all) => Yaml::List(all.iter().map(any).collect()),
        Value::Object(object) => {
            Yaml::Map(object.iter().map(|(key, value)| (key.as_str(), any(value))).collect())
        }
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(all) => all.is_empty(),
        Value::Object(object) => object.values().all(is_empty),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kitfile(json: &str) -> Kitfile {
        Kitfile::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn the_file_has_its_keys_in_order_and_says_nothing_of_layers() {
        let json = r#"{"manifestVersion":"1.0.0","package":{"name":"llm","version":"1.0","authors":["A","B"]},
            "model":{"name":"m","path":"model.gguf","digest":"sha256:0","diffId":"sha256:0",
              "parts":[{"path":"a","type":"adapter","name":"p","digest":"sha256:0"}],
              "parameters":{"b":0.5,"a":[1,"x"]}},
            "datasets":[{"path":"data","name":"d"}],"docs":[{"description":"read: me","path":"README.md"}]}"#;
        let expected = "manifestVersion: 1.0.0
package:
  name: llm
  version: \"1.0\"
  authors: [A, B]
model:
  name: m
  path: model.gguf
  parts:
    - name: p
      path: a
      type: adapter
  parameters:
    a:
      - 1
      - x
    b: 0.5
datasets:
  - name: d
    path: data
docs:
  - path: README.md
    description: 'read: me'
";
        assert_eq!(kitfile(json).yaml().unwrap(), expected);
        let empty = kitfile(r#"{"manifestVersion":"1.0.0","package":{}}"#);
        assert_eq!(empty.yaml().unwrap(), "manifestVersion: 1.0.0\n");
    }

    #[test]
    fn a_model_path_that_is_a_reference_is_a_parent() {
        let parent = |path: &str| kitfile(&format!(r#"{{"model":{{"path":"{path}"}}}}"#)).parent(&[]);
        for (path, found) in [
            ("reg.example/org/base:v1", Some("reg.example/org/base:v1")),
            ("reg.example/org/base:v1,latest", Some("reg.example/org/base:v1")),
            ("./model.gguf", None),
            ("models/llama", None),
        ] {
            let reference = parent(path).unwrap().map(|reference| reference.to_string());
            assert_eq!(reference.as_deref(), found, "{path}");
        }
        assert!(kitfile(r#"{"package":{}}"#).parent(&[]).unwrap().is_none());
        for path in ["org/base:v1", "base:v1", "oci:/etc:v1"] {
            let error = parent(path).unwrap_err();
            assert_eq!(error.kind(), Kind::Unsupported);
            assert!(error.to_string().contains(path), "{error}");
        }
    }

    #[test]
    fn an_older_part_lies_in_the_folder_of_its_path() {
        for (path, folder) in [
            ("model.gguf", ""),
            ("./models/llama/", "models"),
            ("a/./b/../c/d", "a/c"),
            (".", ""),
            ("/x/y", "x"),
        ] {
            assert_eq!(folder_of(path).unwrap(), folder, "{path}");
        }
        assert_eq!(folder_of("a/../../b").unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn what_is_no_kitfile_is_refused() {
        for json in ["", "[]", "null", "{"] {
            assert_eq!(Kitfile::parse(json.as_bytes()).unwrap_err().kind(), Kind::Invalid, "{json}");
        }
    }

    #[test]
    fn a_config_that_would_make_a_hundred_times_its_size_is_refused_by_name() {
        // Each element begins with as many spaces as it lies deep.
        let deep = |inner: &str| format!("{}{inner}{}", "[".repeat(60), "]".repeat(60));
        let numbers = |count: usize| deep(&vec!["1"; count].join(","));
        let json = |text: &str| format!(r#"{{"model":{{"parameters":{text}}}}}"#);
        for (inner, why) in [
            (numbers(1 << 20), "16384 values"),
            (numbers(16_000), "bytes"),
            (deep(&format!("\"{}\"", "a\\n".repeat(1 << 20))), "bytes"),
            (deep(&deep("1")), "deeper than 64"),
        ] {
            let made = Kitfile::parse(json(&inner).as_bytes()).and_then(|kitfile| kitfile.yaml());
            let error = made.unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.to_string().contains("the Kitfile") && error.to_string().contains(why), "{error}");
        }
        assert!(kitfile(&json(&deep(r#""as deep, and short""#))).yaml().is_ok());
    }
}
