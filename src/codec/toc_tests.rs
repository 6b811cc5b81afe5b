//! Tests of [`read`] against tables made by hand.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// A table of `entries` as either writer writes it.
pub(crate) fn table(entries: &[Value]) -> Vec<u8> {
    serde_json::to_vec(&json!({ "version": 1, "entries": entries })).unwrap()
}

fn refusal(entries: &[Value]) -> Kind {
    read(&table(entries), 1000).unwrap_err().kind()
}

fn sum(content: &[u8]) -> String {
    ContentDigest::of(content).to_string()
}

#[test]
fn a_digest_prints_as_it_is_read() {
    let digest = ContentDigest::of(b"abc");
    assert_eq!(ContentDigest::parse(&digest.to_string()), Some(digest));
    let upper = digest.to_string().to_uppercase();
    for bad in ["", "sha256:", "sha512:00", &upper, &format!("{digest}0")] {
        assert_eq!(ContentDigest::parse(bad), None, "{bad}");
    }
}

#[test]
fn files_have_parts_that_end_where_the_next_ones_start() {
    let entries = [
        json!({"type": "dir", "name": "d/", "mode": 0o40755}),
        json!({"type": "reg", "name": "d/a", "size": 10, "offset": 20, "digest": sum(b"a"), "mode": 0o644}),
        json!({"type": "reg", "name": "b", "size": 9, "offset": 50, "chunkSize": 6, "chunkDigest": sum(b"b")}),
        json!({"type": "chunk", "name": "b", "offset": 70, "chunkOffset": 6, "chunkDigest": sum(b"c")}),
        json!({"type": "reg", "name": "empty"}),
        json!({"type": "reg", "name": ".mark", "size": 1, "offset": 90}),
        json!({"type": "symlink", "name": "l", "linkName": "d/a"}),
        json!({"type": "hardlink", "name": "h", "linkName": "d/a"}),
    ];
    let toc = read(&table(&entries), 1000).unwrap();
    let names: Vec<_> = toc.entries.iter().map(|entry| (&*entry.name, entry.mode)).collect();
    assert_eq!(
        names,
        [("d/", 0o755), ("d/a", 0o644), ("b", 0), ("empty", 0), (".mark", 0), ("l", 0), ("h", 0)]
    );
    let part = |content: (u64, u64), stored: (u64, u64), of: &[u8]| Part {
        content: ContentRange::new(content.0, content.1),
        stored: StoredRange::new(stored.0, stored.1),
        skip: 0,
        digest: Some(ContentDigest::of(of)),
    };
    let parts = |position: usize| match &toc.entries[position].kind {
        EntryKind::File(file) => file.parts.clone(),
        other => panic!("{other:?} is no file"),
    };
    assert_eq!(parts(1), [part((0, 10), (20, 50), b"a")]);
    assert_eq!(parts(2), [part((0, 6), (50, 70), b"b"), part((6, 9), (70, 90), b"c")]);
    assert_eq!(parts(3), []);
    assert_eq!(toc.entries[5].kind, EntryKind::Symlink("d/a".into()));
}

#[test]
fn parts_of_one_member_lie_one_after_the_other_in_it() {
    let entry = |name: &str, skip: u64| json!({"type": "reg", "name": name, "size": 10, "offset": 5, "innerOffset": skip});
    let toc = read(&table(&[entry("a", 0), entry("b", 512)]), 1000).unwrap();
    let EntryKind::File(file) = &toc.entries[1].kind else { panic!("no file") };
    assert_eq!((file.parts[0].skip, file.parts[0].stored), (512, StoredRange::new(5, 1000)));
    assert_eq!(refusal(&[entry("a", 0), entry("b", 9)]), Kind::Invalid);
    assert_eq!(refusal(&[entry("a", 0), entry("b", 0)]), Kind::Invalid);
}

