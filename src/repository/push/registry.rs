//! Pushing to a registry: which request comes next, and after a failure from where on.
//!
//! Small blobs go in one request; others in parts, so that little is sent twice when a connection breaks. A registry
//! that takes no parts gets the blob in one request too. The requests themselves are `registry::upload`'s.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::de::IgnoredAny;

use super::Upload;
use super::source::Source;
use crate::error::{Error, Kind, Result};
use crate::oci::{Blob, Digest, Which};
use crate::range::StoredRange;
use crate::repository::hosts;
use crate::repository::registry::{Session, Setback, Stretch};
use crate::repository::tries::{Tries, UNREACHABLE_PATIENCE};
use crate::repository::{Config, Registry, Repository};

/// Up to here a blob goes in one request, which costs a round trip less and no more than this when it breaks.
const SMALL: u64 = 4 << 20;
/// The size of a part: a second of a fast line.
const PART: u64 = 64 << 20;
/// The smallest part that is tried where a proxy takes no larger ones.
const LEAST_PART: u64 = 1 << 20;
/// How many sessions a registry may lose before parts are given up, and then the blob.
const SESSIONS: u32 = 5;
/// How often in a row a step may fail where the registry never says that bytes came in.
const ATTEMPTS: u32 = 40;
/// How many sessions one blob gets in all, whatever came of each.
const SESSIONS_IN_ALL: u32 = 100;
/// How many steps one blob gets in all: these, and one for every so many of its bytes.
const STEPS: u64 = 1000;
const STEP: u64 = 64 << 10;
/// How long a registry may look for each blob that a manifest names before it takes the manifest: slow object stores.
const LOOKING: Duration = Duration::from_millis(100);

/// A request that can be made again.
type Ask<'a, T> = &'a (dyn Fn() -> BoxFuture<'a, Result<T>> + Send + Sync);

/// A repository of a registry that is pushed to.
#[derive(Debug)]
pub(super) struct Pushing {
    registry: Registry,
    setup_deadline: Duration,
    deadline: Duration,
}

impl Pushing {
    /// At the first of the registry's hosts that takes pushes.
    pub(super) fn new(host: &str, repository: &str, config: &Config) -> Result<Self> {
        let taking = hosts::of(host, config)?.into_iter().find(|host| host.can.push);
        let taking = taking.ok_or_else(|| {
            Error::new(Kind::Invalid, format!("no host of {host} takes pushes"))
                .hint("its hosts.toml gives none the capability \"push\"")
        })?;
        let registry = Registry::pushing(taking.endpoint, (host, repository), config)?;
        Ok(Self { registry, setup_deadline: config.setup_deadline, deadline: config.read_deadline })
    }

    pub(super) fn place(&self) -> String {
        self.registry.place()
    }

    pub(super) async fn has(&self, blob: &Blob) -> Result<bool> {
        let doing = format!("look for {} in", blob.digest);
        self.asked(&doing, self.setup_deadline, &|| Box::pin(self.registry.has(blob))).await
    }

    pub(super) async fn mount(&self, blob: &Blob, from: &str) -> Result<bool> {
        let doing = format!("mount {} from {from} in", blob.digest);
        self.asked(&doing, self.setup_deadline, &|| Box::pin(self.registry.mounted(blob, from))).await
    }

    pub(super) async fn tag(&self, tag: Option<&str>, media_type: &str, manifest: &Bytes) -> Result<Digest> {
        let digest = Digest::of(manifest);
        let which = tag.map_or_else(|| Which::Digest(digest.clone()), |tag| Which::Tag(tag.to_owned()));
        let patience = LOOKING.saturating_mul(named_by(manifest));
        let put: Ask<'_, ()> =
            &|| Box::pin(self.registry.put_manifest(&which, media_type, manifest, patience));
        let deadline = self.deadline.saturating_add(patience);
        self.asked(&format!("push the manifest {which} to"), deadline, put).await?;
        Ok(digest)
    }

    /// The list of what refers to `subject` that a tag must stand in for; `None` where the registry keeps lists by itself.
    pub(super) async fn own_list(&self, subject: &Digest, artifact_type: &str) -> Result<Option<Bytes>> {
        let doing = format!("list what refers to {subject} in");
        let ask: Ask<'_, _> = &|| Box::pin(self.registry.own_list(subject, artifact_type));
        self.asked(&doing, self.setup_deadline, ask).await
    }

    /// Asks until there is an answer that counts, or the deadline is over.
    async fn asked<T>(&self, verb: &str, deadline: Duration, ask: Ask<'_, T>) -> Result<T> {
        let doing = format!("to {verb} {}", self.place());
        let mut tries = Tries::new(deadline, UNREACHABLE_PATIENCE);
        let done = loop {
            match tries.bounded(ask()).await {
                Ok(done) => break Ok(done),
                Err(error) => {
                    if let Err(error) = tries.pause(error, &doing).await {
                        break Err(error);
                    }
                }
            }
        };
        done.map_err(|error| error.context(format!("cannot {verb} {}", self.place())))
    }

    pub(super) async fn put(&self, upload: &Upload, sent: &(dyn Fn(u64) + Send + Sync)) -> Result<()> {
        let went = Went { sent, high: AtomicU64::new(0) };
        let size = upload.blob.size;
        let mut way = Way::new(self, upload, &went)?;
        let done = way.go().await;
        if let (Err(error), Some(session)) = (&done, &way.session)
            && error.kind() != Kind::Unreachable
        {
            self.registry.cancel(session).await;
        }
        went.reach(if done.is_ok() { size } else { 0 });
        done.map_err(|error| error.context(format!("cannot push {} to {}", upload.blob.digest, self.place())))
    }
}

/// How many blobs and manifests a manifest or an index names, as far as that can be read.
fn named_by(manifest: &[u8]) -> u32 {
    #[derive(Default, serde::Deserialize)]
    struct Lists {
        #[serde(default)]
        layers: Vec<IgnoredAny>,
        #[serde(default)]
        manifests: Vec<IgnoredAny>,
    }
    let lists: Lists = serde_json::from_slice(manifest).unwrap_or_default();
    lists.layers.len().saturating_add(lists.manifests.len()).try_into().unwrap_or(u32::MAX)
}

/// What has gone, told once for each byte however often it is sent.
struct Went<'a> {
    sent: &'a (dyn Fn(u64) + Send + Sync),
    high: AtomicU64,
}

