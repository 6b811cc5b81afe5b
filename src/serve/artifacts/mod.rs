//! The node's artifact store: a folder that CRI-O reads as one of its own, whose layers' blobs come when they are read.
//!
//! Each artifact that is registered is a volume of the [`Plane`], which shows its blobs; `layout` leads there. So what is true of
//! volumes is true here: one process for each artifact, adopted, started again, its volume repaired. Why it is links that
//! lead there is decision 9.

mod fitness;
mod layout;
mod word;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use self::layout::{Layout, Named};
use self::word::{Doubt, INTEGRITY, STRICT};
use super::book::{Origin, Volume};
use super::claims::{Claim, Claims, Kept};
use super::plane::{Plane, blocking};
use super::terms::Terms;
use super::volumes::{Published, Wanted};
use super::wish::{self, Wish};
use crate::content::Integrity;
use crate::content::store::Asked;
use crate::error::{Error, Kind, Result};
use crate::fs;
use crate::mount::Detach;
use crate::oci::{Artifact, Digest, Place, Reference};
use crate::repository::Pinned;

/// The pauses between tries to have a registered artifact's mount again: the first, and what they grow to.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// How long the registry and the mount's process are waited for, all in all: less than who asks waits for the answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// An artifact that is registered, as others are told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// The name that containers ask for.
    pub reference: String,
    /// The manifest's digest.
    pub digest: String,
    /// The folder that shows its blobs.
    pub dir: PathBuf,
    /// The process that serves it; `None` where none does at the moment.
    pub pid: Option<u32>,
    /// What is wrong with it; `None`: nothing.
    pub trouble: Option<String>,
    /// What who registers it should know.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// Something that is under way for a name.
type Work = Claim<String, Option<Wish>>;

/// The store.
#[derive(Debug)]
pub struct Artifacts {
    plane: Arc<Plane>,
    layout: Arc<Layout>,
    /// What is registered, by its name. Held while the folder is made to say so.
    named: tokio::sync::Mutex<BTreeMap<String, Named>>,
    /// The names for which something is under way; with what was wished for, where it is a wish.
    claims: Claims<String, Option<Wish>>,
    /// Why mounts that are missing could not be had again so far, by name.
    troubles: Mutex<HashMap<String, String>>,
    /// Who has mounts again that are missing; they end with this.
    tasks: Mutex<JoinSet<()>>,
}

impl Artifacts {
    /// Takes up what is registered in the folder `artifacts` below `dir`, made where it is missing. Mounts that a former plane
    /// has left are the plane's already; those that are missing, as after the machine's start, are had again beside whatever comes next.
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// `Busy` where another plane has the folder, `Invalid` where it is somebody else's, `Storage`.
    pub async fn open(plane: Arc<Plane>, dir: &Path) -> Result<Arc<Self>> {
        let dir = dir.to_owned();
        let (layout, all) = blocking(move || {
            let layout = Layout::open(&dir)?;
            let all = layout.named()?;
            layout.arrange(&all)?;
            Ok((Arc::new(layout), all))
        })
        .await?;
        let named = all.iter().map(|named| (named.name.clone(), named.clone())).collect();
        let named = tokio::sync::Mutex::new(named);
        let (claims, troubles, tasks) = (Claims::default(), Mutex::default(), Mutex::default());
        let artifacts = Arc::new(Self { plane, layout, named, claims, troubles, tasks });
        artifacts.drop_others(&all).await;
        let asked = artifacts.clone();
        let missing = move || all.into_iter().filter(|named| asked.is_missing(named)).collect::<Vec<_>>();
        for named in blocking(move || Ok(missing())).await? {
            artifacts.have_again(named);
        }
        Ok(artifacts)
    }

