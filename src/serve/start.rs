//! Starting this program again as the process that serves a mount, and what that one says of itself.
//!
//! A process with threads cannot be forked soundly, so nothing is forked: the program is started anew, with [`FLAG`] before
//! the words of a mount. Its standard output is a socket. It says one [`Word`] there, that the mount answers or why it does not,
//! and then lets go of it. The command line holds no secret. Used by `weightfs mount` and by the plane.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result, StorageContext};

/// The word that makes the program the one that stays behind.
pub const FLAG: &str = "--ready-on-stdout";

/// What concerns the process that systemd has started, and nobody it starts itself.
const OWN: [&str; 6] =
    ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// What there is to say of a mount that answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounted {
    /// As typed.
    pub reference: String,
    /// The folder.
    pub dir: PathBuf,
    /// The manifest's digest.
    pub digest: String,
    /// The process that serves it.
    pub pid: u32,
    /// Why the registry was not heard, where what is kept here is mounted.
    #[serde(default)]
    pub unanswered: Option<String>,
    /// What else a person should know.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// The one line that the process behind says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Word {
    /// The mount answers.
    Mounted(Mounted),
    /// It never will.
    Failed {
        /// The exit code, which stands for the error's kind.
        code: u8,
        /// The error, for people.
        message: String,
    },
}

/// How a process is started.
#[derive(Clone, Debug)]
pub struct Start {
    /// This program.
    pub program: PathBuf,
    /// The words of the mount.
    pub words: Vec<OsString>,
    /// Variables that it has beside those of this process.
    pub variables: Vec<(String, OsString)>,
    /// What it writes to before it has opened its log itself.
    pub log: PathBuf,
    /// How long its word is waited for; `None`: as long as it lives. Its own deadlines end sooner, but for one that hangs.
    pub limit: Option<Duration>,
}

impl Start {
    /// Starts the process and waits for its word. Blocks as long as it takes to open the model.
    ///
    /// # Errors
    /// The one that the other process met; `Deadline` where it says nothing in time, `Kernel` where it can't be started or ends without a
    /// word, `Storage` where the log can't be written. Nothing is left running then.
    pub fn run(&self) -> Result<(Mounted, Child)> {
        let doing = || "cannot listen to the mount's process".to_owned();
        let (ours, theirs) = UnixStream::pair().storage(doing)?;
        ours.set_read_timeout(self.limit).storage(doing)?;
        let mut child = self.spawn(theirs)?;
        match hear(ours) {
            Ok(Word::Mounted(mounted)) => Ok((mounted, child)),
            Ok(Word::Failed { code, message }) => {
                let _ = child.wait();
                Err(Error::new(kind(code), message))
            }
            Err(silence) => {
                if silence == Silence::Long {
                    let _ = child.kill();
                }
                let how = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
                Err(self.silent(silence, &how))
            }
        }
    }

    fn silent(&self, silence: Silence, how: &str) -> Error {
        let error = match silence {
            Silence::Long => {
                Error::new(Kind::Deadline, "the mount's process said nothing in time, and was ended")
            }
            Silence::End => {
                Error::new(Kind::Kernel, format!("the mount's process ended without a word ({how})"))
            }
        };
        error.hint(format!("look into {}", self.log.display()))
    }

    fn spawn(&self, stdout: UnixStream) -> Result<Child> {
        let log = &self.log;
        let errors = append(log).storage(|| format!("cannot write the log {}", log.display()))?;
        let mut command = Command::new(&self.program);
        command.arg(FLAG).args(&self.words).stdin(Stdio::null());
        command.stdout(OwnedFd::from(stdout)).stderr(errors);
        for name in OWN {
            command.env_remove(name);
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
            .spawn()
            .map_err(|error| Error::from_source(Kind::Kernel, "cannot start the mount's process", error))
    }
}

/// Why no word came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Silence {
    /// The time was over.
    Long,
    /// The other end was closed, or said what is no word.
    End,
}

fn hear(stream: UnixStream) -> Result<Word, Silence> {
    let mut line = String::new();
    match BufReader::new(stream).read_line(&mut line) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Silence::Long),
        // What can't be read is no word.
        _ => serde_json::from_str(&line).map_err(|_| Silence::End),
    }
}

/// A kind with this exit code.
pub(super) fn kind(code: u8) -> Kind {
    let kinds = [
        Kind::Invalid,
        Kind::NotFound,
        Kind::Denied,
        Kind::Unreachable,
        Kind::Integrity,
        Kind::Unsupported,
        Kind::Storage,
        Kind::Busy,
    ];
    kinds.into_iter().find(|kind| kind.exit_code() == code).unwrap_or(Kind::Kernel)
}

/// Opens a log for appending, private to its owner; a link in its place is refused.
///
/// # Errors
/// The system's.
pub fn append(path: &Path) -> io::Result<File> {
    let no_link = nix::fcntl::OFlag::O_NOFOLLOW.bits();
    OpenOptions::new().create(true).append(true).mode(0o600).custom_flags(no_link).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_keeps_its_exit_code_from_one_process_to_the_other() {
        for code in 2..=10 {
            assert_eq!(kind(code).exit_code(), code);
        }
    }

    #[test]
    fn the_word_is_one_line() {
        let word = Word::Failed { code: 3, message: "no such tag\nsecond line".into() };
        assert!(!serde_json::to_string(&word).unwrap().contains('\n'));
    }

    #[test]
    fn a_process_that_ends_without_a_word_is_an_error_that_names_its_log() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("m.log");
        let (words, variables) = (Vec::new(), Vec::new());
        let start = Start { program: "/bin/true".into(), words, variables, log, limit: None };
        let error = start.run().unwrap_err();
        assert_eq!(error.kind(), Kind::Kernel);
        assert!(error.to_string().contains("m.log"), "{error}");
    }
    #[test]
    fn a_word_is_waited_for_as_long_as_there_is_time() {
        let heard = |say: Option<&str>| {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            ours.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
            if let Some(text) = say {
                io::Write::write_all(&mut theirs, text.as_bytes()).unwrap();
                drop(theirs);
                return hear(ours);
            }
            hear(ours)
        };
        assert_eq!(heard(None).unwrap_err(), Silence::Long);
        assert_eq!(heard(Some("")).unwrap_err(), Silence::End);
        assert_eq!(heard(Some("hello\n")).unwrap_err(), Silence::End);
        assert!(heard(Some("{\"failed\":{\"code\":3,\"message\":\"\"}}\n")).is_ok());
    }
}
