//! The table of a dynamic volume's models: which there are, how each is, and what of them is noted.
//!
//! Plain values: nothing is opened or shown here. A name that was free for a moment may be another model's, so whoever waits for
//! one goes by its serial number too. Used by [`models`](super::models).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Place;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::models::{Refused, Wanted};
use super::noted::Noted;
use crate::error::{Error, Kind};
use crate::oci::Reference;
use crate::serve::report::{Phase, Progress, Report};

/// One model.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) wanted: Wanted,
    /// Tells this one from others that had its name.
    serial: u64,
    /// The reference with the manifest's digest, as it is noted; `None`: nothing is noted yet.
    pub(super) pinned: Option<Reference>,
    pub(super) progress: Progress,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) failure: Option<Refused>,
}

/// A model that was asked for, by its serial number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entered {
    /// It is to be opened.
    New(u64),
    /// It is there or under way already.
    Known(u64),
}

impl Entered {
    /// The serial number.
    pub(super) fn serial(self) -> u64 {
        match self {
            Self::New(serial) | Self::Known(serial) => serial,
        }
    }
}

/// All models.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: BTreeMap<String, Entry>,
    serials: u64,
    /// How many are being opened, those among them that nobody wants any more.
    pub(super) opening: usize,
}

impl Table {
    /// The model's own place, where it has none yet. There may be `most` models, and `in_sight` are in the gallery, those among them
    /// that are taken out and still read.
    ///
    /// # Errors
    /// Why there may be none.
    pub(super) fn enter(
        &mut self,
        id: &str,
        wanted: &Wanted,
        most: usize,
        in_sight: usize,
    ) -> Result<Entered, Refused> {
        let failed = |entry: &Entry| entry.failure.is_some();
        let leaving = in_sight.saturating_sub(self.shown());
        let is_new = self.entries.get(id).is_none_or(failed);
        if is_new && (self.standing().saturating_add(leaving) >= most || self.opening >= most) {
            return Err(Refused::Full(most));
        }
        if self.entries.len() >= most && !self.entries.contains_key(id) {
            // Those that failed are remembered for who asks after them, as long as there is room.
            self.entries.retain(|_, entry| !failed(entry));
        }
        self.serials += 1;
        let serial = self.serials;
        let (phase, _) = watch::channel(Phase::Pulling);
        let wanted = wanted.clone();
        let entry =
            Entry { wanted, serial, pinned: None, progress: Progress::default(), phase, failure: None };
        match self.entries.entry(id.to_owned()) {
            Place::Vacant(place) => drop(place.insert(entry)),
            Place::Occupied(mut place) if failed(place.get()) => drop(place.insert(entry)),
            Place::Occupied(place) if place.get().wanted == entry.wanted => {
                return Ok(Entered::Known(place.get().serial));
            }
            Place::Occupied(place) => return Err(Refused::Taken(place.get().wanted.reference.clone())),
        }
        Ok(Entered::New(serial))
    }

    /// This model; `None` where it was taken out, whoever has its name now.
    pub(super) fn find(&self, id: &str, serial: u64) -> Option<&Entry> {
        self.entries.get(id).filter(|entry| entry.serial == serial)
    }

    /// The same, to be changed.
    pub(super) fn find_mut(&mut self, id: &str, serial: u64) -> Option<&mut Entry> {
        self.entries.get_mut(id).filter(|entry| entry.serial == serial)
    }

    /// Takes out whatever has this name.
    pub(super) fn remove(&mut self, id: &str) {
        self.entries.remove(id);
    }

    /// What is to be noted: of all that are shown, or were by a former process.
    pub(super) fn noted(&self) -> Vec<Noted> {
        // Whose pod was told that it failed is not to come back.
        let standing = self.entries.iter().filter(|(_, entry)| entry.failure.is_none());
        let pinned = standing.filter_map(|(id, entry)| {
            let pinned = entry.pinned.as_ref()?.to_string();
            Some(Noted { id: id.clone(), wanted: entry.wanted.clone(), pinned })
        });
        pinned.collect()
    }

