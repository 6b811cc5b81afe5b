//! Reading blobs from a registry: by single ranges, wherever it says that they are, and whatever it makes of ranges.
//!
//! An answer may be shorter than what was asked for (RFC 9110 §15.3.7): the rest is asked for next. One that ignores
//! the range is cut to it by [`Wholes`]. Everything else that is not exactly the range is an error.

use futures_util::stream::{self, StreamExt};
use reqwest::header::{HeaderValue, RANGE};
use reqwest::{Method, Response, StatusCode};
use tokio::sync::OwnedMutexGuard;

use super::ask::Ask;
use super::endpoint::Role;
use super::hops::{self, Carries, Hop};
use super::whole::PART;
use super::wire::{self, Given};
use super::{Registry, Step, doubt};
use crate::error::{Error, Kind, Result};
use crate::oci::Blob;
use crate::range::StoredRange;
use crate::repository::ByteStream;

/// In how many parts one read may come at most.
const PARTS: u32 = 4096;

/// A read that comes in parts: what is being read, and what is owed after it.
struct Parts {
    registry: Registry,
    blob: Blob,
    body: ByteStream,
    rest: StoredRange,
    left: u32,
}

/// The first bytes of a range, and the range that they are.
type Part = (ByteStream, StoredRange);

impl Registry {
    /// The bytes of `range`, which is not empty and lies in the blob.
    pub(super) async fn open(&self, blob: &Blob, range: StoredRange) -> Result<ByteStream> {
        let (body, given) = self.part(blob, range).await?;
        if given == range {
            return Ok(body);
        }
        let rest = StoredRange::new(given.end(), range.end());
        let parts = Parts { registry: self.clone(), blob: blob.clone(), body, rest, left: PARTS };
        Ok(stream::try_unfold(parts, Parts::next).boxed())
    }

    /// The first bytes of `range`: all of them, where the registry does as it should.
    async fn part(&self, blob: &Blob, range: StoredRange) -> Result<Part> {
        let whole = StoredRange::new(0, blob.size);
        if range != whole && self.wholes.are_needed() {
            return self.cut(blob, range, None).await;
        }
        let asked = HeaderValue::from_str(&format!("bytes={range}"))
            .map_err(|error| Error::from_source(Kind::Invalid, format!("the range {range}"), error))?;
        let ask = Ask::new(Method::GET, &self.auth).header(RANGE, asked);
        let (hop, response) = self.answer(blob, &ask).await?;
        let status = response.status();
        match self.given(&response, blob, range) {
            Err(_) if !status.is_success() => {
                self.found.forget(&blob.digest, &hop);
                Err(self.refusal(response).await)
            }
            Err(error) => {
                self.found.forget(&blob.digest, &hop);
                Err(error)
            }
            Ok(Given::Whole) => self.cut(blob, range, Some(response)).await,
            Ok(Given::Range(given)) => {
                if status == StatusCode::PARTIAL_CONTENT {
                    self.wholes.range_given();
                }
                let body = wire::exactly(response, given.len(), self.stall);
                Ok((self.found.watched(body, &blob.digest, hop), given))
            }
        }
    }

    fn given(&self, response: &Response, blob: &Blob, range: StoredRange) -> Result<Given> {
        let given = wire::given(response.status(), response.headers(), range, blob.size)?;
        if given == Given::Whole && self.endpoint.role == Role::Mirror {
            return Err(wire::protocol("200 OK with the whole blob where a range was asked for"));
        }
        if given == Given::Whole {
            self.wholes.range_ignored(range, &self.host)?;
        }
        Ok(given)
    }

    /// A part of the range, cut out of the whole blob as it goes by; `answer` is a beginning of it, if there is one.
    async fn cut(&self, blob: &Blob, range: StoredRange, answer: Option<Response>) -> Result<Part> {
        let part = StoredRange::new(range.start(), range.start().saturating_add(PART)).meet(range);
        let open = async || match answer {
            Some(response) => Ok(wire::exactly(response, blob.size, self.stall)),
            None => self.whole(blob).await,
        };
        let bytes = self.wholes.cut(blob, part, open).await?;
        Ok((stream::iter([Ok(bytes)]).boxed(), part))
    }

