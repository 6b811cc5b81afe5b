//! Processes that serve mounts: told from later ones with the same number, and watched until they end.
//!
//! Nothing here starts or ends one. Used by the records of the state folder, by the commands and by the plane.

use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::mount::Watch;

/// A process, told from a later one with the same number by when it started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since the machine did (man 5 proc, stat, field 22).
    started: u64,
}

impl Process {
    /// This one.
    #[must_use]
    pub fn own() -> Self {
        Self::of(std::process::id())
    }

    /// The one that has this number now; where none has, one that has ended.
    #[must_use]
    pub fn of(pid: u32) -> Self {
        Self { pid, started: look(pid).map_or(0, |found| found.started) }
    }

    /// Whether it still runs. One that has ended and waits for its parent does not.
    #[must_use]
    pub fn runs(&self) -> bool {
        look(self.pid).is_some_and(|found| found.started == self.started && !found.ended)
    }

    /// Waits until it has ended, at most `limit`; whether it has.
    #[must_use]
    pub fn await_end(&self, limit: Duration) -> bool {
        let begun = std::time::Instant::now();
        while self.runs() {
            if begun.elapsed() >= limit {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Something that tells at once when it ends; `None` where it has ended. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// `Kernel` where the kernel gives no descriptor for a process (before Linux 5.3, or too many are open).
    pub fn watch(&self) -> Result<Option<Watch>> {
        let doing = || format!("cannot watch process {}", self.pid);
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let descriptor = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(descriptor) => descriptor,
            Err(Errno::SRCH) => return Ok(None),
            Err(error) => return Err(Error::from_source(Kind::Kernel, doing(), error)),
        };
        // Looked at only now that the number can no longer be given to another one unnoticed.
        if !self.runs() {
            return Ok(None);
        }
        Watch::new(descriptor).map(Some).map_err(|error| Error::from_source(Kind::Kernel, doing(), error))
    }
}

struct Look {
    started: u64,
    ended: bool,
}

/// What `/proc/PID/stat` says; the name in it may have spaces and brackets, so it is read from the last one on.
fn look(pid: u32) -> Option<Look> {
    let text = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text);
    let (_, rest) = text.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let ended = matches!(fields.next()?, "Z" | "X" | "x");
    let started = fields.nth(18)?.parse().ok()?;
    Some(Look { started, ended })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_runs_until_it_has_ended() {
        assert!(Process::own().runs());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let process = Process::of(child.id());
        assert!(process.await_end(Duration::from_secs(10)));
        child.wait().unwrap();
        assert!(!process.runs());
        assert!(!Process { pid: std::process::id(), started: 0 }.runs());
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_told_and_one_that_has_ended_is_not_watched() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let process = Process::of(child.id());
        let watch = process.watch().unwrap().unwrap();
        child.kill().unwrap();
        tokio::time::timeout(Duration::from_secs(30), watch.end()).await.unwrap();
        child.wait().unwrap();
        assert!(process.watch().unwrap().is_none());
        assert!(Process { started: 0, ..Process::own() }.watch().unwrap().is_none());
    }
}
