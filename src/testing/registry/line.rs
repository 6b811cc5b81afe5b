//! A connection under HTTP: answers that no HTTP server would give are written on it byte by byte.
//!
//! [`Lines`] puts a [`Line`] around every connection that a listener accepts. Most of the time it only passes bytes on.
//! Given a [`Script`] by whoever answers the request, it swallows the HTTP server's own answer and plays the script
//! in its place: bytes, pauses, silence, and then the end of the connection, by FIN or by RST.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// What is done on the connection in place of an answer.
#[derive(Debug)]
pub(super) struct Script {
    steps: VecDeque<Step>,
    end: End,
}

/// One step of a script.
#[derive(Debug)]
pub(super) enum Step {
    /// These bytes are sent.
    Send(Bytes),
    /// Nothing happens for so long.
    Pause(Duration),
    /// Nothing happens until the client goes.
    Silence,
}

/// How a script ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The connection stays as it is, and the next request is awaited.
    Stay,
    /// It is closed: the client sees its end (FIN).
    Close,
    /// It is reset: the client sees an error (RST), and may lose what it has not read.
    Reset,
}

impl Script {
    /// These steps, and then that end.
    pub(super) fn new(steps: impl IntoIterator<Item = Step>, end: End) -> Self {
        Self { steps: steps.into_iter().collect(), end }
    }

    /// The same, with these bytes sent before its end.
    #[must_use]
    pub(super) fn followed_by(mut self, bytes: Bytes) -> Self {
        self.steps.push_back(Step::Send(bytes));
        self
    }
}

/// Where the script for a connection is left, and what is known of the connection; the extension of its requests, as
/// axum's `ConnectInfo`.
#[derive(Clone, Debug, Default)]
pub(super) struct Cue {
    script: Arc<Mutex<Option<Script>>>,
    requests: Arc<AtomicUsize>,
    open: Arc<()>,
}

impl Cue {
    /// Has `script` played in place of the answer that follows.
    pub(super) fn play(&self, script: Script) {
        *self.script.lock() = Some(script);
    }

    /// Counts a request.
    pub(super) fn asked(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// What becomes of the answer to the request that was counted last.
    pub(super) fn answer(&self) -> Answer {
        let until_now = self.requests.load(Ordering::Relaxed);
        Answer { requests: self.requests.clone(), until_now, open: Arc::downgrade(&self.open) }
    }
}

/// An answer on its way to a client.
#[derive(Debug)]
pub(super) struct Answer {
    requests: Arc<AtomicUsize>,
    until_now: usize,
    open: Weak<()>,
}

impl Answer {
    /// Whether the client may have taken it: it asks on over the same connection, or keeps it. Who hangs up instead has not
    /// waited for the answer.
    pub(super) fn may_be_taken(&self) -> bool {
        self.requests.load(Ordering::Relaxed) > self.until_now || self.open.strong_count() > 0
    }
}

/// Sets a connection up so that dropping it resets it.
pub type Resets<S> = fn(&S) -> io::Result<()>;

/// A listener whose connections take scripts.
#[derive(Debug)]
pub(super) struct Lines<L: Listener> {
    listener: L,
    resets: Resets<L::Io>,
}

impl<L: Listener> Lines<L> {
    /// Around `listener`, whose connections `resets` readies for a reset.
    pub(super) fn new(listener: L, resets: Resets<L::Io>) -> Self {
        Self { listener, resets }
    }
}

impl<L: Listener> Listener for Lines<L> {
    type Io = Line<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (inner, address) = self.listener.accept().await;
        let line = Line { inner, resets: self.resets, cue: Cue::default(), playing: None, pause: None };
        (line, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

impl<L: Listener> Connected<IncomingStream<'_, Lines<L>>> for Cue {
    fn connect_info(stream: IncomingStream<'_, Lines<L>>) -> Self {
        stream.io().cue.clone()
    }
}

/// A connection that takes scripts.
#[derive(Debug)]
pub(super) struct Line<S> {
    inner: S,
    resets: Resets<S>,
    cue: Cue,
    playing: Option<Script>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Line<S> {
    /// Whether what the HTTP server writes is swallowed.
    fn plays(&mut self) -> bool {
        if self.playing.is_none() {
            self.playing = self.cue.script.lock().take();
        }
        self.playing.is_some()
    }

    /// Plays on; ready when the script is over and the connection stays.
    fn poll_script(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(script) = &mut self.playing {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            match script.steps.front_mut() {
                Some(Step::Send(bytes)) if bytes.is_empty() => drop(script.steps.pop_front()),
                Some(Step::Send(bytes)) => {
                    let sent = ready!(Pin::new(&mut self.inner).poll_write(context, bytes))?;
                    bytes.advance(sent.min(bytes.len()));
                }
                Some(Step::Pause(duration)) => {
                    ready!(Pin::new(&mut self.inner).poll_flush(context))?;
                    self.pause = Some(Box::pin(tokio::time::sleep(*duration)));
                    script.steps.pop_front();
                }
                Some(Step::Silence) => {
                    ready!(Pin::new(&mut self.inner).poll_flush(context))?;
                    return self.poll_gone(context);
                }
                None => {
                    ready!(Pin::new(&mut self.inner).poll_flush(context))?;
                    let end = script.end;
                    if end == End::Close {
                        ready!(Pin::new(&mut self.inner).poll_shutdown(context))?;
                    }
                    self.playing = None;
                    self.end(end)?;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn end(&self, end: End) -> io::Result<()> {
        match end {
            End::Stay => return Ok(()),
            End::Close => {}
            End::Reset => (self.resets)(&self.inner)?,
        }
        // The HTTP server drops a connection that fails.
        Err(io::ErrorKind::ConnectionAborted.into())
    }

    /// Never ready but with an error: the client has gone, or has said what nobody waits for.
    fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut byte = [0];
        ready!(Pin::new(&mut self.inner).poll_read(context, &mut ReadBuf::new(&mut byte)))?;
        Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Line<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let line = self.get_mut();
        // What the client may say next is not for a server whose answer is not out yet.
        if line.plays() {
            ready!(line.poll_script(context))?;
        }
        Pin::new(&mut line.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Line<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let line = self.get_mut();
        if line.plays() {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut line.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let line = self.get_mut();
        if line.plays() {
            return Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()));
        }
        Pin::new(&mut line.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let line = self.get_mut();
        if line.plays() {
            ready!(line.poll_script(context))?;
        }
        Pin::new(&mut line.inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let line = self.get_mut();
        if line.plays() {
            ready!(line.poll_script(context))?;
        }
        Pin::new(&mut line.inner).poll_shutdown(context)
    }
}
