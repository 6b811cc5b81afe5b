//! What a GGUF file says of the model: a few of its keys, and how many numbers its tensors hold.
//!
//! Read as a stream (GGUF specification, versions 2 and 3): keys and values that are not wanted are stepped over, and
//! every count is only a number of steps, so that nothing is allocated by it.

use std::io::{BufReader, Read, Seek};

use crate::content::prefetch::gguf::size_of_kind;

/// The longest text that is kept; longer ones are stepped over.
const TEXT_LIMIT: u64 = 4096;
/// The deepest nesting of arrays that is followed; writers use one level.
const DEPTH: u32 = 4;
/// The most keys, and the most tensors: a thousand times what there is in the wild.
const COUNT_LIMIT: u64 = 10_000_000;
/// The longest header that is read: vocabularies make it 2 to 15 MiB.
const HEADER_LIMIT: u64 = 512 << 20;

/// What is said; `None` for what is not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// `general.architecture`.
    pub(super) architecture: Option<String>,
    /// `general.name`.
    pub(super) name: Option<String>,
    /// `general.license`.
    pub(super) license: Option<String>,
    /// `general.size_label`.
    pub(super) size_label: Option<String>,
    /// `general.parameter_count`.
    pub(super) parameters: Option<u64>,
    /// `general.file_type`.
    pub(super) file_type: Option<u64>,
    /// `split.count`.
    pub(super) shards: Option<u64>,
    /// `split.no`.
    pub(super) shard: Option<u64>,
    /// Numbers in all its tensors.
    pub(super) numbers: u64,
}

impl Facts {
    /// The facts of the file that `reader` stands at the start of; `None` where it is no GGUF file, or cut short.
    pub(super) fn read(reader: impl Read + Seek) -> Option<Self> {
        let mut stream = Stream { reader: BufReader::with_capacity(64 << 10, reader), left: HEADER_LIMIT };
        if stream.array::<4>()? != *b"GGUF" || !(2..=3).contains(&stream.u32()?) {
            return None;
        }
        let (tensors, pairs) = (stream.count()?, stream.count()?);
        let mut facts = Self::default();
        for _ in 0..pairs {
            facts.pair(&mut stream)?;
        }
        for _ in 0..tensors {
            facts.numbers = facts.numbers.saturating_add(stream.tensor()?);
        }
        Some(facts)
    }

    fn pair<R: Read + Seek>(&mut self, stream: &mut Stream<R>) -> Option<()> {
        let key = stream.text()?.unwrap_or_default();
        let kind = stream.u32()?;
        let text = match key.as_str() {
            "general.architecture" => Some(&mut self.architecture),
            "general.name" => Some(&mut self.name),
            "general.license" => Some(&mut self.license),
            "general.size_label" => Some(&mut self.size_label),
            _ => None,
        };
        let number = match key.as_str() {
            "general.parameter_count" => Some(&mut self.parameters),
            "general.file_type" => Some(&mut self.file_type),
            "split.count" => Some(&mut self.shards),
            "split.no" => Some(&mut self.shard),
            _ => None,
        };
        match (text, number, kind) {
            (Some(slot), _, 8) => *slot = stream.text()?.filter(|text| !text.trim().is_empty()),
            (_, Some(slot), 0 | 2 | 4 | 10) => *slot = Some(stream.number(kind)?),
            _ => stream.skip_value(kind, DEPTH)?,
        }
        Some(())
    }
}

/// A header in the reading.
struct Stream<R> {
    reader: BufReader<R>,
    /// How much of it may still be read.
    left: u64,
}

impl<R: Read + Seek> Stream<R> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.left = self.left.checked_sub(u64::try_from(N).ok()?)?;
        self.reader.read_exact(&mut bytes).ok()?;
        Some(bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn count(&mut self) -> Option<u64> {
        self.u64().filter(|count| *count <= COUNT_LIMIT)
    }

    /// An unsigned number by its type.
    fn number(&mut self, kind: u32) -> Option<u64> {
        match kind {
            0 => self.array::<1>().map(|[byte]| u64::from(byte)),
            2 => self.array().map(|bytes| u64::from(u16::from_le_bytes(bytes))),
            4 => self.u32().map(u64::from),
            _ => self.u64(),
        }
    }

    /// A text; the inner `None` is for one that is too long or no UTF-8.
    fn text(&mut self) -> Option<Option<String>> {
        let len = self.u64()?;
        if len > TEXT_LIMIT {
            return self.skip(len).map(|()| None);
        }
        self.left = self.left.checked_sub(len)?;
        let mut bytes = vec![0; usize::try_from(len).ok()?];
        self.reader.read_exact(&mut bytes).ok()?;
        Some(String::from_utf8(bytes).ok())
    }

    /// Steps over a tensor's description and gives how many numbers it has.
    fn tensor(&mut self) -> Option<u64> {
        self.text()?;
        let dimensions = self.u32().filter(|dimensions| *dimensions <= 8)?;
        let mut numbers = 1_u64;
        for _ in 0..dimensions {
            numbers = numbers.saturating_mul(self.u64()?);
        }
        self.array::<12>()?;
        Some(numbers)
    }

    fn skip_value(&mut self, kind: u32, depth: u32) -> Option<()> {
        match (kind, size_of_kind(kind)) {
            (_, Some(size)) => self.skip(size),
            (8, _) => {
                let len = self.u64()?;
                self.skip(len)
            }
            (9, _) if depth > 0 => {
                let (element, count) = (self.u32()?, self.u64()?);
                match size_of_kind(element) {
                    Some(size) => self.skip(size.checked_mul(count)?),
                    None => (0..count).try_for_each(|_| self.skip_value(element, depth - 1)),
                }
            }
            _ => None,
        }
    }

    /// Steps over bytes; whether there are so many shows at the next read.
    fn skip(&mut self, len: u64) -> Option<()> {
        self.left = self.left.checked_sub(len)?;
        self.reader.seek_relative(i64::try_from(len).ok()?).ok()
    }
}

