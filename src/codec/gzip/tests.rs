//! Files made by a writer of known pieces, gone over once, read at random, and damaged.

use std::io::Write;
use std::process::{Command, Stdio};

use proptest::prelude::*;
use zlib_rs::{Deflate, DeflateFlush};

use super::table::Start;
use super::*;
use crate::error::{Kind, Result};
use crate::range::ContentRange;

const SMALL: u64 = 64 << 10;

fn deflated(content: &[u8], level: i32) -> Vec<u8> {
    let mut stored = vec![0; 2 * content.len() + 4096];
    let mut deflate = Deflate::new(level, false, 15);
    let ended = deflate.compress(content, &mut stored, DeflateFlush::Finish).unwrap();
    assert_eq!(ended, zlib_rs::Status::StreamEnd);
    stored.truncate(usize::try_from(deflate.total_out()).unwrap());
    stored
}

fn framed(flags: u8, fields: &[u8], content: &[u8], level: i32) -> Vec<u8> {
    let header = [&[0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 0, 3], fields].concat();
    let crc = zlib_rs::crc32::crc32(0, content);
    let len = u32::try_from(content.len()).unwrap();
    [&header[..], &deflated(content, level), &crc.to_le_bytes(), &len.to_le_bytes()].concat()
}

pub(crate) fn member(content: &[u8], level: i32) -> Vec<u8> {
    framed(0, &[], content, level)
}

/// Halves of 16-bit floats: one byte random, the other one of few.
fn weights(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let [a, b, c, ..] = state.to_le_bytes();
        bytes.extend([a, 0x38 + (b & c & 7) + (u8::from(b > 128) << 7)]);
    }
    bytes.truncate(len);
    bytes
}

#[derive(Debug)]
struct Scanned {
    content: Vec<u8>,
    table: Table,
    windows: Vec<u8>,
}

/// The whole pass, in pieces of `piece` stored bytes into rooms of `room` bytes.
fn scan(stored: &[u8], spacing: u64, piece: usize, room: usize) -> Result<Scanned> {
    let mut scanner = Scanner::new(Spacing::new(spacing)?)?;
    let (mut content, mut windows, mut room) = (Vec::new(), Vec::new(), vec![0; room]);
    for mut piece in stored.chunks(piece) {
        loop {
            let moved = scanner.step(piece, &mut room)?;
            piece = &piece[moved.read..];
            content.extend(&room[..moved.written]);
            windows.extend(scanner.take_windows().concat());
            if piece.is_empty() && moved.written < room.len() {
                break;
            }
        }
    }
    let table = scanner.finish()?;
    assert_eq!(table.windows_size(), windows.len() as u64);
    Ok(Scanned { content, table, windows })
}

fn read(
    stored: &[u8],
    (table, windows): (&Table, &[u8]),
    wanted: ContentRange,
    piece: usize,
) -> Result<Vec<u8>> {
    let slice = |start: u64, end: u64| (usize::try_from(start).unwrap(), usize::try_from(end).unwrap());
    let window = table.span_at(wanted.start()).and_then(|span| table.window(span)).and_then(|place| {
        let (start, end) = slice(place.range.start(), place.range.end());
        windows.get(start..end)
    });
    let mut decoder = Decoder::new(table, window, wanted)?;
    let (start, end) = slice(decoder.stored().start(), decoder.stored().end());
    let (mut content, mut room) = (Vec::new(), vec![0; piece * 3 + 1]);
    for mut piece in stored.get(start..end.min(stored.len())).unwrap_or_default().chunks(piece) {
        while !decoder.is_done() {
            let moved = decoder.step(piece, &mut room)?;
            piece = &piece[moved.read..];
            content.extend(&room[..moved.written]);
            if piece.is_empty() && moved.written < room.len() {
                break;
            }
        }
    }
    decoder.finish()?;
    Ok(content)
}

fn part(content: &[u8], range: ContentRange) -> &[u8] {
    &content[usize::try_from(range.start()).unwrap()..usize::try_from(range.end()).unwrap()]
}

/// Every span whole, its last byte alone, and a range that runs into the next.
fn check_all(stored: &[u8], scanned: &Scanned) {
    let table = &scanned.table;
    assert_eq!(&Table::decode(&table.encode()).unwrap(), table);
    let mut at = 0;
    for span in 0..table.len() {
        let whole = table.content(span);
        assert_eq!(whole.start(), at);
        assert!(!whole.is_empty());
        at = whole.end();
        let over = ContentRange::new(whole.end() - 1, (whole.end() + 70_000).min(table.content_size()));
        let alone = table.stored(whole);
        let alone = usize::try_from(alone.start()).unwrap()..usize::try_from(alone.end()).unwrap();
        assert_eq!(table.digest(span).unwrap(), *blake3::hash(&stored[alone]).as_bytes(), "span {span}");
        for range in [whole, ContentRange::new(whole.end() - 1, whole.end()), over] {
            let got = read(stored, (table, &scanned.windows), range, 5_000).unwrap();
            assert!(got == part(&scanned.content, range), "span {span}, {range}");
        }
    }
    assert_eq!(at, table.content_size());
}

