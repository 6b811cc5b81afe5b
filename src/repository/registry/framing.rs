//! Where the body of an answer ends: by its length, by its chunks, or with the connection (RFC 9112 §6.3). Values in, values
//! out.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use reqwest::StatusCode;
use reqwest::header::{CONTENT_LENGTH, HeaderMap, TRANSFER_ENCODING};

/// The longest line between chunks, and the most of trailers.
const LINE: usize = 16 << 10;

/// What is still to come of a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// So many bytes.
    Length(u64),
    /// Chunks, until one is empty.
    Chunked(Chunked),
    /// All that comes.
    UntilClosed,
}

/// Where in a chunked body we are (RFC 9112 §7.1).
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Chunked {
    /// Before a line that says how long the next chunk is.
    Size,
    /// So many bytes before a chunk's end.
    Data(u64),
    /// Before the line end after a chunk.
    End,
    /// After the last chunk, and after so many bytes of trailers.
    Trailers(usize),
}

/// What is next in a chunked body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// These bytes of it.
    Bytes(Bytes),
    /// Nothing, before more has come.
    More,
    /// Its end.
    Ended,
}

impl Framing {
    /// How the body of an answer to `GET` is framed.
    ///
    /// # Errors
    /// Where it is not said, or in two ways.
    pub(super) fn of(status: StatusCode, headers: &HeaderMap) -> io::Result<Self> {
        if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            return Ok(Self::Length(0));
        }
        let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
        let length = lengths.next();
        let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
        if let Some(coding) = codings.next() {
            let chunked = coding.as_bytes().eq_ignore_ascii_case(b"chunked") && codings.next().is_none();
            return match length {
                None if chunked => Ok(Self::Chunked(Chunked::Size)),
                None => Err(strange("a body in a transfer coding other than chunked")),
                Some(_) => Err(strange("a body with both a length and a transfer coding")),
            };
        }
        let Some(length) = length else { return Ok(Self::UntilClosed) };
        if lengths.any(|other| other != length) {
            return Err(strange("a body of two lengths"));
        }
        let digits = length.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let length = digits.and_then(|digits| digits.parse().ok());
        length.map(Self::Length).ok_or_else(|| strange("a body of no length that can be meant"))
    }
}

impl Chunked {
    /// Takes the next step off what came.
    ///
    /// # Errors
    /// Where it is no chunked body.
    pub(super) fn step(&mut self, came: &mut BytesMut) -> io::Result<Step> {
        loop {
            match self {
                Self::Data(_) if came.is_empty() => return Ok(Step::More),
                Self::Data(left) => {
                    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(came.len());
                    *left = left.saturating_sub(count as u64);
                    if *left == 0 {
                        *self = Self::End;
                    }
                    return Ok(Step::Bytes(came.split_to(count).freeze()));
                }
                Self::End if came.len() < 2 => return Ok(Step::More),
                Self::End => {
                    if !came.starts_with(b"\r\n") {
                        return Err(strange("a chunk longer than it says"));
                    }
                    came.advance(2);
                    *self = Self::Size;
                }
                Self::Size => match httparse::parse_chunk_size(came) {
                    Ok(httparse::Status::Complete((line, size))) => {
                        came.advance(line);
                        *self = if size == 0 { Self::Trailers(0) } else { Self::Data(size) };
                    }
                    Ok(httparse::Status::Partial) if came.len() < LINE => return Ok(Step::More),
                    _ => return Err(strange("a chunk without a size")),
                },
                Self::Trailers(passed) => match came.iter().position(|byte| *byte == b'\n') {
                    Some(end) if *passed + end < LINE => {
                        *passed += end + 1;
                        if came.split_to(end + 1).trim_ascii().is_empty() {
                            return Ok(Step::Ended);
                        }
                    }
                    None if *passed + came.len() < LINE => return Ok(Step::More),
                    _ => return Err(strange("trailers without an end")),
                },
            }
        }
    }
}

/// What breaks the rules.
pub(super) fn strange(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All of a chunked body that comes in pieces of so many bytes.
    fn body(text: &str, piece: usize) -> io::Result<String> {
        let (mut chunked, mut came, mut all) = (Chunked::Size, BytesMut::new(), Vec::new());
        let mut pieces = text.as_bytes().chunks(piece);
        loop {
            match chunked.step(&mut came)? {
                Step::Bytes(bytes) => all.extend_from_slice(&bytes),
                Step::Ended => return Ok(String::from_utf8(all).unwrap()),
                Step::More => match pieces.next() {
                    Some(piece) => came.extend_from_slice(piece),
                    None => return Err(io::ErrorKind::UnexpectedEof.into()),
                },
            }
        }
    }

    #[test]
    fn chunks_may_be_cut_anywhere() {
        let text = "2;x=y\r\nby\r\n003\r\ntes\r\n0\r\nA: b\r\nC: d\r\n\r\n";
        for piece in 1..text.len() {
            assert_eq!(body(text, piece).unwrap(), "bytes");
        }
    }

    #[test]
    fn what_is_no_chunk_is_an_error_and_what_is_cut_too() {
        for text in [
            "x\r\n",
            "2\r\nbyt",
            "-1\r\n",
            "ffffffffffffffffff\r\n",
            &"1".repeat(LINE + 1),
            "0\r\n",
            "5\r\nby",
        ] {
            assert!(body(text, 3).is_err(), "{text:?}");
        }
        for long in ["a".repeat(2 * LINE), "a: b\r\n".repeat(LINE)] {
            assert!(body(&format!("0\r\n{long}"), 1000).is_err());
        }
    }
}