    async fn whole(&self, blob: &Blob) -> Result<ByteStream> {
        let (hop, response) = self.answer(blob, &Ask::new(Method::GET, &self.auth)).await?;
        if response.status() != StatusCode::OK {
            self.found.forget(&blob.digest, &hop);
            return Err(self.refusal(response).await);
        }
        wire::given(response.status(), response.headers(), StoredRange::new(0, blob.size), blob.size)?;
        Ok(wire::exactly(response, blob.size, self.stall))
    }

    /// The answer to a question about a blob and who gave it: where it was found before, else the registry.
    async fn answer(&self, blob: &Blob, ask: &Ask<'_>) -> Result<(Hop, Response)> {
        if let Some(answer) = self.where_it_was(blob, ask).await? {
            return Ok(answer);
        }
        // One asks where the blob is now, however many have found that it is not where it was.
        let mut turn = self.found.turn(&blob.digest).await;
        if self.found.get(&blob.digest).is_some() {
            turn = None;
            if let Some(answer) = self.where_it_was(blob, ask).await? {
                return Ok(answer);
            }
        }
        let (hop, response) = self.where_it_is(blob, ask, turn).await?;
        let status = response.status();
        if self.endpoint.role == Role::Last && doubt::is_refusal(status) {
            // Whoever refuses, the registry or the storage that it sends us to, may be a moment behind. Twice is a refusal.
            if !self.doubts.is_open(&blob.digest, status) {
                return Ok((hop, response));
            }
            drop(response);
            self.doubts.time_to_ask().await;
            let again = self.where_it_is(blob, ask, None).await?;
            self.doubts.settled(&blob.digest, again.1.status());
            return Ok(again);
        }
        if hop.carries == Carries::Nothing && is_expired(status) {
            // Refused where the registry has just sent us: the address was over before it was used.
            return self.where_it_is(blob, ask, None).await;
        }
        Ok((hop, response))
    }

    /// The answer from where the blob was found before; `None` where that is over, or nothing is known.
    async fn where_it_was(&self, blob: &Blob, ask: &Ask<'_>) -> Result<Option<(Hop, Response)>> {
        let Some(hop) = self.found.get(&blob.digest) else { return Ok(None) };
        match self.follow(hop.clone(), ask).await {
            Ok((_, response)) if !is_expired(response.status()) => Ok(Some((hop, response))),
            failed => {
                self.found.forget(&blob.digest, &hop);
                // A signature that is over and a host that has gone cost no pause: the registry is asked now.
                match failed {
                    Err(error) if error.kind() != Kind::Unreachable => Err(error),
                    _ => Ok(None),
                }
            }
        }
    }

    /// The answer from where the registry says that the blob is. `turn` is given back as soon as that is known.
    async fn where_it_is(
        &self,
        blob: &Blob,
        ask: &Ask<'_>,
        turn: Option<OwnedMutexGuard<()>>,
    ) -> Result<(Hop, Response)> {
        let first = Hop::first(self.url(&format!("blobs/{}", blob.digest))?);
        let (next, life) = match self.step(&first, ask).await? {
            Step::Answer(response) => {
                if response.status().is_success() {
                    self.found.redirects(false);
                }
                return Ok((first, response));
            }
            Step::Away(next, life) => (next, life),
        };
        self.found.redirects(true);
        self.found.put(&blob.digest, next.clone(), life);
        drop(turn);
        let followed = self.follow_up_to(hops::MOST - 1, next.clone(), ask).await;
        match &followed {
            Ok((last, response)) if response.status().is_success() => {
                self.found.put(&blob.digest, last.clone(), life);
            }
            _ => self.found.forget(&blob.digest, &next),
        }
        followed
    }
}

impl Parts {
    async fn next(mut self) -> Result<Option<(bytes::Bytes, Self)>> {
        loop {
            match self.body.next().await {
                Some(Ok(piece)) => return Ok(Some((piece, self))),
                Some(Err(error)) => return Err(error),
                None if self.rest.is_empty() => return Ok(None),
                None => {}
            }
            self.left = self.left.checked_sub(1).ok_or_else(|| {
                wire::protocol(format!("the range came in more than {PARTS} parts, and not all of it"))
            })?;
            let (body, given) = self.registry.part(&self.blob, self.rest).await?;
            (self.body, self.rest) = (body, StoredRange::new(given.end(), self.rest.end()));
        }
    }
}

/// Whether a place found earlier no longer gives the blob: a signed URL that is over answers any of these.
fn is_expired(status: StatusCode) -> bool {
    matches!(status.as_u16(), 400 | 401 | 403 | 404 | 410)
}
