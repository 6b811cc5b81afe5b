//! What is written of a volume for who waits for it: `status.json`, in the form that model-csi-driver has for it.
//!
//! A model that is read as it comes is ready when it answers: then all of its layers count as finished, since nobody has to wait
//! for them. Written by the plane beside its volumes, and by a dynamic volume's process for its models.

use std::collections::HashSet;
use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::put::{Readers, put};
use crate::error::{Error, Kind, Result, StorageContext};
use crate::oci::Artifact;

/// How far a model is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Phase {
    /// The registry is asked, and the model opened.
    Pulling,
    /// It can be read, in a dynamic volume.
    PullSucceeded,
    /// It could not be opened.
    PullFailed,
    /// It was not opened in time.
    PullTimeout,
    /// It can be read, as a volume.
    Mounted,
}

impl Phase {
    /// The one of a model that could not be opened for this reason.
    #[must_use]
    pub fn of_failure(error: &Error) -> Self {
        match error.kind() {
            Kind::Deadline => Self::PullTimeout,
            _ => Self::PullFailed,
        }
    }
}

/// What is known of a volume, or of one model of a dynamic one. What is empty is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The volume's id.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub volume_name: String,
    /// What the model is called within the volume.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mount_id: String,
    /// The reference as it was asked for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reference: String,
    /// How far it is; `None` for a dynamic volume itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<Phase>,
    /// Whether the volume belongs to one pod and names its model itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inline: bool,
    /// Its layers.
    #[serde(default)]
    pub progress: Progress,
}

/// The layers of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// How many there are.
    pub total: usize,
    /// Those that can be read.
    pub items: Vec<Item>,
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// The blob's digest.
    pub digest: String,
    /// The file's path as the layer's annotation has it, after a slash.
    pub path: String,
    /// Bytes, as the registry keeps them.
    pub size: u64,
    /// When the model was asked for (RFC 3339).
    pub started_at: String,
    /// When it could be read.
    pub finished_at: Option<String>,
}

impl Progress {
    /// That of a model that was asked for at `begun` and can be read now.
    #[must_use]
    pub fn done(artifact: &Artifact, begun: SystemTime) -> Self {
        let time = |time| humantime::format_rfc3339_nanos(time).to_string();
        let (started, finished) = (time(begun), time(SystemTime::now()));
        let mut seen = HashSet::new();
        let different = artifact.visible().filter(|layer| seen.insert(&layer.descriptor.digest));
        let items: Vec<Item> = different
            .map(|layer| Item {
                digest: layer.descriptor.digest.to_string(),
                path: format!("/{}", layer.path.as_deref().unwrap_or_default()),
                size: layer.descriptor.size,
                started_at: started.clone(),
                finished_at: Some(finished.clone()),
            })
            .collect();
        Self { total: items.len(), items }
    }
}

impl Report {
    /// The file's text.
    ///
    /// # Errors
    /// `Storage`, which does not happen.
    pub fn text(&self) -> Result<Vec<u8>> {
        let text = serde_json::to_vec_pretty(self).map_err(std::io::Error::from);
        text.storage(|| "cannot write a status".to_owned())
    }

    /// Puts the file at `path` in place as a whole, for all to read.
    ///
    /// # Errors
    /// `Storage`.
    pub fn write(&self, path: &Path) -> Result<()> {
        put(path, &self.text()?, Readers::Everybody)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_report_is_written_as_model_csi_driver_writes_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("status.json");
        let root = Report { volume_name: "csi-1".to_owned(), ..Report::default() };
        root.write(&path).unwrap();
        let text = "{\n  \"volume_name\": \"csi-1\",\n  \"progress\": {\n    \"total\": 0,\n    \"items\": []\n  }\n}";
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o644);
        let mounted = Report {
            mount_id: "m".to_owned(),
            reference: "r.io/a/b:v1".to_owned(),
            state: Some(Phase::PullSucceeded),
            inline: true,
            ..root
        };
        let value: serde_json::Value = serde_json::from_slice(&mounted.text().unwrap()).unwrap();
        assert_eq!((&value["state"], &value["inline"]), (&"PULL_SUCCEEDED".into(), &true.into()));
        assert_eq!(serde_json::from_value::<Report>(value).unwrap(), mounted);
    }
}
