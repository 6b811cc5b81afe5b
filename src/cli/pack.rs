//! `weightfs pack`: a folder of a model becomes an artifact with an index, in a registry or an image layout folder.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::args::Registries;
use super::progress::Progress;
use super::{print, reference, runtime};
use crate::config::{Environment, Flags, Settings};
use crate::error::{Error, Kind, Result};
use crate::oci::artifact::Packaging;
use crate::oci::{Place, Reference, Which};
use crate::pack::publish::Done;
use crate::pack::{self, Described, Destination, Links, Options, Plan, Published, Times, Watch};
use crate::repository::push::Target;

/// The most names of left-out files that are printed; JSON has them all.
const NAMES: usize = 8;

#[derive(Debug, Args)]
pub(super) struct Pack {
    /// The folder that has the model's files
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
    /// HOST[:PORT]/REPOSITORY[:TAG], or oci:FOLDER[:TAG] for an image layout on disk; without a tag, latest
    #[arg(value_name = "TARGET")]
    target: String,
    /// Make each file a tar of its own instead of a layer as it is
    #[arg(long)]
    tar: bool,
    /// Make each file a tar of its own, compressed by gzip so that it can be read at random
    #[arg(long, conflicts_with_all = ["tar", "zstd"])]
    gzip: bool,
    /// Make each file a tar of its own, compressed by zstd so that it can be read at random
    #[arg(long, conflicts_with = "tar")]
    zstd: bool,
    /// Follow links that lead out of the folder too, and publish what they lead to
    #[arg(long)]
    follow_links: bool,
    /// Leave out the index, which lets readers verify every chunk as it arrives
    #[arg(long)]
    no_index: bool,
    /// Keep each file's modification time; the artifact is then another one for the same files of another time
    #[arg(long)]
    keep_times: bool,
    /// Take what this repository of the same registry has from there, without uploading it; may be given several times
    #[arg(long, value_name = "REPOSITORY")]
    mount_from: Vec<String>,
    /// Say what would be packed, without reading it all and without the registry
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    registries: Registries,
    /// Answer with a JSON object
    #[arg(long)]
    json: bool,
    // Last, since what follows would stand under its heading.
    #[command(flatten)]
    description: Description,
}

/// What a person says of the model, whatever its files say.
#[derive(Debug, Args)]
#[command(next_help_heading = "What is said of the model, in place of what its files say")]
struct Description {
    /// The model's name
    #[arg(long)]
    name: Option<String>,
    /// Its version; not weightfs's
    #[arg(long = "version", value_name = "VERSION")]
    model_version: Option<String>,
    /// As llama
    #[arg(long)]
    family: Option<String>,
    /// As LlamaForCausalLM
    #[arg(long)]
    architecture: Option<String>,
    /// As safetensors
    #[arg(long)]
    format: Option<String>,
    /// The number of parameters, as 8b
    #[arg(long, value_name = "SIZE")]
    param_size: Option<String>,
    /// As bfloat16
    #[arg(long)]
    precision: Option<String>,
    /// As gptq
    #[arg(long)]
    quantization: Option<String>,
    /// A title for people
    #[arg(long)]
    title: Option<String>,
    /// A sentence for people
    #[arg(long)]
    description: Option<String>,
    /// Who made it; may be given several times
    #[arg(long)]
    author: Vec<String>,
    /// Who distributes it
    #[arg(long)]
    vendor: Option<String>,
    /// As Apache-2.0; may be given several times
    #[arg(long)]
    license: Vec<String>,
    /// Where it comes from
    #[arg(long, value_name = "URL")]
    source_url: Option<String>,
    /// Which state of its source it is, as a commit
    #[arg(long)]
    revision: Option<String>,
    /// Where it is documented
    #[arg(long, value_name = "URL")]
    doc_url: Option<String>,
}

impl Description {
    /// Text that is empty is taken for not given.
    fn described(&self) -> Described {
        let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let all = |all: &[String]| all.iter().filter(|text| !text.is_empty()).cloned().collect();
        Described {
            name: text(&self.name),
            version: text(&self.model_version),
            family: text(&self.family),
            architecture: text(&self.architecture),
            format: text(&self.format),
            param_size: text(&self.param_size),
            precision: text(&self.precision),
            quantization: text(&self.quantization),
            title: text(&self.title),
            description: text(&self.description),
            vendor: text(&self.vendor),
            source_url: text(&self.source_url),
            doc_url: text(&self.doc_url),
            revision: text(&self.revision),
            licenses: all(&self.license),
            authors: all(&self.author),
        }
    }
}

