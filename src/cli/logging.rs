//! Where log lines go: standard error, or the log file of a mount that runs in the background.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;

use super::traces;
use crate::error::{Error, Kind, Result, StorageContext};
use crate::serve::start::append;

/// How large a log file may grow before a new one is begun; one old one is kept beside it.
const LIMIT: u64 = 10 << 20;

/// What is logged where nothing else is said.
#[derive(Clone, Copy, Debug)]
pub(super) enum Usual {
    /// Only what may need a hand: somebody looks at a terminal.
    Warnings,
    /// Also what the mount does, to be looked up later.
    Deeds,
}

/// Logs to standard error, and sends traces to the address `traces`.
///
/// # Errors
/// `Invalid` where `filter` is no filter; those of [`traces::begin`].
pub(super) fn to_stderr(filter: Option<&str>, usual: Usual, traces: Option<&str>) -> Result<()> {
    let coloured = io::IsTerminal::is_terminal(&io::stderr());
    if let Some(endpoint) = traces {
        return traces::begin(endpoint, parse(filter, usual)?, coloured, io::stderr);
    }
    let lines = tracing_subscriber::fmt()
        .with_env_filter(parse(filter, usual)?)
        .with_target(false)
        .log_internal_errors(false);
    let _ = lines.with_ansi(coloured).with_writer(io::stderr).try_init();
    Ok(())
}

/// Logs to the file at `path`, and sends traces to the address `traces`.
///
/// # Errors
/// `Invalid` where `filter` is no filter, `Storage` where the file can't be opened; those of [`traces::begin`].
pub(super) fn to_file(path: &Path, filter: Option<&str>, usual: Usual, traces: Option<&str>) -> Result<()> {
    let log = LogFile::open(path, LIMIT)?;
    if let Some(endpoint) = traces {
        return traces::begin(endpoint, parse(filter, usual)?, false, Mutex::new(log));
    }
    let lines = tracing_subscriber::fmt()
        .with_env_filter(parse(filter, usual)?)
        .with_target(false)
        .log_internal_errors(false);
    let _ = lines.with_ansi(false).with_writer(Mutex::new(log)).try_init();
    Ok(())
}

fn parse(filter: Option<&str>, usual: Usual) -> Result<EnvFilter> {
    let usual = match usual {
        Usual::Warnings => "warn",
        Usual::Deeds => "warn,weightfs=info",
    };
    EnvFilter::try_new(filter.unwrap_or(usual)).map_err(|error| {
        let doing = format!("WEIGHTFS_LOG or log.filter: {:?} is no filter", filter.unwrap_or(usual));
        Error::from_source(Kind::Invalid, doing, error).hint("write it as 'info' or 'warn,weightfs=debug'")
    })
}

/// A log file that is renamed to `….1` and begun anew when it grows too large.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    written: u64,
    limit: u64,
}

impl LogFile {
    /// Opens the file for appending, private to its owner.
    ///
    /// # Errors
    /// `Storage`.
    pub(super) fn open(path: &Path, limit: u64) -> Result<Self> {
        let file = append(path).storage(|| format!("cannot write the log {}", path.display()))?;
        let written = file.metadata().map_or(0, |found| found.len());
        Ok(Self { path: path.to_owned(), file, written, limit })
    }

    fn turn(&mut self) -> io::Result<()> {
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        std::fs::rename(&self.path, old)?;
        self.file = append(&self.path)?;
        self.written = 0;
        Ok(())
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.written >= self.limit && self.turn().is_err() {
            // The old file goes on; it is asked again after as much more.
            self.written = 0;
        }
        let count = self.file.write(bytes)?;
        self.written = self.written.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_is_begun_anew_and_one_old_one_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.log");
        let mut log = LogFile::open(&path, 10).unwrap();
        for line in ["first line\n", "second line\n", "third line\n"] {
            log.write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "third line\n");
        assert_eq!(std::fs::read_to_string(folder.path().join("m.log.1")).unwrap(), "second line\n");
    }

    #[test]
    fn a_filter_that_is_none_is_refused() {
        assert!(parse(Some("weightfs=loud"), Usual::Warnings).is_err());
        assert!(parse(Some("debug"), Usual::Warnings).is_ok());
    }
}
