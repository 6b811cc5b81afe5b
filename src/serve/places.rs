//! Where anybody may ask: as many connections at once as there are places, and none for longer than it may last.
//!
//! So nobody who is slow, or who asks nothing, keeps others out for ever. Around the listeners of the pages, which everybody on
//! the node's network reaches, and of a dynamic volume's socket, which everybody in its pod does.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};

/// How many connections there may be at once.
const AT_ONCE: usize = 64;

/// A listener that takes no more connections than there are places.
#[derive(Debug)]
pub(super) struct Places<L> {
    listener: L,
    free: Arc<Semaphore>,
    /// How long a connection may last.
    life: Duration,
}

impl<L> Places<L> {
    /// Of a connection that lasts no longer than `life`.
    pub(super) fn new(listener: L, life: Duration) -> Self {
        Self { listener, free: Arc::new(Semaphore::new(AT_ONCE)), life }
    }
}

/// A connection, which has a place for as long as it is open.
#[derive(Debug)]
pub(super) struct Guest<S> {
    stream: S,
    end: Pin<Box<Sleep>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl<L: Listener> Listener for Places<L> {
    type Io = Guest<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, L::Addr) {
        // Never closed.
        let place = self.free.clone().acquire_owned().await.ok();
        let (stream, address) = self.listener.accept().await;
        (Guest { stream, end: Box::pin(sleep(self.life)), _place: place }, address)
    }

    fn local_addr(&self) -> io::Result<L::Addr> {
        self.listener.local_addr()
    }
}

impl<S: Unpin> Guest<S> {
    /// Does `work` with the stream, unless the connection has lasted too long; who waits is woken by then.
    fn poll_with<T>(
        &mut self,
        context: &mut Context<'_>,
        work: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.end.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        work(Pin::new(&mut self.stream), context)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guest<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_with(context, |stream, context| stream.poll_read(context, into))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guest<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_with(context, |stream, context| stream.poll_write(context, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_with(context, |stream, context| stream.poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_with(context, |stream, context| stream.poll_shutdown(context))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_or_takes_nothing_is_let_go_and_another_has_his_place() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut places = Places::new(listener, Duration::from_secs(30));
        let mut outside = Vec::new();
        let mut inside = Vec::new();
        for _ in 0..AT_ONCE {
            outside.push(TcpStream::connect(address).await.unwrap());
            inside.push(places.accept().await.0);
        }
        outside.push(TcpStream::connect(address).await.unwrap());
        assert_eq!(places.free.available_permits(), 0, "the next one waits");
        let mut silent = inside.pop().unwrap();
        let ended = silent.read(&mut [0]).await.unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
        let mut greedy = inside.pop().unwrap();
        let ended = greedy.write_all(&vec![0; 64 << 20]).await.unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
        drop(silent);
        let (mut next, _) = places.accept().await;
        outside.last_mut().unwrap().write_all(b"x").await.unwrap();
        assert_eq!(next.read_u8().await.unwrap(), b'x');
    }
}
