//! `weightfs cache list`: what is kept, by name.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::Plain;
use crate::cli::print;
use crate::content::Store;
use crate::content::store::audit::Holding;
use crate::content::store::catalogue::Catalogue;
use crate::content::store::indexes::KeptIndex;
use crate::error::Result;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listing {
    folder: String,
    /// Bytes of the disk that kept content and indexes take, and may take.
    used_bytes: u64,
    budget_bytes: u64,
    /// Bytes of content.
    kept_bytes: u64,
    files: Vec<Row>,
    indexes: Vec<IndexRow>,
}

/// The kept index of a compressed layer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct IndexRow {
    layer: String,
    /// As of a file.
    repositories: Vec<String>,
    disk_bytes: u64,
    /// `proved` or `unproved`, as its layer.
    state: &'static str,
    /// As of a file: when it or one of its layer was last used.
    last_use: String,
}

/// A kept file.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Row {
    /// As the manifest has it; `null` where none is kept that does.
    pub(super) path: Option<String>,
    /// The layer that it comes from; where that is not known, what it is kept as.
    pub(super) layer: String,
    /// The repositories by which it came here, or may be had; none where that is not known.
    repositories: Vec<String>,
    /// Where it begins in its layer.
    offset: u64,
    kept_bytes: u64,
    total_bytes: u64,
    /// `bound`, `proved` or `unproved`.
    state: &'static str,
    /// RFC 3339 in UTC; `-` where unknown.
    last_use: String,
}

/// Lists what is kept.
///
/// # Errors
/// Those of printing.
pub(super) fn list(command: &Plain, store: &Store) -> Result<()> {
    let catalogue = store.catalogue();
    let files: Vec<Row> = store.holdings().iter().map(|holding| row(holding, &catalogue)).collect();
    let listing = Listing {
        folder: store.folder().display().to_string(),
        used_bytes: store.used(),
        budget_bytes: store.budget().limit(),
        kept_bytes: files.iter().map(|row| row.kept_bytes).sum(),
        files,
        indexes: store.kept_indexes().iter().map(index_row).collect(),
    };
    if command.json { print::json(&listing) } else { print::line(listing.text()) }
}

/// What is said of a kept file.
pub(super) fn row(holding: &Holding, catalogue: &Catalogue) -> Row {
    Row {
        path: catalogue.name(&holding.kept_as, holding.extent).map(str::to_owned),
        layer: catalogue.layer(&holding.kept_as).unwrap_or(&holding.kept_as).to_string(),
        repositories: holding.repositories.clone(),
        offset: holding.extent.start(),
        kept_bytes: holding.kept,
        total_bytes: holding.extent.len(),
        state: match catalogue.is_bound(&holding.kept_as) {
            true => "bound",
            false => state(holding.proved),
        },
        last_use: print::time(seconds(holding.last_use)),
    }
}

fn index_row(index: &KeptIndex) -> IndexRow {
    IndexRow {
        layer: index.layer.to_string(),
        repositories: index.repositories.clone(),
        disk_bytes: index.disk,
        state: state(index.proved),
        last_use: print::time(seconds(index.last_use)),
    }
}

fn state(proved: bool) -> &'static str {
    if proved { "proved" } else { "unproved" }
}

/// Since 1970.
fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_secs()).unwrap_or(0)
}

impl Listing {
    fn text(&self) -> String {
        let room = format!("{} of at most {}", print::size(self.used_bytes), print::size(self.budget_bytes));
        let last = format!(
            "{}, {} of content; {}; {room} of the disk in {}",
            print::count(self.files.len(), "file"),
            print::size(self.kept_bytes),
            print::count(self.indexes.len(), "index"),
            print::safe(&self.folder)
        );
        if self.files.is_empty() && self.indexes.is_empty() {
            return last;
        }
        let head = ["FILE", "KEPT", "OF", "STATE", "LAST USE", "LAYER", "REPOSITORY"].map(str::to_owned);
        let files = self.files.iter().map(|row| {
            let name = print::safe(row.path.as_deref().unwrap_or("-"));
            let (kept, total) = (print::size(row.kept_bytes), print::size(row.total_bytes));
            let (layer, place) = (short(&row.layer), named(&row.repositories));
            [name, kept, total, row.state.to_owned(), row.last_use.clone(), layer, place]
        });
        let indexes = self.indexes.iter().map(|row| {
            let (name, none) = ("(index)".to_owned(), "-".to_owned());
            let (layer, place) = (short(&row.layer), named(&row.repositories));
            [
                name,
                print::size(row.disk_bytes),
                none,
                row.state.to_owned(),
                row.last_use.clone(),
                layer,
                place,
            ]
        });
        let table: Vec<_> = std::iter::once(head).chain(files).chain(indexes).map(Vec::from).collect();
        format!("{}\n\n{last}", print::table(&table))
    }
}

/// Repositories in a cell.
fn named(repositories: &[String]) -> String {
    match repositories {
        [] => "-".to_owned(),
        names => print::safe(&names.join(", ")),
    }
}

/// A digest as far as a person needs it.
fn short(digest: &str) -> String {
    digest.chars().take("sha256:".len() + 12).collect()
}