fn refusal(stored: &[u8]) -> (Kind, String) {
    let error = scan(stored, SMALL, 7, 100).unwrap_err();
    (error.kind(), error.to_string())
}

#[test]
fn every_span_of_one_member_is_decoded_from_its_checkpoint() {
    let content = weights(1_500_000, 7);
    for level in [0, 1, 6, 9] {
        let stored = member(&content, level);
        let scanned = scan(&stored, SMALL, 10_000, 30_000).unwrap();
        assert!(scanned.content == content);
        // At level 1 this writer makes one block of it all, so one span.
        assert!(level == 1 || scanned.table.len() > 10, "{} spans at level {level}", scanned.table.len());
        assert!(scanned.table.window(0).is_none() && (level == 1 || scanned.table.window(1).is_some()));
        check_all(&stored, &scanned);
    }
}

#[test]
fn members_that_follow_one_another_are_one_content_and_their_starts_need_no_window() {
    let content = weights(900_000, 3);
    let stored: Vec<u8> = content.chunks(40_000).flat_map(|piece| member(piece, 6)).collect();
    let stored = [stored, member(b"", 6), vec![0; 700]].concat();
    let scanned = scan(&stored, SMALL, 999, 4_000).unwrap();
    assert!(scanned.content == content);
    assert!(scanned.windows.is_empty());
    assert_eq!(scanned.table.stored_size(), stored.len() as u64);
    let all = scanned.table.stored(ContentRange::new(0, u64::MAX));
    assert_eq!((all.start(), all.end()), (0, stored.len() as u64 - 700));
    check_all(&stored, &scanned);
}

#[test]
fn every_field_of_a_header_is_passed_over_and_its_checksum_checked() {
    let fields = [&[3, 0, 1, 2, 3][..], b"name\0", b"comment\0"].concat();
    let header = [&[0x1f, 0x8b, 8, 30, 1, 2, 3, 4, 0, 3], &fields[..]].concat();
    let crc = zlib_rs::crc32::crc32(0, &header).to_le_bytes();
    let stored = framed(30, &[&fields[..], &crc[..2]].concat(), b"hello", 6);
    for piece in 1..20 {
        assert_eq!(scan(&stored, SMALL, piece, 2).unwrap().content, b"hello");
    }
    let wrong = framed(30, &[&fields[..], &[crc[0], !crc[1]]].concat(), b"hello", 6);
    assert_eq!(refusal(&wrong).0, Kind::Integrity);
}

#[test]
fn a_file_without_content_has_no_span() {
    let stored = [member(b"", 6), member(b"", 0)].concat();
    let scanned = scan(&stored, SMALL, 3, 10).unwrap();
    assert!(scanned.table.is_empty() && scanned.content.is_empty());
    assert!(scanned.table.stored(ContentRange::new(0, 10)).is_empty());
    assert_eq!(Table::decode(&scanned.table.encode()).unwrap(), scanned.table);
}

#[test]
fn what_is_no_gzip_or_another_method_or_followed_by_other_bytes_is_refused_by_name() {
    let good = member(b"hello", 6);
    let with = |at: usize, byte: u8| [&good[..at], &[byte], &good[at + 1..]].concat();
    assert_eq!(refusal(b"").1, "the gzip file is empty");
    assert!(refusal(b"PK\x03\x04").1.contains("no gzip header"));
    assert!(refusal(&with(2, 9)).1.contains("deflate64"));
    assert_eq!(refusal(&with(2, 7)).0, Kind::Unsupported);
    assert!(refusal(&with(3, 0x80)).1.contains("reserved flags"));
    assert_eq!(refusal(&with(good.len() - 1, 1)).0, Kind::Integrity);
    assert_eq!(refusal(&with(good.len() - 5, good[good.len() - 5] ^ 1)).0, Kind::Integrity);
    assert!(refusal(&[&good[..], b"x"].concat()).1.contains("followed by other bytes"));
    assert!(refusal(&[&good[..], b"\0\0x"].concat()).1.contains("followed by other bytes"));
}

#[test]
fn a_file_cut_short_anywhere_is_refused() {
    let stored = [member(&weights(3_000, 1), 6), member(b"hello", 6)].concat();
    let between = member(&weights(3_000, 1), 6).len();
    for len in (0..stored.len()).filter(|len| *len != between) {
        assert_eq!(refusal(&stored[..len]).0, Kind::Invalid, "{len} bytes");
    }
}

