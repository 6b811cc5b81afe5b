//! Layers that go by once, against the same archives read by range, in every form that writers give them.

use futures_util::FutureExt;
use proptest::prelude::*;

use super::*;
use crate::codec::tar::tests::{extension, header, plain, record};
use crate::codec::zstd::{Compressor, Writer};
use crate::index::{EntryKind, Grid, Index, find};
use crate::oci::manifest::Manifest;
use crate::oci::{Artifact, Descriptor, Digest};
use crate::repository::memory::Memory;

const SMALL: u64 = 64 << 10;

/// The layer of these stored bytes, as an artifact has it.
fn artifact(suffix: &str, path: Option<&str>, stored: &[u8]) -> Artifact {
    let descriptor = Descriptor {
        media_type: format!("application/vnd.cncf.model.weight.v1.{suffix}"),
        digest: Digest::of(stored),
        size: stored.len().try_into().unwrap(),
        annotations: path
            .map(|path| ("org.cncf.model.filepath".to_owned(), path.to_owned()))
            .into_iter()
            .collect(),
    };
    Artifact::read(Manifest { layers: vec![descriptor], ..Manifest::default() }).unwrap()
}

/// What went by.
#[derive(Debug, Default)]
struct Seen {
    entries: Vec<Entry>,
    files: Vec<Vec<u8>>,
    windows: Vec<u8>,
}

fn run(artifact: &Artifact, stored: &[u8], piece: usize) -> Result<(Passed, Seen, Vec<ChunkDigest>)> {
    let mut pass = Pass::new(&artifact.layers[0], 0, Spacing::new(SMALL)?)?;
    let (mut seen, mut digests) = (Seen::default(), Digesting::default());
    let mut sink = |event: Event<'_>| {
        match event {
            Event::Extent(number, range) => {
                assert_eq!(number, seen.files.len());
                seen.files.push(Vec::with_capacity(usize::try_from(range.len()).unwrap_or(0).min(1 << 20)));
            }
            Event::Entry(entry) => seen.entries.push(entry.clone()),
            Event::Content { extent, offset, bytes } => {
                assert_eq!((extent + 1, offset), (seen.files.len(), seen.files[extent].len() as u64));
                seen.files[extent].extend(bytes);
                digests.update(extent, bytes);
            }
            Event::Window(window) => seen.windows.extend(window),
        }
        Ok(())
    };
    for piece in stored.chunks(piece) {
        pass.step(piece, &mut sink)?;
    }
    let passed = pass.finish(&mut sink)?;
    Ok((passed, seen, digests.finish()))
}

/// The digests of the chunks of a layer of these stored bytes.
pub(crate) fn digested(suffix: &str, stored: &[u8]) -> Vec<ChunkDigest> {
    run(&artifact(suffix, None, stored), stored, 1 << 20).unwrap().2
}

/// The same archive, uncompressed and read by range.
fn reference(content: &[u8], path: Option<&str>) -> Result<Index> {
    let memory = Memory::new();
    memory.put(content.to_vec());
    find(&memory, &artifact("tar", path, content), &|_| Vec::new()).now_or_never().unwrap()
}

fn slice(bytes: &[u8], range: ContentRange) -> &[u8] {
    &bytes[usize::try_from(range.start()).unwrap()..usize::try_from(range.end()).unwrap()]
}

