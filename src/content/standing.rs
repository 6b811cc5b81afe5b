//! What is known of each layer's bytes, how that changes, and what follows from it.
//!
//! A layer begins unproved, or proved where an earlier process left the proof or the artifact binds it; it becomes proved or poisoned once
//! all of it has been here. The prover decides; here is what a decision does to readers, store and kernel.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use tokio::sync::{mpsc, watch};

use super::Integrity;
use super::bound::DIGEST;
use super::extent::Extent;
use super::headers;
use super::lanes::Lane;
use super::loader::{Loader, Standing, Stratum};
use super::store::kept::KeptFile;
use crate::error::{Error, Kind, Result};
use crate::index::{Grid, sections};
use crate::range::ContentRange;
use crate::repository::Pace;

/// Files of the store that nobody has used for so long are closed, so that they may be evicted.
const IDLE: Duration = Duration::from_secs(5);
/// A proof that did not come about is tried again after so long, unless somebody waits for it.
const RETRY: Duration = Duration::from_secs(30);
/// How often all that is missing of a layer is brought for who waits for its proof: each damaged chunk of the store is
/// found out by the attempt to prove what was there.
const ROUNDS: usize = 4;

impl Loader {
    /// What is known of the bytes of layer `layer` of the index.
    #[must_use]
    pub fn standing(&self, layer: usize) -> Standing {
        self.layers.get(layer).map_or(Standing::Unproved, |layer| *layer.standing.borrow())
    }

