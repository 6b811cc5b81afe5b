//! A compressed layer without an index goes by once: what is known of it meanwhile, and waiting for the rest.
//!
//! Nobody can tell where in such a layer a file lies before all that comes before it was decoded. So the layer is read
//! from its start to its end, in the background: its files become known as their headers go by, their chunks are verified,
//! handed out and kept as they come, and at the end its digest is compared and the spans are known that serve any later
//! read. A read waits until its chunk goes by, a name until its header does. [`feed`] brings the bytes,
//! [`drive`] makes chunks of them, [`finish`] ends it; [`turns`] says how many do so at once. Floor 4 asks for names; the loader's requests for chunks.

mod drive;
mod feed;
mod finish;
mod parts;
pub(super) mod turns;
mod wait;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::Integrity;
use super::flight::Urgency;
use super::guided::Guided;
use super::loader::{GRACE, Loader, Standing, Stratum};
use crate::error::{Error, Kind, Result};
use crate::index::{Allowance, Coding, Entry, Headers, Layer};
use crate::oci::artifact::ModelLayer;

/// Whether all names of a layer are known.
#[derive(Clone, Debug, Default)]
pub enum Names {
    /// More may come.
    #[default]
    Coming,
    /// All of them.
    Known,
    /// The others can't be had.
    Lost(Error),
}

/// The names of a layer as far as they are known.
#[derive(Clone, Debug)]
pub struct Coming<'a> {
    /// Whether these are all.
    pub names: Names,
    entries: Option<&'a boxcar::Vec<Entry>>,
}

impl<'a> Coming<'a> {
    /// These names, of which `names` says whether they are all.
    #[must_use]
    pub fn new(names: Names, entries: &'a boxcar::Vec<Entry>) -> Self {
        Self { names, entries: Some(entries) }
    }

    /// Every name from the one numbered `from` on, each with its number.
    pub fn entries(&self, from: usize) -> impl Iterator<Item = (usize, &'a Entry)> + use<'a> {
        let entries = self.entries;
        (from..).map_while(move |at| Some((at, entries?.get(at)?)))
    }

    /// How many names there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.entries.map_or(0, boxcar::Vec::count)
    }

    /// The name numbered `at`, if there are so many.
    #[must_use]
    pub fn entry(&self, at: usize) -> Option<&'a Entry> {
        self.entries?.get(at)
    }
}

/// A layer on its way past.
#[derive(Debug)]
pub(super) struct Stream {
    /// What the manifest says of it.
    layer: Arc<ModelLayer>,
    /// Whether the index had its one file's name and size, so that none is to come.
    is_named: bool,
    /// What it has had of the headers that the artifact may have.
    headers: Headers,
    entries: boxcar::Vec<Entry>,
    progress: watch::Sender<Progress>,
    urgency: Arc<Urgency>,
    /// Told when somebody wants what does not come by itself.
    asked: Notify,
    /// Whether it must go by once more.
    again: AtomicBool,
    /// What the layer says itself of where its chunks are.
    guided: Option<Guided>,
    /// What was found out: set when the layer is proved and its spans are known.
    passed: OnceLock<Layer>,
}

/// How far a layer has come.
#[derive(Clone, Debug)]
struct Progress {
    /// Stored bytes that have arrived, over all attempts.
    arrived: u64,
    /// All chunks of the content before it have been handed out and, where that works, kept.
    settled: u64,
    /// How many names there are.
    named: usize,
    names: Names,
    state: State,
    /// How often it was set going.
    tries: u64,
}

#[derive(Clone, Debug)]
enum State {
    /// Nobody has asked yet.
    Idle,
    /// On its way.
    Going,
    /// Nothing comes: for this reason, until somebody asks again.
    Halted(Error),
    /// What has not come by now never will.
    Broken(Error),
    /// All of it has gone by.
    Over,
}

impl Stream {
    /// The going by of `layer`; `None` where it is not needed. `is_named`: its one file is known already. `headers` is what all
    /// layers of the artifact may have of them.
    pub(super) fn of(layer: &Layer, is_named: bool, headers: &Arc<Allowance>) -> Option<Arc<Self>> {
        let stored = layer.blob.size;
        let Coding::Streamed(layer, guide) = &layer.coding else { return None };
        let guided = guide.as_ref().map(|guide| Guided::new(guide, stored));
        let is_named = is_named || guided.is_some();
        let names = if is_named { Names::Known } else { Names::Coming };
        let progress = Progress { arrived: 0, settled: 0, named: 0, names, state: State::Idle, tries: 0 };
        Some(Arc::new(Self {
            layer: Arc::clone(layer),
            is_named,
            headers: Headers::of(headers),
            entries: boxcar::Vec::new(),
            progress: watch::Sender::new(progress),
            urgency: Arc::default(),
            asked: Notify::new(),
            again: AtomicBool::new(false),
            guided,
            passed: OnceLock::new(),
        }))
    }

    /// What was found out, once it has gone by and is proved.
    pub(super) fn passed(&self) -> Option<&Layer> {
        self.passed.get()
    }

    /// Its guide, good or not.
    pub(super) fn guide(&self) -> Option<&Guided> {
        self.guided.as_ref()
    }

    /// Its guide, as long as chunks are read by it: also where the layer could not go by, as long as what is read is right.
    pub(super) fn guided(&self) -> Option<&Guided> {
        self.guided.as_ref().filter(|guided| guided.is_good())
    }

    /// Whether the manifest pins what the parts of its files must be.
    pub(super) fn is_pinned(&self) -> bool {
        self.guided.as_ref().is_some_and(|guided| guided.guide.parts.is_some())
    }

