//! containerd's Snapshots service, call by call, with the meaning that its own snapshotters give them (its package `snapshots`).
//!
//! A key has its namespace in it already; who asks for which does not matter, since containerd looks through all of them when it
//! removes what nobody needs. What was begun is seen through, also where who asked gives up.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use prost_types::{FieldMask, Timestamp};
use tonic::{Request, Response, Status};

use super::Snapshots;
use super::filter::Filter;
use super::ledger::{Ledger, TARGET, exists, no_such};
use super::record::{Kind, Labels, Record, Usage};
use super::v1::snapshots_server::Snapshots as Service;
use super::v1::types::Mount;
use super::v1::{
    CleanupRequest, CommitSnapshotRequest, Info, ListSnapshotsRequest, ListSnapshotsResponse, MountsRequest,
    MountsResponse, PrepareSnapshotRequest, PrepareSnapshotResponse, RemoveSnapshotRequest,
    StatSnapshotRequest, StatSnapshotResponse, UpdateSnapshotRequest, UpdateSnapshotResponse, UsageRequest,
    UsageResponse, ViewSnapshotRequest, ViewSnapshotResponse,
};
use super::{mounts, usage};
use crate::serve::plane::{blocking, seen_through};
use crate::serve::refused::Refused;

/// The longest key or name, in bytes: containerd's own are a namespace, a number and a digest.
const NAME_LIMIT: usize = 4 << 10;

/// The most that a label and its value may have (the protocol's own words), in bytes, and how many there may be.
const LABEL_LIMIT: usize = 4 << 10;
const LABELS_LIMIT: usize = 256;

/// How many snapshots go in one message of a list.
const LISTED_AT_ONCE: usize = 100;

#[tonic::async_trait]
impl Service for Snapshots {
    async fn prepare(
        &self,
        request: Request<PrepareSnapshotRequest>,
    ) -> Result<Response<PrepareSnapshotResponse>, Status> {
        let PrepareSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let snapshots = self.clone();
        let mounts = seen_through(async move {
            let labels = checked(&[&key, &parent], labels)?;
            let target = labels.get(TARGET).cloned();
            if let Some(target) = target
                && snapshots.stands(&parent, &labels).await
            {
                return Err(exists(&target));
            }
            snapshots.create(&key, &parent, Kind::Active, labels).await
        });
        Ok(Response::new(PrepareSnapshotResponse { mounts: mounts.await? }))
    }

    async fn view(
        &self,
        request: Request<ViewSnapshotRequest>,
    ) -> Result<Response<ViewSnapshotResponse>, Status> {
        let ViewSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let snapshots = self.clone();
        let mounts = seen_through(async move {
            let labels = checked(&[&key, &parent], labels)?;
            snapshots.create(&key, &parent, Kind::View, labels).await
        });
        Ok(Response::new(ViewSnapshotResponse { mounts: mounts.await? }))
    }

    async fn mounts(&self, request: Request<MountsRequest>) -> Result<Response<MountsResponse>, Status> {
        let (snapshots, key) = (self.clone(), request.into_inner().key);
        let mounts = seen_through(async move { snapshots.mounts_of(&key).await }).await?;
        Ok(Response::new(MountsResponse { mounts }))
    }

    async fn commit(&self, request: Request<CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let CommitSnapshotRequest { name, key, labels, .. } = request.into_inner();
        let labels = checked(&[&name, &key], labels)?;
        self.with_ledger(move |ledger| {
            let record = ledger.get(&key)?;
            let usage = match record.kind {
                Kind::Active => usage::of(&ledger.fs(record.id))?,
                _ => Usage::default(),
            };
            ledger.commit(&key, &name, labels, usage)
        })
        .await?;
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        let (snapshots, key) = (self.clone(), request.into_inner().key);
        seen_through(async move {
            let record = snapshots.with_ledger(move |ledger| ledger.remove(&key)).await?;
            snapshots.clear(record.id).await;
            Ok::<_, Refused>(())
        })
        .await?;
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<StatSnapshotRequest>,
    ) -> Result<Response<StatSnapshotResponse>, Status> {
        let record = self.ledger.get(&request.into_inner().key)?;
        Ok(Response::new(StatSnapshotResponse { info: Some(info(record)) }))
    }

