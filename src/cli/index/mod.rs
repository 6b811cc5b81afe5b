//! `weightfs index …`: what is done with an artifact's index.

mod add;
mod build;
mod inspect;
mod push;
mod said;
mod verify;

use clap::{Args, Subcommand};

use super::args::{Registries, set};
use crate::config::{Flags, Settings};
use crate::error::{Error, Kind, Result};
use crate::index::pass::Spacing;
use crate::pack;

#[derive(Debug, Args)]
pub(super) struct Index {
    #[command(subcommand)]
    command: Which,
}

#[derive(Debug, Subcommand)]
enum Which {
    /// Give the model REF an index, which lets readers verify every chunk as it arrives
    Add(add::Add),
    /// Make the index of the model REF for this machine, or as a file
    Build(build::Build),
    /// Publish an index of the model REF beside it, which leaves the model as it is
    Push(push::Push),
    /// Say what the index of the model REF, or the one in a file, has
    Inspect(inspect::Inspect),
    /// Check the index of the model REF against the model, or the form of the one in a file
    Verify(verify::Verify),
}

/// How a repository is asked.
#[derive(Debug, Args)]
struct Asking {
    #[command(flatten)]
    registries: Registries,
    /// How long a read may go without progress before it fails, as 60s
    #[arg(long, value_name = "TIME")]
    read_deadline: Option<String>,
}

/// Which of several manifests is meant.
#[derive(Debug, Args)]
struct Chosen {
    /// Take the manifest for this platform, as linux/arm64, where REF is a list of several [this machine's, or the only one]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<String>,
}

/// An index that is looked at, and how.
#[derive(Debug, Args)]
struct Looking {
    /// A model, or a file that 'index build' has written
    #[arg(value_name = "REF|FILE")]
    of: String,
    #[command(flatten)]
    chosen: Chosen,
    /// Where indexes are kept that were made on this machine
    #[arg(long, value_name = "DIR")]
    store: Option<String>,
    #[command(flatten)]
    asking: Asking,
    /// Answer with a JSON object
    #[arg(long)]
    json: bool,
}

/// How an index is made and published.
#[derive(Debug, Args)]
struct Making {
    #[command(flatten)]
    spans: Spans,
    #[command(flatten)]
    asking: Asking,
    /// Answer with a JSON object
    #[arg(long)]
    json: bool,
}

/// How compressed layers are indexed.
#[derive(Debug, Args)]
struct Spans {
    /// How much content lies between places of a compressed layer where reading can start, 64KiB to 64MiB [4MiB]
    #[arg(long, value_name = "SIZE")]
    span: Option<String>,
}

impl Spans {
    fn making(&self, settings: &Settings) -> Result<pack::build::Making> {
        let spacing = match &self.span {
            None => Spacing::default(),
            Some(text) => {
                let size = text.parse::<bytesize::ByteSize>().map_err(|_| {
                    Error::new(Kind::Invalid, format!("--span: {text:?} is no size; write it as 4MiB"))
                })?;
                Spacing::new(size.as_u64()).map_err(|error| error.context("--span"))?
            }
        };
        let (scratch, contents) = (settings.store.folder.join("scratch"), pack::build::Contents::Compared);
        Ok(pack::build::Making { spacing, scratch, contents })
    }
}

impl Chosen {
    fn set(&self, flags: &mut Flags) {
        set(flags, "content.platform", self.platform.as_ref());
    }
}

impl Looking {
    fn set(&self, flags: &mut Flags) {
        self.chosen.set(flags);
        set(flags, "store.folder", self.store.as_ref());
        self.asking.set(flags);
    }
}

impl Asking {
    fn set(&self, flags: &mut Flags) {
        self.registries.set(flags);
        set(flags, "content.read_deadline", self.read_deadline.as_ref());
    }
}

impl Index {
    /// What the flags set.
    pub(super) fn set(&self, flags: &mut Flags) {
        match &self.command {
            Which::Add(add) => add.making.asking.set(flags),
            Which::Build(build) => build.set(flags),
            Which::Push(push) => push.set(flags),
            Which::Inspect(inspect) => inspect.looking.set(flags),
            Which::Verify(verify) => verify.looking.set(flags),
        }
    }
}

/// Does what the subcommand says.
///
/// # Errors
/// Those of the subcommand.
pub(super) fn run(command: &Index, settings: &Settings) -> Result<()> {
    match &command.command {
        Which::Add(command) => add::run(command, settings),
        Which::Build(command) => build::run(command, settings),
        Which::Push(command) => push::run(command, settings),
        Which::Inspect(command) => inspect::run(command, settings),
        Which::Verify(command) => verify::run(command, settings),
    }
}