    /// Gives the index of each layer that is poisoned, those poisoned before first.
    #[must_use]
    pub fn poisonings(&self) -> mpsc::UnboundedReceiver<usize> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut poisoned = self.poisoned.lock();
        for layer in &poisoned.layers {
            let _ = sender.send(*layer);
        }
        poisoned.told.push(sender);
        receiver
    }

    /// Whether no byte of any file is served before it is verified: by setting, or since all layers are bound.
    #[must_use]
    pub fn is_strict(&self) -> bool {
        let mut files = self.layers.iter().filter(|layer| layer.may_have_files());
        self.config.integrity == Integrity::Strict || files.all(|layer| layer.binding.is_some())
    }

    pub(super) fn may_serve(&self, layer: usize) -> bool {
        match self.standing(layer) {
            Standing::Proved => true,
            // What is handed out of pinned parts was held to them.
            Standing::Unproved => self.config.integrity != Integrity::Strict || self.is_pinned(layer),
            Standing::Poisoned => false,
        }
    }

    pub(super) fn refuse_poisoned(&self, layer: usize) -> Result<()> {
        if self.standing(layer) == Standing::Poisoned {
            return Err(self.poison_error(layer));
        }
        Ok(())
    }

    fn poison_error(&self, layer: usize) -> Error {
        if let Some(reason) = self.layers.get(layer).and_then(|layer| layer.reason.get()) {
            return reason.clone();
        }
        let digest = self.layer(layer).map(|layer| layer.blob.digest.to_string()).unwrap_or_default();
        let doing = format!("the bytes that {} gave are not {digest}", self.repository.place());
        Error::new(Kind::Integrity, doing).hint("push the layer again, then unmount and mount")
    }

    /// Waits until the layer is here as a whole and proved.
    pub(super) async fn prove_first(self: &Arc<Self>, layer: usize) -> Result<()> {
        let Some(stratum) = self.layers.get(layer) else { return Ok(()) };
        self.admit(layer).await?;
        if self.streaming(layer).is_some() {
            return self.let_pass(layer).await;
        }
        for _ in 0..ROUNDS {
            let mut attempts = stratum.attempts.subscribe();
            if self.standing(layer) == Standing::Unproved && !self.prove_again(layer).await {
                self.fetch_layer(stratum).await?;
                self.prover.check(layer);
            }
            if self.settled(stratum, &mut attempts).await {
                return self.refuse_poisoned(layer);
            }
        }
        let doing = "the layer could not be proved: it cannot be kept as a whole";
        Err(Error::new(Kind::Storage, doing).hint("give the store more room (--store-size)"))
    }

    /// Waits a little for the proof of a layer that this process has read as a whole, and gives what is known of it then.
    pub async fn conclude(self: &Arc<Self>, layer: usize) -> Standing {
        let Some(stratum) = self.layers.get(layer) else { return Standing::Unproved };
        let read = |extent: &Extent| (0..extent.grid.chunks()).all(|chunk| extent.seen(chunk));
        if !stratum.files().all(read) {
            return self.standing(layer);
        }
        if self.streaming(layer).is_some() {
            // Why it does not end well is what its standing says, or nobody can tell.
            let _ = self.let_pass(layer).await;
            return self.standing(layer);
        }
        for _ in 0..ROUNDS {
            let mut attempts = stratum.attempts.subscribe();
            self.prover.check(layer);
            if self.standing(layer) != Standing::Unproved || self.settled(stratum, &mut attempts).await {
                break;
            }
            // Its last chunks may be on their way to the store.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.standing(layer)
    }

    async fn fetch_layer(self: &Arc<Self>, stratum: &Stratum) -> Result<()> {
        let whole = |extent: &Extent| (extent.id, ContentRange::new(0, extent.grid.len()));
        let fetches =
            stratum.files().map(whole).map(|(id, whole)| self.fetch_missing(id, whole, Lane::Demand));
        futures_util::stream::iter(fetches).buffer_unordered(4).try_collect().await
    }

    /// Waits until the layer is proved or poisoned; `false` where an attempt to prove it came to nothing, or the prover
    /// gets on with nothing for the read deadline.
    async fn settled(&self, stratum: &Stratum, attempts: &mut watch::Receiver<u64>) -> bool {
        let mut standing = stratum.standing.subscribe();
        loop {
            let hashed = self.prover.hashed();
            let settled = async {
                tokio::select! {
                    _ = standing.wait_for(|standing| *standing != Standing::Unproved) => true,
                    _ = attempts.changed() => false,
                }
            };
            match tokio::time::timeout(self.config.read_deadline, settled).await {
                Ok(settled) => return settled,
                Err(_) if self.prover.hashed() > hashed => {}
                Err(_) => return false,
            }
        }
    }

    /// Takes down that the layer's digest was proved over its bytes. Blocks.
    pub(super) fn set_proved(&self, layer: usize) {
        let (Some(stratum), Some(described)) = (self.layers.get(layer), self.layer(layer)) else { return };
        let is_poisoned = || *stratum.standing.borrow() == Standing::Poisoned;
        let shared = stratum.files().all(|extent| extent.vouch(&self.shelf)) && !is_poisoned();
        // Before anybody is told: who hears of the proof looks for the layer where proved ones lie, and with which headers it
        // was made.
        if shared {
            self.note_headers(layer, described);
            self.shelf.store.set_proved(&self.shelf.who, described.kept_as());
        }
        let proved = stratum.become_proved();
        if shared && is_poisoned() {
            // It was found out meanwhile.
            self.shelf.store.withdraw(described.kept_as());
            self.shelf.store.poison(&self.shelf.who, described.kept_as(), stratum.gaps);
        }
        if proved {
            self.metrics.proved_layers.add(1);
            tracing::info!(layer = %described.blob.digest, "proved");
        }
        stratum.files().for_each(|extent| self.prover.seal(extent.id));
    }

    /// Takes over a proof that was made by others, which this mount may see.
    pub(super) fn adopt_proof(&self, layer: usize) {
        if let Some(stratum) = self.layers.get(layer) {
            // What is open, and what it said of digests, is this place's own and not what was proved.
            stratum.files().for_each(Extent::forget);
            stratum.become_proved();
            // The others' own process sees to those.
            stratum.files().filter(|extent| extent.touched()).for_each(|extent| self.prover.seal(extent.id));
        }
    }

    /// Makes sure that what the store says of a file of a proved layer may be relied on, before it is: its digests are
    /// vouched for. Where they are not, the layer counts as not proved. Blocks.
    ///
    /// Gives the files to go on with: others than before where these were opened before the proof.
    pub(super) fn reliable(&self, extent: &Extent) -> Option<Arc<KeptFile>> {
        if extent.is_bound() {
            self.bind_locally(extent.id.layer);
            return extent.kept(&self.shelf);
        }
        let kept = extent.kept(&self.shelf)?;
        // What lies where proved layers do is held to its proof also by a mount for whose headers that does not hold.
        let is_own = || !self.shelf.store.is_shared(&extent.layer, kept.stem());
        if (self.standing(extent.id.layer) != Standing::Proved && is_own()) || extent.vouched(&kept) {
            return Some(kept);
        }
        extent.forget();
        let kept = extent.kept(&self.shelf)?;
        if !extent.vouched(&kept) {
            tracing::warn!(path = extent.path, "the digests on record are not those that were proved");
            if let Some(found) = self.know_again(extent) {
                extent.hold_to(&kept, &found);
                return Some(kept);
            }
            self.set_unproved(extent.id.layer);
            // By a table that nobody has proved the file may lie elsewhere than it was proved to.
            let by_guide = self.streaming(extent.id.layer).is_some_and(|stream| stream.guide().is_some());
            if !by_guide && self.shelf.store.is_shared(&extent.layer, kept.stem()) {
                self.shelf.store.withdraw(&extent.layer);
                extent.forget();
                return extent.kept(&self.shelf);
            }
        }
        Some(kept)
    }

    /// Takes back a proof whose digests cannot be had: without them it proves nothing.
    pub(super) fn set_unproved(&self, layer: usize) {
        // Those of a bound layer are the artifact's and not the store's.
        if let Some(stratum) = self.layers.get(layer).filter(|layer| layer.binding.is_none()) {
            stratum.turn(Standing::Proved, Standing::Unproved);
        }
    }

    /// Takes back the proof of the layer of a chunk that is here, where its digest is not known: the store fails, and what it
    /// has proved cannot be compared with. Blocks where the layer has gone by here and its records were lost: on one small file.
    pub(super) fn doubt_unknown(&self, extent: &Extent, chunk: u64) {
        if !extent.knows(chunk) && self.know_again(extent).is_none() {
            self.set_unproved(extent.id.layer);
        }
    }

    /// Takes the digests of a file's chunks anew from the index that was made of its layer when that had gone by here and was
    /// proved; gives them, 32 bytes each. `None` where there is no such index, it can't be read, or says otherwise than this
    /// process has seen. Blocks.
    fn know_again(&self, extent: &Extent) -> Option<Bytes> {
        let passed = self.layers.get(extent.id.layer)?.stream.as_deref()?.passed()?;
        passed.extents.get(extent.id.extent).filter(|range| **range == extent.range)?;
        let chunks = &passed.bound.as_ref()?.chunks;
        // Waits for nothing where the index is a file.
        let all = sections::bytes(None, chunks).now_or_never()?.ok()?;
        let before = passed.extents.iter().take(extent.id.extent);
        let before: u64 = before.map(|range| Grid::new(range.len()).chunks()).sum();
        let at = |chunk: u64| usize::try_from(chunk.checked_mul(DIGEST)?).ok();
        let place = at(before)?..at(before.checked_add(extent.grid.chunks())?)?;
        let found = all.get(place).map(|found| all.slice_ref(found))?;
        extent.know(&found).then_some(found)
    }

    /// Proves a layer again that has gone by here, if the digests are to be had that all its chunks had then.
    async fn prove_again(self: &Arc<Self>, layer: usize) -> bool {
        let loader = Arc::clone(self);
        let prove = move || {
            let known = loader.extents(layer).all(|extent| loader.know_again(extent).is_some());
            let passed = loader.layers.get(layer).and_then(|layer| layer.stream.as_deref()?.passed());
            if known && passed.is_some() {
                loader.set_proved(layer);
            }
        };
        tokio::task::spawn_blocking(prove).await.is_ok() && self.standing(layer) == Standing::Proved
    }

    /// Declares the layer's bytes wrong: from now on its reads fail, and the store has none of them. Blocks.
    pub(super) fn poison(&self, layer: usize, why: &str) {
        let (Some(stratum), Some(described)) = (self.layers.get(layer), self.layer(layer)) else { return };
        if stratum.standing.send_replace(Standing::Poisoned) == Standing::Poisoned {
            return;
        }
        tracing::error!(layer = %described.blob.digest, why, "POISONED: reads of its files fail from now on");
        self.metrics.poisoned_layers.add(1);
        self.board.purge(layer, &self.poison_error(layer));
        let mut poisoned = self.poisoned.lock();
        poisoned.layers.push(layer);
        poisoned.told.retain(|told| told.send(layer).is_ok());
        drop(poisoned);
        self.forget_shared(layer);
        self.shelf.store.poison(&self.shelf.who, described.kept_as(), stratum.gaps);
        stratum.files().for_each(Extent::forget);
        self.sums.forget_layer(layer);
    }

    /// The same of a layer whose bytes are right and lead to no file that could be served: who reads is told `reason`. Blocks.
    pub(super) fn poison_for(&self, layer: usize, why: &str, reason: &Error) {
        if let Some(stratum) = self.layers.get(layer) {
            // Of several the first is as good as any.
            let _ = stratum.reason.set(reason.clone());
        }
        self.poison(layer, why);
    }

    /// Removes what the store has of an unproved layer whose records are not what the repository gives. Blocks.
    pub(super) fn discard(&self, layer: usize) {
        let (Some(stratum), Some(described)) = (self.layers.get(layer), self.layer(layer)) else { return };
        self.shelf.store.discard(&self.shelf.who, described.kept_as());
        stratum.files().for_each(Extent::forget);
        self.sums.forget_layer(layer);
    }

    /// Lets go of idle files, and takes over what other processes found out about shared layers. Blocks.
    pub(super) fn look_around(&self) {
        for (number, stratum) in self.layers.iter().enumerate() {
            if *stratum.standing.borrow() == Standing::Unproved && stratum.files().any(Extent::touched) {
                self.learn(number, stratum);
            }
            let is_left = self.is_stranger_to(number) || self.owes(number);
            if stratum.binding.is_some() && is_left && stratum.may_be_tried() {
                // An earlier process may have been ended before it came to that.
                stratum.note_attempt();
                self.recall_lie(number);
                self.share_whole(number);
                self.prove_owed(number);
            }
        }
        self.layers.iter().flat_map(Stratum::files).for_each(Extent::check_seal);
        self.layers.iter().for_each(|stratum| stratum.decoding.release_idle());
        self.desk.release_idle();
        self.board.release_idle(self.config.memory.min(Pace::WINDOW), IDLE);
        self.shelf.store.release_idle(IDLE);
    }

    fn learn(&self, number: usize, stratum: &Stratum) {
        let Some(layer) = self.layer(number) else { return };
        if self.shelf.store.poisoned_since(&self.shelf.who, layer.kept_as(), stratum.gaps, self.began) {
            self.poison(number, "another process found it out");
        } else if headers::is_proved(layer, stratum.gaps, &self.shelf) {
            self.compare_with_proof(number, stratum);
        } else if stratum.may_be_tried() {
            for extent in stratum.files().filter(|extent| extent.complete_by_now()) {
                self.completed(extent);
            }
        }
    }

    /// Another process has proved the layer, by the same headers: what was served here must be what was proved there.
    fn compare_with_proof(&self, number: usize, stratum: &Stratum) {
        for extent in stratum.files().filter(|extent| extent.touched()) {
            // Anew: what is open here may not be what was proved.
            let Ok(kept) = self.shelf.file(&extent.layer, extent.range) else { return };
            if !kept.vouched() {
                return;
            }
            if !extent.agrees_with(&kept) {
                self.poison(number, "another process proved other bytes");
                return;
            }
        }
        self.adopt_proof(number);
    }

    /// Sees to a file whose last chunk has come: its layer may be complete now, or it may be sealed.
    pub(super) fn completed(&self, extent: &Extent) {
        let layer = extent.id.layer;
        match self.standing(layer) {
            Standing::Proved => {
                if self.binding(layer).is_some() && self.all_complete(extent) {
                    self.share_whole(layer);
                    self.prove_owed(layer);
                }
                self.prover.seal(extent.id);
            }
            Standing::Unproved if self.all_complete(extent) => self.prover.check(layer),
            _ => {}
        }
    }

    /// Whether the layer has become complete with this file; said once, until [`not_proved`](Self::not_proved).
    fn all_complete(&self, complete: &Extent) -> bool {
        let Some(stratum) = self.layers.get(complete.id.layer) else { return false };
        let mut incomplete = stratum.incomplete.lock();
        let left = incomplete.get_or_insert_with(|| {
            let unfinished =
                |extent: &&Extent| self.shelf.kept_bytes(&extent.layer, extent.range) < extent.grid.len();
            let left = stratum.files().filter(unfinished).map(|extent| extent.id.extent);
            left.chain([complete.id.extent]).collect()
        });
        left.remove(&complete.id.extent) && left.is_empty()
    }

    /// Takes down that an attempt to prove the layer came to nothing.
    pub(super) fn not_proved(&self, layer: usize) {
        if let Some(stratum) = self.layers.get(layer) {
            *stratum.incomplete.lock() = None;
            stratum.note_attempt();
            stratum.attempts.send_modify(|attempts| *attempts += 1);
        }
    }
}

impl Stratum {
    /// Whether the last attempt to prove the layer is long enough ago for another one by nobody's wish.
    pub(super) fn may_be_tried(&self) -> bool {
        self.tried.lock().is_none_or(|tried| tried.elapsed() >= RETRY)
    }

    pub(super) fn note_attempt(&self) {
        *self.tried.lock() = Some(Instant::now());
    }

    /// Whether the layer was unproved before.
    fn become_proved(&self) -> bool {
        self.turn(Standing::Unproved, Standing::Proved)
    }

    /// Changes the standing where it is `from`, and says whether it was: what is poisoned stays so, whoever is late.
    fn turn(&self, from: Standing, to: Standing) -> bool {
        self.standing.send_if_modified(|standing| {
            let turns = *standing == from;
            if turns {
                *standing = to;
            }
            turns
        })
    }
}