/// Whether the pass over `stored` gives what `content` holds.
fn check(suffix: &str, path: Option<&str>, stored: &[u8], content: &[u8], piece: usize) {
    let (passed, seen, digests) = run(&artifact(suffix, path, stored), stored, piece).unwrap();
    let expected = reference(content, path).unwrap();
    assert_eq!(passed.entries, expected.entries);
    assert_eq!(passed.extents, expected.layers[0].extents);
    assert_eq!(passed.warnings.len(), expected.warnings.len());
    assert_eq!((passed.stored, passed.content), (stored.len() as u64, content.len() as u64));
    let ranges = |gaps: &[Gap]| gaps.iter().map(|gap| gap.range).collect::<Vec<_>>();
    let gaps = ranges(&expected.layers[0].gaps);
    let covered = gaps.iter().map(|gap| gap.len()).sum::<u64>();
    assert_eq!(ranges(&passed.gaps).iter().map(|gap| gap.len()).sum::<u64>(), covered);
    let files: Vec<_> = passed.extents.iter().map(|extent| slice(content, *extent)).collect();
    assert!(seen.files == files);
    let of_file = |file: &&[u8]| {
        let grid = Grid::new(file.len() as u64);
        (0..grid.chunks()).map(|chunk| ChunkDigest::of(slice(file, grid.range(chunk)))).collect::<Vec<_>>()
    };
    assert!(digests == files.iter().flat_map(of_file).collect::<Vec<_>>());
    check_table(&passed, &seen.windows, content.len() as u64);
    let last =
        |path: &str| seen.entries.iter().rev().find(|entry| entry.path == path).map(|entry| &entry.kind);
    for entry in passed.entries.iter().filter(|_| passed.entries.len() > 1) {
        assert_eq!(last(&entry.path), Some(&entry.kind));
    }
}

fn check_table(passed: &Passed, windows: &[u8], content: u64) {
    match passed.how {
        Compression::Gzip => {
            let table = gzip::Table::decode(&passed.table).unwrap();
            assert_eq!((table.stored_size(), table.content_size()), (passed.stored, content));
            assert_eq!(table.windows_size(), windows.len() as u64);
        }
        Compression::Zstd => {
            let spans = zstd::Spans::decode(&passed.table, passed.stored, content).unwrap();
            assert!(spans.is_digested() && windows.is_empty());
        }
    }
}

