//! Where the tensors of a weight file lie, from its header, so that reading ahead stops where a tensor does.

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::range::ContentRange;

/// The largest safetensors header that is read: 32 MiB (the format's own limit is 100 MB).
pub const HEADER_LIMIT: u64 = 32 << 20;

/// The ends of a file's tensors, in order. Built once a file, asked on every read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensors {
    /// Where each stretch ends, ascending; the first is the header.
    ends: Vec<u64>,
}

impl Tensors {
    /// How many bytes the safetensors header has, from the first eight of the file, these eight included.
    ///
    /// `None` where they are too few or say what cannot be.
    #[must_use]
    pub fn header_len(head: &[u8]) -> Option<u64> {
        let len = u64::from_le_bytes(*head.first_chunk()?);
        (2..=HEADER_LIMIT).contains(&len).then(|| len + 8)
    }

    /// The tensors that a safetensors header names, or `None` where it is malformed or leaves the file.
    ///
    /// `header` is the whole header with its length word, `len` the file's size in bytes.
    #[must_use]
    pub fn parse(header: &[u8], len: u64) -> Option<Self> {
        let data = Self::header_len(header)?;
        let json = header.get(8..usize::try_from(data).ok()?)?;
        let offsets: Offsets = serde_json::from_slice(json).ok()?;
        let mut ends = vec![data];
        for end in offsets.0 {
            let end = data.checked_add(end).filter(|end| *end <= len)?;
            ends.push(end);
        }
        ends.sort_unstable();
        ends.dedup();
        Some(Self { ends })
    }

    /// The tensors that begin at `starts` (ascending), each reaching to the next, as a GGUF file has them.
    #[must_use]
    pub fn beginning_at(starts: Vec<u64>) -> Self {
        Self { ends: starts }
    }

    /// The tensor that holds the byte at `at`, header included; the rest of the file behind the last one.
    #[must_use]
    pub fn around(&self, at: u64, len: u64) -> ContentRange {
        let next = self.ends.partition_point(|end| *end <= at);
        let start = next.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        ContentRange::new(start, self.ends.get(next).copied().unwrap_or(len))
    }
}

/// The ends of `data_offsets` of every entry but `__metadata__`, without keeping the names.
struct Offsets(Vec<u64>);

#[derive(Deserialize)]
struct Tensor {
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for Offsets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Offsets;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a safetensors header")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Offsets, A::Error> {
                let mut ends = Vec::new();
                while let Some(name) = map.next_key::<std::borrow::Cow<'de, str>>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        ends.push(map.next_value::<Tensor>()?.data_offsets.1);
                    }
                }
                Ok(Offsets(ends))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(json: &str) -> Vec<u8> {
        let mut header = (json.len() as u64).to_le_bytes().to_vec();
        header.extend_from_slice(json.as_bytes());
        header
    }

    #[test]
    fn a_header_tells_where_each_tensor_lies() {
        let header = header(
            r#"{"__metadata__":{"format":"pt"},
            "b":{"dtype":"F32","shape":[1],"data_offsets":[100,300]},
            "a":{"dtype":"F32","shape":[1],"data_offsets":[0,100]}}"#,
        );
        let data = header.len() as u64;
        let tensors = Tensors::parse(&header, data + 300).unwrap();
        assert_eq!(tensors.around(0, data + 300), ContentRange::new(0, data));
        assert_eq!(tensors.around(data, data + 300), ContentRange::new(data, data + 100));
        assert_eq!(tensors.around(data + 299, data + 300), ContentRange::new(data + 100, data + 300));
        assert!(Tensors::parse(&header, data + 299).is_none(), "leaves the file");
    }

    #[test]
    fn a_malformed_header_has_no_tensors() {
        assert_eq!(Tensors::header_len(&[1, 2, 3]), None);
        assert_eq!(Tensors::header_len(&u64::MAX.to_le_bytes()), None);
        assert!(Tensors::parse(&header("{"), 1 << 40).is_none());
        assert!(Tensors::parse(&header(r#"{"a":{"data_offsets":[0,-1]}}"#), 1 << 40).is_none());
        assert!(Tensors::parse(&header("[]"), 1 << 40).is_none());
    }
}
