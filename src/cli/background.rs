//! How a mount stays behind: the program runs itself again, and is told over a pipe how that went.
//!
//! A process with threads cannot be forked soundly, so nothing is forked: the same program is started with the same
//! words and one more ([`FLAG`]). Its standard output is the pipe. It says one line there, that the mount answers or
//! why it does not, and then lets go of it. The command line holds no secret, so neither do the two.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use serde::{Deserialize, Serialize};

use super::args::{self, CommandLine};
use super::logging::{self, Usual};
use super::mount::{self, Mounted};
use crate::config::Environment;
use crate::error::{Error, Kind, Result, StorageContext};

/// The word that makes the program the one that stays behind.
const FLAG: &str = "--ready-on-stdout";

/// The one line that the process behind says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Mounted(Mounted),
    Failed { code: u8, message: String },
}

/// Starts this program again to serve the mount, and waits for its word.
///
/// # Errors
/// The one that the other process met; `Kernel` where it can't be started or ends without a word.
pub(super) fn start(log: &Path) -> Result<Mounted> {
    let program = std::env::current_exe()
        .map_err(|error| Error::from_source(Kind::Kernel, "cannot find this program's file", error))?;
    let errors = logging::append(log).storage(|| format!("cannot write the log {}", log.display()))?;
    let words = std::env::args_os().skip(1);
    let mut child = Command::new(program)
        .arg(FLAG)
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .map_err(|error| Error::from_source(Kind::Kernel, "cannot start the mount's process", error))?;
    let mut line = String::new();
    if let Some(pipe) = child.stdout.take() {
        // What can't be read is no word.
        let _ = BufReader::new(pipe).read_line(&mut line);
    }
    match serde_json::from_str(&line) {
        Ok(Word::Mounted(mounted)) => Ok(mounted),
        Ok(Word::Failed { code, message }) => {
            let _ = child.wait();
            Err(Error::new(kind(code), message))
        }
        Err(_) => {
            let how = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
            let error = Error::new(Kind::Kernel, format!("the mount's process ended without a word ({how})"));
            Err(error.hint(format!("look into {}", log.display())))
        }
    }
}

/// A kind with this exit code.
fn kind(code: u8) -> Kind {
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

/// Is the process that stays behind.
pub(super) fn serve(line: &CommandLine) -> ExitCode {
    // A session of its own: what the terminal sends to its processes does not reach this one.
    let _ = nix::unistd::setsid();
    close_inherited();
    let mut told = false;
    let done = match &line.command {
        args::Command::Mount(command) => serve_mount(line, command, &mut told),
        _ => Err(Error::new(Kind::Invalid, "only a mount stays behind")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            let code = error.kind().exit_code();
            if !told {
                let _ = say(&Word::Failed { code, message: error.to_string() });
            }
            ExitCode::from(code)
        }
    }
}

/// Closes what the caller left open beside the three usual descriptors: a lock or a pipe of a script's would be held as
/// long as the mount lives. Comes before anything here is opened.
fn close_inherited() {
    let Ok(folder) = std::fs::read_dir("/proc/self/fd") else { return };
    let open = folder.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    // Collected first: the folder itself is one of them, and is closed by then.
    for descriptor in open.collect::<Vec<i32>>() {
        if descriptor > 2 {
            let _ = nix::unistd::close(descriptor);
        }
    }
}

fn serve_mount(line: &CommandLine, command: &args::Mount, told: &mut bool) -> Result<()> {
    let settings = super::settings(line, &Environment::of_process())?;
    let dir = crate::mount::resolve(&command.dir)?;
    let log = super::state::State::open(&settings.state)?.log(&dir);
    logging::to_file(&log, settings.log.as_deref(), Usual::Deeds)?;
    mount::serve(command, &settings, mount::Place::Background, |mounted| {
        // Where nobody listens any more, nobody wants the mount.
        say(&Word::Mounted(mounted.clone()))?;
        *told = true;
        let_go()
    })
}

fn say(word: &Word) -> Result<()> {
    let doing = || "cannot answer who started the mount".to_owned();
    let mut line = serde_json::to_vec(word).map_err(std::io::Error::from).storage(doing)?;
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    out.write_all(&line).and_then(|()| out.flush()).storage(doing)
}

/// Ends the pipe, so that its reader sees the end of it.
fn let_go() -> Result<()> {
    let doing = || "cannot let go of the standard output".to_owned();
    let nowhere = File::options().write(true).open("/dev/null").storage(doing)?;
    nix::unistd::dup2_stdout(nowhere).storage(doing)
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
}