    /// Registers the artifact that is wished for, by its name without the digest where it has a tag. The registry is asked with the
    /// wish's credentials. Once it is done, whoever reads the store finds the artifact there. Once more asks the registry again:
    /// a tag that leads elsewhere by now leads there in the store too.
    ///
    /// Who gives the wait up leaves what was begun to the next one who asks: spawn it. Whatever else is under way for this name gives
    /// way; who wishes for the same comes after it.
    ///
    /// # Errors
    /// As [`Plane::publish_on`], after two minutes at most; `Invalid` for a reference that is in no registry, `Unsupported` for what
    /// CRI-O does not take as an artifact, `Busy` where somebody asks for something else for this name meanwhile, or where another
    /// artifact has one of its blobs by another word.
    pub async fn add(self: &Arc<Self>, mut wish: Wish) -> Result<Registered> {
        let (name, begun) = (name(&wish.reference)?, Instant::now());
        let claimed = timeout_at(begun + PATIENCE, self.claims.claim_for(&name, &Some(wish.clone()))).await;
        let claim = claimed.map_err(|_| late(&name))?.map_err(|kept| match kept {
            Kept::Outdone => outdone(&name),
            Kept::Occupied => occupied(&name),
        })?;
        if self.plane.settle(&wish.settings).await?.integrity == Integrity::Strict {
            // Whatever the plane is set to later: who shows the same blobs counts on it.
            wish.settings.insert(INTEGRITY.to_owned(), STRICT.to_owned());
        }
        self.add_with(&claim, name.clone(), wish, begun).await?.ok_or_else(|| outdone(&name))
    }

    /// The same, by who has the claim; `None` where it was given up.
    async fn add_with(
        self: &Arc<Self>,
        claim: &Work,
        name: String,
        mut wish: Wish,
        begun: Instant,
    ) -> Result<Option<Registered>> {
        wish.settings.insert("content.view".to_owned(), "blobs".to_owned());
        // Whoever lists the same blob is shown it too.
        wish.settings.insert("content.proof".to_owned(), "layer".to_owned());
        // Whoever runs in a container may be any user.
        wish.settings.insert("mount.allow_other".to_owned(), "true".to_owned());
        let (pinned, artifact, chunks) = tokio::select! {
            looked = timeout_at(begun + PATIENCE, self.look(&wish)) => looked.unwrap_or_else(|_| Err(late(&name)))?,
            () = claim.given_up() => return Ok(None),
        };
        let named = Named {
            name,
            chunks,
            media_type: fitness::media_type(&pinned)?,
            size: u64::try_from(pinned.bytes.len()).unwrap_or(u64::MAX),
            digest: pinned.digest.clone(),
            settings: wish.settings.clone(),
        };
        wish.reference.digest = Some(pinned.digest.clone());
        let before = self.before(&named).await?;
        let shown = match self.show(&named, wish, begun, claim).await? {
            true => self.register(&named, &pinned, before, begun, claim).await,
            false => Ok(false),
        };
        if !matches!(shown, Ok(true)) {
            if before != Before::Shown {
                self.drop_quietly(&named.name, &self.layout.mount_of(&named)).await;
            }
            return shown.map(|_| None);
        }
        let mut warnings = fitness::warnings(&artifact);
        warnings.extend(self.namesakes(&named).await);
        Ok(Some(Registered { warnings, ..self.registered(named).await? }))
    }

    /// What the registry says that the reference is now.
    async fn look(self: &Arc<Self>, wish: &Wish) -> Result<(Pinned, Artifact, BTreeMap<Digest, Digest>)> {
        let settled = self.plane.settle(&wish.settings).await?;
        let platform = settled.platform.clone();
        let (repository, _) = wish::connect(wish, settled.repository)?;
        let asked = Asked { reference: wish.reference.clone(), platform };
        let (pinned, artifact) = fs::resolve(&*repository, &asked).await?;
        let chunks = fs::chunk_names(&*repository, &artifact).await?;
        Ok((pinned, artifact, chunks))
    }

    /// Takes an artifact out of the store. Containers that have its files go on reading them; whether there was one. No registry is
    /// asked or waited for: whatever is under way for this name gives way.
    ///
    /// # Errors
    /// `Invalid` for a reference that is in no registry; `Busy` where what is under way takes too long to give way; `Storage`, and
    /// those of [`Plane::unpublish`].
    pub async fn remove(self: &Arc<Self>, reference: &Reference) -> Result<bool> {
        let name = name(reference)?;
        let _claim = self.take_over(&name).await?;
        let mut all = self.named.lock().await;
        let Some(named) = all.get(&name).cloned() else { return Ok(false) };
        let left: Vec<Named> = all.values().filter(|other| other.name != name).cloned().collect();
        self.arrange(left).await?;
        all.remove(&name);
        drop(all);
        self.troubles.lock().remove(&name);
        self.drop_volume(&name, &self.layout.mount_of(&named)).await?;
        Ok(true)
    }

