//! Snapshots for containerd: a snapshotter as it asks for one over a socket, for images whose layers need not be downloaded.
//!
//! What is unpacked is kept as containerd's own overlay snapshotter keeps it; layers that an image has in a registry are shown by
//! a mount of the plane. [`service`] answers, the [`ledger`](ledger::Ledger) knows what there is, [`remote`] makes what is not downloaded, by
//! what [`asked`] reads and [`plan`] decides; [`mounts`] says how a snapshot is mounted. The protocol's own types,
//! [`v1`], are generated from `proto/containerd`; a test holds the two together.

mod asked;
mod clash;
mod filter;
mod ledger;
mod mounts;
mod plan;
mod record;
mod remote;
mod service;
mod usage;
#[rustfmt::skip]
#[allow(missing_docs, unused_qualifications, clippy::all, clippy::allow_attributes_without_reason, reason = "generated from the protocol's own text")]
pub mod v1;

use std::path::Path;
use std::sync::Arc;

use futures_util::stream;
use tokio::net::UnixListener;
use tonic::transport::Server;

use self::ledger::Ledger;
use self::v1::snapshots_server::SnapshotsServer;
use super::listen::accept;
use super::plane::{Plane, blocking};
use crate::error::Result;

/// How many requests of one connection are answered at once.
const AT_ONCE: usize = 64;

/// What is believed of what compressed layers hold, before anybody has decoded them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DiffIds {
    /// Nothing: they are downloaded, and containerd looks.
    #[default]
    Proved,
    /// What the image's config says.
    Trusted,
}

/// All snapshots of a node, and the plane that mounts what they show.
#[derive(Clone, Debug)]
pub struct Snapshots {
    plane: Arc<Plane>,
    ledger: Arc<Ledger>,
    diff_ids: DiffIds,
}

impl Snapshots {
    /// Opens the folder where snapshots are kept, made where missing, and takes away what is shown of those that are no more.
    ///
    /// # Errors
    /// `Invalid` for a path that cannot be a mount option, `Busy` where another process has the folder, `Storage`.
    pub async fn open(plane: Arc<Plane>, folder: &Path, diff_ids: DiffIds) -> Result<Self> {
        let folder = folder.to_owned();
        let ledger = blocking(move || Ledger::open(&folder)).await?;
        let snapshots = Self { plane, ledger: Arc::new(ledger), diff_ids };
        snapshots.clear_forgotten().await;
        Ok(snapshots)
    }
}

/// Answers at `listener` until `end`, and then those who have asked already.
pub async fn serve(snapshots: Snapshots, listener: UnixListener, end: impl Future<Output = ()> + Send) {
    let connections = stream::unfold(listener, |listener| async move {
        let stream = accept(&listener, "snapshotter").await;
        Some((Ok::<_, std::io::Error>(stream), listener))
    });
    let served = Server::builder()
        .concurrency_limit_per_connection(AT_ONCE)
        .add_service(SnapshotsServer::new(snapshots))
        .serve_with_incoming_shutdown(connections, end)
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "snapshots are no longer served");
    }
}
