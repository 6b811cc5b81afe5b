//! A slow line in front of a server: TCP through a relay with a bandwidth and a delay.
//!
//! All connections share one downstream clock, as they share a line: bytes leave one after the other at
//! [`BANDWIDTH`], and every byte arrives [`ONE_WAY`] later, in either direction. A connection costs a round trip
//! before its first byte. It models neither loss nor TCP's slow start, so it is kinder than a real line to
//! everybody. For the demo only.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use crate::error::{Error, Kind, Result};

/// Bits in a second, downstream, of all connections together.
pub(super) const BANDWIDTH: u64 = 1_000_000_000;

/// How long a byte is under way; a round trip is twice that.
pub(super) const ONE_WAY: Duration = Duration::from_millis(10);

/// How far ahead of the clock a connection may read: more than a timer's precision, so that a late wake-up costs
/// the line nothing.
const AHEAD: Duration = Duration::from_millis(4);

/// How much is read at once.
const PIECE: usize = 64 << 10;

/// How many pieces may be under way on one connection: more than the line holds (2.5 MB a round trip).
const UNDER_WAY: usize = 64;

/// A relay that runs until this value is dropped.
#[derive(Debug)]
pub(super) struct Relay {
    address: SocketAddr,
    line: Arc<Line>,
    task: tokio::task::JoinHandle<()>,
}

/// What connections share.
#[derive(Debug)]
struct Line {
    /// When the line is free for the next byte downstream.
    free: Mutex<Instant>,
    carried: AtomicU64,
}

impl Relay {
    /// Listens on a free port of 127.0.0.1 and passes everything on to `server`.
    ///
    /// # Errors
    /// `Unreachable` where no port can be had.
    pub(super) async fn start(server: SocketAddr) -> Result<Self> {
        let no_port = |error| Error::from_source(Kind::Unreachable, "no free port on 127.0.0.1", error);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(no_port)?;
        let address = listener.local_addr().map_err(no_port)?;
        let line = Arc::new(Line { free: Mutex::new(Instant::now()), carried: AtomicU64::new(0) });
        let shared = line.clone();
        let task = tokio::spawn(async move {
            // Dropped with this task, which ends all that is under way.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(carry(client, server, shared.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, line, task })
    }

    /// Where clients connect to.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many bytes were carried downstream so far, headers and all.
    pub(super) fn carried(&self) -> u64 {
        self.line.carried.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Line {
    /// Takes the line for `bytes` and gives when the last of them has left.
    fn take(&self, bytes: usize) -> Instant {
        let bits = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_mul(8);
        let time = Duration::from_nanos(bits.saturating_mul(1_000_000_000) / BANDWIDTH);
        let mut free = self.free.lock();
        *free = (*free).max(Instant::now()) + time;
        self.carried.fetch_add(bits / 8, Ordering::Relaxed);
        *free
    }
}

async fn carry(client: TcpStream, server: SocketAddr, line: Arc<Line>) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    // A buffered small answer would wait for the peer's acknowledgement.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    sleep(ONE_WAY * 2).await;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::join!(
        one_way(from_client, to_server, |_| Instant::now()),
        one_way(from_server, to_client, |bytes| line.take(bytes)),
    );
}

/// Passes bytes on until there are no more; `take` gives when a piece has left.
async fn one_way(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, take: impl Fn(usize) -> Instant) {
    let (pieces, mut arriving) = mpsc::channel::<(Instant, Bytes)>(UNDER_WAY);
    let reading = async move {
        let mut buffer = vec![0; PIECE];
        while let Ok(count) = from.read(&mut buffer).await {
            let Some(piece) = buffer.get(..count).filter(|piece| !piece.is_empty()) else { break };
            let left = take(count);
            if pieces.send((left + ONE_WAY, Bytes::copy_from_slice(piece))).await.is_err() {
                break;
            }
            sleep_until(left.checked_sub(AHEAD).unwrap_or(left)).await;
        }
    };
    let writing = async move {
        while let Some((arrives, piece)) = arriving.recv().await {
            sleep_until(arrives).await;
            if to.write_all(&piece).await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(reading, writing);
}
