//! The bytes of a blob that is pushed: pieces from memory, files and other repositories, read as they are sent.
//!
//! A push that breaks goes on where it broke, so every stretch can be read again. Nothing is kept: what is in memory at
//! once is what was asked for last, and one piece ahead of it.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::seal::regular;
use super::{Seal, Upload};
use crate::error::{Error, Kind, Result};
use crate::oci::Blob;
use crate::range::StoredRange;
use crate::repository::layout::{blocking, read_piece};
use crate::repository::{ByteStream, Repository};

/// How much is read from a file at once, and given on at once.
const PIECE: u64 = 1 << 20;
/// How many reads of a file are under way at once: one is sent while the next is read.
const READS: usize = 2;

/// Bytes that can be read again from any place.
#[derive(Clone, Debug)]
pub enum Piece {
    /// Bytes in memory.
    Bytes(Bytes),
    /// A stretch of a local file, which must not change until it has been pushed.
    File {
        /// The file.
        path: PathBuf,
        /// Which of its bytes.
        range: StoredRange,
    },
    /// A stretch of a local file that is only read while it is the one that was sealed.
    Sealed {
        /// The file.
        path: PathBuf,
        /// Which of its bytes.
        range: StoredRange,
        /// What it was.
        seal: Seal,
    },
    /// A stretch of a file that is open, and that nobody else changes.
    Open {
        /// The file.
        file: Arc<File>,
        /// Which of its bytes.
        range: StoredRange,
    },
    /// All of a blob that is elsewhere.
    Blob {
        /// Where it is.
        repository: Arc<dyn Repository>,
        /// Which one.
        blob: Blob,
    },
}

impl Piece {
    /// How many bytes it has.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => u64::try_from(bytes.len()).unwrap_or(u64::MAX),
            Self::File { range, .. } | Self::Sealed { range, .. } | Self::Open { range, .. } => range.len(),
            Self::Blob { blob, .. } => blob.size,
        }
    }

    /// The stretch `within` of its bytes.
    fn read(&self, within: StoredRange) -> ByteStream {
        match self {
            Self::Bytes(bytes) => slices(bytes.clone(), within),
            Self::File { path, range } => file(path.clone(), *range, None, within),
            Self::Sealed { path, range, seal } => file(path.clone(), *range, Some(*seal), within),
            Self::Open { file, range } => stretched(file.clone(), *range, within),
            Self::Blob { repository, blob } => {
                let (repository, blob) = (repository.clone(), blob.clone());
                let opened = async move { repository.read(&blob, within).await };
                stream::once(opened).try_flatten().boxed()
            }
        }
    }
}

/// The pieces of one blob, each at its place.
#[derive(Clone, Debug)]
pub(in crate::repository) struct Source(Arc<[Placed]>);

#[derive(Debug)]
struct Placed {
    piece: Piece,
    /// Where it lies in the blob.
    range: StoredRange,
}

impl Source {
    /// The pieces of `upload`.
    ///
    /// # Errors
    /// `Invalid` where they are not as many bytes as the blob has.
    pub(in crate::repository) fn new(upload: &Upload) -> Result<Self> {
        let Upload { blob, pieces } = upload;
        let mut at = 0;
        let place = |piece: &Piece| {
            let range = StoredRange::at(at, piece.size())?;
            at = range.end();
            Some(Placed { piece: piece.clone(), range })
        };
        let placed: Option<Vec<_>> = pieces.iter().map(place).collect();
        match placed {
            Some(placed) if at == blob.size => Ok(Self(placed.into())),
            _ => {
                let doing = format!("the pieces of {} have {at} bytes and not {}", blob.digest, blob.size);
                Err(Error::new(Kind::Invalid, doing))
            }
        }
    }

    /// The bytes of `range`, in order, in items of at most 1 MiB where they come from here.
    pub(in crate::repository) fn stream(&self, range: StoredRange) -> ByteStream {
        let first = self.0.partition_point(|placed| placed.range.end() <= range.start());
        let pieces = self.0.clone();
        let parts = (first..pieces.len()).map_while(move |number| {
            let placed = pieces.get(number).filter(|placed| placed.range.start() < range.end())?;
            let (part, start) = (placed.range.meet(range), placed.range.start());
            let within =
                StoredRange::new(part.start().saturating_sub(start), part.end().saturating_sub(start));
            Some((pieces.clone(), number, within))
        });
        let parts = parts.filter(|(_, _, within)| !within.is_empty());
        stream::iter(parts)
            .map(|(pieces, number, within)| match pieces.get(number) {
                Some(placed) => placed.piece.read(within),
                None => stream::empty().boxed(),
            })
            .flatten()
            .boxed()
    }
}

/// `range` in stretches of [`PIECE`] bytes; the last is shorter.
fn stretches(range: StoredRange) -> impl Iterator<Item = StoredRange> + Send {
    let stretch = move |start: u64| {
        let stretch = StoredRange::new(start, start.saturating_add(PIECE)).meet(range);
        (!stretch.is_empty()).then_some(stretch)
    };
    std::iter::successors(stretch(range.start()), move |last| stretch(last.end()))
}

fn slices(bytes: Bytes, within: StoredRange) -> ByteStream {
    let slice = move |range: StoredRange| {
        let place = |at| usize::try_from(at).ok();
        let bytes = place(range.start())
            .zip(place(range.end()))
            .and_then(|(a, b)| bytes.get(a..b).map(|s| bytes.slice_ref(s)));
        bytes.ok_or_else(|| Error::new(Kind::Invalid, format!("bytes {range} are not there")))
    };
    stream::iter(stretches(within).map(slice)).boxed()
}

fn file(path: PathBuf, range: StoredRange, seal: Option<Seal>, within: StoredRange) -> ByteStream {
    let name = path.clone();
    let reads = async move {
        let open = move || match seal {
            Some(seal) => seal.open(&path),
            None => regular(&path).map(|(file, _)| file),
        };
        let file = Arc::new(blocking(open).await?);
        Ok::<_, Error>(stretched(file, range, within))
    };
    let changed = move |error: Error| {
        error
            .context(format!("cannot push {}", name.display()))
            .hint("files must stay as they are while they are pushed")
    };
    stream::once(reads).try_flatten().map_err(changed).boxed()
}

/// The stretch `within` of `range` of an open file.
fn stretched(file: Arc<File>, range: StoredRange, within: StoredRange) -> ByteStream {
    let start = range.start();
    let here = StoredRange::new(start.saturating_add(within.start()), start.saturating_add(within.end()));
    let read = move |range| {
        let file = file.clone();
        blocking(move || read_piece(&file, range))
    };
    stream::iter(stretches(here)).map(read).buffered(READS).boxed()
}