#[test]
fn a_table_that_contradicts_itself_or_the_blob_is_refused() {
    let file = |size: u64, offset: u64, chunk: u64| json!({"type": "reg", "name": "a", "size": size, "offset": offset, "chunkSize": chunk});
    let part = |at: u64, offset: u64, len: u64| json!({"type": "chunk", "name": "a", "chunkOffset": at, "offset": offset, "chunkSize": len});
    let wrong: [&[Value]; 15] = [
        &[file(10, 1000, 0)],
        &[file(10, u64::MAX, 0)],
        &[file(10, 0, 11)],
        &[file(10, 0, 4)],
        &[file(10, 0, 4), part(5, 9, 5)],
        &[file(10, 0, 4), part(4, 9, 7)],
        &[file(10, 0, 4), part(4, 9, 6), part(10, 20, 1)],
        &[file(10, 0, 4), part(4, 0, 6)],
        &[part(0, 0, 1)],
        &[json!({"type": "dir", "name": "a"}), part(0, 0, 1)],
        &[file(10, 0, 4), json!({"type": "chunk", "name": "b", "chunkOffset": 4, "offset": 9})],
        &[json!({"type": "reg", "name": "a", "size": -1})],
        &[json!({"type": "reg", "name": "a", "size": 1, "digest": "sha256:00"})],
        &[json!({"type": "reg", "name": "a", "size": 5, "offset": 9, "endOffset": 9})],
        &[json!({"type": "reg", "name": "a", "size": u64::MAX, "offset": 9, "innerOffset": 9})],
    ];
    for (case, entries) in wrong.iter().enumerate() {
        assert_eq!(refusal(entries), Kind::Invalid, "{case}");
    }
    let over = json!({"type": "reg", "name": "a", "size": 5, "offset": 9, "endOffset": 40});
    assert_eq!(refusal(&[over, file(5, 30, 0)]), Kind::Invalid);
    assert_eq!(refusal(&[json!({"type": "char", "name": "a"})]), Kind::Unsupported);
}

#[test]
fn another_version_and_more_than_may_be_are_refused_by_name() {
    assert_eq!(read(b"{\"version\":2,\"entries\":[]}", 9).unwrap_err().kind(), Kind::Unsupported);
    for malformed in
        [&b""[..], b"{}", b"[]", b"{\"version\":1,\"entries\":[{}]}", b"{\"version\":1,\"entries\":[]}x"]
    {
        assert_eq!(read(malformed, 9).unwrap_err().kind(), Kind::Invalid);
    }
    let many = format!(
        "{{\"version\":1,\"entries\":[{}{{\"type\":\"dir\"}}]}}",
        "{\"type\":\"dir\"},".repeat(ENTRIES_LIMIT)
    );
    assert!(read(many.as_bytes(), 9).unwrap_err().to_string().contains("1048576 entries"));
}

proptest! {
    #[test]
    fn any_numbers_make_a_table_that_lies_in_the_blob_or_none(
        rows in prop::collection::vec((0..4_u8, prop::sample::select(vec![0, 1, 5, 10, 40, 99, u64::MAX]), 0..120_u64, 0..12_u64, 0..12_u64), 0..8)
    ) {
        let entries: Vec<_> = rows.iter().map(|(kind, size, offset, at, len)| {
            let kind = ["reg", "reg", "chunk", "dir"][usize::from(*kind)];
            json!({"type": kind, "size": size, "offset": offset, "chunkOffset": at, "chunkSize": len})
        }).collect();
        if let Ok(toc) = read(&table(&entries), 100) {
            for entry in toc.entries {
                let EntryKind::File(file) = entry.kind else { continue };
                let mut at = 0;
                for part in file.parts {
                    prop_assert_eq!(part.content.start(), at);
                    prop_assert!(!part.content.is_empty() && !part.stored.is_empty() && part.stored.end() <= 100);
                    at = part.content.end();
                }
                prop_assert_eq!(at, file.size);
            }
        }
    }

    #[test]
    fn any_bytes_are_no_table_or_one(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(&bytes, 100);
    }
}