/// What writers make of the same content, each with the suffix of its media type.
pub(in crate::index) fn stored_forms(content: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    use crate::codec::gzip::tests::member;
    let frames = |len: usize| {
        let mut stored = Vec::new();
        let mut compressor = Compressor::new(1).unwrap();
        for piece in content.chunks(len) {
            compressor.frame(piece, &mut stored).unwrap();
        }
        stored
    };
    let (mut writer, mut seekable) = (Writer::new(1, SMALL).unwrap(), Vec::new());
    writer.push(content, &mut seekable).unwrap();
    writer.finish(&mut seekable).unwrap();
    vec![
        ("tar+gzip", member(content, 6)),
        ("tar+gzip", content.chunks(130_000).flat_map(|piece| member(piece, 1)).collect()),
        (
            "tar+gzip",
            [content.chunks(65_280).flat_map(|piece| member(piece, 6)).collect(), member(b"", 6)].concat(),
        ),
        (
            "tar+gzip",
            [
                member(&content[..content.len() / 2], 0),
                member(&content[content.len() / 2..], 9),
                vec![0; 700],
            ]
            .concat(),
        ),
        ("tar+zstd", frames(content.len().max(1))),
        ("tar+zstd", frames(100_000)),
        ("tar+zstd", seekable),
    ]
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn file(name: &str, content: &[u8]) -> Vec<u8> {
    padded([plain(name, content.len() as u64), content.to_vec()].concat())
}

fn special(name: &str, typeflag: u8, link: &str) -> Vec<u8> {
    header(name.as_bytes(), typeflag, b"0", |block| {
        block[157..157 + link.len()].copy_from_slice(link.as_bytes())
    })
}

/// Members of every kind, with extended headers and long names, a path twice, and the padding of GNU tar.
pub(in crate::index) fn sample() -> Vec<u8> {
    let large: Vec<u8> = (0..2_500_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let long = format!("deep/{}", "x".repeat(180));
    let mut bytes = [
        special("./", b'5', ""),
        special("./sub/", b'5', ""),
        file("./sub/a", b"hello"),
        [extension(b'x', &record("path", "sub/é")), file("short", &large)].concat(),
        file("empty", b""),
        [extension(b'L', format!("{long}\0").as_bytes()), file("cut", &[5; 1024])].concat(),
        special("link", b'2', "sub/a"),
        special("hard", b'1', "./sub/a"),
        file("twice", b"old"),
        file("twice", &large[..70_000]),
    ]
    .concat();
    bytes.extend([0; 1024]);
    bytes.resize(bytes.len().next_multiple_of(10240), 0);
    bytes
}

#[test]
fn a_layer_gives_the_same_however_it_was_compressed() {
    let content = sample();
    for (suffix, stored) in stored_forms(&content) {
        check(suffix, None, &stored, &content, 90_001);
    }
}

#[test]
fn stored_bytes_may_come_in_pieces_of_any_size() {
    let content = [file("a", &[3; 700]), file("sub/b", b"x"), vec![0; 1024]].concat();
    for (suffix, stored) in stored_forms(&content) {
        for piece in [1, 2, 7, 513] {
            check(suffix, None, &stored, &content, piece);
        }
    }
}

#[test]
fn the_only_file_of_an_archive_takes_the_path_of_the_annotation() {
    let content = [file("w.bin", b"bytes"), vec![0; 1024]].concat();
    for (suffix, stored) in stored_forms(&content) {
        check(suffix, Some("sub/w.bin"), &stored, &content, 100);
    }
}

#[test]
fn a_layer_that_its_annotation_says_is_its_first_file_shows_no_other_and_says_so() {
    let (first, other) = (file("w.bin", b"bytes"), file("v.bin", b"others"));
    let link = special("l.bin", b'1', "w.bin");
    let content = [&first[..], &first, &other, &link, &[0; 1024]].concat();
    for (suffix, stored) in stored_forms(&content) {
        for (annotation, shown) in [("w.bin", "w.bin"), ("sub/w.bin", "sub/w.bin")] {
            let (passed, seen, digests) =
                run(&artifact(suffix, Some(annotation), &stored), &stored, 100).unwrap();
            let [entry] = &passed.entries[..] else { panic!("{:?}", passed.entries) };
            assert_eq!(entry.path, shown);
            assert_eq!(
                entry.kind,
                EntryKind::File { extent: Some(ExtentId { layer: 0, extent: 0 }), size: 5 }
            );
            assert_eq!(seen.entries, passed.entries);
            assert_eq!((passed.extents.len(), digests.len()), (3, 3), "what is not shown is still there");
            let [warning] = &passed.warnings[..] else { panic!("{:?}", passed.warnings) };
            assert!(warning.contains(&format!("it is {shown:?}; \"w.bin\" and what")), "{warning}");
        }
        for annotation in ["sub/v.bin", "v.bin", "sub"] {
            let (passed, ..) = run(&artifact(suffix, Some(annotation), &stored), &stored, 100).unwrap();
            let paths: Vec<_> = passed.entries.iter().map(|entry| &*entry.path).collect();
            assert_eq!(paths, ["w.bin", "v.bin", "l.bin"], "{annotation}");
        }
    }
}

#[test]
fn archives_that_stop_early_are_read_or_refused_as_those_that_are_not_compressed() {
    let whole = [file("a", b"hello"), special("d/", b'5', "")].concat();
    for len in [0, 100, 511, 512, 516, 517, 1024, 1100, whole.len()] {
        let content = &whole[..len];
        let stored = gzip::tests::member(content, 6);
        let passed = run(&artifact("tar+gzip", None, &stored), &stored, 1000);
        match (reference(content, None), passed) {
            (Ok(expected), Ok((passed, ..))) => assert_eq!(passed.entries, expected.entries, "{len} bytes"),
            (Err(expected), Err(error)) => assert_eq!(error.kind(), expected.kind(), "{len} bytes"),
            (expected, passed) => panic!("{len} bytes: {expected:?}, {passed:?}"),
        }
    }
}

#[test]
fn what_is_refused_of_an_archive_is_refused_by_name() {
    let refusal = |members: Vec<Vec<u8>>| {
        let stored = gzip::tests::member(&members.concat(), 6);
        run(&artifact("tar+gzip", None, &stored), &stored, 1000).unwrap_err()
    };
    assert!(refusal(vec![file("../x", b"x")]).to_string().contains("refused path"));
    assert!(refusal(vec![special("dev", b'3', "")]).to_string().contains("character device"));
    assert!(refusal(vec![special("l", b'1', "missing")]).to_string().contains("hard link"));
    let endless = plain("huge", 8 << 30);
    assert!(refusal(vec![endless]).to_string().contains("missing"));
    assert!(
        refusal(vec![b"no archive, but long enough to be a header".repeat(20)])
            .to_string()
            .contains("no tar header")
    );
}

#[test]
fn headers_without_end_are_refused_before_they_fill_the_memory() {
    let many = special("d/", b'5', "").repeat(140_000);
    let stored = gzip::tests::member(&many, 6);
    let error = run(&artifact("tar+gzip", None, &stored), &stored, 1 << 20).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.to_string().contains("64 MiB of headers"), "{error}");
}

#[test]
fn damaged_or_cut_stored_bytes_end_the_pass() {
    let content = sample();
    for (suffix, stored) in stored_forms(&content[..20_480]) {
        for len in [0, 1, stored.len() / 2, stored.len().saturating_sub(3)] {
            assert!(
                run(&artifact(suffix, None, &stored), &stored[..len], 1000).is_err()
                    || len > stored.len() - 700
            );
        }
    }
}

#[test]
fn the_names_of_an_estargz_layers_own_files_are_hidden() {
    let members = [file("a", b"x"), file(".no.prefetch.landmark", b"\x0f"), file("stargz.index.json", b"{}")];
    let content = [members.concat(), vec![0; 1024]].concat();
    let stored = gzip::tests::member(&content, 6);
    let mut artifact = artifact("tar+gzip", None, &stored);
    let key = crate::codec::estargz::DIGEST_KEY.to_owned();
    artifact.layers[0].descriptor.annotations.insert(key, Digest::of(b"{}").to_string());
    let (passed, seen, _) = run(&artifact, &stored, 1000).unwrap();
    assert_eq!(passed.entries.iter().map(|entry| entry.path.as_str()).collect::<Vec<_>>(), ["a"]);
    assert_eq!((seen.files.len(), passed.extents.len()), (3, 3));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_archive_in_any_form_gives_what_reading_it_by_range_gives(
        files in prop::collection::vec((0_usize..6, 0_usize..90_000, any::<u8>()), 0..8),
        form in 0_usize..7, piece in 1_usize..40_000, is_padded in any::<bool>(), is_pax in any::<bool>(),
    ) {
        let mut content = Vec::new();
        for (number, (kind, len, byte)) in files.iter().enumerate() {
            let (name, bytes) = (format!("d{}/f{number}", kind % 2), vec![*byte; *len]);
            content.extend(match kind {
                0 => special(&format!("e{number}/"), b'5', ""),
                1 => special(&name, b'2', "x"),
                2 if is_pax => [extension(b'x', &record("size", &len.to_string())), file(&name, &bytes)].concat(),
                _ => file(&name, &bytes),
            });
        }
        content.extend([0; 1024]);
        if is_padded {
            content.resize(content.len().next_multiple_of(10240), 0);
        }
        let (suffix, stored) = stored_forms(&content).swap_remove(form);
        check(suffix, None, &stored, &content, piece);
    }
}

#[test]
fn entries_say_which_layer_they_are_of() {
    let content = [file("a", b"x"), vec![0; 1024]].concat();
    let stored = gzip::tests::member(&content, 6);
    let artifact = artifact("tar+gzip", None, &stored);
    let mut pass = Pass::new(&artifact.layers[0], 7, Spacing::default()).unwrap();
    pass.step(&stored, &mut |_| Ok(())).unwrap();
    let passed = pass.finish(&mut |_| Ok(())).unwrap();
    let extent = Some(ExtentId { layer: 7, extent: 0 });
    assert_eq!((passed.entries[0].layer, &passed.entries[0].kind), (7, &EntryKind::File { extent, size: 1 }));
}

#[test]
fn the_digest_of_all_content_is_had_where_it_is_asked_for() {
    let content = sample();
    for (suffix, stored) in stored_forms(&content) {
        let artifact = artifact(suffix, None, &stored);
        for is_asked in [true, false] {
            let pass = Pass::new(&artifact.layers[0], 0, Spacing::default()).unwrap();
            let mut pass = if is_asked { pass.digesting(Algorithm::Sha256) } else { pass };
            stored.chunks(1000).for_each(|piece| pass.step(piece, &mut |_| Ok(())).unwrap());
            let passed = pass.finish(&mut |_| Ok(())).unwrap();
            assert_eq!(passed.digest, is_asked.then(|| Digest::of(&content)), "{suffix}");
        }
    }
}