    async fn update(
        &self,
        request: Request<UpdateSnapshotRequest>,
    ) -> Result<Response<UpdateSnapshotResponse>, Status> {
        let UpdateSnapshotRequest { info: asked, update_mask, .. } = request.into_inner();
        let asked = asked.ok_or_else(|| Refused::invalid("what is to be updated is missing"))?;
        let labels = checked(&[&asked.name], asked.labels)?;
        let updated = self
            .with_ledger(move |ledger| ledger.relabel(&asked.name, |own| relabel(own, labels, update_mask)));
        Ok(Response::new(UpdateSnapshotResponse { info: Some(info(updated.await?)) }))
    }

    type ListStream = BoxStream<'static, Result<ListSnapshotsResponse, Status>>;

    async fn list(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let filters = request.into_inner().filters;
        let filters = filters.iter().map(|text| Filter::parse(text)).collect::<Result<Vec<_>, _>>()?;
        let listed: Vec<Info> = self.ledger.list(&filters).into_iter().map(info).collect();
        let pages: Vec<_> = listed.chunks(LISTED_AT_ONCE).map(<[Info]>::to_vec).collect();
        let pages = pages.into_iter().map(|info| Ok(ListSnapshotsResponse { info }));
        Ok(Response::new(stream::iter(pages).boxed()))
    }

    async fn usage(&self, request: Request<UsageRequest>) -> Result<Response<UsageResponse>, Status> {
        let key = request.into_inner().key;
        let Usage { size, inodes } = self
            .with_ledger(move |ledger| {
                let record = ledger.get(&key)?;
                match record.kind {
                    Kind::Active => Ok(usage::of(&ledger.fs(record.id))?),
                    _ => Ok(record.usage),
                }
            })
            .await?;
        let number = |value| i64::try_from(value).unwrap_or(i64::MAX);
        Ok(Response::new(UsageResponse { size: number(size), inodes: number(inodes) }))
    }

    async fn cleanup(&self, _: Request<CleanupRequest>) -> Result<Response<()>, Status> {
        let snapshots = self.clone();
        seen_through(async move {
            let strays = snapshots.with_ledger(|ledger| Ok(ledger.strays())).await?;
            for stray in strays {
                snapshots.clear(stray).await;
            }
            Ok::<_, Refused>(())
        })
        .await?;
        Ok(Response::new(()))
    }
}

impl Snapshots {
    /// Makes a snapshot whose files are its own, and says how it is mounted. What it lies on is mounted by then.
    async fn create(
        &self,
        key: &str,
        parent: &str,
        kind: Kind,
        labels: Labels,
    ) -> Result<Vec<Mount>, Refused> {
        let (key, parent) = (key.to_owned(), parent.to_owned());
        let made = key.clone();
        self.with_ledger(move |ledger| ledger.create(&made, &parent, kind, labels)).await?;
        match self.mounts_of(&key).await {
            Ok(mounts) => Ok(mounts),
            Err(refused) => {
                let record = self.with_ledger(move |ledger| ledger.remove(&key)).await?;
                self.clear(record.id).await;
                Err(refused)
            }
        }
    }

    async fn mounts_of(&self, key: &str) -> Result<Vec<Mount>, Refused> {
        let chain = self.ledger.chain(key)?;
        let Some((record, below)) = chain.split_first() else { return Err(no_such(key)) };
        if record.kind == Kind::Committed {
            return Err(Refused::state(format!("the snapshot {key:?} is committed and has no mounts")));
        }
        self.show_all(below).await?;
        Ok(mounts::of(&self.ledger, &chain))
    }

    /// Does what waits for the disk where it holds up nobody else.
    async fn with_ledger<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Ledger) -> Result<T, Refused> + Send + 'static,
    ) -> Result<T, Refused> {
        let ledger: Arc<Ledger> = self.ledger.clone();
        blocking(move || Ok(work(&ledger))).await?
    }
}