impl Pack {
    /// What the flags set.
    pub(super) fn set(&self, flags: &mut Flags) {
        self.registries.set(flags);
    }

    fn options(&self, environment: &Environment) -> Result<Options> {
        let epoch = environment.source_date_epoch()?;
        Ok(Options {
            packaging: match (self.tar, self.gzip, self.zstd) {
                (true, ..) => Packaging::Tar,
                (_, true, _) => Packaging::TarGzip,
                (_, _, true) => Packaging::TarZstd,
                _ => Packaging::Raw,
            },
            links: if self.follow_links { Links::All } else { Links::Inside },
            index: !self.no_index,
            times: match self.keep_times {
                true => Times::Own { latest: epoch },
                false => Times::Fixed(epoch.unwrap_or(0)),
            },
            created: epoch,
            described: self.description.described(),
            scratch: environment.temporary(),
        })
    }
}

/// Packs a folder, or says what that would make.
///
/// # Errors
/// `Invalid` where the target can't be meant; those of planning and publishing.
pub(super) fn run(command: &Pack, settings: &Settings, environment: &Environment) -> Result<()> {
    let begun = Instant::now();
    let (reference, tag) = target(&command.target)?;
    refuse_inside(&reference.place, &command.folder)?;
    command.mount_from.iter().try_for_each(|from| check_repository(&reference.place, from))?;
    let plan = pack::plan(&command.folder, &command.options(environment)?)?;
    if command.dry_run {
        return show(command, &plan);
    }
    say_skipped(command, &plan);
    let published = runtime()?.block_on(async {
        let target = Target::open(&reference, &settings.repository)?;
        let destination = Destination::new(target, Some(tag), command.mount_from.clone());
        let progress = Progress::of("reading and uploading", plan.bytes().saturating_mul(2));
        progress.name(&reference.to_string());
        let bar = progress.clone();
        let watch: Watch = std::sync::Arc::new(move |bytes| bar.add(bytes));
        let published = pack::publish(&plan, &destination, &watch).await;
        progress.finish();
        published
    })?;
    let report = Report::new(&reference, &plan, &published, begun);
    if command.json { print::json(&report) } else { print::line(report.text(&published.done)) }
}

/// The target with the tag it gets, which is `latest` where none was typed.
///
/// # Errors
/// `Invalid` where it can't be meant or has a digest: what is packed gets the digest that it gets.
pub(super) fn target(text: &str) -> Result<(Reference, String)> {
    let mut target = reference(text)?;
    match target.which() {
        Which::Tag(tag) => {
            target.tag = Some(tag.clone());
            Ok((target, tag))
        }
        Which::Digest(_) => {
            let doing = format!("cannot put anything at a digest: {text}");
            Err(Error::new(Kind::Invalid, doing)
                .hint("leave off what begins with '@', or write a tag, after ':'"))
        }
    }
}

/// The repository of `source` that blobs need not be uploaded from, where `target` is another one of the same registry.
pub(super) fn sharing(source: &Reference, target: &Reference) -> Vec<String> {
    match (&source.place, &target.place) {
        (Place::Registry { host, repository }, Place::Registry { host: other, repository: into })
            if host == other && repository != into =>
        {
            vec![repository.clone()]
        }
        _ => Vec::new(),
    }
}

/// Refuses an image layout folder inside of the folder that is packed: the next time it would be packed too.
fn refuse_inside(target: &Place, folder: &Path) -> Result<()> {
    let Place::Layout { folder: layout } = target else { return Ok(()) };
    // Of what is not there yet, the part that is.
    let real = layout.ancestors().find_map(|path| Some((path, path.canonicalize().ok()?)));
    let inside =
        |(_, real): (&Path, PathBuf)| folder.canonicalize().is_ok_and(|folder| real.starts_with(folder));
    if !real.is_some_and(inside) {
        return Ok(());
    }
    let doing = format!("{} is inside of the folder that is packed", layout.display());
    Err(Error::new(Kind::Invalid, doing).hint("name a folder elsewhere"))
}