    /// What is registered, by name. Asks the kernel of each.
    ///
    /// # Errors
    /// `Kernel` where the work was interrupted.
    pub async fn list(&self) -> Result<Vec<Registered>> {
        let all: Vec<Named> = self.named.lock().await.values().cloned().collect();
        let mut registered = Vec::with_capacity(all.len());
        for named in all {
            registered.push(self.registered(named).await?);
        }
        Ok(registered)
    }

    async fn registered(&self, named: Named) -> Result<Registered> {
        let (plane, dir) = (self.plane.clone(), self.layout.mount_of(&named));
        let why = self.troubles.lock().get(&named.name).cloned();
        blocking(move || {
            let shown = plane.volume_at(&dir).map(|volume| plane.shown(&volume));
            let missing = || Some(why.unwrap_or_else(|| "its mount is being had again".to_owned()));
            Ok(Registered {
                reference: named.name,
                digest: named.digest.to_string(),
                dir,
                pid: shown.as_ref().and_then(|shown| shown.pid),
                trouble: shown.map_or_else(missing, |shown| shown.trouble),
                warnings: Vec::new(),
            })
        })
        .await
    }

    /// Has the volume that shows an artifact's blobs; whether it is there, and the claim was not given up meanwhile.
    async fn show(&self, named: &Named, wish: Wish, begun: Instant, claim: &Work) -> Result<bool> {
        let dir = self.layout.mount_of(named);
        let terms = Terms { limit: PATIENCE, begun, ..Terms::default() };
        let wanted = Wanted::Model(wish);
        let given_up = claim.given_up();
        let published =
            self.plane.publish_unless(given_up, &named.name, &dir, Origin::Artifact, wanted, terms).await;
        if claim.is_given_up() {
            return Ok(false);
        }
        match published? {
            Published::Taken(_) => {
                let error = Error::new(Kind::Busy, format!("{} is there with other settings", named.name));
                Err(error.hint("remove it first"))
            }
            published => published.ready().map(|_| true),
        }
    }

    /// Makes the folder say that the artifact is registered, once what it shares with others was found to be right. Whether it was,
    /// and the claim was not given up meanwhile.
    async fn register(
        self: &Arc<Self>,
        named: &Named,
        manifest: &Pinned,
        before: Before,
        begun: Instant,
        claim: &Work,
    ) -> Result<bool> {
        let mut right = HashSet::new();
        loop {
            let doubts = match self.try_register(named, manifest, before, &right).await? {
                Entered::Now(None) => return Ok(true),
                Entered::Now(Some(former)) => {
                    self.drop_quietly(&former.name, &self.layout.mount_of(&former)).await;
                    return Ok(true);
                }
                Entered::Not(doubts) => doubts,
            };
            for doubt in doubts {
                let looked = doubt.clone();
                let looking = timeout_at(begun + PATIENCE, blocking(move || looked.look()));
                tokio::select! {
                    looked = looking => looked.unwrap_or_else(|_| Err(late(&named.name)))?,
                    () = claim.given_up() => return Ok(false),
                }
                right.insert(doubt);
            }
        }
    }

