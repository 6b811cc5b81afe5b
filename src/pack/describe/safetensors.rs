//! How many numbers of which type a safetensors file holds, from its header.
//!
//! The header is JSON behind a length; it is read as a stream, and nothing is kept of it but sums by type.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufReader, Read};

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

/// The largest header that is read: 100 MB, the format's own limit.
const HEADER_LIMIT: u64 = 100_000_000;

/// Numbers in all tensors, by the type's name as the format spells it (`BF16`).
pub(super) type Counts = BTreeMap<String, u64>;

/// The types of the format; another name is somebody else's word, and counted under none.
const TYPES: [&str; 16] = [
    "BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F4", "I16", "U16", "F16", "BF16", "I32", "U32",
    "F32", "F64", "I64",
];

/// The counts of the file that `reader` stands at the start of; `None` where it is no safetensors file.
pub(super) fn counts(mut reader: impl Read) -> Option<Counts> {
    let mut len = [0; 8];
    reader.read_exact(&mut len).ok()?;
    let len = u64::from_le_bytes(len);
    if !(2..=HEADER_LIMIT).contains(&len) {
        return None;
    }
    let header: Header = serde_json::from_reader(BufReader::new(reader.take(len))).ok()?;
    Some(header.0)
}

struct Header(Counts);

#[derive(Deserialize)]
struct Tensor {
    dtype: String,
    shape: Numbers,
}

/// The product of a list of sizes, without the list; `None` where it does not fit.
struct Numbers(Option<u64>);

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Shape;
        impl<'de> Visitor<'de> for Shape {
            type Value = Numbers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the sizes of a tensor")
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut all: A) -> Result<Numbers, A::Error> {
                let mut product = Some(1_u64);
                while let Some(size) = all.next_element::<u64>()? {
                    product = product.and_then(|product| product.checked_mul(size));
                }
                Ok(Numbers(product))
            }
        }
        deserializer.deserialize_seq(Shape)
    }
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a safetensors header")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut counts = Counts::new();
                while let Some(name) = map.next_key::<Cow<'de, str>>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let tensor: Tensor = map.next_value()?;
                    let numbers = tensor.shape.0.unwrap_or(u64::MAX);
                    if TYPES.contains(&tensor.dtype.as_str()) {
                        let count = counts.entry(tensor.dtype).or_default();
                        *count = count.saturating_add(numbers);
                    }
                }
                Ok(Header(counts))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A file with these tensors' descriptions and no data.
    pub(in super::super) fn file(tensors: &[(&str, &str, &[u64])]) -> Vec<u8> {
        let entries = tensors.iter().map(|(name, dtype, shape)| {
            (name.to_string(), serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}))
        });
        let mut header: serde_json::Map<String, serde_json::Value> = entries.collect();
        header.insert("__metadata__".into(), serde_json::json!({"format": "pt"}));
        let json = serde_json::Value::Object(header).to_string();
        [(json.len() as u64).to_le_bytes().to_vec(), json.into_bytes()].concat()
    }

    #[test]
    fn numbers_are_counted_by_type() {
        let file =
            file(&[("a", "BF16", &[3, 4]), ("b", "F32", &[5]), ("c", "BF16", &[]), ("d", "ODD", &[9])]);
        let counts = counts(file.as_slice()).unwrap();
        assert_eq!(counts, Counts::from([("BF16".into(), 13), ("F32".into(), 5)]));
    }

    #[test]
    fn what_is_no_header_counts_nothing_and_is_not_believed() {
        for bad in
            [&b""[..], b"1234567", &u64::MAX.to_le_bytes(), b"\x02\0\0\0\0\0\0\0[]", b"\x40\0\0\0\0\0\0\0{}"]
        {
            let counted = counts(bad);
            assert!(counted.is_none() || counted.is_some_and(|counts| counts.is_empty()), "{bad:?}");
        }
        let huge = file(&[("a", "F16", &[u64::MAX, 2])]);
        assert_eq!(counts(huge.as_slice()).unwrap()["F16"], u64::MAX);
    }
}
