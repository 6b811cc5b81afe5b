//! A few bytes out of a chunk, for who reads here and there: decoded only as far as they go, and not kept.
//!
//! Only of bound layers whose spans have digests: the stored bytes, the window and the table are verified, so what they
//! decode to is what the index says. Who reads on, or comes back to the same chunk, gets whole chunks.

use std::num::NonZeroUsize;
use std::sync::Arc;

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;

use super::extent::Extent;
use super::flight::Key;
use super::lanes::Lane;
use super::loader::Loader;
use super::reader::Reader;
use super::wire::Use;
use crate::error::Result;
use crate::range::ContentRange;

/// The longest read that is served so. The kernel asks for more at once where it reads ahead.
const LONGEST: u64 = 64 << 10;
/// How many parts of a chunk are served before all of it is fetched and kept.
const PARTS: u8 = 4;
/// How many chunks are remembered to have been read in parts.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// How often chunks were read in parts lately.
#[derive(Debug)]
pub(super) struct Parts(Mutex<LruCache<Key, u8>>);

impl Default for Parts {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(REMEMBERED)))
    }
}

impl Parts {
    /// Counts a read of the chunk; whether it may be served as a part.
    fn admit(&self, key: Key) -> bool {
        let mut parts = self.0.lock();
        let count = parts.get_or_insert_mut(key, || 0);
        *count = count.saturating_add(1);
        *count <= PARTS
    }
}

impl Loader {
    /// The bytes of a read that stands alone, if they can be had without the whole chunk; `None` where the chunk is the
    /// better way: it is here or under way, or others will want it.
    ///
    /// # Errors
    /// Those of finding out what the layer's chunks must be, and whether this mount may see them.
    pub(super) async fn part(
        self: &Arc<Self>,
        extent: &Extent,
        range: ContentRange,
    ) -> Result<Option<Bytes>> {
        let chunks = extent.grid.covering(range);
        // What lies at a file's start is read by everybody who opens it.
        let may_be =
            extent.is_bound() && range.len() <= LONGEST && chunks.start > 0 && chunks.end - chunks.start == 1;
        let key = (extent.id, chunks.start);
        if !may_be || self.spans_of(extent.id.layer).is_none() || self.board.knows(key) {
            return Ok(None);
        }
        self.prepare(extent.id.layer).await?;
        let (loader, id) = (Arc::clone(self), extent.id);
        let look = move || {
            let kept = loader.extent(id).and_then(|extent| loader.reliable(extent));
            kept.is_some_and(|kept| kept.has(key.1))
        };
        if tokio::task::spawn_blocking(look).await.unwrap_or(false) || !self.parts.admit(key) {
            return Ok(None);
        }
        // What fails here is asked for once more, and refused by its name, on the way of whole chunks.
        Ok(self.decode_part(extent, range).await.ok().flatten())
    }

    async fn decode_part(self: &Arc<Self>, extent: &Extent, range: ContentRange) -> Result<Option<Bytes>> {
        let start = extent.range.start().saturating_add(range.start());
        let place = ContentRange::new(start, start.saturating_add(range.len()));
        let (layer, table) = (extent.id.layer, self.table(extent.id.layer).await?);
        let held = |at: u64| table.at(at).is_ok_and(|(_, span)| span.is_held());
        let Some(decoding) = self.decoding(layer).filter(|_| held(place.start()) && held(place.end() - 1))
        else {
            return Ok(None);
        };
        let _turn =
            self.lanes.enter(Lane::Demand, &Default::default(), self.repository.pace().requests).await;
        let needed = table.at(place.start())?.0;
        // Who reads the same span at the same time finds its stored bytes here then.
        let _begun = decoding.begin(needed).await;
        if self.start_for(layer, &table, needed).await != needed {
            // What is passed on a longer way is kept.
            return Ok(None);
        }
        let read = async {
            let mut reader = Reader::open(self, layer, place, Lane::Demand, Use::Shared).await?;
            let bytes = reader.all(place).await?;
            reader.leave();
            Ok(bytes)
        };
        read.await.map(Some).map_err(super::reader::Fault::into_error)
    }
}
