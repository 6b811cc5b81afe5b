//! `weightfs cache …`: what is kept on this machine, whether it is right, and making room.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use bytesize::ByteSize;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::args::set;
use super::print;
use super::progress::Progress;
use crate::config::{Flags, Settings};
use crate::content::Store;
use crate::content::store::audit::Holding;
use crate::content::store::catalogue::Catalogue;
use crate::content::store::prune::{Prune, Pruned};
use crate::error::{Error, Kind, Result};

/// What `cache verify` exits with where something was wrong. It is mended then, so it is no failure of the command.
const FOUND: u8 = 1;

#[derive(Debug, Args)]
pub(super) struct Cache {
    #[command(subcommand)]
    command: Which,
}

#[derive(Debug, Subcommand)]
enum Which {
    /// List the kept files: how much of each, how far they are proved, when they were last used
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
/// `Invalid` where a size or time can't be meant; `Denied` where the store is not this user's own; `Storage` where
/// nothing can be written.
pub(super) fn run(command: &Cache, settings: &Settings) -> Result<ExitCode> {
    let what = match &command.command {
        Which::Prune(room) => Some(room.prune()?),
        _ => None,
    };
    let store = Store::open(&settings.store)?;
    match &command.command {
        Which::List(plain) => list(plain, &store).map(|()| ExitCode::SUCCESS),
        Which::Verify(plain) => verify(plain, &store),
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
struct Listing {
    folder: String,
    /// Bytes of the disk that kept content takes, and may take.
    used_bytes: u64,
    budget_bytes: u64,
    /// Bytes of content.
    kept_bytes: u64,
    files: Vec<Row>,
}

/// A kept file.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    /// As the manifest has it; `null` where none is kept that does.
    path: Option<String>,
    /// The layer that it comes from; where that is not known, what it is kept as.
    layer: String,
    /// Where it begins in its layer.
    offset: u64,
    kept_bytes: u64,
    total_bytes: u64,
    /// `bound`, `proved` or `unproved`.
    state: &'static str,
    /// RFC 3339 in UTC; `-` where unknown.
    last_use: String,
}

fn list(command: &Plain, store: &Store) -> Result<()> {
    let catalogue = store.catalogue();
    let files: Vec<Row> = store.holdings().iter().map(|holding| row(holding, &catalogue)).collect();
    let listing = Listing {
        folder: store.folder().display().to_string(),
        used_bytes: store.used(),
        budget_bytes: store.budget().limit(),
        kept_bytes: files.iter().map(|row| row.kept_bytes).sum(),
        files,
    };
    if command.json { print::json(&listing) } else { print::line(listing.text()) }
}

fn row(holding: &Holding, catalogue: &Catalogue) -> Row {
    Row {
        path: catalogue.name(&holding.kept_as, holding.extent).map(str::to_owned),
        layer: catalogue.layer(&holding.kept_as).unwrap_or(&holding.kept_as).to_string(),
        offset: holding.extent.start(),
        kept_bytes: holding.kept,
        total_bytes: holding.extent.len(),
        state: match holding.proved {
            _ if catalogue.is_bound(&holding.kept_as) => "bound",
            true => "proved",
            false => "unproved",
        },
        last_use: print::time(seconds(holding.last_use)),
    }
}

/// Since 1970.
fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_secs()).unwrap_or(0)
}

impl Listing {
    fn text(&self) -> String {
        let room = format!("{} of at most {}", print::size(self.used_bytes), print::size(self.budget_bytes));
        let last = format!(
            "{} files, {} of content; {room} of the disk in {}",
            self.files.len(),
            print::size(self.kept_bytes),
            print::safe(&self.folder)
        );
        if self.files.is_empty() {
            return last;
        }
        let head = ["FILE", "KEPT", "OF", "STATE", "LAST USE", "LAYER"].map(str::to_owned).to_vec();
        let rows = self.files.iter().map(|row| {
            vec![
                print::safe(row.path.as_deref().unwrap_or("-")),
                print::size(row.kept_bytes),
                print::size(row.total_bytes),
                row.state.to_owned(),
                row.last_use.clone(),
                row.layer.chars().take("sha256:".len() + 12).collect(),
            ]
        });
        let table: Vec<_> = std::iter::once(head).chain(rows).collect();
        format!("{}\n\n{last}", print::table(&table))
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Verdict {
    files: usize,
    right_bytes: u64,
    wrong: Vec<Wrong>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Wrong {
    path: Option<String>,
    layer: String,
    /// Ranges in the file, both ends included; none where it could not be read at all.
    bytes: Vec<String>,
    /// Why nothing of it could be read.
    error: Option<String>,
}

fn verify(command: &Plain, store: &Store) -> Result<ExitCode> {
    let (catalogue, holdings) = (store.catalogue(), store.holdings());
    let progress = Progress::of("reading", holdings.iter().map(|holding| holding.kept).sum());
    let mut verdict = Verdict { files: holdings.len(), right_bytes: 0, wrong: Vec::new() };
    for holding in &holdings {
        let row = row(holding, &catalogue);
        progress.name(row.path.as_deref().unwrap_or(&row.layer));
        let (bytes, error) = match store.check(holding, &catalogue, &|bytes| progress.add(bytes)) {
            Ok(checked) => {
                verdict.right_bytes = verdict.right_bytes.saturating_add(checked.right);
                (checked.dropped.iter().map(ToString::to_string).collect(), None)
            }
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        if !bytes.is_empty() || error.is_some() {
            verdict.wrong.push(Wrong { path: row.path, layer: row.layer, bytes, error });
        }
    }
    progress.finish();
    if command.json { print::json(&verdict) } else { print::line(verdict.text()) }?;
    Ok(if verdict.wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}

impl Verdict {
    fn text(&self) -> String {
        let mut text = String::new();
        for wrong in &self.wrong {
            let name = print::safe(wrong.path.as_deref().unwrap_or("a file whose name is not known"));
            text.push_str(&match &wrong.error {
                Some(error) => {
                    format!("UNREADABLE: {name} (layer {}): {}\n", wrong.layer, print::safe(error))
                }
                None => format!("WRONG: {name} bytes {} (layer {})\n", wrong.bytes.join(", "), wrong.layer),
            });
        }
        let right = print::size(self.right_bytes);
        text.push_str(&match self.wrong.len() {
            0 => format!("{} files, {right}: all of it is right", self.files),
            count => format!(
                "{count} of {} files had wrong bytes, which are fetched again when they are read; {right} is right",
                self.files
            ),
        });
        text
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Gone {
    freed_bytes: u64,
    files: u64,
    in_use_bytes: u64,
    leftovers: u64,
}

fn prune(command: &Room, what: Prune, store: &Store) -> Result<()> {
    let Pruned { freed, images, in_use, leftovers } = store.prune(what);
    if command.json {
        return print::json(&Gone { freed_bytes: freed, files: images, in_use_bytes: in_use, leftovers });
    }
    let mut text = format!("{} freed: {images} files, and {leftovers} leftovers", print::size(freed));
    if in_use > 0 {
        text.push_str(&format!("; {} more is in use", print::size(in_use)));
    }
    print::line(text)
}