impl Went<'_> {
    fn reach(&self, at: u64) {
        let before = self.high.fetch_max(at, Ordering::Relaxed);
        if at > before {
            (self.sent)(at - before);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// All in the request that ends the upload.
    Whole,
    /// In parts of so many bytes.
    Parts(u64),
}

enum Step {
    Taken,
    Last,
}

/// One blob on its way.
struct Way<'a> {
    pushing: &'a Pushing,
    blob: &'a Blob,
    source: Source,
    went: &'a Went<'a>,
    tries: Tries,
    mode: Mode,
    session: Option<Session>,
    /// Whether the registry must be asked how far the session is.
    unsure: bool,
    /// How many sessions it has lost.
    lost: u32,
    /// How far [`Went`] was when the deadline was last started anew.
    counted: u64,
    /// The most that the registry ever said it has of this session: what it says less of later is no progress again.
    confirmed: u64,
    /// How many sessions there were.
    sessions: u32,
    /// How many steps there were.
    steps: u64,
}

impl<'a> Way<'a> {
    fn new(pushing: &'a Pushing, upload: &'a Upload, went: &'a Went<'a>) -> Result<Self> {
        Ok(Self {
            pushing,
            blob: &upload.blob,
            source: Source::new(upload)?,
            went,
            tries: Tries::new(pushing.deadline, pushing.deadline),
            mode: if upload.blob.size <= SMALL { Mode::Whole } else { Mode::Parts(PART) },
            session: None,
            unsure: false,
            lost: 0,
            counted: 0,
            confirmed: 0,
            sessions: 0,
            steps: 0,
        })
    }

