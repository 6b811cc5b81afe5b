//! Running a part of a test in a process of its own, since a page fault that fails ends the process.
//!
//! The part is the same test of this same program, started again: it is told so, and given what it needs, by the
//! environment, and says on standard output how far it is.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use super::wait;

/// Set in the environment of a part.
const PART: &str = "WEIGHTFS_TEST_PART";

/// A running part of a test; killed when dropped.
pub struct Part {
    child: Child,
    stdin: ChildStdin,
    stdout: Option<BufReader<ChildStdout>>,
    said: String,
}

/// How a part ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code, if it had one.
    pub code: Option<i32>,
    /// The signal that killed it, if one did.
    pub signal: Option<i32>,
    /// What it printed that was not waited for.
    pub said: String,
}

impl Part {
    /// Starts the test `name` (its full path, as `mount::bytes::faults`) as a part of itself, with these variables set.
    pub fn start(name: &str, variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", name, "--nocapture", "--test-threads", "1"]).env(PART, "yes");
        command.envs(variables.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = child.stdout.take().map(BufReader::new);
        Self { child, stdin, stdout, said: String::new() }
    }

    /// Waits until it has printed a line with `word` in it.
    ///
    /// # Panics
    /// When it ends before, or says nothing for `limit`.
    pub fn wait_for(&mut self, word: &str, limit: Duration) {
        let (sender, receiver) = std::sync::mpsc::channel();
        let (mut stdout, word_there) = (self.stdout.take().unwrap(), word.to_owned());
        std::thread::spawn(move || {
            let (mut said, mut found) = (String::new(), false);
            while !found && stdout.read_line(&mut said).is_ok_and(|count| count > 0) {
                found = said.lines().last().is_some_and(|line| line.contains(&word_there));
            }
            let _nobody_waits = sender.send((stdout, said, found));
        });
        let Ok((stdout, said, found)) = receiver.recv_timeout(limit) else {
            panic!("no {word} within {limit:?}")
        };
        self.said.push_str(&said);
        self.stdout = Some(stdout);
        assert!(found, "ended before {word}: {}", self.said);
    }

    /// Gives it the line it waits for with [`wait_for_parent`].
    pub fn go_on(&mut self) {
        self.stdin.write_all(b"go\n").unwrap();
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When that takes longer than `limit`.
    pub fn finish(mut self, limit: Duration) -> Ended {
        let rest = self.stdout.take().map(|mut stdout| {
            std::thread::spawn(move || {
                let mut text = String::new();
                let _what_there_is = std::io::Read::read_to_string(&mut stdout, &mut text);
                text
            })
        });
        let status = wait::ended(&mut self.child, limit);
        let said =
            std::mem::take(&mut self.said) + &rest.map(|thread| thread.join().unwrap()).unwrap_or_default();
        let Some(status) = status else { panic!("still running after {limit:?}: {said}") };
        Ended { code: status.code(), signal: status.signal(), said }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _already_waited = self.child.wait();
    }
}

/// Whether this process is to be a part of the test that it was started for.
pub fn is_part() -> bool {
    std::env::var_os(PART).is_some()
}

/// In the part: waits for [`Part::go_on`].
pub fn wait_for_parent() {
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

/// In the part: a variable that the test has set.
pub fn given(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: this runs as a part of another test"))
}
