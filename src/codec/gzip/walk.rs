//! The way through a gzip file: header, deflate data, trailer, the next member, padding.
//!
//! Shared by the pass over a whole file ([`Scanner`](super::Scanner)) and the decoder of a part of it
//! ([`Decoder`](super::Decoder)); knows nothing of spans.

use super::Moved;
use super::inflate::{Inflate, Place, Stop};
use super::member::{Content, Header, Trailer};
use crate::error::{Error, Kind, Result};

/// What stands where a walk paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Landmark {
    /// Nothing: stored bytes or room for content are used up.
    None,
    /// A block's end within a member; the bit of the file that the next block begins with.
    BlockEnd(u64),
    /// A member's first byte, which is the next one.
    Member,
}

/// A place in a gzip file.
pub(super) struct Walk {
    state: State,
    inflate: Inflate,
    /// What the member's trailer will be compared with; `None` where the walk began within the member.
    counted: Option<Content>,
    /// Where the next stored byte lies in the file.
    stored: u64,
    /// Where the next byte of content lies.
    content: u64,
    /// Where the last member that has gone by ends.
    members_end: u64,
}

#[derive(Debug)]
enum State {
    /// A member may begin; whether one has gone by.
    Between(Passed),
    Header(Header),
    /// Bits of the next byte belong to what was before; so many.
    Bits(u8),
    Body,
    Trailer(Trailer),
    Padding,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Passed {
    NoMember,
    Members,
}

impl Walk {
    /// At the start of a file.
    pub(super) fn from_start() -> Result<Self> {
        Self::at(State::Between(Passed::NoMember), 0, 0)
    }

    /// At the start of a member.
    pub(super) fn from_member(stored: u64, content: u64) -> Result<Self> {
        Self::at(State::Between(Passed::NoMember), stored, content)
    }

    /// Within a member, at the start of a block: the bit of the file where that begins, and the content before it.
    pub(super) fn from_block(bit: u64, content: u64, window: &[u8]) -> Result<Self> {
        let bits = u8::try_from(bit % 8).unwrap_or(0);
        let state = if bits == 0 { State::Body } else { State::Bits(bits) };
        let mut walk = Self::at(state, bit / 8, content)?;
        walk.counted = None;
        walk.inflate.set_window(window)?;
        Ok(walk)
    }

    fn at(state: State, stored: u64, content: u64) -> Result<Self> {
        Ok(Self {
            state,
            inflate: Inflate::new()?,
            counted: Some(Content::default()),
            stored,
            content,
            members_end: stored,
        })
    }

    /// Where the next byte of content lies.
    pub(super) fn content(&self) -> u64 {
        self.content
    }

    /// Where the next stored byte lies.
    pub(super) fn stored(&self) -> u64 {
        self.stored
    }

    /// Where the last member that has gone by ends.
    pub(super) fn members_end(&self) -> u64 {
        self.members_end
    }

    /// At most 32 KiB of content of this member before the place.
    pub(super) fn window(&self) -> Result<Vec<u8>> {
        self.inflate.window()
    }

    /// Goes on until stored bytes or room are used up, or to a landmark: each member's start, and block ends where
    /// `stop` asks for them.
    pub(super) fn step(
        &mut self,
        stored: &[u8],
        content: &mut [u8],
        stop: Stop,
    ) -> Result<(Moved, Landmark)> {
        let mut moved = Moved::default();
        loop {
            let (rest, room) = (stored.get(moved.read..), content.get_mut(moved.written..));
            let (rest, room) = (rest.unwrap_or_default(), room.unwrap_or_default());
            let one = self.one(rest, room, stop).map_err(|error| self.located(error));
            let (by, landmark) = one?;
            self.stored = advanced(self.stored, by.read)?;
            self.content = advanced(self.content, by.written)?;
            if !matches!(self.state, State::Padding) {
                self.members_end = self.stored;
            }
            moved.add(by);
            match landmark {
                Some(Landmark::BlockEnd(unused)) => {
                    let bit = self.stored.saturating_mul(8).saturating_sub(unused);
                    return Ok((moved, Landmark::BlockEnd(bit)));
                }
                Some(landmark) => return Ok((moved, landmark)),
                None => {}
            }
        }
    }