    async fn go(&mut self) -> Result<()> {
        loop {
            self.count_step()?;
            match self.step().await {
                Ok(Step::Last) => return Ok(()),
                Ok(Step::Taken) => {
                    let offset = self.session.as_ref().map_or(0, |session| session.offset);
                    if offset > self.confirmed {
                        self.confirmed = offset;
                        self.tries = Tries::new(self.pushing.deadline, self.pushing.deadline);
                    }
                }
                Err(setback) => {
                    if self.ended_all_the_same(&setback).await {
                        return Ok(());
                    }
                    self.overcome(setback).await?;
                }
            }
        }
    }

    /// Whatever a registry answers, an upload ends: far beyond what one over a bad line needs.
    fn count_step(&mut self) -> Result<()> {
        self.steps += 1;
        if self.steps <= STEPS.saturating_add(self.blob.size / STEP) && self.sessions <= SESSIONS_IN_ALL {
            return Ok(());
        }
        let doing = format!("{} requests in {} uploads, and no end", self.steps - 1, self.sessions);
        Err(Error::new(Kind::Protocol, doing))
    }

    async fn step(&mut self) -> Result<Step, Setback> {
        let registry = &self.pushing.registry;
        let Some(session) = &mut self.session else {
            self.session = Some(registry.begin().await?);
            (self.unsure, self.confirmed) = (false, 0);
            self.sessions += 1;
            return Ok(Step::Taken);
        };
        if self.unsure {
            registry.locate(session).await?;
            self.unsure = false;
            if session.offset > self.blob.size {
                return Err(Setback::Lost(Error::new(
                    Kind::Protocol,
                    "the upload has more bytes than the blob",
                )));
            }
            return Ok(Step::Taken);
        }
        let (went, size) = (self.went, self.blob.size);
        let reached = move |at| went.reach(at);
        let stretch = |range| Stretch { source: &self.source, range, reached: &reached };
        match self.mode {
            Mode::Parts(part) if session.offset < size => {
                let end = session.offset.saturating_add(part.max(session.least)).min(size);
                registry.send_part(session, stretch(StoredRange::new(session.offset, end))).await?;
                return Ok(Step::Taken);
            }
            Mode::Parts(_) => registry.finish(session, self.blob, None).await?,
            Mode::Whole => {
                registry.finish(session, self.blob, Some(stretch(StoredRange::new(0, size)))).await?;
            }
        }
        Ok(Step::Last)
    }

    /// Whether the blob is there although the request that ended the upload failed: its answer may be what was lost.
    async fn ended_all_the_same(&self, setback: &Setback) -> bool {
        let ending = match (&self.session, self.mode) {
            (None, _) => false,
            (Some(_), Mode::Whole) => true,
            (Some(session), Mode::Parts(_)) => session.offset == self.blob.size && !self.unsure,
        };
        let may_have = match setback {
            Setback::Lost(_) | Setback::Misplaced(_) => true,
            Setback::TooLarge(_) => false,
            Setback::Failed(error) => error.kind().may_retry(),
        };
        ending && may_have && self.pushing.registry.has(self.blob).await.unwrap_or(false)
    }

    /// Waits until the next step is due, from where it is to go on; or gives up.
    async fn overcome(&mut self, setback: Setback) -> Result<()> {
        let error = match setback {
            Setback::Failed(error) => error,
            Setback::Misplaced(error) => Error::from_source(Kind::Broken, "out of step", error),
            Setback::Lost(error) if self.session.is_none() => error,
            Setback::Lost(error) => {
                // Each that got further than all before it was worth it: some registries lose an upload with any
                // connection that breaks.
                let further = self.went.high.load(Ordering::Relaxed) > self.counted;
                (self.session, self.lost) = (None, if further { 1 } else { self.lost + 1 });
                if self.lost >= SESSIONS {
                    return self.give_parts_up(error).await;
                }
                Error::from_source(Kind::Broken, "the registry lost the upload", error)
            }
            Setback::TooLarge(error) => return self.smaller(error).await,
        };
        self.unsure = self.session.is_some();
        if self.mode == Mode::Whole {
            self.drop_session().await;
        }
        let high = self.went.high.load(Ordering::Relaxed);
        if high > self.counted {
            self.counted = high;
            self.tries.moved();
        }
        let doing = format!("pushing {} to {}", self.blob.digest, self.pushing.place());
        if self.tries.failed() >= ATTEMPTS {
            return Err(error);
        }
        match self.tries.pause(error, &doing).await {
            Err(error) if error.kind() == Kind::Protocol && self.session.is_some() => {
                self.give_parts_up(error).await
            }
            paused => paused,
        }
    }

