//! Where the tensors of a GGUF file lie, from its header (GGUF specification, versions 2 and 3).
//!
//! Reads no more than it must: keys and values are stepped over, names are not kept. Every count in the header is
//! somebody else's word, so nothing is allocated by it.

/// The largest GGUF header that is read. Vocabularies make them large: 2 to 15 MiB is usual.
pub const HEADER_LIMIT: u64 = 32 << 20;
/// Where tensor data is aligned to unless the header says otherwise.
const ALIGNMENT: u64 = 32;
/// The deepest nesting of arrays that is followed; writers use one level.
const DEPTH: u32 = 4;

/// What the first bytes of a file say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Header {
    /// It is longer than the bytes given.
    Longer,
    /// It is none, or breaks the format.
    Malformed,
    /// Where the header ends and each tensor begins, from the start of the file, ascending.
    Tensors(Vec<u64>),
}

/// Parses a header from the first bytes of a file.
#[must_use]
pub fn parse(bytes: &[u8]) -> Header {
    let mut reader = Reader { bytes, at: 0 };
    match reader.header() {
        Ok(starts) => Header::Tensors(starts),
        Err(Stop::Longer) => Header::Longer,
        Err(Stop::Malformed) => Header::Malformed,
    }
}

#[derive(Debug)]
enum Stop {
    Longer,
    Malformed,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn header(&mut self) -> Result<Vec<u64>, Stop> {
        let magic = self.take(4)?;
        if magic != b"GGUF" || !(2..=3).contains(&self.u32()?) {
            return Err(Stop::Malformed);
        }
        let (tensors, pairs) = (self.u64()?, self.u64()?);
        let mut alignment = ALIGNMENT;
        for _ in 0..pairs {
            let named = self.string()? == b"general.alignment";
            let kind = self.u32()?;
            if named && kind == 4 {
                alignment = u64::from(self.u32()?);
            } else {
                self.skip_value(kind, DEPTH)?;
            }
        }
        let mut offsets = Vec::new();
        for _ in 0..tensors {
            offsets.push(self.tensor()?);
        }
        self.starts(offsets, alignment)
    }

    fn starts(&self, offsets: Vec<u64>, alignment: u64) -> Result<Vec<u64>, Stop> {
        let header = u64::try_from(self.at).map_err(|_| Stop::Malformed)?;
        let data = header.checked_next_multiple_of(alignment).ok_or(Stop::Malformed)?;
        let starts = offsets.into_iter().map(|offset| data.checked_add(offset).ok_or(Stop::Malformed));
        let mut starts = starts.collect::<Result<Vec<u64>, Stop>>()?;
        starts.push(data);
        starts.sort_unstable();
        starts.dedup();
        Ok(starts)
    }

    /// Steps over a tensor's description and gives its offset within the data.
    fn tensor(&mut self) -> Result<u64, Stop> {
        self.string()?;
        let dimensions = self.u32()?;
        if dimensions > 8 {
            return Err(Stop::Malformed);
        }
        for _ in 0..dimensions {
            self.u64()?;
        }
        self.u32()?;
        self.u64()
    }

    fn skip_value(&mut self, kind: u32, depth: u32) -> Result<(), Stop> {
        match (kind, size_of_kind(kind)) {
            (_, Some(size)) => self.skip(size),
            (8, _) => self.string().map(|_| ()),
            (9, _) if depth > 0 => {
                let (element, count) = (self.u32()?, self.u64()?);
                if let Some(size) = size_of_kind(element) {
                    return self.skip(size.checked_mul(count).ok_or(Stop::Malformed)?);
                }
                (0..count).try_for_each(|_| self.skip_value(element, depth - 1))
            }
            _ => Err(Stop::Malformed),
        }
    }

    fn string(&mut self) -> Result<&[u8], Stop> {
        let len = self.u64()?;
        self.take(len)
    }

    fn u32(&mut self) -> Result<u32, Stop> {
        self.take(4)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes)).ok_or(Stop::Longer)
    }

    fn u64(&mut self) -> Result<u64, Stop> {
        self.take(8)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)).ok_or(Stop::Longer)
    }

    fn skip(&mut self, len: u64) -> Result<(), Stop> {
        self.take(len).map(|_| ())
    }

    fn take(&mut self, len: u64) -> Result<&[u8], Stop> {
        if len > HEADER_LIMIT {
            return Err(Stop::Malformed);
        }
        let len = usize::try_from(len).map_err(|_| Stop::Malformed)?;
        let end = self.at.checked_add(len).ok_or(Stop::Malformed)?;
        let taken = self.bytes.get(self.at..end).ok_or(Stop::Longer)?;
        self.at = end;
        Ok(taken)
    }
}

/// The size of a value of fixed size, by its type number.
pub(crate) fn size_of_kind(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(out: &mut Vec<u8>, text: &str) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    }

    /// A header with an alignment, an array of strings and two tensors; the data would follow.
    fn sample() -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend(2u64.to_le_bytes());
        out.extend(2u64.to_le_bytes());
        string(&mut out, "general.alignment");
        out.extend(4u32.to_le_bytes());
        out.extend(64u32.to_le_bytes());
        string(&mut out, "tokens");
        out.extend(9u32.to_le_bytes());
        out.extend(8u32.to_le_bytes());
        out.extend(2u64.to_le_bytes());
        string(&mut out, "a");
        string(&mut out, "bc");
        for (name, offset) in [("second", 4096u64), ("first", 0)] {
            string(&mut out, name);
            out.extend(1u32.to_le_bytes());
            out.extend(1024u64.to_le_bytes());
            out.extend(0u32.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out
    }

    #[test]
    fn a_header_tells_where_each_tensor_begins() {
        let header = sample();
        let data = (header.len() as u64).next_multiple_of(64);
        assert_eq!(parse(&header), Header::Tensors(vec![data, data + 4096]));
    }

    #[test]
    fn a_header_cut_short_is_longer_and_never_anything_else() {
        let header = sample();
        for len in 0..header.len() {
            assert_eq!(parse(&header[..len]), Header::Longer, "{len}");
        }
    }

    #[test]
    fn counts_that_cannot_be_are_refused_without_being_believed() {
        assert_eq!(parse(b"GGML\0\0\0\0"), Header::Malformed);
        let mut header = sample();
        header[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(parse(&header), Header::Longer);
        let mut header = sample();
        header[24..32].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(parse(&header), Header::Malformed, "a name of 16 EiB");
    }
}
