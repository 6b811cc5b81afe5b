//! Tests of zstd:chunked in both dialects, written here as their writers do.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "sizes of tests fit"
)]

use serde_json::{Value, json};

use super::chunked::{self, CHECKSUM_KEYS, Dialect, POSITION_KEYS, Position};
use super::tests::{content, frame, skippable};
use crate::codec::toc::tests::table;
use crate::codec::toc::{ContentDigest, EntryKind, JSON_LIMIT, Part};
use crate::error::Kind;
use crate::range::StoredRange;

struct Blob {
    stored: Vec<u8>,
    position: String,
    checksum: String,
    files: Vec<Vec<u8>>,
}

fn sum(content: &[u8]) -> String {
    ContentDigest::of(content).to_string()
}

/// A blob of one file in one frame and one in two; frames of `Stargz` hold what follows a file in the archive, too.
fn blob(dialect: Dialect) -> Blob {
    let files = vec![content(5000, 1), content(9000, 2)];
    let after = if dialect == Dialect::Stargz { &[0; 700][..] } else { b"" };
    let mut stored = frame(&[1; 512]);
    let (mut entries, mut starts) = (Vec::<Value>::new(), Vec::new());
    for part in [&files[0][..], &files[1][..6000], &files[1][6000..]] {
        starts.push(stored.len());
        stored.extend(frame(&[part, after].concat()));
        if dialect == Dialect::Storage && part.len() != 6000 {
            starts.push(stored.len());
            stored.extend(frame(&[2; 512]));
        }
    }
    let is_storage = dialect == Dialect::Storage;
    let [one, one_end, two, three, three_end] = match is_storage {
        true => [starts[0], starts[1], starts[2], starts[3], starts[4]],
        false => [starts[0], 0, starts[1], starts[2], 0],
    };
    entries.push(json!({"type": "reg", "name": "a", "size": 5000, "offset": one, "endOffset": one_end, "digest": sum(&files[0])}));
    entries.push(json!({"type": "reg", "name": "b", "size": 9000, "offset": two, "endOffset": three_end,
        "digest": sum(&files[1]), "chunkSize": 6000, "chunkDigest": sum(&files[1][..6000])}));
    entries
        .push(json!({"type": "chunk", "name": "b", "offset": three, "chunkOffset": 6000, "chunkSize": 3000,
        "chunkDigest": sum(&files[1][6000..])}));
    let json = table(&entries);
    let toc = frame(&json);
    let start = stored.len() + 8;
    stored.extend(skippable(0, &toc));
    let numbers = [start, toc.len(), json.len(), 1];
    let mut footer: Vec<u8> = numbers.iter().flat_map(|number| (*number as u64).to_le_bytes()).collect();
    if is_storage {
        let tar_split = stored.len() + 8;
        stored.extend(skippable(0, b"tar-split"));
        footer.extend([tar_split as u64, 9, 9].iter().flat_map(|number| number.to_le_bytes()));
    }
    footer.extend(if is_storage { b"GNUlInUx" } else { b"GnUlInUx" });
    stored.extend(skippable(0, &footer));
    let position = numbers.map(|number| number.to_string()).join(":");
    Blob { stored, position, checksum: sum(&toc), files }
}

fn annotated(blob: &Blob, which: usize) -> crate::Result<Option<Position>> {
    let size = blob.stored.len() as u64;
    chunked::annotated(
        |key| match key {
            key if key == POSITION_KEYS[which] => Some(&*blob.position),
            key if key == CHECKSUM_KEYS[which] => Some(&*blob.checksum),
            _ => None,
        },
        size,
    )
}

fn bytes_of(stored: &[u8], range: StoredRange) -> &[u8] {
    &stored[range.start() as usize..range.end() as usize]
}

fn parts(blob: &Blob, position: &Position) -> Vec<Vec<Part>> {
    let toc = chunked::read(position, bytes_of(&blob.stored, position.stored)).unwrap();
    let parts = toc.entries.into_iter().map(|entry| match entry.kind {
        EntryKind::File(file) => file.parts,
        other => panic!("{other:?} is no file"),
    });
    parts.collect()
}

