//! A program that hands out credentials, run once: with a limit of time, bounded output, and nothing secret among its
//! words, which every user of the machine can see.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use zeroize::Zeroizing;

use crate::error::{Error, Kind, Result};

/// The most that is taken of an answer.
const ANSWER: u64 = 1 << 20;
/// The most that is taken of complaints, and how much of them is shown.
const COMPLAINTS: u64 = 16 << 10;
const SHOWN: usize = 300;

/// What a program said.
pub(super) struct Said {
    pub(super) status: ExitStatus,
    pub(super) answer: Zeroizing<Vec<u8>>,
    complaints: String,
}

/// Runs `command`, which `name` stands for in errors, with `input` on its standard input. It has its own process group,
/// which is killed as a whole when it runs longer than `limit` or nobody waits any more.
///
/// # Errors
/// `NotFound` where there is no such program, `Denied` where it may not be run, `Broken` where it says more than a MiB,
/// does not end in time or cannot be listened to.
pub(super) async fn run(mut command: Command, name: &Path, input: &[u8], limit: Duration) -> Result<Said> {
    let shown = name.display();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // What this program was given in so many words is no business of others.
    for given in ["WEIGHTFS_REGISTRY_AUTH", "DOCKER_AUTH_CONFIG"] {
        command.env_remove(given);
    }
    let child = command.process_group(0).kill_on_drop(true).spawn();
    let child = child.map_err(|error| {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => Kind::NotFound,
            std::io::ErrorKind::PermissionDenied => Kind::Denied,
            _ => Kind::Broken,
        };
        Error::from_source(kind, format!("cannot run {shown}"), error)
    })?;
    let mut running = Running(child);
    match tokio::time::timeout(limit, running.listen(input)).await {
        Ok(said) => {
            said.map_err(|error| Error::from_source(Kind::Broken, format!("cannot listen to {shown}"), error))
        }
        Err(_) => {
            let doing = format!("{shown} has not answered within {} s", limit.as_secs_f32());
            Err(Error::new(Kind::Broken, doing))
        }
    }
}

/// A child whose whole group ends with it.
struct Running(Child);

impl Running {
    async fn listen(&mut self, input: &[u8]) -> std::io::Result<Said> {
        let (stdin, stdout, stderr) = (self.0.stdin.take(), self.0.stdout.take(), self.0.stderr.take());
        let write = async {
            if let Some(mut stdin) = stdin {
                // One that does not want to hear it all answers nevertheless.
                let _ = stdin.write_all(input).await;
            }
        };
        let mut answer = Zeroizing::new(Vec::new());
        let read = async {
            match stdout {
                Some(stdout) => stdout.take(ANSWER + 1).read_to_end(&mut answer).await,
                None => Ok(0),
            }
        };
        let mut complaints = Vec::new();
        let heed = async {
            if let Some(stderr) = stderr {
                let mut stderr = stderr.take(COMPLAINTS);
                let _ = stderr.read_to_end(&mut complaints).await;
                // Heard to its end: one that finds nobody there to complain to ends for that.
                let _ = tokio::io::copy(&mut stderr.into_inner(), &mut tokio::io::sink()).await;
            }
        };
        let ((), length, ()) = tokio::join!(write, read, heed);
        if u64::try_from(length?).unwrap_or(u64::MAX) > ANSWER {
            return Err(std::io::Error::other("it says too much"));
        }
        let status = self.0.wait().await?;
        let complaints = String::from_utf8_lossy(&complaints).into_owned();
        Ok(Said { status, answer, complaints })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // An id is given only while the child is not waited for: until then nobody else can have its number.
        if let Some(group) = self.0.id().and_then(|id| i32::try_from(id).ok()) {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
    }
}

impl Said {
    /// The error that an unsuccessful end is, with the program's own words where they can hold no secret.
    pub(super) fn failure(&self, name: &Path) -> Error {
        let words =
            [String::from_utf8_lossy(&self.answer).trim().to_owned(), self.complaints.trim().to_owned()];
        let words = words.iter().find(|words| !words.is_empty() && !words.contains('{'));
        let words =
            words.map(|words| words.chars().filter(|c| !c.is_control()).take(SHOWN).collect::<String>());
        let words = words.map(|words| format!(": {words}")).unwrap_or_default();
        Error::new(Kind::Broken, format!("{} failed ({}){words}", name.display(), self.status))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    async fn shell(script: &str, input: &[u8], limit: Duration) -> Result<Said> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run(command, Path::new("it"), input, limit).await
    }

    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_program_is_given_its_input_and_heard() {
        let said = shell("cat", b"hello", LONG).await.unwrap();
        assert_eq!((&said.answer[..], said.status.success()), (&b"hello"[..], true));
        let deaf = shell("echo hello", &vec![7; 1 << 20], LONG).await.unwrap();
        assert_eq!(&deaf.answer[..], b"hello\n");
    }

    #[tokio::test]
    async fn a_program_that_complains_at_length_is_heard_all_the_same() {
        let script = "head -c 300000 /dev/zero >&2 || exit 7; echo hello";
        let said = shell(script, b"", LONG).await.unwrap();
        assert_eq!((&said.answer[..], said.status.success()), (&b"hello\n"[..], true));
        assert_eq!(said.complaints.len() as u64, COMPLAINTS);
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_ended_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", pid.display());
        let begun = Instant::now();
        let error = shell(&script, b"", Duration::from_secs(1)).await.err().unwrap();
        assert_eq!(error.kind(), Kind::Broken);
        assert!(begun.elapsed() < LONG);
        let child = std::fs::read_to_string(&pid).unwrap();
        let stat = format!("/proc/{}/stat", child.trim());
        let runs = || std::fs::read_to_string(&stat).is_ok_and(|text| !text.contains(") Z "));
        while runs() {
            assert!(begun.elapsed() < LONG, "{child} runs");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_program_that_never_stops_talking_is_not_listened_to() {
        let error = shell("cat /dev/zero", b"", LONG).await.err().unwrap();
        assert!(error.to_string().contains("too much"), "{error}");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_not_found() {
        let error = run(Command::new("/nowhere/p"), Path::new("p"), b"", LONG).await.err().unwrap();
        assert_eq!(error.kind(), Kind::NotFound);
    }

    #[tokio::test]
    async fn words_that_may_hold_a_secret_are_not_repeated() {
        let said =
            shell("echo '{\"Secret\":\"hunter2\"}'; echo no role >&2; exit 3", b"", LONG).await.unwrap();
        let error = said.failure(Path::new("it"));
        assert!(error.to_string().contains("no role") && !error.to_string().contains("hunter2"), "{error}");
    }
}