    /// Up to where content has gone by, where it is on its way.
    pub(super) fn going(&self) -> Option<u64> {
        let progress = self.progress.borrow();
        matches!(progress.state, State::Going).then_some(progress.settled)
    }

    /// Whether it is on its way.
    pub(super) fn is_going(&self) -> bool {
        self.going().is_some()
    }

    /// Sets it going, for nobody in particular.
    pub(super) fn begin(&self) {
        if matches!(self.progress.borrow().state, State::Idle) {
            self.asked.notify_one();
        }
    }

    /// Has it go by once more: what has gone by is wanted, and there is no other way to it.
    fn ask_again(&self) {
        self.again.store(true, Ordering::Release);
        self.asked.notify_one();
    }

    /// Sets it going for somebody who waits; a failure of the try that the number names is none of his.
    fn ask(&self) -> Option<u64> {
        self.urgency.raise();
        let progress = self.progress.borrow();
        match progress.state {
            State::Idle | State::Halted(_) => {
                self.asked.notify_one();
                Some(progress.tries)
            }
            State::Going | State::Broken(_) | State::Over => None,
        }
    }

    /// Waits until `enough` says so, as long as something of the layer arrives every `deadline`.
    ///
    /// # Errors
    /// Why nothing comes any more, or `Deadline`.
    async fn wait(&self, deadline: Duration, enough: impl Fn(&Progress) -> bool) -> Result<()> {
        let mut progress = self.progress.subscribe();
        let stale = self.ask();
        loop {
            let now = progress.borrow_and_update().clone();
            if enough(&now) {
                return Ok(());
            }
            now.failure(stale)?;
            let changed = tokio::time::timeout(deadline, progress.changed()).await;
            if !matches!(changed, Ok(Ok(()))) {
                let doing = format!("nothing arrived for {}", humantime::format_duration(deadline));
                return Err(Error::new(Kind::Deadline, doing));
            }
        }
    }

    /// Fails everybody who waits, and who asks from now on.
    pub(super) fn close(&self) {
        self.change(|now| now.state = State::Broken(closing()));
    }

    fn change(&self, change: impl FnOnce(&mut Progress)) {
        self.progress.send_modify(change);
    }
}

impl Progress {
    /// Why nothing comes any more, unless that was the failure of try number `stale`.
    fn failure(&self, stale: Option<u64>) -> Result<()> {
        match &self.state {
            State::Halted(error) if stale != Some(self.tries) => Err(error.clone()),
            State::Broken(error) => Err(error.clone()),
            State::Idle | State::Going | State::Halted(_) | State::Over => Ok(()),
        }
    }

    fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }
}

impl Loader {
    /// The names of a layer whose index did not know them, as far as they are known. Under [`Integrity::Strict`] there are
    /// none before the layer's digest was found over the bytes that they were in; should that proof be lost later, they stay.
    #[must_use]
    pub fn coming(&self, layer: usize) -> Coming<'_> {
        let Some(stream) = self.layers.get(layer).and_then(|layer| layer.stream.as_deref()) else {
            return Coming { names: Names::Known, entries: None };
        };
        // In this order: when these are all, the last of them is there.
        let names = stream.progress.borrow().names.clone();
        let entries = Some(&stream.entries).filter(|_| self.may_name(&names));
        Coming { names, entries }
    }

    /// Whether names may be said that are known so far. What an earlier process has proved counts for nothing here: the
    /// headers have come anew, and nothing but the layer's digest says that they are the same.
    fn may_name(&self, names: &Names) -> bool {
        self.config.integrity != Integrity::Strict || matches!(names, Names::Known)
    }

    /// Waits until more names of a layer are known than `have`, or it is known that there will be none.
    ///
    /// # Errors
    /// Why they can't be had now; `Deadline` where nothing of the layer arrived for the read deadline.
    pub async fn more_names(&self, layer: usize, have: usize) -> Result<()> {
        let Some(stream) = self.layers.get(layer).and_then(|layer| layer.stream.as_deref()) else {
            return Ok(());
        };
        let more = |now: &Progress| {
            !matches!(now.names, Names::Coming) || (now.named > have && self.may_name(&now.names))
        };
        stream.wait(self.config.read_deadline + GRACE, more).await
    }

    /// The layer's going by, as long as that is how its chunks come.
    pub(super) fn streaming(&self, layer: usize) -> Option<&Stream> {
        let stream = self.layers.get(layer)?.stream.as_deref()?;
        stream.passed.get().is_none().then_some(stream)
    }

    /// Waits until all of a layer has gone by and is proved.
    ///
    /// # Errors
    /// Why that does not come about.
    pub(super) async fn let_pass(&self, layer: usize) -> Result<()> {
        let Some(stream) = self.streaming(layer) else { return self.refuse_poisoned(layer) };
        let passed = |now: &Progress| now.is_over() && self.standing(layer) == Standing::Proved;
        if stream.progress.borrow().is_over() && self.standing(layer) != Standing::Proved {
            // Its proof was lost.
            stream.ask_again();
        }
        let ended = stream.wait(self.config.read_deadline + GRACE, passed).await;
        self.refuse_poisoned(layer)?;
        ended
    }

    /// Whether a layer has bytes of files, or may turn out to have some.
    #[must_use]
    pub fn may_have_files(&self, layer: usize) -> bool {
        self.layers.get(layer).is_some_and(Stratum::may_have_files)
    }
}

fn closing() -> Error {
    Error::new(Kind::Deadline, "the mount is being ended")
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