    /// Whether the file may end here.
    ///
    /// # Errors
    /// [`Kind::Invalid`] where it may not: it is cut short.
    pub(super) fn end(&self) -> Result<()> {
        match self.state {
            State::Between(Passed::Members) | State::Padding => Ok(()),
            _ if self.stored == 0 => Err(Error::new(Kind::Invalid, "the gzip file is empty")),
            _ => Err(Error::new(Kind::Invalid, "the gzip file is cut short")),
        }
    }

    /// One state's work: `None` to go on with the next, and under a block's end the number of unused bits.
    fn one(&mut self, stored: &[u8], room: &mut [u8], stop: Stop) -> Result<(Moved, Option<Landmark>)> {
        let Some(first) = stored.first() else {
            return self.without_stored(room, stop);
        };
        if let State::Between(passed) = self.state {
            return self.between(*first, passed);
        }
        let read = match &mut self.state {
            State::Header(header) => {
                let read = header.step(stored)?;
                if header.is_done() {
                    self.inflate.reset()?;
                    self.counted = Some(Content::default());
                    self.state = State::Body;
                }
                read
            }
            State::Bits(used) => {
                self.inflate.prime(8 - *used, *first >> *used)?;
                self.state = State::Body;
                1
            }
            State::Between(_) | State::Body => return self.body(stored, room, stop),
            State::Trailer(trailer) => {
                let read = trailer.step(stored);
                if trailer.is_done() {
                    self.counted.as_ref().map_or(Ok(()), |counted| trailer.check(counted))?;
                    self.state = State::Between(Passed::Members);
                }
                read
            }
            State::Padding => {
                if stored.iter().any(|byte| *byte != 0) {
                    return Err(garbage());
                }
                stored.len()
            }
        };
        Ok((Moved { read, written: 0 }, None))
    }

    /// Content may be left where no stored byte is.
    fn without_stored(&mut self, room: &mut [u8], stop: Stop) -> Result<(Moved, Option<Landmark>)> {
        match self.state {
            State::Body => self.body(&[], room, stop),
            _ => Ok((Moved::default(), Some(Landmark::None))),
        }
    }

    fn between(&mut self, first: u8, passed: Passed) -> Result<(Moved, Option<Landmark>)> {
        match (first, passed) {
            (0, Passed::Members) => {
                self.state = State::Padding;
                Ok((Moved::default(), None))
            }
            (0x1f, _) | (_, Passed::NoMember) => {
                self.state = State::Header(Header::new());
                Ok((Moved::default(), Some(Landmark::Member)))
            }
            _ => Err(garbage()),
        }
    }

    fn body(&mut self, stored: &[u8], room: &mut [u8], stop: Stop) -> Result<(Moved, Option<Landmark>)> {
        let inflated = self.inflate.step(stored, room, stop)?;
        let moved = Moved { read: inflated.read, written: inflated.written };
        if let Some(counted) = &mut self.counted {
            counted.add(room.get(..moved.written).unwrap_or_default());
        }
        let landmark = match inflated.place {
            Place::End => {
                self.state = State::Trailer(Trailer::default());
                None
            }
            Place::BlockEnd { unused } if stop == Stop::BlockEnd => Some(Landmark::BlockEnd(unused)),
            Place::LastBlockEnd => None,
            _ if moved.written == room.len() || moved.read == stored.len() => Some(Landmark::None),
            _ if (moved.read, moved.written) == (0, 0) => {
                return Err(Error::new(Kind::Invalid, "the deflate data leads nowhere"));
            }
            _ => None,
        };
        Ok((moved, landmark))
    }

    fn located(&self, error: Error) -> Error {
        error.context(format!("cannot decode gzip at stored byte {}", self.stored))
    }
}

fn advanced(place: u64, by: usize) -> Result<u64> {
    let by = u64::try_from(by).unwrap_or(u64::MAX);
    // Places in bits must fit, too.
    let place = place.checked_add(by).filter(|place| *place < u64::MAX / 16);
    place.ok_or_else(|| Error::new(Kind::Invalid, "the gzip file is too large"))
}

fn garbage() -> Error {
    Error::new(Kind::Invalid, "the last gzip member is followed by other bytes")
        .hint("write the layer again without what follows its gzip data")
}
