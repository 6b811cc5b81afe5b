//! A compressed layer goes by once: stored bytes in; entries, files' content and windows out; at the end, its index.
//!
//! Pure work on bytes in memory: who drives it fetches, digests and keeps ([`Digesting`] makes chunk digests on the way,
//! [`Spool`](super::spool::Spool) takes the windows). Nothing that comes out is to be believed before the digest over all
//! stored bytes has been compared, which is the driver's to do. Called by `index build`, `index add` and the loader.

use std::sync::Arc;

use bytes::Bytes;

use super::archive::{Archive, Passing};
use super::names::Names;
use super::{
    Allowance, CHUNK, ChunkDigest, Compression, Entry, ExtentId, Gap, Headers, between, compression,
};
use crate::codec::{gzip, zstd};
use crate::error::{Error, Kind, Result};
use crate::oci::Digest;
use crate::oci::artifact::ModelLayer;
use crate::oci::digest::{Algorithm, Hasher};
use crate::range::ContentRange;

pub use crate::codec::gzip::Spacing;

/// How much content is decoded at once.
const ROOM: usize = 1 << 20;

/// What goes by, in order.
#[derive(Debug)]
pub enum Event<'a> {
    /// A file that is not empty begins: its extent's number in the layer, one more than the last, and where it lies in the
    /// layer's content.
    Extent(usize, ContentRange),
    /// A name; a file's comes right after its extent. A later one of the same path takes its place. Some extents have none.
    Entry(&'a Entry),
    /// The next bytes of the extent's content, in order and without gaps.
    Content {
        /// The extent's number in the layer.
        extent: usize,
        /// Where in the file they begin.
        offset: u64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// The next window of a gzip layer: the checkpoints' section is made of them.
    Window(Bytes),
}

/// Takes what goes by. An error of it ends the pass.
pub type Sink<'a> = dyn FnMut(Event<'_>) -> Result<()> + 'a;

/// What a layer was found to be once it has gone by.
#[derive(Debug)]
pub struct Passed {
    /// How it is compressed.
    pub how: Compression,
    /// Its stored bytes.
    pub stored: u64,
    /// Its content in bytes.
    pub content: u64,
    /// Its entries in the archive's order; of a path that came twice only the later.
    pub entries: Vec<Entry>,
    /// Where each file lies in the content.
    pub extents: Vec<ContentRange>,
    /// What lies between them.
    pub gaps: Vec<Gap>,
    /// The section of its spans (docs/index-format.md).
    pub table: Bytes,
    /// The digest of its content, where that was [asked for](Pass::digesting).
    pub digest: Option<Digest>,
    /// What a person should know.
    pub warnings: Vec<String>,
}

/// The pass over one layer.
///
/// Takes about 2 MiB, the window of a zstd frame (8 MiB for what `zstd` writes up to level 19, 128 MiB at most), 96 bytes for
/// each span, and what entries need.
pub struct Pass {
    decode: Decode,
    room: Vec<u8>,
    archive: Archive,
    walk: Walk,
    stored: u64,
    whole: Option<Hasher>,
}

enum Decode {
    Gzip(Box<gzip::Scanner>),
    Zstd(Box<zstd::Scanner>),
}

/// What the archive has been so far.
struct Walk {
    number: usize,
    names: Names,
    extents: Vec<ContentRange>,
    /// How much of the last extent has gone by.
    offset: u64,
    content: u64,
}

impl Pass {
    /// A pass at the start of `layer`, number `number` of the index's, with spans of about `spacing`, where no other layer of
    /// the artifact goes by.
    ///
    /// # Errors
    /// As [`beside`](Self::beside).
    pub fn new(layer: &ModelLayer, number: usize, spacing: Spacing) -> Result<Self> {
        Self::beside(layer, number, spacing, Headers::of(&Arc::new(Allowance::headers(0))))
    }

    /// The same beside other layers, which share what `headers` is a part of.
    ///
    /// # Errors
    /// [`Kind::Invalid`] where the layer is not compressed, or a decoder can't be set up.
    pub fn beside(layer: &ModelLayer, number: usize, spacing: Spacing, headers: Headers) -> Result<Self> {
        let decode = match compression(layer.packaging) {
            Some(Compression::Gzip) => Decode::Gzip(Box::new(gzip::Scanner::new(spacing)?)),
            Some(Compression::Zstd) => Decode::Zstd(Box::new(zstd::Scanner::new(spacing.bytes())?)),
            None => return Err(Error::new(Kind::Invalid, format!("{} is not compressed", layer.name()))),
        };
        let walk =
            Walk { number, names: Names::new(layer, number), extents: Vec::new(), offset: 0, content: 0 };
        Ok(Self { decode, room: vec![0; ROOM], archive: Archive::new(headers), walk, stored: 0, whole: None })
    }

    /// The same pass, which also digests all content, for who wants to compare it with a diffID. Of SHA-256 that costs a fifth more
    /// of a gzip layer's pass, and more of a zstd layer's.
    #[must_use]
    pub fn digesting(self, algorithm: Algorithm) -> Self {
        Self { whole: Some(Hasher::new(algorithm)), ..self }
    }