#[test]
fn a_wrong_window_is_refused_and_a_missing_one_named() {
    let content = weights(300_000, 5);
    let stored = member(&content, 6);
    let scanned = scan(&stored, SMALL, 10_000, 30_000).unwrap();
    let wanted = scanned.table.content(1);
    assert!(scanned.table.window(1).is_some());
    let mut windows = scanned.windows.clone();
    windows[100] ^= 1;
    let error = read(&stored, (&scanned.table, &windows), wanted, 100).unwrap_err();
    assert_eq!(error.kind(), Kind::Integrity);
    let error = read(&stored, (&scanned.table, &[]), wanted, 100).unwrap_err();
    assert!(error.to_string().contains("window is missing"));
}

#[test]
fn a_table_that_was_changed_is_refused_or_leads_to_no_panic() {
    let content = weights(400_000, 5);
    let stored = [member(&content[..200_000], 6), member(&content[200_000..], 2)].concat();
    let scanned = scan(&stored, SMALL, 10_000, 30_000).unwrap();
    let bytes = scanned.table.encode().to_vec();
    for at in 0..bytes.len() {
        for flip in [1, 0x80] {
            let mut bytes = bytes.clone();
            bytes[at] ^= flip;
            let Ok(table) = Table::decode(&bytes) else { continue };
            for span in 0..table.len() {
                let range = table.content(span);
                let range = ContentRange::new(range.start(), range.end().min(range.start() + 1000));
                let _any = read(&stored, (&table, &scanned.windows), range, 4_000);
            }
        }
        assert!(Table::decode(&bytes[..at]).is_err());
    }
    let many = [&bytes[..40], &[0xff; 8], &bytes[48..]].concat();
    assert!(Table::decode(&many).unwrap_err().to_string().contains("too many spans"));
}

#[test]
fn windows_take_the_share_that_is_promised() {
    let content = weights(9 << 20, 11);
    let stored = member(&content, 6);
    for (spacing, per_mille) in [(1 << 20, 30), (4 << 20, 8)] {
        let scanned = scan(&stored, spacing, 1 << 20, 1 << 20).unwrap();
        let kept = scanned.windows.len() + scanned.table.encode().len();
        assert!(kept * 1000 <= content.len() * per_mille, "{kept} bytes at {spacing}");
    }
}

#[test]
fn a_window_is_kept_and_had_back_whatever_its_length() {
    for len in [0, 1, 100, WINDOW] {
        for window in [weights(len, 9), vec![7; len]] {
            let kept = window::keep(&window);
            assert!(kept.len() <= WINDOW_LIMIT);
            assert_eq!(window::unkeep(&kept).unwrap(), window);
            assert!(window::unkeep(&kept[..kept.len() - 1]).is_err());
        }
    }
    assert!(window::unkeep(&[2, 0, 0, 0]).is_err() && window::unkeep(&[0, 1, 0, 0]).is_err());
    assert!(window::unkeep(&[1, 0, 1, 0x80, 3, 0]).is_err());
}

/// What was published is read for ever: a table of two members, the second of several spans.
#[test]
fn a_table_has_the_bytes_it_was_published_with() {
    let table = Table {
        stored: 300_100,
        end: 300_000,
        content: 400_000,
        spacing: SMALL,
        spans: vec![
            Start { bit: 0, content: 0, windows_end: 0, digest: 0 },
            Start { bit: 800_003, content: 100_000, windows_end: 1_000, digest: 0 },
            Start { bit: 1_600_000, content: 200_000, windows_end: 1_000, digest: 1 },
            Start { bit: 2_000_005, content: 300_000, windows_end: 1_004, digest: 1 },
        ],
        stored_digests: vec![[1; 32], [2; 32], [3; 32], [4; 32]],
        digests: vec![[0xaa; 32], [0xbb; 32]],
    };
    let golden = include_bytes!("../../../tests/fixtures/gzip/spans.table");
    assert_eq!(table.encode(), &golden[..]);
    assert_eq!(Table::decode(golden).unwrap(), table);
}

fn piped(program: &str, arguments: &[&str], content: &[u8]) -> Option<Vec<u8>> {
    let mut command = Command::new(program);
    let command = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().ok()?;
    let (mut stdin, content) = (child.stdin.take().unwrap(), content.to_vec());
    let writer = std::thread::spawn(move || stdin.write_all(&content));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success(), "{program}");
    Some(output.stdout)
}

