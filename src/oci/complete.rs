//! What an artifact's config adds to its files: names of older forms, files that its own tool would write, a parent.
//!
//! For the dialects whose tools need their config; of all others it is for people only. Values in, values out: whoever
//! opens an artifact fetches the config, calls [`Artifact::complete`], and follows the parent.

use serde_json::{Map, Value};

use super::artifact::{Artifact, Family, LayerKind, Members, ModelLayer, Packaging};
use super::bounded::{self, Text};
use super::digest::Digest;
use super::kitfile::{self, Kitfile};
use super::manifest::Descriptor;
use super::reference::Reference;
use crate::error::Result;

/// The most artifacts that a model is put together from, itself not counted: KitOps follows as many.
pub const PARENT_LIMIT: usize = 10;

/// The media type of a file that is made of what the artifact says, and stands in no repository.
const MADE: &str = "application/vnd.weightfs.made.v1";

/// Annotations of a manifest that are a Kitfile, where KitOps writes another family's artifacts.
const KITFILE_KEYS: [&str; 2] = ["ml.kitops.modelkit.kitfile", "org.kitops.modelkit.kitfile"];

/// What there is to an artifact beside the layers of its manifest.
#[derive(Clone, Debug, Default)]
pub struct Extras {
    /// The bytes of each layer that was made and added: by content, a small file each.
    pub made: Vec<Vec<u8>>,
    /// The artifact whose model lies below this one's files.
    pub parent: Option<Reference>,
}

impl Artifact {
    /// Whether files or names are only known once [`complete`](Self::complete) has seen the config.
    #[must_use]
    pub fn needs_config(&self) -> bool {
        matches!(self.family, Family::KitOps | Family::DockerV1 | Family::DockerV2)
    }

    /// Adds what `config`, the config's bytes, says of files: a layer on top for each file that is made of it. Where the
    /// config is not [needed](Self::needs_config) it is not looked at and may be empty.
    ///
    /// # Errors
    /// [`Kind::Invalid`](crate::error::Kind) where it can't be read, has more in it than any config, or says paths that leave the model; [`Kind::Unsupported`](crate::error::Kind) where it has a
    /// parent that is in no registry.
    pub fn complete(&mut self, config: &[u8]) -> Result<Extras> {
        match self.family {
            Family::KitOps => self.complete_kit(config),
            Family::DockerV1 | Family::DockerV2 => {
                let made = runtime_config(config)?;
                Ok(Extras { made: vec![self.add_made("config.json", made)], parent: None })
            }
            Family::Cncf | Family::Cnai => Ok(self.kitfile_of_annotation()),
            Family::ModelPack | Family::Ollama | Family::Image | Family::Oras | Family::Other => {
                Ok(Extras::default())
            }
        }
    }

    /// Leaves only the layers that make the model itself, as a kit takes them from its parent.
    pub fn retain_model(&mut self) {
        let beside = [LayerKind::Code, LayerKind::Dataset, LayerKind::Doc];
        self.layers.retain(|layer| !beside.contains(&layer.kind));
    }

    fn complete_kit(&mut self, config: &[u8]) -> Result<Extras> {
        let kitfile = Kitfile::parse(config)?;
        kitfile.place(&mut self.layers)?;
        let parent = kitfile.parent(&self.layers)?;
        let made = kitfile.yaml()?.into_bytes();
        Ok(Extras { made: vec![self.add_made(kitfile::NAME, made)], parent })
    }

    /// The annotation was written by the artifact's packer and is for people: what can't be read is left out.
    fn kitfile_of_annotation(&mut self) -> Extras {
        let text = KITFILE_KEYS.iter().find_map(|key| self.annotations.get(*key));
        let made =
            text.and_then(|text| Kitfile::parse(text.as_bytes()).and_then(|kitfile| kitfile.yaml()).ok());
        let Some(made) = made else { return Extras::default() };
        Extras { made: vec![self.add_made(kitfile::NAME, made.into_bytes())], parent: None }
    }

    fn add_made(&mut self, path: &str, content: Vec<u8>) -> Vec<u8> {
        let size = u64::try_from(content.len()).unwrap_or(u64::MAX);
        let descriptor = Descriptor {
            media_type: MADE.to_owned(),
            digest: Digest::of(&content),
            size,
            annotations: Default::default(),
        };
        self.layers.push(ModelLayer {
            descriptor,
            kind: LayerKind::Doc,
            packaging: Packaging::Raw,
            path: Some(path.to_owned()),
            metadata: None,
            hidden: false,
            members: Members::default(),
        });
        content
    }
}

/// What Docker Model Runner writes as a model's `config.json`: the part `config` of the artifact's config, with the keys
/// it knows in their order, as Go prints JSON.
fn runtime_config(config: &[u8]) -> Result<Vec<u8>> {
    const KEYS: [&str; 9] = [
        "format",
        "quantization",
        "parameters",
        "architecture",
        "size",
        "gguf",
        "safetensors",
        "diffusers",
        "context_size",
    ];
    let root = bounded::json(config).map_err(|error| error.context("the model's config can't be read"))?;
    let empty = Map::new();
    let said = root.get("config").and_then(Value::as_object).unwrap_or(&empty);
    let is_said = |value: &&Value| {
        !matches!(value, Value::Null) && **value != "" && **value != Value::Object(Map::new())
    };
    let known = KEYS.iter().filter_map(|key| Some((key, said.get(*key).filter(is_said)?)));
    let mut text = Text::of(config.len());
    text.push('{');
    for (at, (key, value)) in known.enumerate() {
        text.push_str(if at > 0 { ",\"" } else { "\"" });
        text.push_str(key);
        text.push_str("\":");
        push_as_go(value, &mut text);
    }
    text.push_str("}\n");
    let text = text.finish().map_err(|error| error.context("the model's config.json can't be made"));
    text.map(String::into_bytes)
}

/// Go prints some letters that HTML gives a meaning, and two ends of lines, by their numbers.
fn push_as_go(value: &Value, text: &mut Text) {
    for letter in value.to_string().chars() {
        match letter {
            '<' => text.push_str("\\u003c"),
            '>' => text.push_str("\\u003e"),
            '&' => text.push_str("\\u0026"),
            '\u{2028}' => text.push_str("\\u2028"),
            '\u{2029}' => text.push_str("\\u2029"),
            other => text.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn the_runtime_config_is_what_go_prints_of_the_part_it_knows() {
        let config = br#"{"descriptor":{"created":"x"},"config":{"size":"1 GB","format":"gguf","unknown":1,
            "gguf":{"b":"<x>","a":"1"},"quantization":"","context_size":4096}}"#;
        let expected =
            r#"{"format":"gguf","size":"1 GB","gguf":{"a":"1","b":"\u003cx\u003e"},"context_size":4096}"#;
        assert_eq!(runtime_config(config).unwrap(), format!("{expected}\n").as_bytes());
        assert_eq!(runtime_config(b"{}").unwrap(), b"{}\n");
        assert_eq!(runtime_config(b"no").unwrap_err().kind(), Kind::Invalid);
        for much in ["<".repeat(1 << 20), "\",\"".repeat(1 << 20)] {
            let json = format!(r#"{{"config":{{"gguf":["{much}"]}}}}"#);
            let error = runtime_config(json.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.to_string().contains("the model's config"), "{error}");
        }
    }
}
