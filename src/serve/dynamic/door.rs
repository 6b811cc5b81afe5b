//! The socket at which a pod asks: as many connections at once as are taken, and no more.
//!
//! Anybody in the pod may ask, so that nobody is asked who they are: the volume is bound into this pod alone. What comes through is
//! handed to the [`api`](super::api).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many connections there may be at once.
const AT_ONCE: usize = 64;

/// How long is waited after a connection could not be taken: no descriptor is free, as a rule.
const REST: Duration = Duration::from_secs(1);

/// Where a pod asks.
#[derive(Debug)]
pub(super) struct Door {
    listener: UnixListener,
    places: Arc<Semaphore>,
}

impl Door {
    pub(super) fn new(listener: UnixListener) -> Self {
        Self { listener, places: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

/// A connection, which has a place for as long as it is open.
#[derive(Debug)]
pub(super) struct Guest {
    stream: UnixStream,
    _place: Option<OwnedSemaphorePermit>,
}

impl Listener for Door {
    type Io = Guest;
    type Addr = ();

    async fn accept(&mut self) -> (Guest, ()) {
        // Never closed.
        let place = self.places.clone().acquire_owned().await.ok();
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => return (Guest { stream, _place: place }, ()),
                Err(error) => {
                    tracing::warn!(%error, "the pod cannot ask for a moment");
                    tokio::time::sleep(REST).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

impl AsyncRead for Guest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Guest {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
