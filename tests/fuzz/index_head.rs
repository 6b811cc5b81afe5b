//! The head of an index from anybody: it is refused, or what it says has that one form.
//!
//! The input is an index as it is published, head and sections; its golden files are the seeds.

use bytes::Bytes;
use weightfs::index::format;
use weightfs::oci::{Blob, Digest};

/// Runs the input, and panics where it shows a fault.
pub fn run(data: &[u8]) {
    let index = Bytes::copy_from_slice(data);
    let said = number(data, 16).and_then(|length| usize::try_from(length).ok());
    let head = index.slice(..said.unwrap_or(usize::MAX).min(data.len()));
    // Also with the size that the head itself asks for, so that a changed section is not all that is ever seen.
    let sizes = [u64::try_from(data.len()).ok(), end_of_sections(data)];
    for size in sizes.into_iter().flatten() {
        let blob = Blob { digest: Digest::of(b""), size };
        if let Ok(found) = format::decode(&head, &blob) {
            assert_eq!(found.encode().expect("what was decoded is encoded"), head);
        }
    }
}

fn number(data: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*data.get(at..)?.first_chunk()?))
}

/// The length of the head and of all sections by their records.
fn end_of_sections(data: &[u8]) -> Option<u64> {
    let rows = |at: usize| Some(u64::from(u32::from_le_bytes(*data.get(at..)?.first_chunk()?)));
    let records = 64 + rows(24)? * 160 + rows(28)? * 16 + rows(32)? * 40;
    let mut end = number(data, 16)?;
    for record in 0..rows(36)?.min(1000) {
        let at = usize::try_from(records + record * 64 + 16).ok()?;
        end = end.checked_add(number(data, at)?)?;
    }
    Some(end)
}
