//! Makes names and verified chunks of a layer that goes by, on a thread that may block.
//!
//! Chunks are handed out as soon as they are whole, and kept by a second thread a few chunks behind, which is all that is in
//! memory at once: where the disk is slower than the line, the line waits. What a chunk was before, to this process or to
//! the store, it must be again.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::parts::{Holding, Whole};
use super::{Stream, closing};
use crate::buffer;
use crate::content::extent::Extent;
use crate::content::flight::Key;
use crate::content::loader::{Loader, Standing};
use crate::content::verify::Verified;
use crate::error::{Error, Kind, Result};
use crate::index::pass::{Event, Pass, Passed, Spacing};
use crate::index::spool::Spool;
use crate::index::{CHUNK, ChunkDigest, Entry, ExtentId};
use crate::range::ContentRange;

/// How many chunks may wait to be kept.
const BACKLOG: usize = 8;

/// A chunk to be kept, and where its content ends in the layer's.
type Fresh = (Key, Verified, u64);

/// A layer that has gone by well, as far as decoding can tell.
pub(super) struct Driven {
    /// What it was found to be.
    pub(super) passed: Passed,
    /// What decoding needs to start at its spans; `None` where it could not be put aside.
    pub(super) windows: Option<Spool>,
    /// The digests of all its chunks, file by file.
    pub(super) digests: Vec<ChunkDigest>,
}

/// Decodes the pieces of a layer to their end. Blocks.
///
/// # Errors
/// Those of [`Pass`]; `Integrity` where chunks are not what they were before.
pub(super) fn drive(
    loader: &Arc<Loader>,
    layer: usize,
    stream: &Stream,
    pieces: mpsc::Receiver<Bytes>,
) -> Result<Driven> {
    let (keeper, fresh) = sync_channel(BACKLOG);
    let (windows, windows_left) = loader.spool(&stream.layer.descriptor.digest).unzip();
    let mut driver = Driver {
        loader,
        layer,
        stream,
        keeper,
        filling: None,
        begun: None,
        named: 0,
        windows,
        windows_left: windows_left.unwrap_or(0),
        digests: Vec::new(),
        holding: stream.guide().and_then(|guided| guided.guide.parts.as_deref()).map(Holding::new),
    };
    std::thread::scope(|scope| {
        let keeping = scope.spawn(move || keep(loader, stream, &fresh));
        let passed = driver.run(pieces);
        let Driver { windows, digests, keeper, .. } = driver;
        // The other thread ends when nothing more can come.
        drop(keeper);
        let kept = keeping.join().map_err(|_| nonsense());
        kept.and(passed).map(|passed| Driven { passed, windows, digests })
    })
}

/// One going by of a layer.
struct Driver<'a> {
    loader: &'a Arc<Loader>,
    layer: usize,
    stream: &'a Stream,
    keeper: SyncSender<Fresh>,
    /// The chunk that is not whole yet.
    filling: Option<(Key, buffer::Filling)>,
    /// A file of which only the place is known.
    begun: Option<(usize, ContentRange)>,
    /// How many names have gone by this time.
    named: usize,
    windows: Option<Spool>,
    /// How many bytes of windows may still be put aside.
    windows_left: u64,
    digests: Vec<ChunkDigest>,
    /// Where the manifest pins the layer's parts.
    holding: Option<Holding<'a>>,
}

