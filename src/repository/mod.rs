//! Floor 1: stored bytes. A place in a registry, or a folder, that has manifests and blobs.
//!
//! [`Repository`] is the one trait; registry, layout folder and memory implement it, and what goes around
//! them (mirrors, trying again, limits) implements it by wrapping another. [`push`] is the other direction. Nothing here
//! knows what a blob means.

pub(crate) mod around;
mod budget;
mod connected;
pub mod credentials;
mod guard;
pub mod hedge;
mod hosts;
pub mod joined;
pub mod layout;
pub mod limit;
pub mod memory;
mod mirror;
pub mod pace;
mod parents;
pub mod push;
mod rate;
mod referrers;
pub mod registry;
pub mod retry;
pub mod secret;
mod tries;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use crate::error::{Error, Kind, Result};
use crate::metrics::Metrics;
use crate::oci::{Blob, Descriptor, Digest, Place, Reference, Which};
use crate::range::StoredRange;

pub use budget::Budgets;
use connected::Connected;
use credentials::Credentials;
pub use hedge::Hedging;
pub use joined::Joined;
pub use layout::{Layout, Untagged};
pub use limit::Limited;
pub use memory::Memory;
use mirror::Mirrored;
pub use pace::Pace;
pub use parents::Parents;
pub use referrers::REFERRERS_LIMIT;
pub use registry::proxy::{Exceptions, Proxies, Proxy};
pub use registry::{RedirectTo, Registry, Verdict};
pub use retry::Retrying;
pub use secret::Secret;

/// The bytes of one read, in order: exactly as many as were asked for, or an error as the last item.
pub type ByteStream = BoxStream<'static, Result<Bytes>>;

/// A manifest or index whose bytes are what `digest` names: checked by whoever made this value.
#[derive(Clone, Debug)]
pub struct Pinned {
    /// The digest of `bytes`.
    pub digest: Digest,
    /// The media type the repository gave with it; empty where it gave none.
    pub media_type: String,
    /// The JSON, at most [`MANIFEST_LIMIT`] bytes.
    pub bytes: Bytes,
}

/// The largest manifest or index that is read: 4 MiB, the limit that registries themselves apply.
pub const MANIFEST_LIMIT: u64 = 4 << 20;

/// A place that has manifests and blobs, under their digests.
///
/// Every implementation passes the contract suite in `tests/contract/repository.rs`. What wraps another is an
/// [`Around`](around::Around), which hands on what it does not change.
pub trait Repository: Send + Sync + fmt::Debug {
    /// The manifest or index, its digest verified.
    ///
    /// Costs one request where credentials and redirects are known already.
    ///
    /// # Errors
    /// `NotFound`, `Denied`, `Unreachable`, `Integrity` (the bytes are not what the digest says), and what
    /// the wire may bring.
    fn manifest<'a>(&'a self, which: &'a Which) -> BoxFuture<'a, Result<Pinned>>;

    /// The stored bytes of `range` of `blob`: exactly `range.len()` of them, in order, or an error.
    ///
    /// The bytes are not verified against a digest here; that is floor 3's. An empty range asks nobody. Somebody waits
    /// for them: where that makes a difference they go before what is [read ahead](Self::read_ahead).
    ///
    /// # Errors
    /// From the call, or as the stream's last item: `Invalid` where the range leaves the blob, else as
    /// [`manifest`](Self::manifest); `Protocol` where the answer is not the range asked for.
    fn read<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>>;

    /// The same for nobody who waits: behind every [`read`](Self::read), and never asked for twice at once.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    fn read_ahead<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>>;

    /// How much is best read ahead at once, as measured so far. Costs no request.
    fn pace(&self) -> Pace;

    /// Hears that reads will follow in a moment, so that connections for them can be made meanwhile. Costs no request; nobody
    /// waits for it. Must be called within a tokio runtime.
    fn expect_reads(&self) {}

    /// The manifests of `artifact_type` that refer to the manifest `subject`, in the repository's order, at most
    /// [`REFERRERS_LIMIT`]; none where the repository keeps no such lists. Anybody who may push there may refer to anything, so
    /// they prove nothing, not even that they exist.
    ///
    /// Costs one request, or two where a registry has to be asked by tag. A registry's first page is all that is asked for.
    ///
    /// # Errors
    /// As [`manifest`](Self::manifest), but never `NotFound`; `Protocol` where what it gives is no list.
    fn referrers<'a>(
        &'a self,
        subject: &'a Digest,
        artifact_type: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Descriptor>>>;