    /// Takes smaller parts, where that is possible.
    async fn smaller(&mut self, error: Error) -> Result<()> {
        let part = match self.mode {
            Mode::Whole => self.blob.size,
            Mode::Parts(part) => part.min(self.blob.size),
        };
        let least = self.session.as_ref().map_or(0, |session| session.least).max(LEAST_PART);
        if part <= least {
            return Err(error);
        }
        if self.mode == Mode::Whole {
            self.drop_session().await;
        }
        self.mode = Mode::Parts((part / 4).max(least));
        self.unsure = self.session.is_some();
        Ok(())
    }

    /// Sends all in one request, where that has not been tried: some registries take no parts.
    async fn give_parts_up(&mut self, error: Error) -> Result<()> {
        if self.mode == Mode::Whole {
            return Err(error);
        }
        tracing::debug!(%error, "sent in parts no more");
        self.drop_session().await;
        (self.mode, self.lost) = (Mode::Whole, 0);
        self.tries = Tries::new(self.pushing.deadline, self.pushing.deadline);
        Ok(())
    }

    async fn drop_session(&mut self) {
        if let Some(session) = self.session.take() {
            self.pushing.registry.cancel(&session).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::Piece;
    use super::*;

    #[tokio::test]
    async fn a_registry_that_looks_at_every_layer_of_a_manifest_gets_time_for_each() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = Config {
            stall: Duration::from_millis(100),
            setup_deadline: Duration::from_millis(100),
            read_deadline: Duration::from_millis(100),
            ..Config::default()
        };
        let pushing = Pushing::new(&listener.local_addr().unwrap().to_string(), "a/b", &config).unwrap();
        let slow = async {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"]}") {
                connection.read_buf(&mut asked).await.unwrap();
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            let answer = b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n";
            connection.write_all(answer).await.unwrap();
            std::future::pending::<()>().await
        };
        let manifest = Bytes::from(format!(r#"{{"layers":[{}]}}"#, vec!["{}"; 200].join(",")));
        tokio::select! {
            () = slow => {}
            tagged = pushing.tag(Some("v1"), "m", &manifest) => drop(tagged.unwrap()),
        }
    }

    #[test]
    fn what_a_manifest_names_is_counted() {
        for (manifest, count) in [
            (r#"{"config":{},"layers":[{},{"digest":"x"}]}"#, 2),
            (r#"{"manifests":[{}]}"#, 1),
            (r#"{"layers":7}"#, 0),
            ("no JSON", 0),
        ] {
            assert_eq!(named_by(manifest.as_bytes()), count, "{manifest}");
        }
    }

    #[test]
    fn an_upload_ends_whatever_is_answered() {
        let bytes = Bytes::from(vec![0; 10 << 16]);
        let blob = Blob { digest: Digest::of(&bytes), size: 10 << 16 };
        let upload = Upload { blob, pieces: vec![Piece::Bytes(bytes)] };
        let pushing = Pushing::new("127.0.0.1:1", "a/b", &Config::default()).unwrap();
        let went = Went { sent: &|_| {}, high: AtomicU64::new(0) };
        let mut way = Way::new(&pushing, &upload, &went).unwrap();
        (0..STEPS + 10).for_each(|_| way.count_step().unwrap());
        assert_eq!(way.count_step().unwrap_err().kind(), Kind::Protocol);
        let mut way = Way::new(&pushing, &upload, &went).unwrap();
        way.sessions = SESSIONS_IN_ALL;
        way.count_step().unwrap();
        way.sessions += 1;
        assert_eq!(way.count_step().unwrap_err().kind(), Kind::Protocol);
    }
}