/// The name that llama.cpp gives to a `general.file_type` (its enumeration of file types); `None` for one it does not
/// name, or no more.
pub(super) fn file_type(number: u64) -> Option<&'static str> {
    const NAMES: [(u64, &str); 33] = [
        (0, "F32"),
        (1, "F16"),
        (2, "Q4_0"),
        (3, "Q4_1"),
        (7, "Q8_0"),
        (8, "Q5_0"),
        (9, "Q5_1"),
        (10, "Q2_K"),
        (11, "Q3_K_S"),
        (12, "Q3_K_M"),
        (13, "Q3_K_L"),
        (14, "Q4_K_S"),
        (15, "Q4_K_M"),
        (16, "Q5_K_S"),
        (17, "Q5_K_M"),
        (18, "Q6_K"),
        (19, "IQ2_XXS"),
        (20, "IQ2_XS"),
        (21, "Q2_K_S"),
        (22, "IQ3_XS"),
        (23, "IQ3_XXS"),
        (24, "IQ1_S"),
        (25, "IQ4_NL"),
        (26, "IQ3_S"),
        (27, "IQ3_M"),
        (28, "IQ2_S"),
        (29, "IQ2_M"),
        (30, "IQ4_XS"),
        (31, "IQ1_M"),
        (32, "BF16"),
        (36, "TQ1_0"),
        (37, "TQ2_0"),
        (38, "MXFP4_MOE"),
    ];
    NAMES.iter().find_map(|(known, name)| (*known == number).then_some(*name))
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Cursor;

    use super::*;

    /// A value of a key.
    pub(in super::super) enum Value<'a> {
        Text(&'a str),
        U32(u32),
        U64(u64),
        Texts(&'a [&'a str]),
    }

    fn text(out: &mut Vec<u8>, text: &str) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    }

    /// A file with these keys and one tensor for each shape, without data.
    pub(in super::super) fn file(pairs: &[(&str, Value<'_>)], shapes: &[&[u64]]) -> Vec<u8> {
        let mut out = [&b"GGUF"[..], &3_u32.to_le_bytes()].concat();
        out.extend((shapes.len() as u64).to_le_bytes());
        out.extend((pairs.len() as u64).to_le_bytes());
        for (key, value) in pairs {
            text(&mut out, key);
            let kind: u32 = match value {
                Value::Text(_) => 8,
                Value::U32(_) => 4,
                Value::U64(_) => 10,
                Value::Texts(_) => 9,
            };
            out.extend(kind.to_le_bytes());
            match value {
                Value::Text(value) => text(&mut out, value),
                Value::U32(value) => out.extend(value.to_le_bytes()),
                Value::U64(value) => out.extend(value.to_le_bytes()),
                Value::Texts(all) => {
                    out.extend(8_u32.to_le_bytes());
                    out.extend((all.len() as u64).to_le_bytes());
                    all.iter().for_each(|one| text(&mut out, one));
                }
            }
        }
        for shape in shapes {
            text(&mut out, "tensor");
            out.extend(u32::try_from(shape.len()).unwrap().to_le_bytes());
            shape.iter().for_each(|size| out.extend(size.to_le_bytes()));
            out.extend([0; 12]);
        }
        out
    }

    fn sample() -> Vec<u8> {
        let pairs = [
            ("tokens", Value::Texts(&["a", "bc"])),
            ("general.architecture", Value::Text("llama")),
            ("general.file_type", Value::U32(15)),
            ("general.parameter_count", Value::U64(8)),
            ("general.size_label", Value::U32(5)),
        ];
        file(&pairs, &[&[2, 3], &[4]])
    }

    #[test]
    fn the_keys_that_are_known_are_read_and_the_others_stepped_over() {
        let facts = Facts::read(Cursor::new(sample())).unwrap();
        assert_eq!(facts.architecture.as_deref(), Some("llama"));
        assert_eq!((facts.file_type, facts.parameters, facts.numbers), (Some(15), Some(8), 10));
        assert_eq!(facts.size_label, None, "of another type than it should be");
        assert_eq!(file_type(15), Some("Q4_K_M"));
    }

    #[test]
    fn a_header_cut_short_says_nothing() {
        let whole = sample();
        for len in 0..whole.len() {
            assert_eq!(Facts::read(Cursor::new(&whole[..len])), None, "{len}");
        }
    }

    #[test]
    fn counts_that_cannot_be_are_not_believed() {
        for at in [8, 16, 24] {
            let mut file = sample();
            file[at..at + 8].copy_from_slice(&(u64::MAX / 2).to_le_bytes());
            assert_eq!(Facts::read(Cursor::new(file)), None, "{at}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_header_with_any_bytes_changed_is_survived(
            changes in proptest::collection::vec((0_usize..200, proptest::num::u8::ANY), 1..8)
        ) {
            let mut file = sample();
            for (at, byte) in changes {
                let len = file.len();
                file[at % len] = byte;
            }
            let _whatever = Facts::read(Cursor::new(file));
        }
    }
}
