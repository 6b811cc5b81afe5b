//! Tests against what `zstd` and `pzstd` write, and of what nobody should write.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "sizes of tests fit"
)]

use std::io::Write as _;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;
use crate::error::Result;
use crate::range::{ContentRange, StoredRange};

const SPAN: u64 = 1 << 20;

/// Content that compresses a little, the same for the same seed.
pub(super) fn content(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let next = |state: &mut u64| {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) as u8
    };
    (0..len).map(|at| if at % 4 == 0 { next(&mut state) } else { (at / 977) as u8 }).collect()
}

fn tool(program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("in");
    std::fs::File::create(&file).unwrap().write_all(input).unwrap();
    let output = Command::new(program).args(arguments).arg("-c").arg(&file).stdin(Stdio::null()).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

pub(super) fn frame(content: &[u8]) -> Vec<u8> {
    let mut stored = Vec::new();
    Compressor::new(3).unwrap().frame(content, &mut stored).unwrap();
    stored
}

pub(super) fn skippable(magic: u8, body: &[u8]) -> Vec<u8> {
    let mut stored = vec![0x50 | magic, 0x2a, 0x4d, 0x18];
    stored.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
    stored.extend(body);
    stored
}

fn push_all(scanner: &mut Scanner, mut stored: &[u8], room: usize, content: &mut Vec<u8>) -> Result<()> {
    let mut buffer = vec![0; room];
    loop {
        let moved = scanner.push(stored, &mut buffer)?;
        assert!(moved.content <= room && moved.stored <= stored.len());
        content.extend(&buffer[..moved.content]);
        stored = &stored[moved.stored..];
        if stored.is_empty() && moved.content < room {
            return Ok(());
        }
    }
}

fn scan(stored: &[u8], piece: usize, room: usize, span: u64) -> Result<(Vec<u8>, Spans)> {
    let mut scanner = Scanner::new(span)?;
    let mut content = Vec::new();
    for piece in stored.chunks(piece) {
        push_all(&mut scanner, piece, room, &mut content)?;
    }
    Ok((content, scanner.finish()?))
}

fn bytes_of(stored: &[u8], range: StoredRange) -> &[u8] {
    &stored[range.start() as usize..range.end() as usize]
}

/// Every span alone, put together.
fn decode_all(stored: &[u8], spans: &Spans) -> Result<Vec<u8>> {
    let (mut decoder, mut content) = (Decoder::new()?, Vec::new());
    for span in spans.iter() {
        let mut buffer = vec![0; span.content.len() as usize];
        decoder.span(bytes_of(stored, span.stored), &mut buffer)?;
        content.extend(buffer);
    }
    Ok(content)
}

fn check(stored: &[u8], expected: &[u8], span: u64) -> Spans {
    let (found, spans) = scan(stored, 70_000, 50_000, span).unwrap();
    assert!(found == expected, "the scanner gives the content");
    assert_eq!((spans.stored(), spans.content()), (stored.len() as u64, expected.len() as u64));
    assert!(decode_all(stored, &spans).unwrap() == expected, "so do the spans");
    spans
}

#[test]
fn what_zstd_writes_at_any_level_is_one_span() {
    let content = content(3 << 20, 5);
    let ways =
        [&["-1"][..], &["-3", "--no-check"], &["-19"], &["-3", "--long=27"], &["-3", "--no-content-size"]];
    for way in ways {
        assert_eq!(check(&tool("zstd", way, &content), &content, SPAN).len(), 1, "{way:?}");
    }
}

#[test]
fn what_pzstd_writes_has_a_span_for_each_frame() {
    let content = content(12 << 20, 6);
    let spans = check(&tool("pzstd", &["-p", "2", "-1"], &content), &content, SPAN);
    assert!(spans.len() > 1, "pzstd splits by its window");
}

#[test]
fn concatenated_files_and_frames_without_content_are_read_as_zstd_reads_them() {
    let (a, b) = (content(1 << 20, 1), content(700_000, 2));
    let parts =
        [skippable(0, b"x"), frame(&a), skippable(0xf, b""), frame(b""), frame(&b), skippable(3, &[7; 99])];
    let stored = parts.concat();
    let both = [a, b].concat();
    assert!(tool("zstd", &["-d"], &stored) == both);
    check(&stored, &both, SPAN);
    check(&stored, &both, 0);
    check(&stored, &both, u64::MAX);
}

#[test]
fn small_frames_are_joined_and_large_ones_are_not() {
    let small: Vec<_> = (0..100).map(|seed| content(1000, seed)).collect();
    let large = content(3 << 20, 9);
    let mut stored: Vec<u8> = small.iter().flat_map(|part| frame(part)).collect();
    stored.extend(frame(&large));
    let spans = check(&stored, &[small.concat(), large].concat(), SPAN);
    assert_eq!(spans.iter().map(|span| span.content.len()).collect::<Vec<_>>(), [100_000, 3 << 20]);
    assert_eq!(check(&frame(b"").repeat(10_000), b"", SPAN).len(), 1);
}

#[test]
fn long_stretches_without_content_are_in_no_span_that_has_any() {
    let (part, note, ballast) = (content(1000, 1), skippable(2, &[0; 50]), skippable(2, &[0; 5000]));
    let parts = [ballast.clone(), ballast.clone(), note.clone(), frame(&part), note, frame(&part), ballast];
    let spans = check(&parts.concat(), &[part.clone(), part].concat(), SPAN);
    assert_eq!(spans.iter().map(|span| span.content.len()).collect::<Vec<_>>(), [0, 2000, 0]);
}

fn refusal(stored: &[u8]) -> (Kind, String) {
    let error = scan(stored, 4096, 4096, SPAN).unwrap_err();
    (error.kind(), error.to_string())
}

#[test]
fn bytes_that_are_no_frames_are_refused() {
    let good = frame(&content(10_000, 3));
    for end in 0..good.len() {
        assert_eq!(refusal(&good[..end]).0, Kind::Invalid, "cut at {end}");
    }
    assert_eq!(refusal(&[good.clone(), b"garbage".to_vec()].concat()).0, Kind::Invalid);
    assert_eq!(refusal(&[good.clone(), b"g".to_vec()].concat()).0, Kind::Invalid);
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    assert!(refusal(&flipped).1.contains("checksum"), "{:?}", refusal(&flipped));
    let cut = skippable(1, &[0; 50]);
    assert_eq!(refusal(&cut[..40]).0, Kind::Invalid);
}

#[test]
fn a_window_that_is_too_large_is_refused_with_its_size_before_memory_is_taken() {
    let long = [0x28, 0xb5, 0x2f, 0xfd, 0, 18 << 3, 1, 0, 0];
    let (kind, why) = refusal(&long);
    assert_eq!(kind, Kind::Unsupported);
    assert!(why.contains("268435456") && why.contains("--long"), "{why}");
    let mut scanner = Scanner::with_window_limit(SPAN, 1 << 20).unwrap();
    let frame = frame(&content(2 << 20, 1));
    assert_eq!(scanner.push(&frame, &mut [0; 200]).unwrap_err().kind(), Kind::Unsupported);
    assert_eq!(scanner.push(&frame, &mut [0; 200]).unwrap_err().kind(), Kind::Invalid, "and stays so");
    let piped = "head -c 100 /dev/zero | zstd -3 --long=28";
    let piped = Command::new("sh").args(["-c", piped]).stderr(Stdio::null()).output().unwrap().stdout;
    assert!(refusal(&piped).1.contains("268435456"), "as zstd writes it where it does not know the size");
    let claim = [0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    assert_eq!(refusal(&claim).0, Kind::Unsupported);
}

#[test]
fn a_frame_that_needs_a_dictionary_is_refused_by_its_number() {
    let named = [0x28, 0xb5, 0x2f, 0xfd, 0x21, 7, 5, 0x29, 0, 0, b'h', b'e', b'l', b'l', b'o'];
    let (kind, why) = refusal(&named);
    assert_eq!((kind, why.contains("dictionary 7")), (Kind::Unsupported, true), "{why}");
    let error = Decoder::new().unwrap().span(&named, &mut [0; 5]).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
}

#[test]
fn a_span_of_another_size_is_an_error() {
    let content = content(5000, 4);
    let stored = frame(&content);
    let mut decoder = Decoder::new().unwrap();
    for len in [0, 4999, 5001, 100_000] {
        assert_eq!(decoder.span(&stored, &mut vec![0; len]).unwrap_err().kind(), Kind::Invalid, "{len}");
    }
    assert!(decoder.span(&stored[1..], &mut [0; 5000]).is_err());
    assert!(decoder.span(&[&stored[..], b"x"].concat(), &mut [0; 5000]).is_err());
    let mut right = vec![0; 5000];
    decoder.span(&stored, &mut right).unwrap();
    assert!(right == content);
}

fn write(files: &[Vec<u8>], level: i32) -> (Vec<u8>, Spans) {
    let (mut writer, mut stored) = (Writer::new(level, SPAN).unwrap(), Vec::new());
    for file in files {
        for piece in file.chunks(300_000) {
            writer.push(piece, &mut stored).unwrap();
        }
        writer.cut(&mut stored).unwrap();
    }
    let spans = writer.finish(&mut stored).unwrap();
    (stored, spans)
}

/// Asks as a caller over a network would; gives how many requests it took.
fn read_table(stored: &[u8]) -> Result<(seekable::Step, usize)> {
    let size = stored.len() as u64;
    let mut tail = &stored[stored.len()..];
    for requests in 0..4 {
        match seekable::read(tail, size, SPAN)? {
            seekable::Step::Need(range) => {
                assert_eq!(range.end(), size);
                tail = bytes_of(stored, range);
            }
            step => return Ok((step, requests)),
        }
    }
    panic!("it never has enough");
}

#[test]
fn what_is_written_has_frames_on_the_grid_of_each_file_and_plain_zstd_reads_it() {
    let files = [content(512, 1), content((2 << 20) + 5, 2), Vec::new(), content(1 << 20, 3)];
    let (stored, spans) = write(&files, 1);
    assert!(tool("zstd", &["-d"], &stored) == files.concat());
    let starts: Vec<_> = spans.iter().map(|span| span.content.start()).collect();
    let end = 512 + (2 << 20) + 5;
    assert_eq!(starts, [0, 512, 512 + (1 << 20), 512 + (2 << 20), end]);
    let (seekable::Step::Table(read), 2) = read_table(&stored).unwrap() else { panic!("no table") };
    let places = |spans: &Spans| spans.iter().map(|span| (span.stored, span.content)).collect::<Vec<_>>();
    assert_eq!((places(&read), read.is_digested()), (places(&spans), false));
    assert_eq!(check(&stored, &files.concat(), SPAN), spans, "a scan finds what the table says");
    let none = write(&[], 3);
    let (seekable::Step::Table(read), _) = read_table(&none.0).unwrap() else { panic!("no table") };
    assert_eq!(places(&read), places(&none.1));
    assert!(tool("zstd", &["-d"], &none.0).is_empty());
}

#[test]
fn a_seek_table_with_checksums_is_read_and_one_that_does_not_fit_is_refused() {
    let parts = [content(1 << 20, 1), content(1 << 20, 2)];
    let frames = parts.each_ref().map(|part| frame(part));
    let table = |rows: &[(usize, usize)], count: usize, descriptor: u8| {
        let mut body = Vec::new();
        for (stored, content) in rows {
            body.extend([*stored, *content].map(|number| number as u32).iter().flat_map(|n| n.to_le_bytes()));
            body.extend([1, 2, 3, 4]);
        }
        body.extend((count as u32).to_le_bytes());
        body.push(descriptor);
        body.extend(0x8f92_eab1_u32.to_le_bytes());
        [frames.concat(), skippable(0xe, &body)].concat()
    };
    let rows = [(frames[0].len(), 1 << 20), (frames[1].len(), 1 << 20)];
    let good = table(&rows, 2, 0x80);
    let (seekable::Step::Table(spans), 2) = read_table(&good).unwrap() else { panic!("no table") };
    assert!(decode_all(&good, &spans).unwrap() == parts.concat());
    let off_by_one = [(rows[0].0 + 1, 1 << 20), rows[1]];
    let wrong =
        [table(&off_by_one, 2, 0x80), table(&rows, 1, 0x80), table(&rows, 3, 0x80), table(&rows, 2, 0)];
    for (case, wrong) in wrong.iter().enumerate() {
        assert_eq!(read_table(wrong).unwrap_err().kind(), Kind::Invalid, "{case}");
    }
    assert_eq!(read_table(&table(&rows, 2, 0x84)).unwrap_err().kind(), Kind::Unsupported);
    assert_eq!(read_table(&table(&rows, 0xffff_ffff, 0x80)).unwrap_err().kind(), Kind::Invalid);
    let lie = table(&[(rows[0].0, 4_000_000_000), rows[1]], 2, 0x80);
    let (seekable::Step::Table(spans), _) = read_table(&lie).unwrap() else { panic!("no table") };
    let first = bytes_of(&lie, spans.span(0).unwrap().stored);
    assert!(Decoder::new().unwrap().span(first, &mut vec![0; 2 << 20]).is_err(), "a size that lies is found");
    assert_eq!(read_table(&frames.concat()).unwrap().0, seekable::Step::Absent);
    assert_eq!(read_table(b"short").unwrap().0, seekable::Step::Absent);
    let mut huge = 0xffff_ffff_u32.to_le_bytes().to_vec();
    huge.push(0);
    huge.extend(0x8f92_eab1_u32.to_le_bytes());
    assert_eq!(seekable::read(&huge, 1 << 50, SPAN).unwrap_err().kind(), Kind::Unsupported);
}

#[test]
fn the_table_of_spans_has_these_bytes() {
    let mut builder = Builder::new(100);
    for (stored, content) in [(60, 80), (30, 20), (500, 1000), (70, 0)] {
        builder.push(stored, content).unwrap();
    }
    let spans = builder.finish().unwrap();
    let rows: [u64; 6] = [0, 0, 100, 90, 1100, 590];
    let golden = |form: u64, rows: &[u64], digest: &[u8]| {
        let each = |row: &[u64]| {
            [row.iter().flat_map(|number| number.to_le_bytes()).collect(), digest.to_vec()].concat()
        };
        let count = u64::try_from(rows.len() / 2).unwrap();
        let header = [form, count].into_iter().flat_map(u64::to_le_bytes);
        header.chain(rows.chunks(2).flat_map(each)).collect::<Vec<u8>>()
    };
    let places = golden(2, &rows, &[]);
    assert_eq!(spans.encode(), places);
    assert_eq!(Spans::decode(&places, 660, 1100).unwrap(), spans);
    let spans = spans.with_digests(vec![[7; 32]; 3]).unwrap();
    let digested = golden(1, &rows, &[7; 32]);
    assert_eq!(spans.encode(), digested);
    assert_eq!(Spans::decode(&digested, 660, 1100).unwrap(), spans);
    assert_eq!(Spans::decode(&golden(1, &[], &[]), 0, 0).unwrap().len(), 0);
    let bad: [(&[u64], u64, u64); 8] = [
        (&[], 1, 0),
        (&[0, 0], 0, 0),
        (&[0, 1], 9, 9),
        (&[1, 0], 9, 9),
        (&[0, 0, 5, 9], 9, 9),
        (&[0, 0, 10, 5], 9, 9),
        (&[0, 0, 5, 5, 4, 6], 9, 9),
        (&[0, 0, 5, 5, 6, 5], 9, 9),
    ];
    for (rows, stored, content) in bad {
        let error = Spans::decode(&golden(1, rows, &[7; 32]), stored, content).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{rows:?}");
    }
    assert!(Spans::decode(&[0; 15], 9, 9).is_err());
    assert_eq!(Spans::decode(&golden(3, &rows, &[]), 660, 1100).unwrap_err().kind(), Kind::Unsupported);
    let flipped = |at: usize| [&digested[..at], &[1], &digested[at + 1..]].concat();
    assert!([1, 7, 8, 15].into_iter().all(|at| Spans::decode(&flipped(at), 660, 1100).is_err()));
    assert!(Spans::decode(&digested[..digested.len() - 1], 660, 1100).is_err());
    assert!(Builder::new(0).push(0, 5).is_err());
    let mut full = Builder::new(0);
    full.push(u64::MAX, 1).unwrap();
    assert!(full.push(1, 0).is_err());
}

#[test]
fn random_bytes_where_a_blob_should_be_never_allocate_what_they_claim() {
    let mut bomb = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0x50];
    (0..100).for_each(|_| bomb.extend([0x02, 0x00, 0x10, 0]));
    let mut scanner = Scanner::new(SPAN).unwrap();
    let moved = scanner.push(&bomb, &mut [1; 1000]).unwrap();
    assert_eq!(moved.content, 1000, "what does not fit waits");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_content_in_any_frames_and_pieces_reads_the_same_at_random(
        frames in prop::collection::vec((0_usize..40_000, any::<u64>(), any::<bool>()), 1..12),
        piece in 1_usize..9000, room in 1_usize..70_000, span in 0_u64..100_000,
        reads in prop::collection::vec((0.0_f64..1.0, 1_u64..30_000), 8),
    ) {
        let (mut stored, mut whole) = (Vec::new(), Vec::new());
        for (len, seed, is_skipped) in frames {
            let part = content(len, seed);
            if is_skipped {
                stored.extend(skippable((seed % 16) as u8, &part));
            } else {
                stored.extend(frame(&part));
                whole.extend(part);
            }
        }
        let (found, spans) = scan(&stored, piece, room, span).unwrap();
        prop_assert!(found == whole);
        prop_assert_eq!(&Spans::decode(&spans.encode(), spans.stored(), spans.content()).unwrap(), &spans);
        for span in spans.iter() {
            let digest = *blake3::hash(bytes_of(&stored, span.stored)).as_bytes();
            prop_assert_eq!(span.digest, Some(digest));
        }
        let mut decoder = Decoder::new().unwrap();
        for (at, len) in reads {
            let range = ContentRange::at((at * whole.len() as f64) as u64, len).unwrap();
            let range = range.meet(ContentRange::new(0, whole.len() as u64));
            let mut read: Vec<u8> = Vec::new();
            for span in spans.covering(range) {
                let mut buffer = vec![0; span.content.len() as usize];
                decoder.span(bytes_of(&stored, span.stored), &mut buffer).unwrap();
                let part = span.content.meet(range);
                let start = (part.start() - span.content.start()) as usize;
                read.extend(&buffer[start..start + part.len() as usize]);
            }
            prop_assert!(read == whole[range.start() as usize..range.end() as usize]);
        }
    }

    #[test]
    fn changed_bytes_are_refused_or_read_and_never_more(
        seed in any::<u64>(), changes in prop::collection::vec((0.0_f64..1.0, any::<u8>()), 1..4),
        cut in 0.0_f64..1.0, is_cut in any::<bool>(),
    ) {
        let files = [content(30_000, seed), content(2000, seed ^ 7)];
        let (mut stored, spans) = write(&files, 1);
        for (at, value) in changes {
            let at = (at * stored.len() as f64) as usize;
            stored[at] = value;
        }
        if is_cut {
            stored.truncate((cut * stored.len() as f64) as usize);
        }
        let mut scanner = Scanner::new(SPAN).unwrap();
        let (mut buffer, mut left) = ([0; 5000], &stored[..]);
        for _ in 0..10_000 {
            match scanner.push(left, &mut buffer) {
                Ok(moved) if moved == Moved::default() => break,
                Ok(moved) => left = &left[moved.stored..],
                Err(_) => break,
            }
        }
        let _ = read_table(&stored);
        for span in spans.iter().filter(|span| span.stored.end() <= stored.len() as u64) {
            let mut buffer = vec![0; span.content.len() as usize];
            let _ = Decoder::new().unwrap().span(bytes_of(&stored, span.stored), &mut buffer);
        }
    }

    #[test]
    fn any_bytes_are_no_seek_table_or_a_right_one(mut tail in prop::collection::vec(any::<u8>(), 9..200), size in 0_u64..300) {
        let end = tail.len();
        tail[end - 4..].copy_from_slice(&0x8f92_eab1_u32.to_le_bytes());
        tail[end - 8..end - 5].fill(0);
        if let Ok(seekable::Step::Table(spans)) = seekable::read(&tail, size, SPAN) {
            prop_assert_eq!(spans.stored(), size);
        }
    }
}