#[test]
fn what_gzip_pigz_and_python_write_is_read_at_random() {
    const PYTHON: &str = "import sys,gzip;sys.stdout.buffer.write(gzip.compress(sys.stdin.buffer.read(),5))";
    let content = [weights(700_000, 2), vec![b'x'; 900_000], weights(300_000, 4)].concat();
    let writers: [(&str, &[&str]); 6] = [
        ("gzip", &["-c"]),
        ("gzip", &["-1", "-c", "--rsyncable"]),
        ("pigz", &["-c", "-p", "2"]),
        ("pigz", &["-c", "-i", "-b", "128"]),
        ("pigz", &["-c", "-9", "-p", "1"]),
        ("python3", &["-c", PYTHON]),
    ];
    for (program, arguments) in writers {
        let stored = piped(program, arguments, &content).unwrap_or_else(|| panic!("{program} is not there"));
        let scanned = scan(&stored, SMALL, 8_192, 10_000).unwrap();
        assert!(scanned.content == content, "{program} {arguments:?}");
        check_all(&stored, &scanned);
        // Two files put together are one.
        let twice = scan(&[&stored[..], &stored].concat(), SMALL, 8_192, 65_536).unwrap();
        assert_eq!(twice.content.len(), 2 * content.len());
    }
}

#[test]
fn the_members_that_bgzip_writes_are_read_at_random() {
    let content = weights(600_000, 8);
    let bgzf = |piece: &[u8]| {
        let size = framed(4, &[6, 0, b'B', b'C', 2, 0, 0, 0], piece, 6).len() - 1;
        let [low, high, ..] = size.to_le_bytes();
        framed(4, &[6, 0, b'B', b'C', 2, 0, low, high], piece, 6)
    };
    let stored: Vec<u8> = content.chunks(0xff00).chain([&[][..]]).flat_map(bgzf).collect();
    let scanned = scan(&stored, SMALL, 4_096, 50_000).unwrap();
    assert!(scanned.content == content && scanned.windows.is_empty());
    check_all(&stored, &scanned);
}

/// Text, weights and runs, so that blocks of every kind occur.
fn any_content() -> impl Strategy<Value = Vec<u8>> {
    let piece = (0..4_u8, 0..150_000_usize, any::<u64>()).prop_map(|(kind, len, seed)| match kind {
        0 => weights(len, seed),
        1 => vec![seed.to_le_bytes()[0]; len],
        2 => (0..len).map(|at| (at as u64 ^ seed).to_le_bytes()[0] & 0x1f).collect(),
        _ => weights(len / 2, seed).repeat(2),
    });
    proptest::collection::vec(piece, 0..4).prop_map(|pieces| pieces.concat())
}

#[test]
fn the_fixtures_that_fuzzing_starts_from_are_read() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gzip");
    for (name, content) in [("text", 840), ("members", 303), ("fields", 250), ("runs", 600_000)] {
        let stored = std::fs::read(folder.join(name).with_extension("gz")).unwrap();
        let scanned = scan(&stored, SMALL, 11, 3_000).unwrap();
        assert_eq!(scanned.content.len(), content, "{name}");
        check_all(&stored, &scanned);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_content_from_any_writer_is_read_at_random(
        contents in proptest::collection::vec((any_content(), 0..10_i32), 1..4),
        (piece, room, spacing) in (1..20_000_usize, 1..90_000_usize, SMALL..200_000_u64),
        reads in proptest::collection::vec((any::<u64>(), 1..300_000_u64, 1..9_000_usize), 8),
    ) {
        let stored: Vec<u8> = contents.iter().flat_map(|(content, level)| member(content, *level)).collect();
        let content: Vec<u8> = contents.iter().flat_map(|(content, _)| content.clone()).collect();
        let scanned = scan(&stored, spacing, piece, room).unwrap();
        prop_assert!(scanned.content == content);
        check_all(&stored, &scanned);
        for (at, len, piece) in reads.into_iter().filter(|_| !content.is_empty()) {
            let start = at % content.len() as u64;
            let range = ContentRange::new(start, (start + len).min(content.len() as u64));
            let got = read(&stored, (&scanned.table, &scanned.windows), range, piece).unwrap();
            prop_assert!(got == part(&content, range));
        }
    }

    #[test]
    fn damaged_bytes_give_an_error_or_an_end_and_never_a_panic(
        (content, level) in (any_content(), 0..10_i32),
        (at, flip, cut) in (any::<usize>(), 1..=255_u8, any::<usize>()),
    ) {
        let mut stored = [member(&content, level), member(b"the end", 6)].concat();
        let scanned = scan(&stored, SMALL, 9_000, 50_000).unwrap();
        let at = at % stored.len();
        stored[at] ^= flip;
        // What a header says of time, system and name makes no difference; all else is found.
        if let Ok(again) = scan(&stored, SMALL, 9_000, 50_000) {
            prop_assert!(again.content == scanned.content);
        }
        for span in 0..scanned.table.len() {
            let _any = read(&stored, (&scanned.table, &scanned.windows), scanned.table.content(span), 4_000);
        }
        let cut = &stored[..cut % stored.len()];
        for span in 0..scanned.table.len() {
            let _any = read(cut, (&scanned.table, &scanned.windows), scanned.table.content(span), 4_000);
        }
    }
}