impl Driver<'_> {
    fn run(&mut self, mut pieces: mpsc::Receiver<Bytes>) -> Result<Passed> {
        let (layer, headers) = (&self.stream.layer, self.stream.headers.clone());
        let mut pass = Pass::beside(layer, self.layer, Spacing::default(), headers)?;
        while let Some(piece) = pieces.blocking_recv() {
            pass.step(&piece, &mut |event| self.take(event))?;
        }
        if self.loader.board.closed() {
            return Err(closing());
        }
        let passed = pass.finish(&mut |event| self.take(event))?;
        self.extent_without_name()?;
        passed.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        Ok(passed)
    }

    fn take(&mut self, event: Event<'_>) -> Result<()> {
        match event {
            Event::Extent(number, range) => {
                self.extent_without_name()?;
                self.begun = Some((number, range));
                Ok(())
            }
            Event::Entry(entry) => self.entry(entry),
            Event::Content { extent, offset, bytes } => {
                self.extent_without_name()?;
                self.content(extent, offset, bytes)
            }
            Event::Window(window) => {
                self.window(&window);
                Ok(())
            }
        }
    }

    /// Puts a window aside, as long as there is room.
    fn window(&mut self, window: &Bytes) {
        let Some(spool) = &mut self.windows else { return };
        let left = self.windows_left.checked_sub(window.len() as u64);
        self.windows_left = left.unwrap_or(0);
        let put = left.is_some().then(|| spool.push(window));
        if !matches!(put, Some(Ok(()))) {
            tracing::warn!(layer = %self.stream.layer.descriptor.digest, "there is no room for its index while it goes by");
            self.windows = None;
        }
    }

    /// Takes a file that no name was found for.
    fn extent_without_name(&mut self) -> Result<()> {
        let name = self.stream.layer.descriptor.digest.to_string();
        self.begun.take().map_or(Ok(()), |(number, range)| self.extent(number, range, &name))
    }

    /// Takes the next name.
    fn entry(&mut self, entry: &Entry) -> Result<()> {
        if let Some((number, range)) = self.begun.take() {
            self.extent(number, range, &entry.path)?;
        }
        let at = self.named;
        self.named += 1;
        if !self.stream.is_named && at >= self.stream.entries.count() {
            self.stream.entries.push(entry.clone());
            self.stream.change(|now| now.named = at.saturating_add(1));
        }
        Ok(())
    }

    fn extent(&self, number: usize, range: ContentRange, path: &str) -> Result<()> {
        let stratum = self.loader.layers.get(self.layer).ok_or_else(nonsense)?;
        let Some(known) = stratum.extents.get(number) else {
            if self.stream.guided.is_some() {
                return Err(self.loader.contradicted(self.layer, path));
            }
            let id = ExtentId { layer: self.layer, extent: number };
            let layer = self.stream.layer.descriptor.digest.clone();
            let pushed = stratum.extents.push(Box::new(Extent::new(id, path.to_owned(), layer, range, None)));
            return if pushed == number { Ok(()) } else { Err(nonsense()) };
        };
        if known.range == range {
            return Ok(());
        }
        if self.stream.guided.is_some() {
            return Err(self.loader.contradicted(self.layer, path));
        }
        let doing = format!("{path:?} lies elsewhere in its layer than {:?} was said to", known.path);
        Err(Error::new(Kind::Integrity, doing))
    }

    /// Takes the next bytes of a file, which begin at `offset` in it.
    fn content(&mut self, extent: usize, offset: u64, mut bytes: &[u8]) -> Result<()> {
        let id = ExtentId { layer: self.layer, extent };
        let mut offset = offset;
        while !bytes.is_empty() {
            if self.loader.board.closed() {
                return Err(closing());
            }
            let known = self.loader.extent(id).ok_or_else(nonsense)?;
            let (len, place) = (known.grid.range(offset / CHUNK).len(), known.range.start());
            let pool = &self.loader.pool;
            let (key, mut filling) = self.filling.take().unwrap_or_else(|| {
                ((id, offset / CHUNK), pool.take(usize::try_from(len).unwrap_or(buffer::SIZE)))
            });
            let lacking = usize::try_from(len).map_or(0, |len| len.saturating_sub(filling.len()));
            let taken = filling.push(bytes.get(..lacking.min(bytes.len())).unwrap_or_default());
            if taken == 0 || key != (id, offset / CHUNK) {
                return Err(nonsense());
            }
            if let Some(holding) = &mut self.holding {
                holding.feed(place.saturating_add(offset), bytes.get(..taken).unwrap_or_default())?;
            }
            bytes = bytes.get(taken..).unwrap_or_default();
            offset = offset.saturating_add(taken as u64);
            match filling.len() as u64 == len {
                true => self.chunk(key, filling.share())?,
                false => self.filling = Some((key, filling)),
            }
            while let Some(whole) = self.holding.as_mut().and_then(Holding::pop) {
                self.held(whole)?;
            }
        }
        Ok(())
    }

    /// Hands out a chunk that is whole, at once or when its parts are.
    fn chunk(&mut self, key: Key, bytes: Bytes) -> Result<()> {
        let extent = self.loader.extent(key.0).ok_or_else(nonsense)?;
        let content = extent.content(&(key.1..key.1.saturating_add(1)));
        if let Some(holding) = &mut self.holding {
            holding.push(key, bytes, content);
            return Ok(());
        }
        let verified = self.loader.verify_passing(extent, key.1, bytes)?;
        self.loader.hand_out(key, &verified);
        self.put_by(key, verified, content)
    }

    /// The same of a chunk whose parts have gone by. Nobody reads one that no part holds: its file is not shown.
    fn held(&mut self, whole: Whole) -> Result<()> {
        let Whole { key, bytes, content, is_vouched } = whole;
        let extent = self.loader.extent(key.0).ok_or_else(nonsense)?;
        if !is_vouched {
            let verified = self.loader.verify_passing(extent, key.1, bytes)?;
            return self.put_by(key, verified, content);
        }
        let verified = self.loader.verify_vouched(extent, key.1, bytes)?;
        self.loader.hand_out(key, &verified);
        self.put_by(key, verified, content)
    }

    fn put_by(&mut self, key: Key, verified: Verified, content: ContentRange) -> Result<()> {
        self.digests.push(verified.digest());
        // Fails only where the other thread has panicked.
        self.keeper.send((key, verified, content.end())).map_err(|_| nonsense())
    }
}

