//! The sections of an index as bytes, found right by their digests: all that whoever checks a whole index reads.
//!
//! Who reads files takes them as they are needed instead, and shares [`Table`] with this. Called by `index verify`.

use std::os::unix::fs::FileExt;

use bytes::Bytes;

use super::{Coding, Compression, Home, Layer, Section, Spans};
use crate::codec::{gzip, zstd};
use crate::error::{Error, Kind, Result};
use crate::range::StoredRange;
use crate::repository::{Repository, read_all};

/// The table of a compressed layer's spans.
#[derive(Clone, Debug)]
pub enum Table {
    /// Of a gzip layer.
    Gzip(gzip::Table),
    /// Of a zstd layer.
    Zstd(zstd::Spans),
}

impl Table {
    /// The table of `spans` whose bytes these are, of a blob of `stored` bytes.
    ///
    /// # Errors
    /// `Invalid` where it is malformed or not that of such a layer; `Unsupported` for another form.
    pub fn decode(spans: &Spans, bytes: &[u8], stored: u64) -> Result<Self> {
        let table = match spans.how {
            Compression::Gzip => Self::Gzip(gzip::Table::decode(bytes)?),
            Compression::Zstd => Self::Zstd(zstd::Spans::decode(bytes, stored, spans.content)?),
        };
        let sizes = match &table {
            Self::Gzip(table) => (table.stored_size(), table.content_size()),
            Self::Zstd(spans) => (spans.stored(), spans.content()),
        };
        if sizes != (stored, spans.content) {
            return Err(Error::new(Kind::Invalid, "the table of spans is that of a layer of another size"));
        }
        Ok(table)
    }

    /// The size of the layer's content in bytes.
    #[must_use]
    pub fn content(&self) -> u64 {
        match self {
            Self::Gzip(table) => table.content_size(),
            Self::Zstd(spans) => spans.content(),
        }
    }

    /// Each span's stored bytes and, where it is known, their BLAKE3.
    pub fn spans(&self) -> Box<dyn Iterator<Item = (StoredRange, Option<[u8; 32]>)> + Send + '_> {
        match self {
            Self::Gzip(table) => {
                Box::new((0..table.len()).map(|span| (table.stored(table.content(span)), table.digest(span))))
            }
            Self::Zstd(spans) => Box::new(spans.iter().map(|span| (span.stored, span.digest))),
        }
    }
}

/// The bytes of a section; `repository` is asked for what is there.
///
/// # Errors
/// [`Kind::Integrity`] where they are not what the index says; those of reading.
pub async fn bytes(repository: Option<&dyn Repository>, section: &Section) -> Result<Bytes> {
    let bytes = match &section.bytes {
        Some(bytes) => bytes.clone(),
        None => part(repository, section, section.range).await?,
    };
    if section.digest.matches(&bytes) {
        return Ok(bytes);
    }
    Err(Error::new(Kind::Integrity, format!("the section {} is not what its head says", section.digest)))
}

/// Bytes of an index, as they are.
async fn part(repository: Option<&dyn Repository>, section: &Section, range: StoredRange) -> Result<Bytes> {
    match (&section.home, repository) {
        (Home::File(file), _) => {
            let mut bytes = vec![0; usize::try_from(range.len()).unwrap_or(usize::MAX)];
            let read = file.read_exact_at(&mut bytes, range.start());
            read.map_err(|error| Error::from_source(Kind::Storage, "cannot read an index", error))?;
            Ok(bytes.into())
        }
        (Home::Repository(blob), Some(repository)) => read_all(repository, blob, range).await,
        (Home::Repository(_), None) => Err(Error::new(Kind::NotFound, "nobody has the index")),
    }
}

/// The table of a layer's spans, which fits the layer.
///
/// # Errors
/// [`Kind::Invalid`] where it does not; as [`bytes`].
pub async fn table(repository: Option<&dyn Repository>, layer: &Layer, spans: &Spans) -> Result<Table> {
    let bytes = bytes(repository, &spans.table).await?;
    Table::decode(spans, &bytes, layer.blob.size)
}

/// Whether all sections of a layer are in order: what their digests say, and of a form that can be meant.
///
/// # Errors
/// As [`table`]; [`Kind::Integrity`] where a window is not what the spans say, [`Kind::Invalid`] where there are others.
pub async fn check(repository: Option<&dyn Repository>, layer: &Layer) -> Result<()> {
    if let Some(bound) = &layer.bound {
        bytes(repository, &bound.chunks).await?;
    }
    let Coding::Spans(spans) = &layer.coding else { return Ok(()) };
    let Table::Gzip(table) = table(repository, layer, spans).await? else { return Ok(()) };
    let windows = spans.checkpoints.as_ref();
    if table.windows_size() != windows.map_or(0, |windows| windows.range.len()) {
        return Err(Error::new(Kind::Invalid, "its checkpoints are more or fewer than its spans say"));
    }
    for place in (0..table.len()).filter_map(|span| table.window(span)) {
        let Some(section) = windows else { break };
        let start = section.range.start();
        let range = StoredRange::new(
            start.saturating_add(place.range.start()),
            start.saturating_add(place.range.end()),
        );
        let window = match &section.bytes {
            Some(bytes) => slice(bytes, place.range),
            None => part(repository, section, range).await?,
        };
        if *blake3::hash(&window).as_bytes() != place.digest {
            return Err(Error::new(
                Kind::Integrity,
                format!("the checkpoint at bytes {range} is not what its spans say"),
            ));
        }
    }
    Ok(())
}

fn slice(bytes: &Bytes, range: StoredRange) -> Bytes {
    let at = |at| usize::try_from(at).unwrap_or(usize::MAX);
    bytes.get(at(range.start())..at(range.end())).map_or_else(Bytes::new, |part| bytes.slice_ref(part))
}
