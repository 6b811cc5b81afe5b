//! All that is known of an artifact before any file's content is read: its layers in order, and its description.
//!
//! What `--dry-run` shows, and what [`publish`](super::publish()) carries out. Asks no network.

use std::path::Path;

use super::describe::{Described, describe};
use super::kind::kind;
use super::layer::Layer;
use super::walk::{File, Links, walk};
use crate::error::Result;
use crate::oci::artifact::{LayerKind, Packaging};

/// The latest time that is written: what a tar header holds, in the year 2242.
const LATEST: u64 = (1 << 33) - 1;

/// How a folder is packed.
#[derive(Clone, Debug)]
pub struct Options {
    /// Raw, tar, or tar compressed.
    pub packaging: Packaging,
    /// Which links are followed.
    pub links: Links,
    /// Whether the artifact gets an index.
    pub index: bool,
    /// Which times the files get.
    pub times: Times,
    /// When the artifact was made, in seconds since 1970; `None`: it does not say, so that it is the same every time.
    pub created: Option<u64>,
    /// What is said of the model whatever its files say.
    pub described: Described,
}

/// Which modification times the files get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// All the same, in seconds since 1970.
    Fixed(u64),
    /// Each its own, in whole seconds, but none later than this where it is given.
    Own {
        /// In seconds since 1970.
        latest: Option<u64>,
    },
}

impl Times {
    fn of(self, file: &File) -> u64 {
        let own = || u64::try_from(file.mtime).unwrap_or(0);
        match self {
            Self::Fixed(time) => time,
            Self::Own { latest } => latest.map_or_else(own, |latest| own().min(latest)),
        }
        .min(LATEST)
    }
}

/// An artifact in the making.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its layers, in the manifest's order: configuration, weights, code, documents, data sets, each sorted by path.
    pub layers: Vec<Layer>,
    /// What of the folder is left out, by its name.
    pub skipped: Vec<String>,
    /// What is said of the model.
    pub described: Described,
    /// Whether it gets an index.
    pub index: bool,
    /// The time of the index's layer, in seconds since 1970.
    pub time: u64,
    /// When it was made, in seconds since 1970, if it says so.
    pub created: Option<u64>,
}

impl Plan {
    /// How many bytes of content its layers have, without the index.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.size()))
    }
}

/// What packing `folder` would make. Reads names, `config.json` and the headers of weights.
///
/// # Errors
/// As [`walk`].
pub fn plan(folder: &Path, options: &Options) -> Result<Plan> {
    let found = walk(folder, options.links)?;
    let kinds: Vec<(LayerKind, &File)> =
        found.files.iter().map(|file| (kind(&file.path, file.size), file)).collect();
    let described = options.described.clone().or(describe(&kinds));
    let layers = kinds
        .into_iter()
        .map(|(kind, file)| Layer::new(file.clone(), kind, options.packaging, options.times.of(file)));
    let mut layers = layers.collect::<Result<Vec<_>>>()?;
    // Stable, so that each kind stays sorted by path.
    layers.sort_by_key(|layer| place(layer.kind));
    let time = match options.times {
        Times::Fixed(time) => time.min(LATEST),
        Times::Own { latest } => latest.unwrap_or(0).min(LATEST),
    };
    let (index, created) = (options.index, options.created);
    Ok(Plan { layers, skipped: found.skipped, described, index, time, created })
}

fn place(kind: LayerKind) -> u8 {
    match kind {
        LayerKind::WeightConfig => 0,
        LayerKind::Weight => 1,
        LayerKind::Code => 2,
        LayerKind::Doc => 3,
        LayerKind::Dataset | LayerKind::Unknown => 4,
    }
}
