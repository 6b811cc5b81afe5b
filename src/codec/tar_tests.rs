//! Tests of [`step`] against archives made by hand; the tests of floor 2 use whole archives.

use super::*;

/// A header block with the checksum made right; `edit` comes before that.
pub(crate) fn header(name: &[u8], typeflag: u8, size: &[u8], edit: impl FnOnce(&mut [u8; 512])) -> Vec<u8> {
    let mut block = [0_u8; 512];
    block[..name.len()].copy_from_slice(name);
    block[100..107].copy_from_slice(b"0000644");
    block[124..124 + size.len()].copy_from_slice(size);
    block[136..147].copy_from_slice(b"14717453000");
    block[156] = typeflag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    edit(&mut block);
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.to_vec()
}

pub(crate) fn plain(name: &str, size: u64) -> Vec<u8> {
    header(name.as_bytes(), b'0', format!("{size:011o}").as_bytes(), |_| ())
}

pub(crate) fn extension(typeflag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = header(b"x", typeflag, format!("{:011o}", body.len()).as_bytes(), |_| ());
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

pub(crate) fn record(key: &str, value: &str) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let len = (1..5).map(|digits| rest + digits).find(|len| len.to_string().len() + rest == *len).unwrap();
    format!("{len} {key}={value}\n").into_bytes()
}

fn parse(bytes: &[u8]) -> Result<Member> {
    match step(bytes, 1 << 50)? {
        Step::Member(member) => Ok(member),
        other => panic!("no member: {other:?}"),
    }
}

fn refusal(bytes: &[u8]) -> (Kind, String) {
    let error = parse(bytes).unwrap_err();
    (error.kind(), error.to_string())
}

#[test]
fn a_plain_header_gives_name_size_mode_and_time() {
    let member = parse(&plain("sub/a.bin", 700)).unwrap();
    assert_eq!((member.name.as_slice(), member.kind.clone()), (&b"sub/a.bin"[..], MemberKind::File));
    assert_eq!((member.data, member.size, member.next), (512, 700, 512 + 1024));
    assert_eq!((member.mode, member.mtime), (0o644, 0o14_717_453_000));
}

#[test]
fn a_ustar_prefix_counts_and_what_gnu_keeps_there_does_not() {
    let with = |magic: &'static [u8; 8]| {
        parse(&header(b"name", b'0', b"0", |block| {
            block[345..348].copy_from_slice(b"dir");
            block[257..265].copy_from_slice(magic);
        }))
        .unwrap()
        .name
    };
    assert_eq!(with(b"ustar\x0000"), b"dir/name");
    assert_eq!(with(b"ustar  \0"), b"name");
}

#[test]
fn a_member_over_8_gib_is_measured_by_pax_and_by_base_256() {
    let size = 9_u64 << 30;
    let pax = [extension(b'x', &record("size", &size.to_string())), plain("big", 0)].concat();
    assert_eq!(parse(&pax).unwrap().size, size);
    assert_eq!(parse(&pax).unwrap().data, 1536);
    let mut field = [0_u8; 12];
    field[0] = 0x80;
    field[4..].copy_from_slice(&size.to_be_bytes());
    let gnu = header(b"big", b'0', &field, |_| ());
    assert_eq!(parse(&gnu).unwrap().size, size);
    assert_eq!(parse(&gnu).unwrap().next, size + 512);
    // What libarchive writes where the number does not fit.
    let sevens =
        [extension(b'x', &record("size", &size.to_string())), plain("big", 0o77_777_777_777)].concat();
    assert_eq!(parse(&sevens).unwrap().size, size);
}

#[test]
fn two_sizes_that_disagree_are_refused() {
    let bytes = [extension(b'x', &record("size", "4096")), plain("a", 512)].concat();
    let (kind, text) = refusal(&bytes);
    assert_eq!(kind, Kind::Invalid);
    assert!(text.contains("member \"a\"") && text.contains("512") && text.contains("4096"), "{text}");
    let same = [extension(b'x', &record("size", "512")), plain("a", 512)].concat();
    assert_eq!(parse(&same).unwrap().size, 512);
}

