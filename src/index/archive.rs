//! A tar archive that goes by in order, as the content of a compressed layer does: headers become members, data is passed on.
//!
//! Holds one member's headers at a time. Not the hopping over an archive that can be read by range, which is
//! [`plain`](super::plain)'s, nor the meaning of names. Called by [`pass`](super::pass).

use super::Headers;
use crate::codec::tar::{self, Member, Step};
use crate::error::{Error, Kind, Result};
use crate::range::ContentRange;

/// How much of an archive may be left: nobody knows before its end, and no sum of it may wrap.
const UNKNOWN: u64 = u64::MAX / 4;

/// What goes by.
pub(super) enum Passing<'a> {
    /// A member, before its data, and where the data lies in the archive.
    Member(Member, ContentRange),
    /// The next bytes of the last member's data.
    Data(&'a [u8]),
}

/// Where in an archive the next byte lies.
pub(super) struct Archive {
    state: State,
    /// Where the next byte lies.
    at: u64,
    /// The headers at hand, as far as they are here.
    headers: Vec<u8>,
    /// Bytes of headers of all members so far.
    passed: u64,
    /// How many there may be.
    allowed: Headers,
}

enum State {
    /// So many bytes of headers are needed from their start on.
    Headers(usize),
    /// So many bytes of data are left, then so many of padding.
    Data(u64, u64),
    /// Nothing that counts follows.
    End,
}

impl Archive {
    pub(super) fn new(allowed: Headers) -> Self {
        Self { state: State::Headers(first()), at: 0, headers: Vec::new(), passed: 0, allowed }
    }

    /// The next bytes.
    ///
    /// # Errors
    /// As [`tar::step`]; `Unsupported` for more headers than there may be; those of `take`.
    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        take: &mut dyn FnMut(Passing<'_>) -> Result<()>,
    ) -> Result<()> {
        while !bytes.is_empty() {
            let taken = match self.state {
                State::End => bytes.len(),
                State::Headers(need) => self.headers(need, bytes, take)?,
                State::Data(0, padding) => {
                    let len = shorter(padding, bytes);
                    self.state = after(0, padding - length(len));
                    len
                }
                State::Data(left, padding) => {
                    let len = shorter(left, bytes);
                    take(Passing::Data(bytes.get(..len).unwrap_or_default()))?;
                    self.state = after(left - length(len), padding);
                    len
                }
            };
            self.at = self.at.saturating_add(length(taken));
            bytes = bytes.get(taken..).unwrap_or_default();
        }
        Ok(())
    }

    /// The archive has no more bytes.
    ///
    /// # Errors
    /// `Invalid` where it is cut short.
    pub(super) fn finish(mut self, take: &mut dyn FnMut(Passing<'_>) -> Result<()>) -> Result<()> {
        match self.state {
            State::End | State::Data(0, _) => Ok(()),
            State::Data(left, _) => {
                let doing = format!("the archive is cut short: {left} bytes of its last file are missing");
                Err(Error::new(Kind::Invalid, doing))
            }
            State::Headers(_) => match tar::step(&self.headers, length(self.headers.len()))? {
                Step::End(_) => Ok(()),
                Step::Member(member) => self.member(member, self.at, take).map(drop),
                Step::Need(_) => Err(Error::new(Kind::Invalid, "the archive is cut short within a header")),
            },
        }
    }

    /// How many of `bytes` belong to the headers at hand.
    fn headers(
        &mut self,
        need: usize,
        bytes: &[u8],
        take: &mut dyn FnMut(Passing<'_>) -> Result<()>,
    ) -> Result<usize> {
        let len = need.saturating_sub(self.headers.len()).min(bytes.len());
        self.headers.extend_from_slice(bytes.get(..len).unwrap_or_default());
        if self.headers.len() < need {
            return Ok(len);
        }
        let end = self.at.saturating_add(length(len));
        self.state = match tar::step(&self.headers, UNKNOWN)? {
            Step::Need(need) => State::Headers(usize::try_from(need).unwrap_or(usize::MAX)),
            Step::End(_) => State::End,
            Step::Member(member) => self.member(member, end, take)?,
        };
        Ok(len)
    }

    /// What follows the headers of `member`, which end at `end`.
    fn member(
        &mut self,
        member: Member,
        end: u64,
        take: &mut dyn FnMut(Passing<'_>) -> Result<()>,
    ) -> Result<State> {
        self.passed = self.passed.saturating_add(length(self.headers.len()));
        self.allowed.reach(self.passed)?;
        self.headers.clear();
        let (size, padding) =
            (member.size, member.next.saturating_sub(member.data.saturating_add(member.size)));
        let range = ContentRange::at(end, size)
            .ok_or_else(|| Error::new(Kind::Invalid, "an archive's member lies beyond 64 bits"))?;
        take(Passing::Member(member, range))?;
        Ok(after(size, padding))
    }
}

fn after(left: u64, padding: u64) -> State {
    if (left, padding) == (0, 0) { State::Headers(first()) } else { State::Data(left, padding) }
}

/// How many bytes of headers are needed to begin with.
fn first() -> usize {
    usize::try_from(tar::BLOCK).unwrap_or(usize::MAX)
}

fn length(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

fn shorter(len: u64, bytes: &[u8]) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX).min(bytes.len())
}
