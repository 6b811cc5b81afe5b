//! A registry that has mirrors: whoever can give what is asked for is asked in turn, within one call.
//!
//! Mirrors are places for bytes and nothing more. What they give is held to the same digests; each is asked with its
//! own credentials; and who asks stays who the registry itself knows. Who fails is stepped over at once and tried
//! again later ([`Health`]); the registry itself, the last of the hosts, is never stepped over. When to ask all of
//! them again is [`super::Retrying`]'s to say.

mod health;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};
use tokio::time::timeout;

use self::health::{Health, Turn};
use super::guard::Guarded;
use super::hosts::{Can, Host};
use super::registry::Role;
use super::{ByteStream, Config, Pace, Pinned, Registry, Repository};
use crate::error::{Error, Kind, Result};
use crate::metrics::Metrics;
use crate::oci::{Blob, Descriptor, Digest, Which};
use crate::range::StoredRange;

/// How long a mirror that failed last may take to begin its answer when it is tried again: somebody waits.
const TRIAL: Duration = Duration::from_secs(3);

/// A repository of a registry, at any of its hosts.
pub(super) struct Mirrored<R> {
    hosts: Arc<Hosts<R>>,
    /// As the reference names it.
    place: String,
}

impl Mirrored<Guarded<Registry>> {
    /// The repository of a registry, both `named` as a reference names them, at `hosts` in this order. Reads
    /// credentials and certificates; asks no network.
    ///
    /// # Errors
    /// `Invalid` where these cannot be read or meant, or where there is no host.
    pub(super) fn new(hosts: Vec<Host>, named: (&str, &str), config: &Config) -> Result<Self> {
        let place = format!("{}/{}", named.0, named.1);
        let last = hosts.len().saturating_sub(1);
        let ask = |(at, mut host): (usize, Host)| {
            host.endpoint.role = if at < last { Role::Mirror } else { Role::Last };
            let budget = config.budgets.of(&host.endpoint.root, &config.metrics);
            Ok((Guarded::new(Registry::at(host.endpoint, named, config)?, budget, config), host.can))
        };
        let asked = hosts.into_iter().enumerate().map(ask).collect::<Result<_>>()?;
        let hosts = Hosts::new(asked, Arc::clone(&config.metrics))
            .ok_or_else(|| Error::new(Kind::Invalid, format!("no host to ask for {place}")))?;
        Ok(Self { hosts: Arc::new(hosts), place })
    }
}

impl<R: Repository + 'static> Repository for Mirrored<R> {
    fn manifest<'a>(&'a self, which: &'a Which) -> BoxFuture<'a, Result<Pinned>> {
        Box::pin(self.hosts.pin(which))
    }

    fn read<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        Box::pin(async move {
            super::inside(blob, range)?;
            if range.is_empty() {
                return Ok(stream::empty().boxed());
            }
            self.hosts.clone().open(blob, range).await
        })
    }

    /// As a read: a host that fails is as bad for either.
    fn read_ahead<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        self.read(blob, range)
    }

    /// The registry's own: what refers to a manifest is no content that others might keep a copy of.
    fn referrers<'a>(
        &'a self,
        subject: &'a Digest,
        artifact_type: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Descriptor>>> {
        self.hosts.own.repository.referrers(subject, artifact_type)
    }

    fn pace(&self) -> Pace {
        self.hosts.own.repository.pace()
    }

    fn expect_reads(&self) {
        if self.hosts.mirrors.is_empty() {
            self.hosts.own.repository.expect_reads();
        }
    }

    fn distrust(&self, blob: &Blob) {
        self.hosts.distrust(&blob.digest);
    }

    fn place(&self) -> String {
        self.place.clone()
    }

    fn identity(&self) -> String {
        self.hosts.own.repository.identity()
    }
}

impl<R: fmt::Debug> fmt::Debug for Mirrored<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Mirrored").field(&self.hosts).finish()
    }
}

