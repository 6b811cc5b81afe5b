//! What an artifact's config adds to its files: names of older forms, files that its own tool would write, a parent.
//!
//! For the dialects whose tools need their config; of all others it is for people only. Values in, values out: whoever
//! opens an artifact fetches the config, calls [`Artifact::complete`], and follows the parent.

use serde_json::{Map, Value};

use super::artifact::{Artifact, Family, LayerKind, Members, ModelLayer, Packaging};
use super::digest::Digest;
use super::kitfile::{self, Kitfile};
use super::manifest::Descriptor;
use super::reference::Reference;
use crate::error::{Error, Kind, Result};

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
    /// [`Kind::Invalid`] where it can't be read or says paths that leave the model; [`Kind::Unsupported`] where it has a
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
        Ok(Extras { made: vec![self.add_made(kitfile::NAME, kitfile.yaml().into_bytes())], parent })
    }

    /// The annotation was written by the artifact's packer and is for people: what can't be read is left out.
    fn kitfile_of_annotation(&mut self) -> Extras {
        let text = KITFILE_KEYS.iter().find_map(|key| self.annotations.get(*key));
        let Some(kitfile) = text.and_then(|text| Kitfile::parse(text.as_bytes()).ok()) else {
            return Extras::default();
        };
        Extras { made: vec![self.add_made(kitfile::NAME, kitfile.yaml().into_bytes())], parent: None }
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
    let root: Value = serde_json::from_slice(config)
        .map_err(|error| Error::from_source(Kind::Invalid, "the model's config can't be read", error))?;
    let empty = Map::new();
    let said = root.get("config").and_then(Value::as_object).unwrap_or(&empty);
    let is_said = |value: &&Value| {
        !matches!(value, Value::Null) && **value != "" && **value != Value::Object(Map::new())
    };
    let known = KEYS.iter().filter_map(|key| Some((key, said.get(*key).filter(is_said)?)));
    let fields: Vec<_> = known.map(|(key, value)| format!("\"{key}\":{}", as_go(value))).collect();
    Ok(format!("{{{}}}\n", fields.join(",")).into_bytes())
}

/// Go prints some letters that HTML gives a meaning, and two ends of lines, by their numbers.
fn as_go(value: &Value) -> String {
    [('<', "\\u003c"), ('>', "\\u003e"), ('&', "\\u0026"), ('\u{2028}', "\\u2028"), ('\u{2029}', "\\u2029")]
        .into_iter()
        .fold(value.to_string(), |text, (letter, number)| text.replace(letter, number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtime_config_is_what_go_prints_of_the_part_it_knows() {
        let config = br#"{"descriptor":{"created":"x"},"config":{"size":"1 GB","format":"gguf","unknown":1,
            "gguf":{"b":"<x>","a":"1"},"quantization":"","context_size":4096}}"#;
        let expected =
            r#"{"format":"gguf","size":"1 GB","gguf":{"a":"1","b":"\u003cx\u003e"},"context_size":4096}"#;
        assert_eq!(runtime_config(config).unwrap(), format!("{expected}\n").as_bytes());
        assert_eq!(runtime_config(b"{}").unwrap(), b"{}\n");
        assert_eq!(runtime_config(b"no").unwrap_err().kind(), Kind::Invalid);
    }
}