    /// Is told that bytes of `blob` were not what their digest says, so that another place than the one that gave them is
    /// asked for them next, where there is one. Waits for nothing, and changes nothing where there is one place only.
    fn distrust(&self, blob: &Blob);

    /// Where this is, as error messages name it: `ghcr.io/acme/llm` or `oci:/models/llm`.
    fn place(&self) -> String;

    /// Who is asking: a stable name of the place and the credentials used there, without any secret in it.
    ///
    /// Two callers with the same identity may see the same kept bytes. Folders give the same for everyone.
    fn identity(&self) -> String;

    /// The repository of another reference, which an artifact of this one names, asked by the same settings and with its
    /// own credentials. Asks nobody yet.
    ///
    /// # Errors
    /// As [`connect`]; `Denied` where it is in another registry, which an artifact names only where [`Config::parents`] has it;
    /// `Unsupported` where it is a folder, of which nobody else decides that it is read, or where this repository knows of no
    /// other.
    fn elsewhere(&self, reference: &Reference) -> Result<Arc<dyn Repository>> {
        let doing = format!("{} leads to no other repository, as to {reference}", self.place());
        Err(Error::new(Kind::Unsupported, doing))
    }
}

/// Who is served by a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// Somebody waits for it.
    Demand,
    /// Nobody does yet.
    Ahead,
}

impl Purpose {
    fn read<'a>(
        self,
        repository: &'a dyn Repository,
        blob: &'a Blob,
        range: StoredRange,
    ) -> BoxFuture<'a, Result<ByteStream>> {
        match self {
            Self::Demand => repository.read(blob, range),
            Self::Ahead => repository.read_ahead(blob, range),
        }
    }
}

/// Whether a registry may be asked without TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PlainHttp {
    /// Only one on this machine: `localhost`, 127.0.0.0/8, `[::1]`. Those are always asked so.
    #[default]
    OnThisMachine,
    /// Any, by the user's word. There is no falling back from one to the other.
    Allowed,
    /// None, not even one on this machine.
    Never,
}

/// The settings of what [`connect`] makes.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which registries are asked over plain HTTP, where their `hosts.toml` does not say it.
    pub plain_http: PlainHttp,
    /// The folder of containerd's layout that says which hosts are asked for a registry. `None` or missing: the
    /// registry itself, and nobody else.
    pub hosts_dir: Option<PathBuf>,
    /// A PEM file of further roots, for whoever is asked with TLS.
    pub ca_file: Option<PathBuf>,
    /// Through whom requests go.
    pub proxies: Proxies,
    /// Where credentials are looked for. Nowhere by default: anonymous.
    pub credentials: credentials::Sources,
    /// How long a read of a blob may go without a byte of progress before it fails. Default 60 s.
    pub read_deadline: Duration,
    /// How long a manifest may take in all. Default 25 s, so that a dead registry is reported within 30 s.
    pub setup_deadline: Duration,
    /// How long one attempt to connect may take, name and TLS included. Default 5 s.
    pub connect_timeout: Duration,
    /// How long an answer may go without a byte before it counts as broken and is asked for again.
    /// Default 15 s: four attempts within the default read deadline.
    pub stall: Duration,
    /// Where a registry may lead although it is not public, and not where the registry is. Default: nowhere.
    pub redirect_to: Vec<RedirectTo>,
    /// Which other registries an artifact may name, whose kits it is built upon. Default: none.
    pub parents: Parents,
    /// How many requests may be advised for reading ahead ([`Repository::pace`]). Default 16.
    pub requests: usize,
    /// How far ahead of a reader may be advised to load, in bytes: what memory may hold of that. Default 128 MiB.
    pub window: u64,
    /// How many bytes a second are read from a registry. Default: as many as come.
    pub rate: Option<u64>,
    /// What is known of the hosts that are asked. Shared by all repositories of these settings, so that one that is left
    /// alone is left alone by all.
    pub budgets: Arc<Budgets>,
    /// Where what a registry may do besides is counted. Shared with the loader by who puts settings together.
    pub metrics: Arc<Metrics>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            plain_http: PlainHttp::default(),
            hosts_dir: None,
            ca_file: None,
            proxies: Proxies::default(),
            credentials: credentials::Sources::default(),
            read_deadline: Duration::from_secs(60),
            setup_deadline: Duration::from_secs(25),
            connect_timeout: Duration::from_secs(5),
            stall: Duration::from_secs(15),
            redirect_to: Vec::new(),
            parents: Parents::default(),
            requests: 16,
            window: 128 << 20,
            rate: None,
            budgets: Arc::default(),
            metrics: Arc::default(),
        }
    }
}