/// Those who are asked.
#[derive(Debug)]
struct Hosts<R> {
    mirrors: Vec<Asked<R>>,
    /// The registry itself.
    own: Asked<R>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Asked<R> {
    repository: R,
    can: Can,
    health: Health,
}

impl<R: Repository + 'static> Hosts<R> {
    /// In their order, the registry itself last; `None` where there is nobody.
    fn new(hosts: Vec<(R, Can)>, metrics: Arc<Metrics>) -> Option<Self> {
        let asked = |(repository, can)| Asked { repository, can, health: Health::default() };
        let mut mirrors: Vec<_> = hosts.into_iter().map(asked).collect();
        let own = mirrors.pop()?;
        Some(Self { mirrors, own, metrics })
    }

    async fn pin(&self, which: &Which) -> Result<Pinned> {
        let (able, digest): (fn(&Can) -> bool, _) = match which {
            Which::Tag(_) => (|can| can.resolve && can.pull, None),
            Which::Digest(digest) => (|can| can.pull, Some(digest)),
        };
        let mut round = Round::of(self, able, digest);
        while let Some((at, host, turn)) = round.next(self) {
            match in_turn(turn, host.repository.manifest(which)).await {
                Ok(pinned) => {
                    self.went_well(at);
                    return Ok(pinned);
                }
                Err(error) => round.failed(self, at, error, digest),
            }
        }
        Err(round.end(|| format!("no host resolves the tag of the manifest {which}")))
    }

    async fn open(self: Arc<Self>, blob: &Blob, range: StoredRange) -> Result<ByteStream> {
        let round = Round::of(&self, |can| can.pull, Some(&blob.digest));
        let mut reading = Reading { hosts: self, blob: blob.clone(), rest: range, round, from: None };
        reading.ask_next().await?;
        Ok(stream::try_unfold(reading, Reading::next).boxed())
    }

    fn get(&self, at: usize) -> &Asked<R> {
        self.mirrors.get(at).unwrap_or(&self.own)
    }

    fn went_well(&self, at: usize) {
        if let Some(mirror) = self.mirrors.get(at)
            && mirror.health.went_well()
        {
            tracing::info!("the mirror {} answers again", mirror.repository.place());
        }
    }

    /// Notes the failure of a host that was asked for a blob, or for a manifest.
    fn went_wrong(&self, at: usize, error: &Error, digest: Option<&Digest>) {
        let Some(mirror) = self.mirrors.get(at).filter(|_| error.was_asked()) else { return };
        let place = mirror.repository.place();
        match (error.kind(), digest) {
            // It answers, and has not got this, or not as it must be.
            (Kind::NotFound | Kind::Protocol | Kind::Integrity, Some(digest)) => {
                mirror.health.lacks(digest);
                tracing::debug!(%error, "the mirror {place} is not asked for {digest} for a while");
            }
            (Kind::NotFound, None) => tracing::debug!(%error, "the mirror {place} has no such tag"),
            _ => {
                if mirror.health.went_wrong(error.wait()) {
                    self.metrics.mirrors_left.add(1);
                    tracing::warn!(%error, "the mirror {place} is stepped over, and tried again later");
                }
            }
        }
    }

    fn distrust(&self, digest: &Digest) {
        for mirror in self.mirrors.iter().filter(|mirror| mirror.health.distrust(digest)) {
            let place = mirror.repository.place();
            tracing::warn!(
                "the mirror {place} may have given wrong bytes of {digest}: another is asked for it"
            );
        }
    }
}

/// Who is still to be asked in one call. Every host is asked once at most.
struct Round {
    left: VecDeque<(usize, Turn)>,
    /// Mirrors that are stepped over: asked after all where the registry itself has said neither yes nor no.
    aside: VecDeque<(usize, Turn)>,
    failure: Option<Error>,
}

impl Round {
    fn of<R>(hosts: &Hosts<R>, able: fn(&Can) -> bool, digest: Option<&Digest>) -> Self {
        let mut round = Self { left: VecDeque::new(), aside: VecDeque::new(), failure: None };
        let able_ones = hosts.mirrors.iter().enumerate().filter(|(_, mirror)| able(&mirror.can));
        for (at, mirror) in able_ones {
            match mirror.health.turn(digest) {
                Some(Turn::Later) => round.aside.push_back((at, Turn::Later)),
                Some(turn) => round.left.push_back((at, turn)),
                None => {}
            }
        }
        if able(&hosts.own.can) {
            round.left.push_back((hosts.mirrors.len(), Turn::Now));
        }
        round
    }

