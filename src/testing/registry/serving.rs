//! Serves a router on a free port of loopback, for as long as a value lives.

use std::net::{Ipv4Addr, SocketAddr};

use axum::Router;
use axum::serve::{Listener, ListenerExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::line::{Cue, Lines, Resets};
use crate::error::{Error, Kind, Result};

/// A server that runs until this value is dropped. Then its port is closed, and so is each connection as soon
/// as it has no answer under way.
#[derive(Debug)]
pub struct Serving {
    address: SocketAddr,
    _stop: oneshot::Sender<()>,
}

impl Serving {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Serves `router` on a free port of 127.0.0.1.
///
/// # Errors
/// `Unreachable` where no port can be had.
pub async fn serve(router: Router) -> Result<Serving> {
    serve_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), router).await
}

/// Serves `router` at `address`.
///
/// # Errors
/// `Unreachable` where the address can't be had.
pub(super) async fn serve_at(address: SocketAddr, router: Router) -> Result<Serving> {
    let listener = TcpListener::bind(address).await.map_err(no_port)?;
    // Otherwise the end of an answer waits for the acknowledgement of its head, 40 ms.
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "answers may be late");
        }
    });
    serve_on(listener, TcpStream::set_zero_linger, router)
}

/// Serves `router` to who connects to `listener`. Must be called within a tokio runtime. `resets` readies one of its
/// connections for a reset.
///
/// # Errors
/// `Unreachable` where the listener has no address.
pub(super) fn serve_on<L>(listener: L, resets: Resets<L::Io>, router: Router) -> Result<Serving>
where
    L: Listener<Addr = SocketAddr>,
{
    let address = listener.local_addr().map_err(no_port)?;
    let (stop, stopped) = oneshot::channel::<()>();
    let service = router.into_make_service_with_connect_info::<Cue>();
    tokio::spawn(async move {
        // The sender is never used, only dropped.
        let dropped = async move { drop(stopped.await) };
        let lines = Lines::new(listener, resets);
        if let Err(error) = axum::serve(lines, service).with_graceful_shutdown(dropped).await {
            tracing::warn!(%error, "the registry on loopback ended");
        }
    });
    Ok(Serving { address, _stop: stop })
}

fn no_port(error: std::io::Error) -> Error {
    Error::from_source(Kind::Unreachable, "no free port on 127.0.0.1", error)
}
