//! Bringing whole files into the store for who asks for exactly that, with nobody reading them meanwhile.
//!
//! Uses the loader's own requests, so what is here already is not asked for, and what other processes fetch is left to
//! them. Called by the commands that pull.

use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::lanes::Lane;
use super::loader::Loader;
use crate::error::Result;
use crate::index::ExtentId;
use crate::range::ContentRange;

/// How much of a file is seen to at once: four requests' worth.
const PIECE: u64 = 16 << 20;
/// How many pieces are under way, so that a small file does not leave the line idle.
const AT_ONCE: usize = 2;

impl Loader {
    /// Brings every chunk of these files, in their order, and returns when each has been here and verified.
    /// `progress` is told of bytes that are here, each once, whether they were fetched or found.
    ///
    /// The last chunks may still be on their way to the store's disk when it returns.
    ///
    /// # Errors
    /// The first request that failed; what was kept until then stays.
    pub async fn bring(
        self: &Arc<Self>,
        extents: &[ExtentId],
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<()> {
        let whole = |id: &ExtentId| Some((*id, self.extent(*id)?.grid.len()));
        let all: Vec<_> = extents.iter().filter_map(whole).flat_map(|(id, len)| pieces(id, len)).collect();
        let brought = all.into_iter().map(|(id, piece)| async move {
            self.fetch_missing(id, piece, Lane::Demand).await?;
            self.refuse_poisoned(id.layer)?;
            progress(piece.len());
            Ok(())
        });
        stream::iter(brought).buffer_unordered(AT_ONCE).try_collect().await
    }
}

fn pieces(id: ExtentId, len: u64) -> impl Iterator<Item = (ExtentId, ContentRange)> {
    let count = len.div_ceil(PIECE);
    (0..count).map(move |number| {
        let start = number.saturating_mul(PIECE);
        (id, ContentRange::new(start, start.saturating_add(PIECE).min(len)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_a_file_once_and_in_order() {
        let id = ExtentId { layer: 0, extent: 0 };
        let all: Vec<_> = pieces(id, 2 * PIECE + 5).map(|(_, piece)| piece).collect();
        assert_eq!(all.len(), 3);
        assert!(all.windows(2).all(|pair| pair[0].end() == pair[1].start()));
        assert_eq!(all[2].end(), 2 * PIECE + 5);
        assert_eq!(pieces(id, 0).count(), 0);
    }
}
