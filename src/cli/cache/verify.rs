//! `weightfs cache verify`: whether what is kept is right; what is not is dropped.

use std::process::ExitCode;

use serde::Serialize;

use super::Plain;
use super::list::row;
use crate::cli::print;
use crate::cli::progress::Progress;
use crate::content::Store;
use crate::error::Result;

/// What the command exits with where something was wrong. It is mended then, so it is no failure of the command.
const FOUND: u8 = 1;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Verdict {
    files: usize,
    right_bytes: u64,
    wrong: Vec<Wrong>,
    indexes: usize,
    wrong_indexes: Vec<WrongIndex>,
}

/// The index of a compressed layer that was dropped.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct WrongIndex {
    layer: String,
    error: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Wrong {
    path: Option<String>,
    layer: String,
    /// Ranges in the file, both ends included; none where it could not be read at all.
    bytes: Vec<String>,
    /// Why nothing of it could be read.
    error: Option<String>,
}

/// Reads back all that is kept.
///
/// # Errors
/// Those of printing.
pub(super) fn verify(command: &Plain, store: &Store) -> Result<ExitCode> {
    let (catalogue, holdings, indexes) = (store.catalogue(), store.holdings(), store.kept_indexes());
    let kept = holdings.iter().map(|holding| holding.kept).chain(indexes.iter().map(|index| index.disk));
    let progress = Progress::of("reading", kept.sum());
    let mut verdict = Verdict {
        files: holdings.len(),
        right_bytes: 0,
        wrong: Vec::new(),
        indexes: indexes.len(),
        wrong_indexes: Vec::new(),
    };
    for holding in &holdings {
        let row = row(holding, &catalogue);
        progress.name(row.path.as_deref().unwrap_or(&row.layer));
        let (bytes, error) = match store.check(holding, &catalogue, &|bytes| progress.add(bytes)) {
            Ok(checked) => {
                verdict.right_bytes = verdict.right_bytes.saturating_add(checked.right);
                (checked.dropped.iter().map(ToString::to_string).collect(), None)
            }
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        if !bytes.is_empty() || error.is_some() {
            verdict.wrong.push(Wrong { path: row.path, layer: row.layer, bytes, error });
        }
    }
    for index in &indexes {
        progress.name(&format!("the index of {}", index.layer));
        let wrong = store.check_index(index);
        let wrong =
            wrong.map(|error| WrongIndex { layer: index.layer.to_string(), error: error.to_string() });
        verdict.wrong_indexes.extend(wrong);
        progress.add(index.disk);
    }
    progress.finish();
    if command.json { print::json(&verdict) } else { print::line(verdict.text()) }?;
    let is_right = verdict.wrong.is_empty() && verdict.wrong_indexes.is_empty();
    Ok(if is_right { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}

impl Verdict {
    fn text(&self) -> String {
        let mut text = String::new();
        for wrong in &self.wrong {
            let name = print::safe(wrong.path.as_deref().unwrap_or("a file whose name is not known"));
            text.push_str(&match &wrong.error {
                Some(error) => {
                    format!("UNREADABLE: {name} (layer {}): {}\n", wrong.layer, print::safe(error))
                }
                None => format!("WRONG: {name} bytes {} (layer {})\n", wrong.bytes.join(", "), wrong.layer),
            });
        }
        for WrongIndex { layer, error } in &self.wrong_indexes {
            text.push_str(&format!("WRONG: the index of layer {layer}: {}\n", print::safe(error)));
        }
        text + &self.summary()
    }

    fn summary(&self) -> String {
        let (files, indexes) = (print::count(self.files, "file"), print::count(self.indexes, "index"));
        let right = print::size(self.right_bytes);
        let mut said = Vec::new();
        match (self.wrong.len(), self.wrong_indexes.len()) {
            (0, 0) => said.push(format!("{files}, {right}, and {indexes}: all of it is right")),
            (wrong, wrong_indexes) => {
                if wrong > 0 {
                    said.push(format!(
                        "{wrong} of {files} had wrong bytes, which are fetched again when they are read"
                    ));
                }
                if wrong_indexes > 0 {
                    said.push(format!(
                        "{wrong_indexes} of {indexes}: wrong, and dropped; their layers go by again"
                    ));
                }
                said.push(format!("{right} is right"));
            }
        }
        said.join("; ")
    }
}