#[test]
fn long_names_and_links_of_both_kinds_count() {
    let long = "d/".repeat(200) + "file";
    let pax = [record("path", &long), record("mtime", "-1.5"), record("linkpath", "to")].concat();
    let member = parse(&[extension(b'x', &pax), header(b"short", b'2', b"0", |_| ())].concat()).unwrap();
    assert_eq!((member.name, member.mtime), (long.clone().into_bytes(), -2));
    assert_eq!(member.kind, MemberKind::Symlink(b"to".to_vec()));
    let name = extension(b'L', format!("{long}\0").as_bytes());
    let link = extension(b'K', b"target\0");
    let member = parse(&[name, link, header(b"short", b'1', b"0", |_| ())].concat()).unwrap();
    assert_eq!(member.name, long.into_bytes());
    assert_eq!(member.kind, MemberKind::HardLink(b"target".to_vec()));
}

#[test]
fn more_bytes_are_asked_for_and_never_more_than_there_are() {
    let bytes = [extension(b'x', &record("path", &"n".repeat(600))), plain("a", 0)].concat();
    let mut need = 0;
    for expected in [512, 512 + 610, 512 + 1024 + 512] {
        let Step::Need(more) = step(&bytes[..need], bytes.len() as u64).unwrap() else { panic!("no need") };
        need = usize::try_from(more).unwrap();
        assert_eq!(need, expected);
    }
    assert!(matches!(step(&bytes[..need], bytes.len() as u64).unwrap(), Step::Member(_)));
    for cut in [1, 511, 513, 1535, 1537] {
        assert_eq!(step(&bytes[..cut], cut as u64).unwrap_err().kind(), Kind::Invalid, "{cut}");
    }
}

#[test]
fn an_archive_ends_with_two_blocks_of_zeros_or_where_it_stops() {
    assert_eq!(step(&[], 0).unwrap(), Step::End(0));
    assert_eq!(step(&[0; 512], 512).unwrap(), Step::End(512));
    assert_eq!(step(&[0; 512], 2048).unwrap(), Step::Need(1024));
    assert_eq!(step(&[0; 2048], 2048).unwrap(), Step::End(1024));
    assert_eq!(step(&[vec![0; 512], plain("a", 0)].concat(), 1024).unwrap_err().kind(), Kind::Invalid);
    let dangling = [extension(b'L', b"a"), vec![0; 1024]].concat();
    assert_eq!(step(&dangling, dangling.len() as u64).unwrap_err().kind(), Kind::Invalid);
    let global = [extension(b'g', &record("comment", "c")), vec![0; 1024]].concat();
    assert_eq!(step(&global, global.len() as u64).unwrap(), Step::End(2048));
}

#[test]
fn data_that_runs_over_the_end_is_refused_and_missing_padding_is_not() {
    let bytes = plain("a", 100);
    assert_eq!(step(&bytes, 611).unwrap_err().kind(), Kind::Invalid);
    let Step::Member(member) = step(&bytes, 612).unwrap() else { panic!("no member") };
    assert_eq!(member.next, 612);
}

#[test]
fn what_a_model_can_not_hold_is_refused_by_name() {
    for (typeflag, word) in
        [(b'3', "character"), (b'4', "block"), (b'6', "pipe"), (b'S', "sparse"), (b'V', "'V'"), (0xff, "xff")]
    {
        let (kind, text) = refusal(&header(b"dev/null", typeflag, b"0", |_| ()));
        assert_eq!(kind, Kind::Unsupported);
        assert!(text.contains("dev/null") && text.contains(word), "{text}");
    }
    for key in ["GNU.sparse.major", "GNU.sparse.map", "GNU.sparse.size", "SCHILY.realsize"] {
        let bytes = [extension(b'x', &record(key, "1")), plain("a", 0)].concat();
        assert_eq!(refusal(&bytes).0, Kind::Unsupported);
    }
}

