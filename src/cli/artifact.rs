//! `weightfs artifact …`: what the plane has in the artifact store of its node.
//!
//! The plane does all of it; who asks here says which artifact, and with which settings and credentials.

use clap::{Args, Subcommand};

use super::args::{CommandLine, REFERENCE, Reading, State, set};
use super::{mount, print, reference};
use crate::config::{Environment, Flags, Settings};
use crate::error::{Error, Kind, Result};
use crate::serve::Registered;
use crate::serve::control::{self, Answer, Question};

#[derive(Debug, Args)]
pub(super) struct Artifact {
    #[command(subcommand)]
    command: Which,
}

#[derive(Debug, Subcommand)]
enum Which {
    /// Have the artifact REF in the store, read when it is asked for; once more follows a tag that leads elsewhere by now
    Add(Box<Add>),
    /// List what the store has
    List(List),
    /// Have the artifact REF in the store no longer; containers that have its files go on reading them
    Remove(Remove),
}

#[derive(Debug, Args)]
struct Add {
    #[arg(value_name = "REF", help = REFERENCE)]
    reference: String,
    /// Load before being asked: nothing, what is likely needed, or everything [none, auto, all]
    #[arg(long, value_name = "WHAT")]
    warm: Option<String>,
    #[command(flatten)]
    reading: Reading,
    #[command(flatten)]
    state: State,
    /// Answer with a JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct List {
    #[command(flatten)]
    state: State,
    /// Answer with a JSON array
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Remove {
    #[arg(value_name = "REF", help = "The name that it was added by, or that 'artifact list' gives")]
    reference: String,
    #[command(flatten)]
    state: State,
}

impl Artifact {
    /// What the flags set.
    pub(super) fn set(&self, flags: &mut Flags) {
        match &self.command {
            Which::Add(add) => {
                set(flags, "content.warm", add.warm.as_ref());
                add.reading.set(flags);
                add.state.set(flags);
            }
            Which::List(list) => list.state.set(flags),
            Which::Remove(remove) => remove.state.set(flags),
        }
    }
}

/// Does what the subcommand says, by way of the plane.
///
/// # Errors
/// What the plane says; `NotFound` where none runs, and for an artifact that is not there.
pub(super) fn run(
    command: &Artifact,
    settings: &Settings,
    line: &CommandLine,
    environment: &Environment,
) -> Result<()> {
    match &command.command {
        Which::Add(command) => add(command, settings, line, environment),
        Which::List(command) => list(command, settings),
        Which::Remove(command) => remove(command, settings),
    }
}

fn add(command: &Add, settings: &Settings, line: &CommandLine, environment: &Environment) -> Result<()> {
    let reference = reference(&command.reference)?;
    let (said, secret) = mount::said(&reference, line, environment)?;
    let question = Question::AddArtifact { reference: reference.to_string(), settings: said, secret };
    let registered = match ask(settings, &question)? {
        Answer::Artifact(registered) => registered,
        other => return Err(odd(&other)),
    };
    for warning in &registered.warnings {
        print::complain(format_args!("warning: {warning}"));
    }
    if command.json {
        return print::json(&registered);
    }
    print::line(format_args!("added {}: {}", registered.reference, registered.digest))
}

fn list(command: &List, settings: &Settings) -> Result<()> {
    let all = match ask(settings, &Question::ListArtifacts {})? {
        Answer::Artifacts(all) => all,
        other => return Err(odd(&other)),
    };
    if command.json {
        return print::json(&all);
    }
    if all.is_empty() {
        return print::line("the store has no artifact");
    }
    print::line(print::table(&table(&all)))
}

fn table(all: &[Registered]) -> Vec<Vec<String>> {
    let mut table = vec![["REFERENCE", "DIGEST", "PID", "TROUBLE"].map(str::to_owned).to_vec()];
    table.extend(all.iter().map(|one| {
        vec![
            print::safe(&one.reference),
            one.digest.chars().take("sha256:".len() + 12).collect(),
            one.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            one.trouble.as_deref().map_or_else(|| "-".to_owned(), print::safe),
        ]
    }));
    table
}

fn remove(command: &Remove, settings: &Settings) -> Result<()> {
    let reference = reference(&command.reference)?.to_string();
    match ask(settings, &Question::RemoveArtifact { reference: reference.clone() })? {
        Answer::Removed => print::line(format_args!("removed {reference}")),
        Answer::Nothing => {
            let error = Error::new(Kind::NotFound, format!("the store has no artifact {reference}"));
            Err(error.hint("'weightfs artifact list' says what it has"))
        }
        other => Err(odd(&other)),
    }
}

/// What the plane answers.
///
/// # Errors
/// What it says; `NotFound` where none runs.
fn ask(settings: &Settings, question: &Question) -> Result<Answer> {
    let path = settings.serve.control(&settings.state.live);
    control::ask(&path, question)?.ok_or_else(|| {
        let error = Error::new(Kind::NotFound, format!("no 'weightfs serve' answers at {}", path.display()));
        error.hint("start it with --artifact-store DIR")
    })
}

fn odd(answer: &Answer) -> Error {
    Error::new(Kind::Protocol, format!("'weightfs serve' answered {answer:?}"))
}
