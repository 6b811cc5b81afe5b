//! A stranger's JSON as values, and text that is made of it: bounded before memory is taken, so that a config of 4 MiB costs some
//! multiple of itself and not a hundred times as much.
//!
//! For configs, which no rule says the size of. Called by whoever reads one as a tree of values.

use serde_json::Value;

use crate::error::{Error, Kind, Result};

/// The most values that are read: an image of the most layers that are read has a digest for each, and little besides.
const VALUES: usize = 16 << 10;

/// How deep values may lie in one another.
const DEPTH: usize = 64;

/// How much text is made of a config of few bytes.
const LEAST: usize = 64 << 10;

/// The JSON as a value. Takes some times its bytes, and 16 MiB at most beside.
///
/// # Errors
/// [`Kind::Invalid`] where it is no JSON, has more than 16 384 values, or some that lie deeper than 64 in others.
pub(super) fn json(bytes: &[u8]) -> Result<Value> {
    refuse_many(bytes)?;
    serde_json::from_slice(bytes).map_err(|error| Error::from_source(Kind::Invalid, "it is no JSON", error))
}

/// Each value but the first follows a comma or begins a list or an object; in texts neither counts. As far as the bytes are JSON,
/// and no further are they read as such.
fn refuse_many(bytes: &[u8]) -> Result<()> {
    let (mut values, mut depth) = (1_usize, 0_usize);
    let (mut in_text, mut escaped) = (false, false);
    for byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            _ if in_text => {}
            b',' => values += 1,
            b'[' | b'{' => (values, depth) = (values + 1, depth + 1),
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if values > VALUES || depth > DEPTH {
            let doing = format!("it has more than {VALUES} values, or some deeper than {DEPTH} in others");
            return Err(Error::new(Kind::Invalid, doing));
        }
    }
    Ok(())
}

/// Text that ends where it is too long.
#[derive(Debug)]
pub(super) struct Text {
    text: String,
    limit: usize,
    is_full: bool,
}

impl Text {
    /// Nothing yet of what is made of `source` bytes: twice as many at most, or 64 KiB more where there are few.
    pub(super) fn of(source: usize) -> Self {
        let limit = source.saturating_mul(2).saturating_add(LEAST);
        Self { text: String::new(), limit, is_full: false }
    }

    pub(super) fn push_str(&mut self, more: &str) {
        self.is_full |= self.text.len().saturating_add(more.len()) > self.limit;
        if !self.is_full {
            self.text.push_str(more);
        }
    }

    pub(super) fn push(&mut self, letter: char) {
        self.push_str(letter.encode_utf8(&mut [0; 4]));
    }

    /// So many spaces.
    pub(super) fn indent(&mut self, count: usize) {
        (0..count).for_each(|_| self.push(' '));
    }

    /// All of it.
    ///
    /// # Errors
    /// [`Kind::Invalid`] where it was too long.
    pub(super) fn finish(self) -> Result<String> {
        match self.is_full {
            false => Ok(self.text),
            true => {
                let doing = format!("what is made of it has more than {} bytes", self.limit);
                Err(Error::new(Kind::Invalid, doing))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_values_than_any_config_has_are_refused_before_they_take_memory() {
        let list = |count: usize| format!("[{}0]", "0,".repeat(count - 1));
        assert!(json(list(VALUES - 1).as_bytes()).is_ok());
        let error = json(list(VALUES).as_bytes()).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.to_string().contains("16384 values"), "{error}");
        let objects = format!("[{}{{}}]", r#"{"":0},"#.repeat(VALUES));
        assert!(json(objects.as_bytes()).is_err());
    }

    #[test]
    fn values_that_lie_deep_in_others_are_refused_and_texts_count_for_nothing() {
        let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(json(deep(DEPTH).as_bytes()).is_ok());
        assert!(json(deep(DEPTH + 1).as_bytes()).is_err());
        let text = format!(r#""{}\"{}\\""#, "[,{".repeat(VALUES), "[".repeat(VALUES));
        assert!(json(text.as_bytes()).unwrap().is_string());
        for bad in ["", "{", "[1,]", "nul"] {
            assert_eq!(json(bad.as_bytes()).unwrap_err().kind(), Kind::Invalid, "{bad}");
        }
    }

    #[test]
    fn text_that_grows_beyond_twice_its_source_is_an_error() {
        let mut text = Text::of(10);
        text.push_str(&"x".repeat(LEAST + 20));
        assert_eq!(text.finish().unwrap().len(), LEAST + 20);
        let mut text = Text::of(10);
        text.push_str(&"x".repeat(LEAST + 20));
        text.indent(1);
        assert_eq!(text.finish().unwrap_err().kind(), Kind::Invalid);
    }
}