    fn next<'a, R>(&mut self, hosts: &'a Hosts<R>) -> Option<(usize, &'a Asked<R>, Turn)>
    where
        R: Repository + 'static,
    {
        let said_no = |error: &Error| matches!(error.kind(), Kind::NotFound | Kind::Denied);
        if self.left.is_empty() && !self.failure.as_ref().is_some_and(said_no) {
            self.left.append(&mut self.aside);
        }
        let (at, turn) = self.left.pop_front()?;
        Some((at, hosts.get(at), turn))
    }

    /// Takes the failure of a host. The registry's own word counts more than a mirror's.
    fn failed<R>(&mut self, hosts: &Hosts<R>, at: usize, error: Error, digest: Option<&Digest>)
    where
        R: Repository + 'static,
    {
        hosts.went_wrong(at, &error, digest);
        if at >= hosts.mirrors.len() || self.left.iter().all(|(left, _)| *left < hosts.mirrors.len()) {
            self.failure.get_or_insert(error);
        }
    }

    fn end(self, otherwise: impl Fn() -> String) -> Error {
        self.failure.unwrap_or_else(|| {
            Error::new(Kind::Invalid, otherwise()).hint("look at the 'capabilities' in its hosts.toml")
        })
    }
}

/// What a host gives, which on trial must begin to do so soon.
async fn in_turn<T>(turn: Turn, asked: impl Future<Output = Result<T>>) -> Result<T> {
    match turn {
        Turn::Now => asked.await,
        Turn::Trial | Turn::Later => timeout(TRIAL, asked).await.unwrap_or_else(|_| {
            Err(Error::new(Kind::Broken, format!("no answer within {} s", TRIAL.as_secs())))
        }),
    }
}

/// A read under way: what is owed to the reader, who is left to ask for it, and who gives it now.
struct Reading<R> {
    hosts: Arc<Hosts<R>>,
    blob: Blob,
    rest: StoredRange,
    round: Round,
    from: Option<(usize, ByteStream)>,
}

impl<R: Repository + 'static> Reading<R> {
    /// The next bytes; where the host breaks off, from another one.
    async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        while !self.rest.is_empty() {
            let Some((at, stream)) = &mut self.from else {
                self.ask_next().await?;
                continue;
            };
            let ended = || Err(Error::new(Kind::Broken, "the bytes ended early"));
            let at = *at;
            match stream.next().await.unwrap_or_else(ended).and_then(|bytes| self.take(at, bytes)) {
                Ok(bytes) => return Ok(Some((bytes, self))),
                Err(error) => {
                    self.from = None;
                    self.round.failed(&self.hosts, at, error, Some(&self.blob.digest));
                }
            }
        }
        Ok(None)
    }

    fn take(&mut self, at: usize, bytes: Bytes) -> Result<Bytes> {
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if len > self.rest.len() {
            return Err(Error::new(Kind::Protocol, "more bytes than asked for"));
        }
        self.rest = StoredRange::new(self.rest.start().saturating_add(len), self.rest.end());
        if let Some(mirror) = self.hosts.mirrors.get(at) {
            mirror.health.gave(&self.blob.digest);
        }
        if self.rest.is_empty() {
            self.hosts.went_well(at);
        }
        Ok(bytes)
    }

    /// Asks whoever is left for the rest, until one begins to give it.
    async fn ask_next(&mut self) -> Result<()> {
        while let Some((at, host, turn)) = self.round.next(&self.hosts) {
            match in_turn(turn, host.repository.read(&self.blob, self.rest)).await {
                Ok(stream) => {
                    self.from = Some((at, stream));
                    return Ok(());
                }
                Err(error) => self.round.failed(&self.hosts, at, error, Some(&self.blob.digest)),
            }
        }
        let failure = self.round.failure.take();
        Err(failure.unwrap_or_else(|| {
            Error::new(
                Kind::Broken,
                format!("nobody is left to give {} bytes {}", self.blob.digest, self.rest),
            )
        }))
    }
}

#[cfg(test)]
mod tests;