#[test]
fn both_dialects_lead_from_annotation_or_footer_to_every_files_content() {
    for (which, dialect) in [Dialect::Storage, Dialect::Stargz].into_iter().enumerate() {
        let blob = blob(dialect);
        let size = blob.stored.len();
        let by_annotation = annotated(&blob, which).unwrap().unwrap();
        let tail = &blob.stored[size - chunked::TAIL as usize..];
        let by_footer = chunked::footer(tail, size as u64).unwrap().unwrap();
        assert_eq!(Position { digest: None, ..by_annotation }, by_footer);
        assert_eq!(by_annotation.dialect, dialect);
        for (file, parts) in blob.files.iter().zip(parts(&blob, &by_annotation)) {
            let mut whole = Vec::new();
            for part in parts {
                let mut content = vec![0; part.content.len() as usize];
                assert!(part.digest.is_some());
                chunked::part(&part, bytes_of(&blob.stored, part.stored), &mut content).unwrap();
                whole.extend(content);
            }
            assert!(&whole == file, "{dialect:?}");
        }
    }
}

#[test]
fn a_part_that_is_not_what_the_table_says_is_refused() {
    let blob = blob(Dialect::Storage);
    let position = annotated(&blob, 0).unwrap().unwrap();
    let part = parts(&blob, &position)[0][0];
    let (stored, mut content) = (bytes_of(&blob.stored, part.stored), vec![0; 5000]);
    let other = Part { digest: Some(ContentDigest::of(b"")), ..part };
    assert_eq!(chunked::part(&other, stored, &mut content).unwrap_err().kind(), Kind::Integrity);
    let later = Part { skip: 10, ..part };
    assert_eq!(chunked::part(&later, stored, &mut content).unwrap_err().kind(), Kind::Invalid);
    assert_eq!(chunked::part(&part, stored, &mut content[1..]).unwrap_err().kind(), Kind::Invalid);
    assert_eq!(chunked::part(&part, &stored[..50], &mut content).unwrap_err().kind(), Kind::Invalid);
}

#[test]
fn annotations_that_cannot_be_are_refused() {
    let find = |position: &'static str, size: u64| {
        chunked::annotated(|key| (key == POSITION_KEYS[1]).then_some(position), size)
    };
    for bad in [
        "",
        "1",
        "8:1:1",
        "8:1:1:1:1",
        "-8:1:1:1",
        "8:+1:1:1",
        "0:1:1:1",
        "8:0:1:1",
        "90:11:1:1",
        "18446744073709551615:1:1:1",
        "18446744073709551616:1:1:1",
    ] {
        assert_eq!(find(bad, 100).unwrap_err().kind(), Kind::Invalid, "{bad}");
    }
    for other in ["8:1:1:2", "8:1:67108865:1", "8:67108865:1:1"] {
        assert_eq!(find(other, 1 << 40).unwrap_err().kind(), Kind::Unsupported, "{other}");
    }
    assert!(find("8:1:67108864:1", 100).unwrap().unwrap().content == JSON_LIMIT);
    assert_eq!(chunked::annotated(|_| Some("8:1:1:1"), 100).unwrap_err().kind(), Kind::Invalid);
    assert_eq!(chunked::annotated(|_| None, 100).unwrap(), None);
}

#[test]
fn a_table_with_another_digest_or_size_is_refused() {
    let blob = blob(Dialect::Stargz);
    let position = annotated(&blob, 1).unwrap().unwrap();
    let stored = bytes_of(&blob.stored, position.stored);
    let mut changed = stored.to_vec();
    changed[20] ^= 1;
    assert_eq!(chunked::read(&position, &changed).unwrap_err().kind(), Kind::Integrity);
    let unsigned = Position { digest: None, ..position };
    for content in [0, position.content - 1, position.content + 1] {
        let wrong = Position { content, ..unsigned };
        assert_eq!(chunked::read(&wrong, stored).unwrap_err().kind(), Kind::Invalid);
    }
    assert_eq!(chunked::read(&unsigned, &stored[1..]).unwrap_err().kind(), Kind::Invalid);
    let early = Position { stored: StoredRange::new(8, 8 + position.stored.len()), ..unsigned };
    assert_eq!(
        chunked::read(&early, stored).unwrap_err().kind(),
        Kind::Invalid,
        "files lie before the table"
    );
}

#[test]
fn a_footer_without_its_frame_is_refused_and_other_ends_are_none() {
    for (tail, found) in
        [(&b"GNUlInUx"[..], Kind::Invalid), (&[&[0; 64][..], b"GnUlInUx"].concat(), Kind::Invalid)]
    {
        assert_eq!(chunked::footer(tail, 1000).unwrap_err().kind(), found);
    }
    assert_eq!(chunked::footer(b"", 0).unwrap(), None);
    assert_eq!(chunked::footer(&[0; 72], 1000).unwrap(), None);
}
