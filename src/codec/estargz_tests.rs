//! Tests of footers and tables as the stargz snapshotter writes them.

use serde_json::json;

use super::*;
use crate::codec::tar::tests::plain;
use crate::codec::toc::EntryKind;
use crate::codec::toc::tests::table as toc_table;

fn empty_member(field: &[u8]) -> Vec<u8> {
    let mut member = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff".to_vec();
    member.extend(u16::try_from(field.len()).unwrap().to_le_bytes());
    member.extend(field);
    member.extend(b"\x01\0\0\xff\xff\0\0\0\0\0\0\0\0");
    member
}

fn footer_of(offset: u64) -> Vec<u8> {
    empty_member(format!("SG\x16\0{offset:016x}STARGZ").as_bytes())
}

fn in_tar(name: &str, json: &[u8]) -> Vec<u8> {
    let mut archive = plain(name, json.len() as u64);
    archive.extend(json);
    archive.resize(archive.len().next_multiple_of(512) + 1024, 0);
    archive
}

#[test]
fn footers_of_each_form_are_known() {
    let table = |start, end| Ok(Some(Footer::Table(StoredRange::new(start, end))));
    let read = |tail: &[u8], size| footer(tail, size).map_err(|error| error.kind());
    assert_eq!((footer_of(700).len(), read(&footer_of(700), 1000)), (51, table(700, 949)));
    let legacy = empty_member(format!("{:016x}STARGZ", 700).as_bytes());
    let tail = [&b"none"[..], &legacy].concat();
    assert_eq!((legacy.len(), read(&tail, 1000)), (47, table(700, 953)));
    let external = empty_member(b"SG\x11\0STARGZEXTERNALTOC");
    let tail = [&b"other"[..], &external].concat();
    assert_eq!((external.len(), read(&tail, 1000)), (46, Ok(Some(Footer::External))));
}

#[test]
fn what_is_no_footer_is_plain_gzip_and_one_that_points_outside_is_refused() {
    for tail in
        [&b""[..], b"short", &empty_member(b""), &[0; 51], &empty_member(b"SG\x16\x000123456789abcdefSTARGY")]
    {
        assert_eq!(footer(tail, 1000).unwrap(), None, "{}", tail.escape_ascii());
    }
    for offset in [949, 1000, u64::MAX] {
        assert_eq!(footer(&footer_of(offset), 1000).unwrap_err().kind(), Kind::Invalid, "{offset}");
    }
    assert_eq!(footer(&footer_of(0), 20).unwrap_err().kind(), Kind::Invalid);
    let signed = empty_member(b"SG\x16\0+00000000000000fSTARGZ");
    assert_eq!(footer(&signed, 1000).unwrap_err().kind(), Kind::Invalid);
}

#[test]
fn the_table_is_read_and_checked_with_its_writers_marks() {
    let json = toc_table(&[
        json!({"type": "reg", "name": ".prefetch.landmark", "size": 1, "offset": 40, "chunkDigest": ContentDigest::of(b"\x0f").to_string()}),
        json!({"type": "reg", "name": "a", "size": 10, "offset": 100}),
        json!({"type": "reg", "name": "sub/.prefetch.landmark", "size": 1, "offset": 200}),
    ]);
    let (archive, stored) = (in_tar(TABLE, &json), StoredRange::new(700, 949));
    let toc = read(&archive, stored, Some(ContentDigest::of(&json))).unwrap();
    assert_eq!(
        toc.entries.iter().map(|entry| &*entry.name).collect::<Vec<_>>(),
        [".prefetch.landmark", "a", "sub/.prefetch.landmark"]
    );
    let EntryKind::File(file) = &toc.entries[2].kind else { panic!("no file") };
    assert_eq!(file.parts[0].stored, StoredRange::new(200, 700));
    let refusal = |content: &[u8], digest| read(content, stored, digest).unwrap_err().kind();
    assert_eq!(refusal(&archive, Some(ContentDigest::of(b""))), Kind::Integrity);
    assert_eq!(refusal(&in_tar("other.json", &json), None), Kind::Invalid);
    for end in [0, 100, 512, 600] {
        assert_eq!(refusal(&archive[..end], None), Kind::Invalid, "cut at {end}");
    }
}
