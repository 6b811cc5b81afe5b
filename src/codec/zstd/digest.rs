//! The digests of spans, from the stored bytes of frames as they go by.
//!
//! Whether a frame is joined to the span before it is known only when it ends, so its bytes go into both digests until it
//! can be no more. Called by the [`Scanner`](super::Scanner).

use blake3::Hasher;

use super::spans::Builder;

/// Digests in the making.
pub(super) struct Digests {
    done: Vec<[u8; 32]>,
    /// The span that may still grow, without the frame at hand.
    open: Hasher,
    /// The same with it; `None` where it can't be joined.
    joined: Option<Hasher>,
    /// The frame at hand alone.
    alone: Hasher,
}

impl Digests {
    pub(super) fn new() -> Self {
        let (open, joined, alone) = (Hasher::new(), Some(Hasher::new()), Hasher::new());
        Self { done: Vec::new(), open, joined, alone }
    }

    /// The next stored bytes of the frame at hand, and whether it may still be joined.
    pub(super) fn update(&mut self, bytes: &[u8], may_join: bool) {
        self.alone.update(bytes);
        if !may_join {
            self.joined = None;
        }
        if let Some(joined) = &mut self.joined {
            joined.update(bytes);
        }
    }

    /// The frame has ended, and `builder` has been told of it.
    pub(super) fn end_frame(&mut self, builder: &Builder, spans_before: usize) {
        let alone = std::mem::take(&mut self.alone);
        self.open = match self.joined.take() {
            Some(joined) if builder.spans() == spans_before => joined,
            _ => {
                if spans_before > 0 {
                    self.done.push(*self.open.finalize().as_bytes());
                }
                alone
            }
        };
        self.joined = Some(self.open.clone());
    }

    /// All of them, when no frame follows.
    pub(super) fn finish(mut self) -> Vec<[u8; 32]> {
        self.done.push(*self.open.finalize().as_bytes());
        self.done
    }
}