    /// The layer's next stored bytes, in pieces of any size.
    ///
    /// # Errors
    /// Those of decoding and of archives: `Invalid`, `Integrity` and `Unsupported`; `Unsupported` for more than 64 MiB of
    /// headers, of this layer or of all that share them; those of `sink`. After an error the pass is over.
    pub fn step(&mut self, mut stored: &[u8], sink: &mut Sink<'_>) -> Result<()> {
        self.stored = self.stored.saturating_add(length(stored.len()));
        loop {
            let (read, written) = self.decode.step(stored, &mut self.room)?;
            stored = stored.get(read..).unwrap_or_default();
            let content = self.room.get(..written).unwrap_or_default();
            self.whole.iter_mut().for_each(|whole| whole.update(content));
            let walk = &mut self.walk;
            walk.content = walk.content.saturating_add(length(written));
            self.archive.feed(content, &mut |passing| walk.take(passing, sink))?;
            self.decode.take_windows().into_iter().try_for_each(|window| sink(Event::Window(window)))?;
            if stored.is_empty() && written < self.room.len() {
                return Ok(());
            }
        }
    }

    /// Whether the layer turned out to be the one file that its annotation names.
    pub(super) fn is_one_file(&self) -> bool {
        self.walk.names.is_one_file()
    }

    /// Ends the layer: all its stored bytes have been given.
    ///
    /// # Errors
    /// `Invalid` where it is cut short, as compressed data or as an archive; those of `sink`.
    pub fn finish(self, sink: &mut Sink<'_>) -> Result<Passed> {
        let Self { decode, archive, mut walk, stored, whole, .. } = self;
        let how = decode.how();
        let table = decode.finish()?;
        archive.finish(&mut |passing| walk.take(passing, sink))?;
        let Walk { names, extents, content, .. } = walk;
        let (entries, warnings) = names.finish()?;
        let gaps = between(&extents, content);
        let digest = whole.map(Hasher::finish);
        Ok(Passed { how, stored, content, entries, extents, gaps, table, digest, warnings })
    }
}

impl Decode {
    /// How many stored bytes were read, and how many of content written.
    fn step(&mut self, stored: &[u8], room: &mut [u8]) -> Result<(usize, usize)> {
        match self {
            Self::Gzip(scanner) => scanner.step(stored, room).map(|moved| (moved.read, moved.written)),
            Self::Zstd(scanner) => scanner.push(stored, room).map(|moved| (moved.stored, moved.content)),
        }
    }

    fn take_windows(&mut self) -> Vec<Bytes> {
        match self {
            Self::Gzip(scanner) => scanner.take_windows(),
            Self::Zstd(_) => Vec::new(),
        }
    }

    fn how(&self) -> Compression {
        match self {
            Self::Gzip(_) => Compression::Gzip,
            Self::Zstd(_) => Compression::Zstd,
        }
    }

    fn finish(self) -> Result<Bytes> {
        match self {
            Self::Gzip(scanner) => Ok(scanner.finish()?.encode()),
            Self::Zstd(scanner) => Ok(scanner.finish()?.encode().into()),
        }
    }
}

impl Walk {
    fn take(&mut self, passing: Passing<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let (member, range) = match passing {
            Passing::Member(member, range) => (member, range),
            Passing::Data(bytes) => return self.data(bytes, sink),
        };
        let mut extent = None;
        if !range.is_empty() {
            let number = self.extents.len();
            extent = Some(ExtentId { layer: self.number, extent: number });
            self.extents.push(range);
            self.offset = 0;
            sink(Event::Extent(number, range))?;
        }
        self.names.add(member, extent)?.map_or(Ok(()), |entry| sink(Event::Entry(entry)))
    }

    fn data(&mut self, bytes: &[u8], sink: &mut Sink<'_>) -> Result<()> {
        let Some(extent) = self.extents.len().checked_sub(1) else { return Ok(()) };
        let offset = self.offset;
        self.offset = offset.saturating_add(length(bytes.len()));
        sink(Event::Content { extent, offset, bytes })
    }
}

/// The digests of a layer's chunks, from the content of its files as it goes by.
#[derive(Debug, Default)]
pub struct Digesting {
    /// The extent of the last bytes, and how many of it have gone by.
    extent: usize,
    at: u64,
    /// The chunk that is under way.
    part: blake3::Hasher,
    digests: Vec<ChunkDigest>,
}

impl Digesting {
    /// The next bytes of the extent's content; all of them must be given, in order.
    pub fn update(&mut self, extent: usize, mut bytes: &[u8]) {
        if extent != self.extent {
            self.end();
            (self.extent, self.at) = (extent, 0);
        }
        while !bytes.is_empty() {
            let room = CHUNK - self.at % CHUNK;
            let len = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
            let (taken, rest) = bytes.split_at_checked(len).unwrap_or((bytes, &[]));
            self.part.update(taken);
            self.at = self.at.saturating_add(length(len));
            bytes = rest;
            if self.at.is_multiple_of(CHUNK) {
                self.end();
            }
        }
    }

    /// All digests: of the first extent's chunks, then of the second's.
    #[must_use]
    pub fn finish(mut self) -> Vec<ChunkDigest> {
        self.end();
        self.digests
    }

    /// Ends the chunk that is under way, if one is.
    fn end(&mut self) {
        if self.part.count() > 0 {
            self.digests.push(ChunkDigest::recorded(*self.part.finalize().as_bytes()));
            self.part.reset();
        }
    }
}

fn length(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "pass_tests.rs"]
pub(crate) mod tests;