/// The labels, once they and these names are such as can be meant; the first name is needed.
fn checked(names: &[&str], labels: HashMap<String, String>) -> Result<Labels, Refused> {
    if names.first().is_some_and(|name| name.is_empty()) {
        return Err(Refused::invalid("the snapshot's key or name is missing"));
    }
    if names.iter().any(|name| name.len() > NAME_LIMIT || name.chars().any(char::is_control)) {
        return Err(Refused::invalid("a snapshot's name has more than 4096 bytes, or control characters"));
    }
    if labels.len() > LABELS_LIMIT
        || labels.iter().any(|(key, value)| key.len().saturating_add(value.len()) > LABEL_LIMIT)
    {
        return Err(Refused::invalid("a label has more than 4096 bytes, or there are more than 256"));
    }
    // An empty value says that there is no such label.
    Ok(labels.into_iter().filter(|(_, value)| !value.is_empty()).collect())
}

/// Puts what the mask names of `new` in the place of the labels; all of it where it names nothing.
fn relabel(labels: &mut Labels, mut new: Labels, mask: Option<FieldMask>) -> Result<(), Refused> {
    let paths = mask.map(|mask| mask.paths).unwrap_or_default();
    if paths.is_empty() {
        *labels = new;
        return Ok(());
    }
    for path in paths {
        match path.strip_prefix("labels.") {
            Some(key) => match new.remove(key) {
                Some(value) => drop(labels.insert(key.to_owned(), value)),
                None => drop(labels.remove(key)),
            },
            None if path == "labels" => labels.clone_from(&new),
            None => return Err(Refused::invalid(format!("{path:?} of a snapshot cannot be changed"))),
        }
    }
    if labels.len() > LABELS_LIMIT {
        return Err(Refused::invalid("there are more than 256 labels"));
    }
    Ok(())
}

fn info(record: Record) -> Info {
    let Record { name, parent, kind, labels, created, updated, .. } = record;
    let kind = match kind {
        Kind::View => super::v1::Kind::View,
        Kind::Active => super::v1::Kind::Active,
        Kind::Committed => super::v1::Kind::Committed,
    };
    Info {
        name,
        parent,
        kind: kind.into(),
        created_at: Some(timestamp(created)),
        updated_at: Some(timestamp(updated)),
        labels: labels.into_iter().collect(),
    }
}

fn timestamp(time: SystemTime) -> Timestamp {
    Timestamp::from(time)
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn relabelled(new: &[(&str, &str)], paths: &[&str]) -> Result<Labels, Refused> {
        let mut own = labels(&[("a", "1"), ("b", "2")]);
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        relabel(&mut own, labels(new), Some(FieldMask { paths })).map(|()| own)
    }

    #[test]
    fn labels_change_as_far_as_the_mask_says() {
        assert_eq!(relabelled(&[("c", "3")], &[]).unwrap(), labels(&[("c", "3")]));
        assert_eq!(relabelled(&[("c", "3")], &["labels"]).unwrap(), labels(&[("c", "3")]));
        let some = relabelled(&[("c", "3"), ("b", "9")], &["labels.c", "labels.a"]).unwrap();
        assert_eq!(some, labels(&[("b", "2"), ("c", "3")]));
        for fixed in ["parent", "kind", "name", "created"] {
            assert_eq!(relabelled(&[], &[fixed]).unwrap_err().code, Code::InvalidArgument, "{fixed}");
        }
    }

    #[test]
    fn names_and_labels_that_nobody_means_are_refused() {
        let long = "a".repeat(5000);
        let of = |key: &str, value: &str| HashMap::from([(key.to_owned(), value.to_owned())]);
        assert!(checked(&["ns/1/a", ""], of("key", "value")).unwrap().contains_key("key"));
        assert!(checked(&["a"], of("key", "")).unwrap().is_empty());
        assert!(checked(&["", "a"], HashMap::new()).is_err());
        assert!(checked(&["a\nb"], HashMap::new()).is_err());
        assert!(checked(&[&long], HashMap::new()).is_err());
        assert!(checked(&["a"], of("key", &long)).is_err());
        let many = (0..257).map(|number| (number.to_string(), "v".to_owned())).collect();
        assert!(checked(&["a"], many).is_err());
    }
}