    /// The same, unless there is something in doubt that was not found to be right. Waits for no mount: all others wait for this.
    async fn try_register(
        self: &Arc<Self>,
        named: &Named,
        manifest: &Pinned,
        before: Before,
        right: &HashSet<Doubt>,
    ) -> Result<Entered> {
        let mut all = self.named.lock().await;
        let (layout, others) = (self.layout.clone(), all.values().cloned().collect::<Vec<_>>());
        let (new, Pinned { digest, bytes, .. }) = (named.clone(), manifest.clone());
        let (known, asked) = (right.clone(), self.clone());
        let doubts = blocking(move || {
            let others = others.into_iter().filter(|other| match before {
                Before::New => true,
                // One that is missing too is compared with this when it is had again.
                Before::Missing => !asked.is_missing(other),
                Before::Shown => false,
            });
            let mut doubts = layout.doubts(&others.collect::<Vec<_>>(), &new, &bytes)?;
            doubts.retain(|doubt| !known.contains(doubt));
            if doubts.is_empty() {
                layout.keep_manifest(&digest, &bytes)?;
            }
            Ok(doubts)
        })
        .await?;
        if !doubts.is_empty() {
            return Ok(Entered::Not(doubts));
        }
        let mut next = all.clone();
        let former = next.insert(named.name.clone(), named.clone());
        self.arrange(next.values().cloned().collect()).await?;
        *all = next;
        Ok(Entered::Now(former.filter(|former| self.layout.mount_of(former) != self.layout.mount_of(named))))
    }

    async fn arrange(&self, all: Vec<Named>) -> Result<()> {
        let layout = self.layout.clone();
        blocking(move || layout.arrange(&all)).await
    }

    /// That the artifact has other names here: CRI-O asks for some things by the digest alone, and then finds more than one.
    async fn namesakes(&self, named: &Named) -> Option<String> {
        let all = self.named.lock().await;
        let other = all.values().find(|other| other.digest == named.digest && other.name != named.name)?;
        Some(format!(
            "{} is the same artifact: CRI-O, which knows artifacts by their digest, may find neither; remove one of them",
            other.name
        ))
    }

    /// The claim for a name, of which nothing else is under way from now on.
    async fn take_over(&self, name: &String) -> Result<Work> {
        self.claims.take_over(name).await.ok_or_else(|| occupied(name))
    }

    async fn before(self: &Arc<Self>, named: &Named) -> Result<Before> {
        if self.named.lock().await.get(&named.name) != Some(named) {
            return Ok(Before::New);
        }
        let (asked, of) = (self.clone(), named.clone());
        let is_missing = blocking(move || Ok(asked.is_missing(&of))).await?;
        Ok(if is_missing { Before::Missing } else { Before::Shown })
    }

    /// Whether what shows the artifact has to be had again: a volume that is known is repaired by the plane.
    fn is_missing(&self, named: &Named) -> bool {
        let is_known = self.plane.volume_at(&self.layout.mount_of(named)).is_some();
        !is_known || !self.layout.has_manifest(named)
    }

    /// Has the mount of a registered artifact again, for as long as it takes; with the node's own credentials, since others are
    /// kept no longer than a mount.
    fn have_again(self: &Arc<Self>, named: Named) {
        // The task must not keep its own owner.
        let artifacts = Arc::downgrade(self);
        self.tasks.lock().spawn(async move {
            let mut pause = FIRST;
            while let Some(artifacts) = artifacts.upgrade() {
                match artifacts.add_again(&named).await {
                    Ok(Again::Done) => return artifacts.note_trouble(&named.name, None),
                    // Tried again all the same: what was asked for instead may have failed.
                    Ok(Again::GivenUp) => {}
                    Err(error) => artifacts.note_trouble(&named.name, Some(&error)),
                }
                drop(artifacts);
                tokio::time::sleep(pause).await;
                pause = pause.saturating_mul(2).min(LONGEST);
            }
        });
    }

    /// Says in the log why a mount can't be had, once: it may be tried for days.
    fn note_trouble(&self, name: &str, error: Option<&Error>) {
        let mut troubles = self.troubles.lock();
        let former = match error {
            Some(error) => troubles.insert(name.to_owned(), error.to_string()),
            None => troubles.remove(name),
        };
        if let Some(error) = error.filter(|error| former.as_ref() != Some(&error.to_string())) {
            tracing::warn!("{name} cannot be read for now: {error}");
        }
    }

