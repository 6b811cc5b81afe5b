//! How a mount stays behind: the program runs itself again, and is told over a pipe how that went.
//!
//! The process that is started answers as [`serve::start`](crate::serve::start) describes. Used by `weightfs mount`.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::args::{self, CommandLine};
use super::logging::{self, Usual};
use super::mount;
use super::volume::{self, Volume};
use crate::config::{Environment, Settings};
use crate::error::{Error, Kind, Result, StorageContext};
use crate::serve::State;
use crate::serve::start::{Mounted, Start, Word};

/// Starts this program again to serve the mount, and waits for its word.
///
/// # Errors
/// The one that the other process met; `Kernel` where it can't be started or ends without a word.
pub(super) fn start(log: &Path) -> Result<Mounted> {
    let words = std::env::args_os().skip(1).collect();
    let start = Start { program: program()?, words, variables: Vec::new(), log: log.to_owned(), limit: None };
    start.run().map(|(mounted, _)| mounted)
}

/// This program's file.
///
/// # Errors
/// `Kernel` where the system does not say.
pub(super) fn program() -> Result<PathBuf> {
    std::env::current_exe()
        .map_err(|error| Error::from_source(Kind::Kernel, "cannot find this program's file", error))
}

/// Is the process that stays behind.
pub(super) fn serve(line: &CommandLine) -> ExitCode {
    // A session of its own: what the terminal sends to its processes does not reach this one.
    let _ = nix::unistd::setsid();
    close_inherited();
    let mut told = false;
    let done = match &line.command {
        args::Command::Mount(command) => serve_mount(line, command, &mut told),
        args::Command::Volume(command) => serve_volume(line, command, &mut told),
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
    log_for(&crate::mount::resolve(&command.dir)?, &settings)?;
    mount::serve(command, &settings, mount::Place::Background, |mounted| tell(mounted, told))
}

fn serve_volume(line: &CommandLine, command: &Volume, told: &mut bool) -> Result<()> {
    let settings = super::settings(line, &Environment::of_process())?;
    log_for(&crate::mount::resolve(&command.dir())?, &settings)?;
    volume::serve(command, &settings, |mounted| tell(mounted, told))
}

/// Logs to the file of what is mounted at `dir`.
fn log_for(dir: &Path, settings: &Settings) -> Result<()> {
    let log = State::open(&settings.state)?.log(dir);
    logging::to_file(&log, settings.log.as_deref(), Usual::Deeds, settings.serve.traces.as_deref())
}

/// Says that the mount answers.
fn tell(mounted: &Mounted, told: &mut bool) -> Result<()> {
    // Where nobody listens any more, nobody wants the mount.
    say(&Word::Mounted(mounted.clone()))?;
    *told = true;
    let_go()
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
