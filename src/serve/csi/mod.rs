//! The driver of the Container Storage Interface: volumes of pods, shown by the plane.
//!
//! Identity, Controller and Node of CSI 1.x over a socket, under the name and with the attributes of model-csi-driver, so that its
//! volumes work unchanged. [`request`] reads what is asked, [`node`] asks the plane; [`controller`] asks nobody, since nothing has to
//! be anywhere before a pod asks. The protocol's own types, [`v1`], are generated from `proto/csi.proto`; a test holds the two together.

mod controller;
#[cfg(test)]
mod examples_tests;
mod identity;
mod node;
mod request;
mod tokens;
#[rustfmt::skip]
#[allow(missing_docs, unused_qualifications, clippy::all, clippy::allow_attributes_without_reason, reason = "generated from the protocol's own text")]
pub mod v1;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use futures_util::stream;
use tokio::net::UnixListener;
use tonic::transport::Server;

use self::controller::Made;
use self::v1::controller_server::ControllerServer;
use self::v1::identity_server::IdentityServer;
use self::v1::node_server::NodeServer;
use super::listen::accept;
use super::plane::Plane;

/// The name that model-csi-driver has.
pub const DRIVER: &str = "model.csi.modelpack.org";

/// How many requests of one connection are answered at once.
const AT_ONCE: usize = 64;

/// What the driver says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// Its name, which is also what the attributes of its volumes begin with.
    pub driver: String,
    /// The node's.
    pub node: String,
}

/// The driver: what answers all services.
#[derive(Clone, Debug)]
struct Driver {
    plane: Arc<Plane>,
    names: Arc<Names>,
    ready: Arc<AtomicBool>,
    /// What the controller has made.
    made: Arc<Made>,
}

/// Answers at `listener` until `end`, and then those who have asked already. `ready` says whether everything listens.
pub async fn serve(
    plane: Arc<Plane>,
    listener: UnixListener,
    names: Names,
    ready: Arc<AtomicBool>,
    end: impl Future<Output = ()> + Send,
) {
    let driver = Driver { plane, names: Arc::new(names), ready, made: Arc::default() };
    let connections = stream::unfold(listener, |listener| async move {
        let stream = accept(&listener, "CSI").await;
        Some((Ok::<_, std::io::Error>(stream), listener))
    });
    let served = Server::builder()
        .concurrency_limit_per_connection(AT_ONCE)
        .add_service(IdentityServer::new(driver.clone()))
        .add_service(ControllerServer::new(driver.clone()))
        .add_service(NodeServer::new(driver))
        .serve_with_incoming_shutdown(connections, end)
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "CSI is no longer served");
    }
}