/// Refuses what is no repository of the target's registry.
fn check_repository(target: &Place, from: &str) -> Result<()> {
    let refused = |why: &str| {
        Error::new(Kind::Invalid, format!("--mount-from {from:?}: {why}"))
            .hint("write it as acme/base, without a host")
    };
    let Place::Registry { host, .. } = target else { return Err(refused("the target is no registry")) };
    let parsed = format!("{host}/{from}").parse::<Reference>().ok();
    match parsed.map(|parsed| parsed.place) {
        Some(Place::Registry { repository, .. }) if repository == from => Ok(()),
        _ => Err(refused("it is no repository's name")),
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    reference: String,
    digest: String,
    files: usize,
    /// Of the layers, without the index.
    bytes: u64,
    /// 0 where there is none.
    index_bytes: u64,
    uploaded_bytes: u64,
    mounted_bytes: u64,
    present_bytes: u64,
    skipped: Vec<String>,
    seconds: f64,
}

impl Report {
    fn new(reference: &Reference, plan: &Plan, published: &Published, begun: Instant) -> Self {
        let Done { uploaded, mounted, present } = published.done;
        Self {
            reference: reference.to_string(),
            digest: published.digest.to_string(),
            files: plan.layers.len(),
            bytes: plan.bytes(),
            index_bytes: published.index.as_ref().map_or(0, |index| index.size),
            uploaded_bytes: uploaded,
            mounted_bytes: mounted,
            present_bytes: present,
            skipped: plan.skipped.clone(),
            seconds: begun.elapsed().as_secs_f64(),
        }
    }

    fn text(&self, done: &Done) -> String {
        let index = match self.index_bytes {
            0 => "no index".to_owned(),
            bytes => format!("index {}", print::size(bytes)),
        };
        let seconds = print::seconds(std::time::Duration::from_secs_f64(self.seconds));
        format!(
            "{}@{}: {}, {}, {} uploaded, {index}, {seconds}",
            self.reference,
            self.digest,
            print::count(self.files, "file"),
            print::size(self.bytes),
            print::size(done.uploaded)
        )
    }
}

/// On standard error, since standard output has the digest only.
fn say_skipped(command: &Pack, plan: &Plan) {
    if !plan.skipped.is_empty() && !command.json {
        print::complain(skipped(plan));
    }
}

fn skipped(plan: &Plan) -> String {
    let shown: Vec<&str> = plan.skipped.iter().take(NAMES).map(String::as_str).collect();
    let more = match plan.skipped.len() - shown.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("left out by name: {} ({}{more})", plan.skipped.len(), shown.join(", "))
}

#[derive(Debug, Serialize)]
struct Planned<'a> {
    files: Vec<PlannedFile<'a>>,
    bytes: u64,
    model: &'a Described,
    skipped: &'a [String],
}

#[derive(Debug, Serialize)]
struct PlannedFile<'a> {
    path: &'a str,
    kind: &'static str,
    /// Of the file.
    size: u64,
    /// Octal.
    mode: String,
    /// What it leads to, where it is a link.
    #[serde(skip_serializing_if = "Option::is_none")]
    link: Option<String>,
}

impl PlannedFile<'_> {
    fn row(&self) -> Vec<String> {
        let path = match &self.link {
            Some(target) => format!("{} -> {target}", self.path),
            None => self.path.to_owned(),
        };
        vec![self.kind.to_owned(), print::size(self.size), print::safe(&path)]
    }
}

/// The plan, for `--dry-run`.
fn show(command: &Pack, plan: &Plan) -> Result<()> {
    let files: Vec<PlannedFile<'_>> = plan
        .layers
        .iter()
        .map(|layer| PlannedFile {
            path: &layer.file.path,
            kind: layer.kind.name(),
            size: layer.file.size,
            mode: format!("{:04o}", layer.mode),
            link: layer.file.target.as_ref().map(|target| target.display().to_string()),
        })
        .collect();
    let planned = Planned { files, bytes: plan.bytes(), model: &plan.described, skipped: &plan.skipped };
    if command.json {
        return print::json(&planned);
    }
    let said = serde_json::to_value(planned.model).unwrap_or_default();
    let mut rows: Vec<Vec<String>> = Vec::new();
    for (name, value) in said.as_object().into_iter().flatten() {
        let all = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let value = all.iter().filter_map(serde_json::Value::as_str).collect::<Vec<_>>().join(", ");
        rows.push(vec![name.clone(), print::safe(&value)]);
    }
    rows.push(vec!["files".into(), format!("{}, {}", planned.files.len(), print::size(planned.bytes))]);
    let head = ["KIND", "SIZE", "PATH"].map(str::to_owned).to_vec();
    let files = planned.files.iter().map(PlannedFile::row);
    let table: Vec<_> = std::iter::once(head).chain(files).collect();
    let mut text = format!("{}\n\n{}", print::table(&rows), print::table(&table));
    if !plan.skipped.is_empty() {
        text.push_str(&format!("\n\n{}", print::safe(&skipped(plan))));
    }
    print::line(text)
}
