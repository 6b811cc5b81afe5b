//! `weightfs cache …`: what is kept on this machine, whether it is right, and making room.

mod list;
mod verify;

use std::process::ExitCode;

use bytesize::ByteSize;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::args::set;
use super::print;
use crate::config::{Flags, Settings};
use crate::content::Store;
use crate::content::store::prune::{Prune, Pruned};
use crate::error::{Error, Kind, Result};

#[derive(Debug, Args)]
pub(super) struct Cache {
    #[command(subcommand)]
    command: Which,
}

#[derive(Debug, Subcommand)]
enum Which {
    /// List the kept files and indexes: how much of each, how far they are proved, when they were last used
    List(Plain),
    /// Read all that is kept and compare it with its digests; what is wrong is named and dropped (exit code 1)
    Verify(Plain),
    /// Remove leftovers, and with a flag kept files that nobody uses at the moment
    Prune(Room),
}

#[derive(Debug, Args)]
struct Plain {
    #[command(flatten)]
    place: Place,
    /// Answer with a JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Room {
    /// Everything
    #[arg(long, conflicts_with_all = ["keep", "older_than"])]
    all: bool,
    /// What was not used for longest, until at most so much is left, as 50GiB
    #[arg(long, value_name = "SIZE", conflicts_with = "older_than")]
    keep: Option<String>,
    /// What was not used for so long, as 30days
    #[arg(long, value_name = "TIME")]
    older_than: Option<String>,
    #[command(flatten)]
    place: Place,
    /// Answer with a JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Place {
    /// Where fetched bytes are kept
    #[arg(long, value_name = "DIR")]
    store: Option<String>,
}

impl Cache {
    /// What the flags set.
    pub(super) fn set(&self, flags: &mut Flags) {
        let place = match &self.command {
            Which::List(plain) | Which::Verify(plain) => &plain.place,
            Which::Prune(room) => &room.place,
        };
        set(flags, "store.folder", place.store.as_ref());
    }
}

/// Does what the subcommand says.
///
/// # Errors
/// `Invalid` where a size or time can't be meant; `Storage` where the store is not this user's own, and where nothing can be
/// written.
pub(super) fn run(command: &Cache, settings: &Settings) -> Result<ExitCode> {
    let what = match &command.command {
        Which::Prune(room) => Some(room.prune()?),
        _ => None,
    };
    let store = Store::open(&settings.store)?;
    match &command.command {
        Which::List(plain) => list::list(plain, &store).map(|()| ExitCode::SUCCESS),
        Which::Verify(plain) => verify::verify(plain, &store),
        Which::Prune(room) => {
            prune(room, what.unwrap_or(Prune::Leftovers), &store).map(|()| ExitCode::SUCCESS)
        }
    }
}

impl Room {
    fn prune(&self) -> Result<Prune> {
        if let Some(size) = &self.keep {
            let refused = || {
                Error::new(Kind::Invalid, format!("--keep: {size:?} is no size")).hint("write it as 50GiB")
            };
            return Ok(Prune::Keep(size.parse::<ByteSize>().map_err(|_| refused())?.as_u64()));
        }
        if let Some(time) = &self.older_than {
            let refused = || {
                Error::new(Kind::Invalid, format!("--older-than: {time:?} is no time"))
                    .hint("write it as 30days or 12h")
            };
            return Ok(Prune::OlderThan(humantime::parse_duration(time).map_err(|_| refused())?));
        }
        Ok(if self.all { Prune::All } else { Prune::Leftovers })
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Gone {
    freed_bytes: u64,
    files: u64,
    /// Of compressed layers.
    indexes: u64,
    in_use_bytes: u64,
    leftovers: u64,
}

fn prune(command: &Room, what: Prune, store: &Store) -> Result<()> {
    let Pruned { freed, images, indexes, in_use, leftovers } = store.prune(what);
    if command.json {
        let gone = Gone { freed_bytes: freed, files: images, indexes, in_use_bytes: in_use, leftovers };
        return print::json(&gone);
    }
    let (files, indexes) = (print::count(images, "file"), print::count(indexes, "index"));
    let (freed, leftovers) = (print::size(freed), print::count(leftovers, "leftover"));
    let mut text = format!("{freed} freed: {files}, {indexes}, and {leftovers}");
    if in_use > 0 {
        text.push_str(&format!("; {} more is in use", print::size(in_use)));
    }
    print::line(text)
}
