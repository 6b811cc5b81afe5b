//! `weightfs demo`: the point of it all on one machine, without a network, in a few seconds.
//!
//! Makes a sample model, serves it from a registry in this process behind a slow line, mounts it as any user would, and
//! measures when the first tensor is there against a download of everything over the same line. The registry fails
//! meanwhile as it is told to (`faults`). What it makes lies in one temporary folder, which goes away in any case.

mod faults;
mod reading;
mod relay;
mod sample;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;

use self::faults::Met;
use self::reading::How;
use self::relay::Relay;
use self::sample::Sample;
use super::args::Demo;
use super::mount::Asked;
use super::{print, runtime};
use crate::config::Environment;
use crate::content::{self, Store, StoreConfig};
use crate::error::{Error, Kind, Result, StorageContext};
use crate::fs::Model;
use crate::mount::{Mount, Options};
use crate::oci::{Blob, Reference};
use crate::range::StoredRange;
use crate::repository::{self, Repository};
use crate::testing::registry::{Registry, Source};

/// How many streams the full download has at once.
const STREAMS: usize = 4;

/// What was measured.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Measured {
    /// From nothing to a mount that answers.
    mount_seconds: f64,
    /// From nothing to the tensor in memory; the mount is part of it.
    tensor_seconds: f64,
    /// What the line had carried by then.
    tensor_bytes: u64,
    download_seconds: f64,
    model_bytes: u64,
    /// How many times sooner the tensor is there than the download is done.
    ratio: f64,
    /// What the registry did on purpose and saw, where it was told to fail.
    #[serde(flatten)]
    met: Option<Met>,
}

/// Runs the demo.
///
/// # Errors
/// Whatever stands in the way; `Integrity` where the tensor is not the one that was made.
pub(super) fn run(asked: &Demo, environment: &Environment) -> Result<()> {
    let place = Temporary::make(&environment.temporary())?;
    let runtime = runtime()?;
    let measured = runtime.block_on(async {
        let mut end = Asked::listen()?;
        tokio::select! {
            measured = measure(&place.0, asked) => measured,
            () = end.end() => Err(Error::new(Kind::Kernel, "interrupted")),
        }
    });
    // What a task still holds of the folder is let go before the folder goes.
    runtime.shutdown_timeout(Duration::from_secs(2));
    drop(place);
    let measured = measured?;
    if asked.json { print::json(&measured) } else { print::line(text(&measured)) }
}

fn text(measured: &Measured) -> String {
    let megabytes = |bytes: u64| format!("{:.1} MB", Duration::from_micros(bytes).as_secs_f64());
    let rows = [
        ("mount answers after", format!("{:.3} s", measured.mount_seconds)),
        ("first tensor after", format!("{:.3} s", measured.tensor_seconds)),
        ("full download takes", format!("{:.3} s", measured.download_seconds)),
        ("sooner by", format!("{:.1} times", measured.ratio)),
        (
            "bytes fetched",
            format!("{} of {}", megabytes(measured.tensor_bytes), megabytes(measured.model_bytes)),
        ),
    ];
    let met = measured.met.iter().flat_map(Met::rows);
    let rows: Vec<_> =
        rows.into_iter().chain(met).map(|(name, value)| vec![name.to_owned(), value]).collect();
    print::table(&rows)
}

async fn measure(place: &Path, asked: &Demo) -> Result<Measured> {
    print::complain("making a sample model in a temporary folder");
    let layout = place.join("layout");
    let sample = blocking(move || sample::make(&layout)).await?;
    let source = Source::layout(place.join("layout"))?;
    let registry = faults::registry(source, &asked.faults).await?;
    let how = if asked.faults.is_empty() { How::Mapped } else { How::Read };
    let measured = over(&registry, place, &sample, how).await;
    let met = (!asked.faults.is_empty()).then(|| Met::at(&registry));
    match measured {
        Ok(measured) => Ok(Measured { met, ..measured }),
        Err(error) => {
            met.iter()
                .flat_map(Met::rows)
                .for_each(|(name, what)| print::complain(format_args!("{name}: {what}")));
            Err(error)
        }
    }
}

