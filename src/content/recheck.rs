//! Reading back what this machine keeps of a model, for a person who asks: without fetching any of its content.
//!
//! What is wrong is dropped, as when a reader comes upon it. Called by `weightfs verify`.

use std::sync::Arc;

use super::extent::Extent;
use super::loader::{Loader, Standing};
use super::store::audit::Checked;
use crate::error::{Error, Kind, Result};
use crate::index::ExtentId;
use crate::range::ContentRange;

impl Loader {
    /// How many bytes of a file are said to be here. Blocks for a small file of the store.
    #[must_use]
    pub fn kept(&self, id: ExtentId) -> u64 {
        self.extent(id).map_or(0, |extent| self.shelf.kept_bytes(&extent.layer, extent.range))
    }

    /// Reads back all that is kept of a file for this place, and compares it with what the artifact or the records say.
    /// What differs is dropped; so is all of a proved layer whose records are not those that were proved.
    ///
    /// Asks the network for a section of the bound index at most.
    ///
    /// # Errors
    /// Those of reading the bound index.
    pub async fn recheck(self: &Arc<Self>, id: ExtentId) -> Result<Checked> {
        let loader = Arc::clone(self);
        let interrupted =
            |error| Error::from_source(Kind::Storage, "reading the store was interrupted", error);
        let kept = tokio::task::spawn_blocking(move || loader.kept(id)).await.map_err(interrupted)?;
        if kept == 0 {
            return Ok(Checked::default());
        }
        self.bind(id.layer).await?;
        let loader = Arc::clone(self);
        let check = move || loader.extent(id).map(|extent| loader.read_back(extent)).unwrap_or_default();
        tokio::task::spawn_blocking(check).await.map_err(interrupted)
    }

    fn read_back(&self, extent: &Extent) -> Checked {
        let before = self.standing(extent.id.layer);
        let said = extent.kept(&self.shelf).map(|kept| kept.all()).unwrap_or_default();
        let said = (0..).zip(said).filter(|(_, here)| *here).map(|(chunk, _)| chunk);
        let kept = self.reliable(extent);
        if before == Standing::Proved && self.standing(extent.id.layer) != Standing::Proved {
            return Checked { right: 0, dropped: said.map(|chunk| extent.grid.range(chunk)).collect() };
        }
        let mut checked = Checked::default();
        let Some(kept) = kept else { return checked };
        for chunk in said {
            let range: ContentRange = extent.grid.range(chunk);
            match extent.read_kept(chunk, &kept, &self.pool, || ()) {
                Some(_) => checked.right = checked.right.saturating_add(range.len()),
                None => checked.dropped.push(range),
            }
        }
        checked
    }
}