#[test]
fn a_malformed_extension_is_an_error_and_never_skipped() {
    let bodies: [&[u8]; 11] = [
        b"12 path=abc",
        b"x path=a\n",
        b"99 path=a\n",
        b"9 path=ab\n",
        b"5 =a\n",
        b"0 ",
        b"\0\0\0",
        b"10size=12\n",
        b"11 size=-1\n",
        b"9 size=\n",
        b"11 mtime=x\n",
    ];
    for body in bodies {
        let (kind, text) = refusal(&[extension(b'x', body), plain("a", 0)].concat());
        assert_eq!(kind, Kind::Invalid, "{text}");
        assert!(text.contains("extended header"), "{:?}: {text}", body.escape_ascii().to_string());
    }
    let huge = "9".repeat(30);
    for pair in [("size", huge.as_str()), ("path", ""), ("mtime", "1.x"), ("mtime", "+1")] {
        assert_eq!(
            refusal(&[extension(b'x', &record(pair.0, pair.1)), plain("a", 0)].concat()).0,
            Kind::Invalid
        );
    }
}

#[test]
fn what_readers_understand_differently_is_refused() {
    let path = || record("path", "b");
    for doubtful in [
        [extension(b'x', &path()), extension(b'x', &path())].concat(),
        [extension(b'x', &path()), extension(b'L', b"c")].concat(),
        [extension(b'L', b"b"), extension(b'L', b"c")].concat(),
        extension(b'x', &[path(), path()].concat()),
        extension(b'g', &path()),
        extension(b'g', &record("size", "1")),
    ] {
        assert_eq!(refusal(&[doubtful, plain("a", 0)].concat()).0, Kind::Invalid);
    }
    for typeflag in [b'1', b'2', b'5'] {
        let (kind, text) = refusal(&header(b"a", typeflag, b"0000001000", |_| ()));
        assert!(kind == Kind::Invalid && text.contains("has data"), "{text}");
    }
}

#[test]
fn numbers_and_checksums_are_checked() {
    let negative = [0xff_u8; 12];
    for size in [&b"-0000001"[..], b"00000008", b"12 34", &negative] {
        let size = &size[..size.len().min(12)];
        let result = parse(&header(b"a", b'0', size, |_| ()));
        assert!(
            result.is_err_and(|error| error.kind() == Kind::Invalid),
            "{:?}",
            size.escape_ascii().to_string()
        );
    }
    let mut flipped = plain("a", 0);
    flipped[0] ^= 1;
    assert!(refusal(&flipped).1.contains("checksum"));
    let mut signed = header("é".as_bytes(), b'0', b"0", |_| ());
    signed[148..156].copy_from_slice(b"        ");
    let sum: i32 = signed.iter().map(|byte| i32::from(byte.cast_signed())).sum();
    signed[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert_eq!(parse(&signed).unwrap().name, "é".as_bytes());
    assert!(refusal(&[0x55; 512]).1.contains("no tar header"));
}

#[test]
fn an_extension_over_the_limit_is_refused_before_it_is_read() {
    let size = format!("{:011o}", EXTENSION_LIMIT + 1);
    let (kind, text) = refusal(&header(b"x", b'x', size.as_bytes(), |_| ()));
    assert!(kind == Kind::Invalid && text.contains("1 MiB"), "{text}");
}

#[test]
fn an_old_folder_is_a_file_whose_name_ends_so() {
    let old = |typeflag| parse(&header(b"d/", typeflag, b"0", |_| ())).unwrap().kind;
    assert_eq!(
        (old(0), old(b'5'), old(b'0')),
        (MemberKind::Directory, MemberKind::Directory, MemberKind::File)
    );
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..2048), remaining in 0_u64..4096) {
        let _ = step(&bytes, remaining);
        // With a magic and a right checksum it gets further.
        if bytes.len() >= 512 {
            bytes[257..265].copy_from_slice(b"ustar\x0000");
            bytes[148..156].copy_from_slice(b"        ");
            let sum: u32 = bytes[..512].iter().map(|byte| u32::from(*byte)).sum();
            bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            let _ = step(&bytes, remaining);
        }
    }
}
