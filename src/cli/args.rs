//! The words of the command line, and which of them set what.
//!
//! Only parsing: flags that are settings become [`Flags`] by the names of the configuration's keys, and are read
//! there, so that a value means the same wherever it stands.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};

use crate::config::Flags;

const EXIT_CODES: &str = "Exit codes: 0 done; 1 'cache verify' has found what is wrong; 2 what was typed or configured \
cannot be meant; 3 no such thing; 4 denied, credentials are missing or refused; 5 the registry cannot be reached or \
fails; 6 bytes are not what their digest says; 7 a form that weightfs does not read; 8 a local file or folder, the output or \
the store failed or may not be used; 9 the kernel refused, or the mount's process died; 10 the place is taken or in use.";

/// Mount an AI model that lives in an OCI registry as a local folder, at once
#[derive(Debug, Parser)]
#[command(name = "weightfs", version, after_help = EXIT_CODES, max_term_width = 110)]
pub(super) struct CommandLine {
    #[command(flatten)]
    pub(super) common: Common,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// What every command understands.
#[derive(Debug, Args)]
pub(super) struct Common {
    /// Say more on stderr, or in the log of a mount: -v, -vv, -vvv
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(super) verbose: u8,
    /// Read this configuration file instead of the usual ones
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// The process is the one that serves a mount in the background: it answers on its standard output once
    #[arg(long, hide = true)]
    pub(super) ready_on_stdout: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show the model REF as the folder DIR
    Mount(Mount),
    /// Look after all mounts of a node: one process for each model, started again when it dies, asked for by 'mount' and others
    Serve(Box<super::serve::Serve>),
    /// Have artifacts in the store that CRI-O reads (serve --artifact-store)
    Artifact(Box<super::artifact::Artifact>),
    /// Take the mount at DIR away, also one whose process has died
    Unmount(Unmount),
    /// The process of a dynamic volume, as 'serve' starts it
    #[command(hide = true)]
    Volume(super::volume::Volume),
    /// List the mounts of this user
    List(List),
    /// Say whether 'weightfs serve' answers, for probes
    Healthy(Healthy),
    /// List the files of the model REF without mounting it
    Ls(Ls),
    /// Write a file of the model REF, or a part of it, to standard output
    Cat(Cat),
    /// Say what the model REF is made of
    Inspect(Inspect),
    /// Make an artifact of the model in FOLDER, with an index, and put it at TARGET
    Pack(Box<super::pack::Pack>),
    /// Publish the model REF as a container image of the same blobs, at TARGET
    Convert(super::convert::Convert),
    /// Bring the files of the model REF here as a whole, into the store or into a folder
    Pull(super::pull::Pull),
    /// Work with the index of a model
    Index(super::index::Index),
    /// Follow the chain from the digest of a model to its bytes on this machine, and name what is wrong
    Verify(super::verify::Verify),
    /// Look at what is kept on this machine, verify it, or remove it
    Cache(super::cache::Cache),
    /// Check credentials for the registry HOST and keep them, as Docker and Podman do
    Login(super::login::Login),
    /// Take the credentials for the registry HOST out of where they are kept
    Logout(super::login::Logout),
    /// Mount a sample model behind a slow line on this machine, and measure
    Demo(Demo),
}

pub(super) const REFERENCE: &str =
    "HOST[:PORT]/REPOSITORY[:TAG][@DIGEST], or oci:FOLDER[:TAG] for an image layout on disk";

#[derive(Debug, Args)]
pub(super) struct Mount {
    #[arg(value_name = "REF", help = REFERENCE)]
    pub(super) reference: String,
    /// An empty folder
    #[arg(value_name = "DIR")]
    pub(super) dir: PathBuf,
    /// Serve from this process and log to stderr, until interrupted or unmounted
    #[arg(long)]
    pub(super) foreground: bool,
    /// Load before being asked: nothing, what is likely needed, or everything [none, auto, all]
    #[arg(long, value_name = "WHAT")]
    warm: Option<String>,
    /// Let other users read the mount
    #[arg(long)]
    allow_other: bool,
    /// The owner shown
    #[arg(long)]
    uid: Option<String>,
    /// The group shown
    #[arg(long)]
    gid: Option<String>,
    /// Permissions taken from 0444 of files and 0555 of folders, octal
    #[arg(long)]
    umask: Option<String>,
    /// How far the kernel reads ahead in a file, as 1MiB
    #[arg(long, value_name = "SIZE")]
    read_ahead: Option<String>,
    /// Fetch what the kernel reads around a page fault where files are read at random: not, or always [auto, always]
    #[arg(long, value_name = "WHEN")]
    read_around: Option<String>,
    /// Let the kernel serve complete files by itself, or not [auto, swap, off]
    #[arg(long, value_name = "WHETHER")]
    passthrough: Option<String>,
    #[command(flatten)]
    reading: Reading,
    #[command(flatten)]
    pub(super) state: State,
    /// Answer with a JSON object
    #[arg(long)]
    pub(super) json: bool,
}

/// What every command that reads an artifact understands.
#[derive(Debug, Args)]
pub(super) struct Reading {
    /// Where fetched bytes are kept
    #[arg(long, value_name = "DIR")]
    store: Option<String>,
    /// How much is kept, as 50GiB
    #[arg(long, value_name = "SIZE")]
    store_size: Option<String>,
    #[command(flatten)]
    registries: Registries,
    /// Look for credentials in this file first
    #[arg(long, value_name = "FILE")]
    auth_file: Option<String>,
    /// How bytes are served that the artifact brings no digests of: as they come, each layer being proved when it is
    /// complete, or only once their layer is proved [auto, deferred, strict]
    #[arg(long, value_name = "HOW")]
    integrity: Option<String>,
    /// Believe an index that somebody attached to the model, where compressed layers have none of their own
    #[arg(long)]
    trust_index: bool,
    /// Open the manifest for this platform, as linux/arm64, where REF is a list of several [this machine's, or the only one]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<String>,
    /// How long a read may go without progress before it fails, as 60s
    #[arg(long, value_name = "TIME")]
    read_deadline: Option<String>,
}

/// What every command that asks a registry understands.
#[derive(Debug, Args)]
pub(super) struct Registries {
    /// Ask registries over HTTP, without TLS: any, or with =false none; else only one on this machine is
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    plain_http: Option<String>,
    /// Where registries have folders with a hosts.toml, which names their mirrors and certificates, as for containerd
    #[arg(long, value_name = "DIR")]
    hosts_dir: Option<String>,
    /// Trust the CAs whose certificates are in this PEM file, too
    #[arg(long, value_name = "FILE")]
    ca_file: Option<String>,
    /// Ask registries through this proxy, as http://proxy.example:3128
    #[arg(long, value_name = "URL")]
    proxy: Option<String>,
}

impl Registries {
    /// What the flags set.
    pub(super) fn set(&self, flags: &mut Flags) {
        set(flags, "registry.plain_http", self.plain_http.as_ref());
        set(flags, "registry.hosts_dir", self.hosts_dir.as_ref());
        set(flags, "registry.ca_file", self.ca_file.as_ref());
        set(flags, "registry.proxy", self.proxy.as_ref());
    }
}

#[derive(Debug, Args)]
pub(super) struct State {
    /// Where running mounts are noted
    #[arg(long = "state", value_name = "DIR")]
    folder: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Unmount {
    /// The folder mounted at
    #[arg(value_name = "DIR")]
    pub(super) dir: PathBuf,
    /// Detach at once; programs that have files open go on reading them
    #[arg(long)]
    pub(super) lazy: bool,
    #[command(flatten)]
    state: State,
}

#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    state: State,
    /// Answer with a JSON array
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Healthy {
    #[command(flatten)]
    state: State,
}

#[derive(Debug, Args)]
pub(super) struct Ls {
    #[arg(value_name = "REF", help = REFERENCE)]
    pub(super) reference: String,
    /// A file or folder of the model
    #[arg(value_name = "PATH", default_value = "")]
    pub(super) path: String,
    #[command(flatten)]
    reading: Reading,
    /// Answer with a JSON array
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Cat {
    #[arg(value_name = "REF", help = REFERENCE)]
    pub(super) reference: String,
    /// A file of the model
    #[arg(value_name = "PATH")]
    pub(super) path: String,
    /// Only these bytes, counted from 0, both ends included; A- for the rest, -N for the last N
    #[arg(long, value_name = "A-B", allow_hyphen_values = true)]
    pub(super) range: Option<String>,
    #[command(flatten)]
    reading: Reading,
}

#[derive(Debug, Args)]
pub(super) struct Inspect {
    #[arg(value_name = "REF", help = REFERENCE)]
    pub(super) reference: String,
    #[command(flatten)]
    reading: Reading,
    /// Answer with a JSON object
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
#[command(after_long_help = crate::testing::registry::grammar())]
pub(super) struct Demo {
    /// Have the registry fail as this rule says, and say at the end what it saw weightfs do against the rules; may be given
    /// several times, as 'GET */blobs/* 503 30%'. All that can be said is below, with --help
    #[arg(long = "fault", value_name = "RULE")]
    pub(super) faults: Vec<crate::testing::registry::Rule>,
    /// Answer with a JSON object
    #[arg(long)]
    pub(super) json: bool,
}

impl CommandLine {
    /// What the flags set.
    pub(super) fn flags(&self) -> Flags {
        let mut flags = Flags::new();
        match &self.command {
            Command::Mount(mount) => mount.set(&mut flags),
            Command::Serve(serve) => serve.set(&mut flags),
            Command::Artifact(artifact) => artifact.set(&mut flags),
            Command::Unmount(unmount) => unmount.state.set(&mut flags),
            Command::List(list) => list.state.set(&mut flags),
            Command::Healthy(healthy) => healthy.state.set(&mut flags),
            Command::Ls(ls) => ls.reading.set(&mut flags),
            Command::Cat(cat) => cat.reading.set(&mut flags),
            Command::Inspect(inspect) => inspect.reading.set(&mut flags),
            Command::Pack(pack) => pack.set(&mut flags),
            Command::Convert(convert) => convert.set(&mut flags),
            Command::Pull(pull) => pull.set(&mut flags),
            Command::Index(index) => index.set(&mut flags),
            Command::Verify(verify) => verify.set(&mut flags),
            Command::Cache(cache) => cache.set(&mut flags),
            Command::Login(login) => login.set(&mut flags),
            Command::Logout(logout) => logout.set(&mut flags),
            Command::Demo(_) | Command::Volume(_) => {}
        }
        let filter = match self.common.verbose {
            0 => None,
            1 => Some("warn,weightfs=info"),
            2 => Some("warn,weightfs=debug"),
            _ => Some("warn,weightfs=trace"),
        };
        set(&mut flags, "log.filter", filter.map(str::to_owned).as_ref());
        flags
    }
}

impl Mount {
    fn set(&self, flags: &mut Flags) {
        set(flags, "content.warm", self.warm.as_ref());
        set_switch(flags, "mount.allow_other", self.allow_other);
        set(flags, "mount.uid", self.uid.as_ref());
        set(flags, "mount.gid", self.gid.as_ref());
        set(flags, "mount.umask", self.umask.as_ref());
        set(flags, "mount.read_ahead", self.read_ahead.as_ref());
        set(flags, "mount.read_around", self.read_around.as_ref());
        set(flags, "mount.passthrough", self.passthrough.as_ref());
        self.reading.set(flags);
        self.state.set(flags);
    }
}

impl Reading {
    pub(super) fn set(&self, flags: &mut Flags) {
        set(flags, "store.folder", self.store.as_ref());
        set(flags, "store.size", self.store_size.as_ref());
        self.registries.set(flags);
        set(flags, "registry.auth_file", self.auth_file.as_ref());
        set(flags, "content.integrity", self.integrity.as_ref());
        set_switch(flags, "content.trust_index", self.trust_index);
        set(flags, "content.platform", self.platform.as_ref());
        set(flags, "content.read_deadline", self.read_deadline.as_ref());
    }
}

impl State {
    pub(super) fn set(&self, flags: &mut Flags) {
        set(flags, "state.folder", self.folder.as_ref());
    }
}

pub(super) fn set(flags: &mut Flags, key: &'static str, value: Option<&String>) {
    flags.extend(value.map(|value| (key, value.clone())));
}

pub(super) fn set_switch(flags: &mut Flags, key: &'static str, on: bool) {
    set(flags, key, on.then(|| "true".to_owned()).as_ref());
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::config::{Environment, KEYS, Settings};
    use crate::repository::PlainHttp;

    #[test]
    fn the_words_do_not_contradict_one_another() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn a_flag_of_mount_reaches_the_settings() {
        let line = "weightfs mount localhost/m:1 /d --store /s --store-size 1GiB --plain-http --hosts-dir /tmp \
            --ca-file /c --proxy p:1 --integrity strict --platform linux/arm64 --warm all --read-deadline 5s --allow-other --uid 1 --gid 2 --umask 077 --read-ahead 4MiB --read-around always --passthrough off --state /t -vv";
        let line = CommandLine::try_parse_from(line.split_whitespace()).unwrap();
        let settings = Settings::load(&Environment::default(), None, &line.flags()).unwrap();
        assert_eq!(settings.store.size, Some(1 << 30));
        assert_eq!(settings.content.integrity, crate::content::Integrity::Strict);
        assert_eq!((settings.mount.uid, settings.mount.gid, settings.mount.umask), (Some(1), Some(2), 0o077));
        assert_eq!(settings.mount.read_ahead, 4 << 20);
        assert_eq!(settings.mount.read_around, crate::mount::ReadAround::Always);
        assert_eq!(settings.mount.passthrough, crate::mount::Passthrough::Off);
        assert!(settings.mount.allow_other);
        assert_eq!(settings.log.as_deref(), Some("warn,weightfs=debug"));
        assert_eq!(
            settings.content.platform.map(|platform| platform.to_string()).as_deref(),
            Some("linux/arm64")
        );
        assert_eq!(line.flags().len(), 19);
    }

    #[test]
    fn a_registry_on_this_machine_is_asked_plainly_unless_it_is_said() {
        let plain = |words: &str| {
            let line = format!("weightfs ls {words} localhost/m:1");
            let line = CommandLine::try_parse_from(line.split_whitespace()).unwrap();
            Settings::load(&Environment::default(), None, &line.flags()).unwrap().repository.plain_http
        };
        assert_eq!(plain(""), PlainHttp::OnThisMachine);
        assert_eq!(plain("--plain-http"), PlainHttp::Allowed);
        assert_eq!(plain("--plain-http=false"), PlainHttp::Never);
    }

    #[test]
    fn every_flag_that_the_configuration_names_is_one() {
        let command = CommandLine::command();
        let of_all =
            command.get_arguments().chain(command.get_subcommands().flat_map(clap::Command::get_arguments));
        let flags: Vec<String> = of_all
            .flat_map(|flag| {
                let long = flag.get_long().map(|long| format!("--{long}"));
                long.into_iter().chain(flag.get_short().map(|short| format!("-{short}")))
            })
            .collect();
        for flag in KEYS.iter().filter_map(|key| key.flag) {
            assert!(flags.iter().any(|known| known == flag), "{flag}");
        }
    }
}