/// The repository that a reference names: a registry's or its mirrors', asked again where that may help, or a folder.
///
/// Reads the files that have credentials, what is configured of the registry and, for a folder, its marker file; asks no
/// network.
///
/// # Errors
/// `Invalid` where a file with credentials or the registry's configuration cannot be read or meant; `NotFound`, `Unsupported`, `Denied` or
/// `Storage` where the folder is no image layout.
pub fn connect(reference: &Reference, config: &Config) -> Result<Arc<dyn Repository>> {
    match &reference.place {
        Place::Registry { host, repository } => at(hosts::of(host, config)?, (host, repository), config),
        Place::Layout { folder } => {
            let typed = reference.tag.is_some() || reference.digest.is_some();
            let untagged = if typed { Untagged::Missing } else { Untagged::TheOnlyOne };
            Ok(Arc::new(Connected::new(Layout::open(folder, untagged)?, None, config)))
        }
    }
}

/// As [`connect`], but a registry is asked itself, and none of its mirrors: for what only the registry decides, as who may see what.
///
/// # Errors
/// As [`connect`].
pub fn connect_to_origin(reference: &Reference, config: &Config) -> Result<Arc<dyn Repository>> {
    match &reference.place {
        Place::Registry { host, repository } => {
            at(vec![hosts::origin(host, config)?], (host, repository), config)
        }
        Place::Layout { .. } => connect(reference, config),
    }
}

fn at(hosts: Vec<hosts::Host>, named: (&str, &str), config: &Config) -> Result<Arc<dyn Repository>> {
    let hedging = Hedging::new(Limited::new(Mirrored::new(hosts, named, config)?, config), config);
    Ok(Arc::new(Connected::new(Retrying::new(hedging, config), Some(named.0), config)))
}

/// Asks the registry at `host`, reached as its configuration says, whether `credentials` are right; asks no mirror.
///
/// Costs one request to the registry, one to its token service and one more to the registry; asked again where that may help.
///
/// # Errors
/// `Denied` where they are not, `NotFound` where no registry is there, `Invalid` where the host or what is configured of it
/// cannot be meant, and what the wire may bring.
pub async fn check_login(host: &str, credentials: &Credentials, config: &Config) -> Result<Verdict> {
    Registry::check_login(hosts::origin(host, config)?.endpoint, credentials, config).await
}

/// Refuses a range that leaves the blob.
fn inside(blob: &Blob, range: StoredRange) -> Result<()> {
    if range.end() <= blob.size {
        return Ok(());
    }
    let doing = format!("bytes {range} are not within the {} bytes of {}", blob.size, blob.digest);
    Err(Error::new(Kind::Invalid, doing))
}

/// A name for who asks where, from which nobody learns the parts.
fn identity_of(parts: &[&str]) -> String {
    Digest::of(parts.join("\0").as_bytes()).hex().to_owned()
}

/// Reads all of `range` into one buffer.
///
/// # Errors
/// As [`Repository::read`]; `Protocol` where the stream gives another number of bytes.
pub async fn read_all(repository: &dyn Repository, blob: &Blob, range: StoredRange) -> Result<Bytes> {
    use futures_util::StreamExt;
    let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
    let mut stream = repository.read(blob, range).await?;
    let mut all = Vec::with_capacity(len.min(16 << 20));
    while let Some(piece) = stream.next().await {
        all.extend_from_slice(&piece?);
    }
    if all.len() != len {
        let doing = format!(
            "{} gave {} of the {len} bytes asked for of {}",
            repository.place(),
            all.len(),
            blob.digest
        );
        return Err(Error::new(Kind::Protocol, doing));
    }
    Ok(all.into())
}
