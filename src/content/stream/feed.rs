//! The task that reads a layer from its start to its end, for who makes chunks of it and for who digests it.
//!
//! What fails on the way is asked for again by the repository itself; when that gives up, the task rests until somebody
//! wants more of the layer, and goes on where it was, or from the start where it has had to make room for others meanwhile.
//! It is nobody's request, so a reader who is gone stops nothing.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::finish::Gone;
use super::turns::Turn;
use super::{State, Stream};
use crate::content::lanes::Lane;
use crate::content::loader::Loader;
use crate::error::{Error, Kind, Result};
use crate::oci::Blob;
use crate::oci::digest::Hasher;
use crate::range::StoredRange;

/// How many pieces of an answer may wait to be decoded, and to be digested: some 64 KiB each, as they come from a socket.
const PIECES: usize = 32;

/// Where the pieces of a layer go.
struct Takers {
    /// Closed where the layer turned out not to be what it should be: then its digest is all there is still to find out.
    decoding: mpsc::Sender<Bytes>,
    digesting: mpsc::Sender<Bytes>,
}

/// How much of a layer was given to those who take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fed {
    Whole,
    /// The rest does not come, and there is no waiting for it.
    InPart,
}

impl Loader {
    /// Starts the task of a layer that is to go by; it waits until somebody asks. Does nothing for other layers.
    pub(in crate::content) fn stand_by(self: &Arc<Self>, layer: usize) {
        let stream = self.layers.get(layer).and_then(|layer| layer.stream.clone());
        if let Some(stream) = stream {
            self.spawn(stand(Arc::downgrade(self), stream, layer));
        }
    }

    async fn pass(self: &Arc<Self>, layer: usize, stream: &Arc<Stream>) {
        let Some(blob) = self.index.layers.get(layer).map(|layer| layer.blob.clone()) else { return };
        stream.set_going();
        stream.change(|now| now.settled = 0);
        let turn = self.turns.enter(&stream.urgency, || stream.change(|_| ())).await;
        let (decoding, pieces) = mpsc::channel(PIECES);
        let (digesting, copies) = mpsc::channel(PIECES);
        let (loader, of) = (Arc::clone(self), Arc::clone(stream));
        let decoded = tokio::task::spawn_blocking(move || super::drive::drive(&loader, layer, &of, pieces));
        let hasher = Hasher::new(blob.digest.algorithm());
        let digested = tokio::task::spawn_blocking(move || digest(hasher, copies));
        let fed = self.feed(&blob, stream, Takers { decoding, digesting }, &turn).await;
        let interrupted = |error| Error::from_source(Kind::Storage, "decoding was interrupted", error);
        let decoded = decoded.await.map_err(interrupted).flatten();
        let digest = digested.await.map_err(interrupted);
        if fed == Fed::InPart {
            return;
        }
        let (loader, of) = (Arc::clone(self), Arc::clone(stream));
        let finish = move || loader.finish_pass(layer, &of, Gone { decoded, digest });
        // Fails only in a panic, which is told by then; nobody is left waiting.
        if tokio::task::spawn_blocking(finish).await.is_err() {
            let error = Error::new(Kind::Storage, "taking down what a layer holds was interrupted");
            stream.change(|now| now.state = State::Broken(error));
        }
    }

    /// Gives all of the blob to the takers, however often it takes to read on. Where nothing comes and another layer could go
    /// on in its place, it is left at that.
    async fn feed(&self, blob: &Blob, stream: &Stream, takers: Takers, turn: &Turn<'_>) -> Fed {
        let mut at = 0;
        while at < blob.size {
            let Err(error) = self.forward(blob, &mut at, stream, &takers).await else { continue };
            // What has come is let through first: who waits for that is not told of what has not.
            let _ = takers.decoding.send(Bytes::new()).await;
            let _ = takers.decoding.reserve_many(PIECES).await;
            tracing::warn!(layer = %blob.digest, %error, "a compressed layer stops coming; it goes on when somebody asks");
            stream.change(|now| now.state = State::Halted(error));
            tokio::select! {
                biased;
                () = stream.asked.notified() => stream.set_going(),
                () = turn.wanted() => return Fed::InPart,
            }
        }
        Fed::Whole
    }

    async fn forward(&self, blob: &Blob, at: &mut u64, stream: &Stream, takers: &Takers) -> Result<()> {
        let width = self.repository.pace().requests;
        let _turn = self.lanes.enter(Lane::Background, &stream.urgency, width).await;
        self.metrics.fetched_ranges.add(1);
        if stream.urgency.is_raised() {
            self.metrics.demand_ranges.add(1);
        }
        let mut pieces = self.repository.read(blob, StoredRange::new(*at, blob.size)).await?;
        while *at < blob.size {
            let ended = || Err(Error::new(Kind::Broken, "the answer ended early"));
            let piece = pieces.next().await.unwrap_or_else(ended)?;
            let len = piece.len() as u64;
            self.metrics.fetched_bytes.add(len);
            self.turns.beat();
            *at = at.saturating_add(len);
            stream.change(|now| now.arrived = now.arrived.saturating_add(len));
            // Closed where there is nothing to be made of them.
            let _ = takers.digesting.send(piece.clone()).await;
            let _ = takers.decoding.send(piece).await;
        }
        Ok(())
    }
}

impl Stream {
    fn set_going(&self) {
        self.change(|now| {
            now.state = State::Going;
            now.tries = now.tries.wrapping_add(1);
        });
    }
}

/// Lets the layer pass when somebody asks, and again when that was not enough.
async fn stand(loader: Weak<Loader>, stream: Arc<Stream>, layer: usize) {
    loop {
        stream.asked.notified().await;
        let rests = matches!(stream.progress.borrow().state, State::Idle | State::Halted(_));
        // Of who asks a second time while it begins, there may be word left when it is over.
        if !stream.again.swap(false, Ordering::AcqRel) && !rests {
            continue;
        }
        let Some(loader) = loader.upgrade().filter(|_| stream.passed().is_none()) else { return };
        loader.pass(layer, &stream).await;
    }
}

fn digest(mut hasher: Hasher, mut pieces: mpsc::Receiver<Bytes>) -> crate::oci::Digest {
    while let Some(piece) = pieces.blocking_recv() {
        hasher.update(&piece);
    }
    hasher.finish()
}
