//! Floor 7: what a person types; the only floor that prints.
//!
//! Each command is a module: it reads its settings, calls the floors below and says what came of it. Errors end
//! here, as one line on standard error and an exit code by kind ([`Kind::exit_code`](crate::Kind::exit_code)).

mod args;
mod artifact;
mod background;
mod cache;
mod cat;
mod convert;
pub mod demo;
mod healthy;
mod index;
mod inspect;
mod list;
mod logging;
mod login;
mod ls;
mod mount;
mod pack;
mod print;
mod progress;
mod pull;
mod serve;
mod traces;
mod unmount;
mod verify;
mod volume;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;

use self::args::{Command, CommandLine};
use self::logging::Usual;
use crate::config::{Environment, Settings};
use crate::content::Store;
use crate::error::{Error, Kind, Result};
use crate::fs::Model;
use crate::oci::Reference;
use crate::oci::reference::Place;

/// Runs the command line of this process and gives its exit code.
///
/// Must be called before the process has a second thread: a mount in the background begins a session of its own here.
pub fn main() -> ExitCode {
    let begun = Instant::now();
    let line = CommandLine::parse();
    let code = match line.common.ready_on_stdout {
        true => background::serve(&line),
        false => run(&line, begun).unwrap_or_else(|error| {
            print::complain(&error);
            ExitCode::from(error.kind().exit_code())
        }),
    };
    traces::finish();
    code
}

fn run(line: &CommandLine, begun: Instant) -> Result<ExitCode> {
    let environment = Environment::of_process();
    let settings = settings(line, &environment)?;
    let (usual, traces) = match &line.command {
        Command::Mount(mount) if mount.foreground => (Usual::Deeds, settings.serve.traces.as_deref()),
        Command::Serve(_) => (Usual::Deeds, settings.serve.traces.as_deref()),
        _ => (Usual::Warnings, None),
    };
    logging::to_stderr(settings.log.as_deref(), usual, traces)?;
    let done = match &line.command {
        Command::Mount(command) if command.foreground => mount::in_foreground(command, &settings, begun),
        Command::Mount(command) => mount::in_background(command, &settings, begun, line, &environment),
        Command::Serve(_) => serve::run(line, &settings, &environment),
        Command::Artifact(command) => artifact::run(command, &settings, line, &environment),
        Command::Unmount(command) => unmount::run(command, &settings),
        Command::List(command) => list::run(command, &settings),
        Command::Healthy(_) => healthy::run(&settings),
        Command::Ls(command) => ls::run(command, &settings),
        Command::Cat(command) => cat::run(command, &settings),
        Command::Inspect(command) => inspect::run(command, &settings),
        Command::Pack(command) => pack::run(command, &settings, &environment),
        Command::Convert(command) => convert::run(command, &settings),
        Command::Pull(command) => pull::run(command, &settings),
        Command::Index(command) => index::run(command, &settings),
        Command::Cache(command) => return cache::run(command, &settings),
        Command::Verify(command) => verify::run(command, &settings),
        Command::Login(command) => login::run(command, &settings),
        Command::Logout(command) => login::run_logout(command, &settings),
        Command::Demo(command) => demo::run(command, &environment),
        Command::Volume(_) => Err(Error::new(Kind::Invalid, "only 'weightfs serve' starts a dynamic volume")),
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn settings(line: &CommandLine, environment: &Environment) -> Result<Settings> {
    Settings::load(environment, line.common.config.as_deref(), &line.flags())
}

/// The reference as typed, its folder made absolute, so that it means the same in any folder and process.
fn reference(text: &str) -> Result<Reference> {
    let mut reference: Reference = text.parse()?;
    if let Place::Layout { folder } = &mut reference.place {
        *folder = std::path::absolute(&*folder).map_err(|error| {
            Error::from_source(Kind::Invalid, format!("not a folder's path: {}", folder.display()), error)
        })?;
    }
    Ok(reference)
}

/// Opens the model that `reference` names. That nothing of it can be kept is in the log.
///
/// # Errors
/// Those of the floors below.
async fn open(reference: Reference, settings: &Settings) -> Result<Arc<Model>> {
    let store = Store::open(&settings.store)?;
    if let Some(fault) = store.fault() {
        tracing::warn!("{fault}; choose another folder with --store");
    }
    open_over(store, reference, settings).await
}

/// The same, over a store that is open already.
///
/// # Errors
/// Those of the floors below.
async fn open_over(store: Arc<Store>, reference: Reference, settings: &Settings) -> Result<Arc<Model>> {
    let repository = crate::repository::connect(&reference, &settings.repository)?;
    let model = Model::open(repository, reference, store, settings.content.clone()).await?;
    for warning in &model.index.warnings {
        tracing::warn!("{}: {}", model.reference, print::safe(warning));
    }
    Ok(Arc::new(model))
}

/// The threads that wait for network and disk.
fn runtime() -> Result<tokio::runtime::Runtime> {
    let built = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    built.map_err(|error| Error::from_source(Kind::Kernel, "cannot start threads", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_means_the_same_wherever_it_is_asked_from() {
        let reference = reference("oci:models/llm:v1").unwrap();
        let Place::Layout { folder } = &reference.place else { panic!("a folder") };
        assert!(folder.is_absolute(), "{reference}");
        assert_eq!(reference.tag.as_deref(), Some("v1"));
    }
}
