//! `weightfs list`: what is mounted, how much of it is on this machine, whether its bytes are proved, and how many files the
//! kernel serves by itself.

use serde::Serialize;

use super::{args, print};
use crate::config::Settings;
use crate::error::Result;
use crate::mount::Native;
use crate::serve::control::{self, Answer, Question};
use crate::serve::{Record, Shown, State};

/// One mount as it is listed.
#[derive(Debug, Serialize)]
struct Row {
    dir: std::path::PathBuf,
    reference: String,
    digest: String,
    pid: u32,
    /// Content bytes on this machine, of `total`; `null` for a dead mount.
    kept: Option<u64>,
    total: Option<u64>,
    /// `strict`: every byte is verified before it is served; `deferred`: some are later; empty for a dead mount.
    integrity: String,
    /// `deferred`, `verified`, `poisoned`, or `dead`, or `silent` where the process runs and does not answer.
    standing: String,
    /// How many files the kernel serves by itself, and why not the others; `null` for a dead mount.
    native: Option<Native>,
    /// Files that are not what the manifest says.
    poisoned: Vec<String>,
    /// Bytes that are not what the bound index says, as `PATH bytes A-B`.
    refused: Vec<String>,
    /// The log of a mount in the background.
    log: Option<std::path::PathBuf>,
    /// What 'weightfs serve' has found wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<String>,
}

/// Lists the mounts that are noted.
///
/// # Errors
/// `Storage` where the state folder can't be read or nothing can be written.
pub(super) fn run(command: &args::List, settings: &Settings) -> Result<()> {
    let state = State::open(&settings.state)?;
    let shown = volumes(settings)?;
    let rows: Vec<Row> =
        state.records()?.into_iter().flat_map(|record| rows(&state, record, &shown)).collect();
    for row in &rows {
        for file in &row.poisoned {
            print::complain(format_args!(
                "POISONED: {}/{file} is not what its manifest says; reading it fails",
                row.dir.display()
            ));
        }
    }
    for row in &rows {
        for bytes in &row.refused {
            print::complain(format_args!(
                "REFUSED: {}/{bytes} are not what their manifest says; reading them fails, the rest is served",
                row.dir.display()
            ));
        }
    }
    if command.json {
        return print::json(&rows);
    }
    if rows.is_empty() {
        return print::line("nothing is mounted");
    }
    print::line(print::table(&table(&rows)))
}

/// What the plane shows, where one runs.
///
/// # Errors
/// What the plane says.
pub(super) fn volumes(settings: &Settings) -> Result<Vec<Shown>> {
    match control::ask(&settings.serve.control(&settings.state.live), &Question::List {})? {
        Some(Answer::Volumes(shown)) => Ok(shown),
        Some(_) | None => Ok(Vec::new()),
    }
}

/// A row for each folder at which a mount is to be seen: those of its volumes, where it is one of the plane's.
fn rows(state: &State, record: Record, shown: &[Shown]) -> Vec<Row> {
    let volumes: Vec<&Shown> = shown.iter().filter(|volume| volume.host == record.dir).collect();
    if volumes.is_empty() {
        return vec![row(state, record)];
    }
    let of_volume = |volume: &Shown| {
        let noted = Record { reference: volume.reference.clone(), ..record.clone() };
        Row { dir: volume.dir.clone(), trouble: volume.trouble.clone(), ..row(state, noted) }
    };
    volumes.into_iter().map(of_volume).collect()
}

fn row(state: &State, record: Record) -> Row {
    let status = state.ask(&record);
    let silent = || if record.process.runs() { "silent" } else { "dead" }.to_owned();
    Row {
        kept: status.as_ref().map(|status| status.kept),
        total: status.as_ref().map(|status| status.total),
        integrity: status.as_ref().map(|status| status.integrity.clone()).unwrap_or_default(),
        standing: status.as_ref().map_or_else(silent, |status| status.standing.clone()),
        native: status.as_ref().map(|status| status.native.clone()),
        poisoned: status.as_ref().map(|status| status.poisoned.clone()).unwrap_or_default(),
        refused: status.map(|status| status.refused).unwrap_or_default(),
        dir: record.dir,
        reference: record.reference,
        digest: record.digest,
        pid: record.process.pid,
        log: record.log,
        trouble: None,
    }
}

fn table(rows: &[Row]) -> Vec<Vec<String>> {
    let head = ["DIR", "REFERENCE", "DIGEST", "PID", "LOCAL", "NATIVE", "INTEGRITY", "STANDING"];
    let mut table = vec![head.map(str::to_owned).to_vec()];
    table.extend(rows.iter().map(|row| {
        vec![
            print::safe(&row.dir.display().to_string()),
            print::safe(&row.reference),
            row.digest.chars().take("sha256:".len() + 12).collect(),
            row.pid.to_string(),
            local(row.kept, row.total),
            row.native.as_ref().map_or_else(|| "-".to_owned(), native),
            if row.integrity.is_empty() { "-" } else { &row.integrity }.to_owned(),
            row.standing.clone(),
        ]
    }));
    table
}

/// The share that is on this machine: `25 % (1.0 GiB)`.
fn local(kept: Option<u64>, total: Option<u64>) -> String {
    match (kept, total) {
        (Some(kept), Some(total)) => format!("{} ({})", print::percent(kept, total), print::size(kept)),
        _ => "-".to_owned(),
    }
}

/// How many files the kernel serves by itself, and what keeps most of the others from it: `3 of 12 (incomplete)`.
fn native(native: &Native) -> String {
    let files = format!("{} of {}", native.files, native.total);
    match native.why_not.iter().max_by_key(|(_, count)| **count) {
        Some((reason, _)) => format!("{files} ({})", print::safe(reason)),
        None => files,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_the_kernel_serves_are_counted_with_the_main_reason_why_the_others_are_not() {
        let count = |files, total, why_not: &[(&str, u64)]| {
            let why_not = why_not.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect();
            native(&Native { files, total, why_not })
        };
        assert_eq!(count(12, 12, &[]), "12 of 12");
        assert_eq!(count(3, 12, &[("incomplete", 8), ("open", 1)]), "3 of 12 (incomplete)");
    }

    #[test]
    fn the_local_share_is_given_in_percent_and_bytes() {
        assert_eq!(local(Some(1 << 30), Some(4 << 30)), "25 % (1.0 GiB)");
        assert_eq!(local(None, None), "-");
    }
}