impl Loader {
    /// What went by of a layer is not what its own table said: names and bytes that were given are wrong. Blocks.
    pub(super) fn contradicted(&self, layer: usize, path: &str) -> Error {
        let doing = format!("{path:?} is not where its layer's own table says");
        let error = Error::new(Kind::Integrity, doing).hint("write the layer again, then unmount and mount");
        let why = "its own table says other places of its files than its archive has";
        self.poison_for(layer, why, &error);
        error
    }

    /// The chunk, if it is what it was before, as far as that is known. Blocks.
    fn verify_passing(&self, extent: &Extent, chunk: u64, bytes: Bytes) -> Result<Verified> {
        let layer = extent.id.layer;
        if let Some(kept) = self.reliable(extent) {
            extent.learn(chunk, &kept);
        }
        self.doubt_unknown(extent, chunk);
        if let Some(verified) = extent.verify(chunk, bytes.clone()) {
            return Ok(verified);
        }
        self.metrics.fetch_mismatches.add(1);
        if self.standing(layer) == Standing::Unproved {
            match extent.seen(chunk) {
                true => self.poison(layer, "a chunk that went by again has other bytes than before"),
                // Only the store said otherwise, of a layer that nobody has proved: it may be the one that is wrong.
                false => self.discard(layer),
            }
        }
        self.refuse_poisoned(layer)?;
        extent.verify(chunk, bytes).ok_or_else(|| {
            let doing = format!(
                "{} gives other bytes than before for chunk {chunk} of {}",
                self.repository.place(),
                extent.path
            );
            Error::new(Kind::Integrity, doing)
        })
    }
}

/// Keeps chunks in the order they come, and says how far that is.
fn keep(loader: &Loader, stream: &Stream, fresh: &Receiver<Fresh>) {
    for (key, verified, end) in fresh {
        loader.keep(key, &verified);
        stream.change(|now| now.settled = end);
    }
}

fn nonsense() -> Error {
    Error::new(Kind::Broken, "a layer's bytes came in no order")
}