/// Measures with a registry that serves the sample.
async fn over(registry: &Registry, place: &Path, sample: &Sample, how: How) -> Result<Measured> {
    let relay = Relay::start(registry.address()).await?;
    print::complain(format_args!(
        "serving it at 1 Gbit/s with {} ms each round trip",
        2 * relay::ONE_WAY.as_millis()
    ));
    let first = first_tensor(place, &relay, how).await?;
    // Who downloads is another client, which has no token yet: that it asks for one is no fault of the mount's.
    registry.revoke_tokens();
    print::complain(format_args!("downloading all of it with {STREAMS} streams"));
    let download_seconds = download(sample, relay.address()).await?.as_secs_f64();
    Ok(Measured {
        mount_seconds: first.mount.as_secs_f64(),
        tensor_seconds: first.tensor.as_secs_f64(),
        tensor_bytes: first.bytes,
        download_seconds,
        model_bytes: sample.size(),
        ratio: download_seconds / first.tensor.as_secs_f64(),
        met: None,
    })
}

/// When the mount answered and when the tensor was there, and what that had cost.
struct First {
    mount: Duration,
    tensor: Duration,
    bytes: u64,
}

async fn first_tensor(place: &Path, relay: &Relay, how: How) -> Result<First> {
    let dir = place.join("mount");
    std::fs::create_dir(&dir).storage(|| format!("cannot make {}", dir.display()))?;
    let expected = blocking(|| Ok(sample::WANTED.bytes())).await?;
    let store = Store::open(&StoreConfig { folder: place.join("store"), size: None })?;
    let reference = reference(relay.address())?;
    let begun = Instant::now();
    let repository = repository::connect(&reference, &repository::Config::default())?;
    let model = Arc::new(Model::open(repository, reference, store, content::Config::default()).await?);
    let mount = Mount::open(model, &dir, &Options::default()).await?;
    let answers = begun.elapsed();
    print::complain(format_args!(
        "mounted; reading a tensor of {} by {how}",
        print::size(expected.len() as u64)
    ));
    let read = blocking(move || how.tensor(&dir.join(sample::WANTED.file()), &sample::WANTED.name())).await;
    let (tensor, bytes) = (begun.elapsed(), relay.carried());
    let unmounted = mount.unmount().await;
    let read = read?;
    unmounted?;
    if read != expected {
        return Err(Error::new(Kind::Integrity, "the tensor read is not the one that was made"));
    }
    Ok(First { mount: answers, tensor, bytes })
}

fn reference(address: SocketAddr) -> Result<Reference> {
    format!("{address}/demo/model:{}", sample::TAG).parse()
}

/// Fetches every byte of the model over the line and throws it away: neither disk nor digests slow it down.
async fn download(sample: &Sample, address: SocketAddr) -> Result<Duration> {
    let reference = reference(address)?;
    let begun = Instant::now();
    let repository = repository::connect(&reference, &repository::Config::default())?;
    repository.manifest(&reference.which()).await?;
    let parts = sample.layers.iter().flat_map(parts);
    let fetched = stream::iter(parts).map(|(blob, range)| fetch(&*repository, blob, range));
    fetched.buffer_unordered(STREAMS).try_collect::<()>().await?;
    Ok(begun.elapsed())
}

/// A large layer in two halves, so that all streams have work.
fn parts(blob: &Blob) -> [(&Blob, StoredRange); 2] {
    let middle = if blob.size > 1 << 20 { blob.size / 2 } else { 0 };
    [(blob, StoredRange::new(0, middle)), (blob, StoredRange::new(middle, blob.size))]
}

async fn fetch(repository: &dyn Repository, blob: &Blob, range: StoredRange) -> Result<()> {
    let mut bytes = repository.read(blob, range).await?;
    while bytes.try_next().await?.is_some() {}
    Ok(())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Error::from_source(Kind::Kernel, "interrupted", error)))
}

/// A folder that goes away with this value, and all that is in it.
struct Temporary(PathBuf);

impl Temporary {
    fn make(below: &Path) -> Result<Self> {
        let template = below.join("weightfs-demo-XXXXXX");
        let made = nix::unistd::mkdtemp(&template);
        made.map(Self).storage(|| format!("cannot make a folder in {}", below.display()))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            print::complain(format_args!("{} stays: {error}", self.0.display()));
        }
    }
}