    /// How the model `id` of `volume` is; `None` where there is none.
    pub(super) fn report(&self, volume: &str, id: &str) -> Option<Report> {
        self.entries.get(id).map(|entry| entry.report(volume, id))
    }

    /// How all of them are, by name.
    pub(super) fn reports(&self, volume: &str) -> Vec<Report> {
        self.entries.iter().map(|(id, entry)| entry.report(volume, id)).collect()
    }

    /// How many are there or under way.
    fn standing(&self) -> usize {
        self.entries.values().filter(|entry| entry.failure.is_none()).count()
    }

    /// How many are shown.
    fn shown(&self) -> usize {
        self.entries.values().filter(|entry| *entry.phase.borrow() == Phase::PullSucceeded).count()
    }
}

/// How this model of `volume` is, once that is settled.
///
/// # Errors
/// Why it is not shown; `Busy` where it was taken out meanwhile, whoever has its name now.
pub(super) async fn settled(
    table: &Mutex<Table>,
    volume: &str,
    id: &str,
    serial: u64,
) -> Result<Report, Refused> {
    let gone = || Refused::Failed(Error::new(Kind::Busy, "it was taken out meanwhile"));
    let phase = table.lock().find(id, serial).map(|entry| entry.phase.subscribe());
    let mut phase = phase.ok_or_else(gone)?;
    let _ = phase.wait_for(|phase| *phase != Phase::Pulling).await;
    let table = table.lock();
    let entry = table.find(id, serial).ok_or_else(gone)?;
    match &entry.failure {
        Some(refused) => Err(refused.clone()),
        None => Ok(entry.report(volume, id)),
    }
}

impl Entry {
    /// How it is, under the name `id` in `volume`.
    pub(super) fn report(&self, volume: &str, id: &str) -> Report {
        Report {
            volume_name: volume.to_owned(),
            mount_id: id.to_owned(),
            reference: self.wanted.reference.clone(),
            state: Some(*self.phase.borrow()),
            inline: false,
            progress: self.progress.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(table: &mut Table, id: &str, reference: &str) -> Entered {
        let wanted = Wanted { reference: reference.to_owned(), exclude: Vec::new() };
        table.enter(id, &wanted, 4, 0).unwrap()
    }

    #[tokio::test]
    async fn who_waits_for_a_model_is_not_told_of_another_that_has_its_name_by_now() {
        let table = Mutex::new(Table::default());
        let first = enter(&mut table.lock(), "m", "r.io/a:v1");
        assert_eq!(enter(&mut table.lock(), "m", "r.io/a:v1"), Entered::Known(first.serial()));
        let renamed = async {
            table.lock().remove("m");
            let second = enter(&mut table.lock(), "m", "r.io/b:v1").serial();
            table.lock().find("m", second).unwrap().phase.send_replace(Phase::PullSucceeded);
            second
        };
        // Who waits begins, and both are done before he is woken.
        let (told, second) = tokio::join!(settled(&table, "csi-1", "m", first.serial()), renamed);
        match told {
            Err(Refused::Failed(error)) => assert_eq!(error.kind(), Kind::Busy),
            told => panic!("{told:?}"),
        }
        let report = settled(&table, "csi-1", "m", second).await.unwrap();
        assert_eq!((&*report.reference, report.state), ("r.io/b:v1", Some(Phase::PullSucceeded)));
    }

    #[test]
    fn a_model_that_its_pod_was_told_had_failed_is_noted_no_more() {
        let mut table = Table::default();
        for id in ["failed", "shown"] {
            let serial = enter(&mut table, id, "r.io/a:v1").serial();
            table.find_mut(id, serial).unwrap().pinned = Some("r.io/a:v1".parse().unwrap());
        }
        let failed = table.entries.get_mut("failed").unwrap();
        failed.failure = Some(Error::new(Kind::Storage, "the disk is full").into());
        let noted = table.noted();
        assert_eq!(noted.iter().map(|noted| &*noted.id).collect::<Vec<_>>(), ["shown"]);
    }
}