    /// Tries once to have the mount of what is registered, where it is missing still. Whatever else is under way goes before.
    async fn add_again(self: &Arc<Self>, named: &Named) -> Result<Again> {
        let claim = self.claims.claim_in_turn(&named.name).await;
        if self.before(named).await? != Before::Missing {
            return Ok(Again::Done);
        }
        let mut reference: Reference = named.name.parse()?;
        reference.digest = Some(named.digest.clone());
        let wish = Wish { reference, settings: named.settings.clone(), secret: None };
        let added = self.add_with(&claim, named.name.clone(), wish, Instant::now()).await?;
        Ok(if added.is_some() { Again::Done } else { Again::GivenUp })
    }

    /// Takes away volumes that nothing registered needs, as where a plane ended between two steps.
    async fn drop_others(&self, all: &[Named]) {
        let wanted: HashSet<PathBuf> = all.iter().map(|named| self.layout.mount_of(named)).collect();
        let mounts = self.layout.mounts();
        let is_other = |volume: &Volume| {
            volume.origin == Origin::Artifact
                && volume.target.starts_with(&mounts)
                && !wanted.contains(&volume.target)
        };
        let others: Vec<Volume> = {
            let volumes = self.plane.volumes.lock();
            volumes.values().filter(|volume| is_other(volume)).cloned().collect()
        };
        for other in others {
            self.drop_quietly(&other.id, &other.target).await;
        }
    }

    /// Takes a volume away that nothing leads to any more. What stays of it goes when the store is opened next.
    async fn drop_quietly(&self, id: &str, dir: &Path) {
        if let Err(error) = self.drop_volume(id, dir).await {
            tracing::warn!("{error}");
        }
    }

    async fn drop_volume(&self, id: &str, dir: &Path) -> Result<()> {
        self.plane.unpublish(id, dir, Detach::Lazy).await
    }
}

/// The name that an artifact is registered under. CRI-O asks for one by tag or by digest, never by both.
///
/// # Errors
/// `Invalid` where it is in no registry.
fn name(reference: &Reference) -> Result<String> {
    let Place::Registry { host, repository } = &reference.place else {
        let doing = format!("{reference} is in no registry, and containers ask for nothing else");
        return Err(Error::new(Kind::Invalid, doing));
    };
    let which = match (&reference.tag, &reference.digest) {
        (Some(tag), _) => format!(":{tag}"),
        (None, Some(digest)) => format!("@{digest}"),
        (None, None) => ":latest".to_owned(),
    };
    Ok(format!("{host}/{repository}{which}"))
}

fn occupied(name: &str) -> Error {
    Error::new(Kind::Busy, format!("something is under way for {name} already"))
}

fn outdone(name: &str) -> Error {
    Error::new(Kind::Busy, format!("something else was asked for {name} meanwhile"))
}

fn late(name: &str) -> Error {
    let error = Error::new(Kind::Deadline, format!("{name} takes longer than {PATIENCE:?} to be had"));
    error.hint("ask again; the registry may be slow, or away")
}

/// How an artifact stood before it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    /// It was not registered, or what had its name was another.
    New,
    /// It was, and nothing showed it: what its registry gives now may be other bytes than before.
    Missing,
    /// It was, and was shown, so that it was compared with all that were before.
    Shown,
}

/// What came of registering an artifact.
#[derive(Debug)]
enum Entered {
    /// It is; what had its name before, if that was another.
    Now(Option<Named>),
    /// It is not: this has to be looked at first.
    Not(Vec<Doubt>),
}

/// What came of having a mount again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Again {
    /// It is there, or not wanted any more.
    Done,
    /// Something else was asked for meanwhile.
    GivenUp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_artifact_has_the_name_that_containers_ask_for() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let named = |text: &str| name(&text.parse().unwrap()).map_err(|error| error.kind());
        assert_eq!(named("r.io/a/b:v1"), Ok("r.io/a/b:v1".to_owned()));
        assert_eq!(named("r.io/a/b"), Ok("r.io/a/b:latest".to_owned()));
        assert_eq!(named(&format!("r.io/a/b:v1@{digest}")), Ok("r.io/a/b:v1".to_owned()));
        assert_eq!(named(&format!("r.io/a/b@{digest}")), Ok(format!("r.io/a/b@{digest}")));
        assert_eq!(named("oci:/models/llm"), Err(Kind::Invalid));
    }
}
