//! `weightfs unmount`: takes a mount away, living or dead, with what is noted of it.

use std::time::Duration;

use super::{args, print};
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::mount::{self, Detach};
use crate::serve::State;
use crate::serve::control::{self, Answer, Question};

/// How long the mount's process may take to end: what it has begun to write down with fsync(2) takes as long as the disk does.
const END: Duration = Duration::from_secs(45);

/// How long it may take where the mount was detached while it was in use: it goes on for its readers.
const LAZY_END: Duration = Duration::from_secs(2);

/// Unmounts and waits until the mount's process has ended; one of the plane's mounts by way of it, whose process may serve others.
///
/// # Errors
/// `NotFound` where nothing of weightfs is mounted or noted there, `Busy` where it is in use, `Kernel`.
pub(super) fn run(command: &args::Unmount, settings: &Settings) -> Result<()> {
    let dir = mount::resolve(&command.dir)?;
    let question = Question::Unmount { dir: dir.clone(), lazy: command.lazy };
    let ask = || control::ask(&settings.serve.control(&settings.state.live), &question);
    // Asked again from here: the plane holds up others while it unmounts.
    let answer = if command.lazy { ask() } else { mount::once_unused(ask) }?;
    if answer == Some(Answer::Unmounted) {
        return print::line(format_args!("unmounted {}", dir.display()));
    }
    let state = State::open(&settings.state)?;
    let record = state.find(&dir);
    let (how, limit) = match command.lazy {
        true => (Detach::Lazy, LAZY_END),
        false => (Detach::Unused, END),
    };
    match mount::unmount(&dir, how) {
        // Only the note is left of a mount that is gone already.
        Err(error) if error.kind() == Kind::NotFound && record.is_some() => {}
        done => done?,
    }
    let Some(record) = record else {
        return print::line(format_args!("unmounted {}", dir.display()));
    };
    let ended = record.process.await_end(limit);
    state.forget(&record);
    if ended {
        return print::line(format_args!("unmounted {}", dir.display()));
    }
    let pid = record.process.pid;
    if command.lazy {
        let text = format!("detached {}; process {pid} ends when its files are closed", dir.display());
        return print::line(text);
    }
    let doing = format!("{} is unmounted, but its process {pid} has not ended", dir.display());
    Err(Error::new(Kind::Busy, doing).hint(format!("run 'kill {pid}'")))
}
