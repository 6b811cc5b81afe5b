//! What there is to say of the plane's mounts and volumes: asked each time anew, of the kernel and of the processes.
//!
//! A part of the [`Plane`]. Read by who asks for a volume's condition, by `list` and by the pages.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::book::Volume;
use super::host::Host;
use super::plane::Plane;
use super::state::Record;
use crate::mount::Status;
use crate::mount::bind::Seen;

/// How many mounts' processes are asked beside one another.
const ASKED_AT_ONCE: usize = 32;

/// A volume as others are told of it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Shown {
    /// What who asked for it calls it.
    pub volume: String,
    /// The folder.
    pub dir: PathBuf,
    /// The reference as it was asked for.
    pub reference: String,
    /// The manifest's digest.
    pub digest: String,
    /// Where the process mounts that serves it.
    pub host: PathBuf,
    /// That process; `None` where none does at the moment.
    pub pid: Option<u32>,
    /// What is wrong with it; `None`: nothing.
    pub trouble: Option<String>,
}

/// How a volume is, and how much of it there is.
#[derive(Clone, Debug)]
pub struct Condition {
    /// What is wrong with it; `None`: nothing.
    pub trouble: Option<String>,
    /// What its process says; `None` where it says nothing.
    pub status: Option<Status>,
}

/// What is wrong with a mount as its process says, or since it says nothing.
fn wrong(status: Option<&Status>) -> Option<String> {
    match status {
        None => Some("the process that serves it does not answer".to_owned()),
        Some(status) if status.standing == "poisoned" => {
            Some("bytes of it are not what its manifest says; reading them fails".to_owned())
        }
        Some(_) => None,
    }
}

impl Plane {
    /// All volumes. Asks the processes that serve them and reads the mount table for each, so it blocks, two seconds as a rule.
    #[must_use]
    pub fn list(&self) -> Vec<Shown> {
        self.list_with(&self.survey())
    }

    /// The same, where the processes have been asked already.
    pub(super) fn list_with(&self, survey: &[(Arc<Host>, Option<Status>)]) -> Vec<Shown> {
        let said: HashMap<&str, Option<&Status>> =
            survey.iter().map(|(host, status)| (&*host.spec.id, status.as_ref())).collect();
        let volumes: Vec<Volume> = self.volumes.lock().values().cloned().collect();
        let shown = volumes.iter().map(|volume| {
            let shown = self.shown(volume);
            let wrong = || said.get(&*volume.mount).and_then(|status| wrong(*status));
            Shown { trouble: shown.trouble.clone().or_else(wrong), ..shown }
        });
        shown.collect()
    }

    /// The volume at the folder `dir`, by either of its names.
    #[must_use]
    pub fn volume_at(&self, dir: &Path) -> Option<Volume> {
        let volumes = self.volumes.lock();
        volumes.get(dir).or_else(|| volumes.values().find(|volume| volume.asked == dir)).cloned()
    }

    /// Whether a volume is at `dir` with nothing wrong, as far as the kernel's table and the process's own end tell. Blocks.
    pub(super) fn stands(&self, dir: &Path) -> bool {
        self.volume_at(dir).is_some_and(|volume| self.trouble(&volume).is_none())
    }

    /// How a volume is. Asks its process, so it blocks, two seconds at most.
    #[must_use]
    pub fn condition(&self, volume: &Volume) -> Condition {
        let host = self.hosts.lock().get(&volume.mount).cloned();
        let status = host.as_ref().and_then(|host| self.status_of(host));
        let wrong = || wrong(status.as_ref());
        Condition { trouble: self.trouble(volume).or_else(wrong), status }
    }

    fn trouble(&self, volume: &Volume) -> Option<String> {
        let Some(host) = self.hosts.lock().get(&volume.mount).cloned() else {
            return Some("its mount is gone".to_owned());
        };
        if let Some(trouble) = host.trouble() {
            return Some(trouble);
        }
        match host.seen(&volume.target) {
            Ok(Seen::Bound) => None,
            Ok(Seen::Nothing) => Some(format!("it is not mounted at {}", volume.target.display())),
            Ok(Seen::Stale) => Some(format!("a mount that has ended stands at {}", volume.target.display())),
            Ok(Seen::Foreign) => Some(format!("another mount stands at {}", volume.target.display())),
            Err(error) => Some(error.to_string()),
        }
    }

    pub(super) fn shown(&self, volume: &Volume) -> Shown {
        let host = self.hosts.lock().get(&volume.mount).cloned();
        Shown {
            volume: volume.id.clone(),
            dir: volume.target.clone(),
            reference: volume.reference.clone(),
            digest: host.as_ref().map(|host| host.spec.digest.clone()).unwrap_or_default(),
            host: host.as_ref().map(|host| host.dir.clone()).unwrap_or_default(),
            pid: host.and_then(|host| host.process()).map(|process| process.pid),
            trouble: self.trouble(volume),
        }
    }

    /// The mounts, with what their processes say of them. Asks them, so it blocks.
    pub(super) fn survey(&self) -> Vec<(Arc<Host>, Option<Status>)> {
        let hosts: Vec<Arc<Host>> = self.hosts.lock().values().cloned().collect();
        // Beside one another, so that those that stand still hold up the others but once.
        let mut surveyed = Vec::with_capacity(hosts.len());
        for some in hosts.chunks(ASKED_AT_ONCE) {
            std::thread::scope(|scope| {
                let thread = std::thread::Builder::new;
                let ask = |host| thread().spawn_scoped(scope, move || self.status_of(host));
                let asked: Vec<_> = some.iter().map(|host| (host, ask(host))).collect();
                let heard = |thread: std::io::Result<std::thread::ScopedJoinHandle<'_, _>>| {
                    thread.ok().and_then(|thread| thread.join().ok()).flatten()
                };
                surveyed.extend(asked.into_iter().map(|(host, thread)| (host.clone(), heard(thread))));
            });
        }
        surveyed
    }

    /// What a mount's process says; `None` where it says nothing.
    pub(super) fn status_of(&self, host: &Host) -> Option<Status> {
        let record: Record = self.state.find(&host.dir)?;
        self.state.ask(&record).filter(|status| status.digest == host.spec.digest)
    }
}
