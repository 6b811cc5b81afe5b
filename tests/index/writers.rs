//! Compressed archives as the programs in use write them, gone over once: every file as it was.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};

use proptest::prelude::*;
use weightfs::index::pass::{Event, Pass, Spacing};
use weightfs::index::{Entry, EntryKind};
use weightfs::oci::manifest::Manifest;
use weightfs::oci::{Artifact, Descriptor, Digest};

use crate::support::artifacts::bytes;

type Files = BTreeMap<String, Vec<u8>>;

/// How each archive is written, in the folder of the files; `{}` stands for where it goes.
const ARCHIVES: [&str; 5] = [
    "python3 -c 'import tarfile; t = tarfile.open(\"{}\", \"w\", format=tarfile.USTAR_FORMAT); t.add(\".\"); t.close()'",
    "python3 -c 'import tarfile; t = tarfile.open(\"{}\", \"w\", format=tarfile.GNU_FORMAT); t.add(\".\"); t.close()'",
    "python3 -c 'import tarfile; t = tarfile.open(\"{}\", \"w\", format=tarfile.PAX_FORMAT); t.add(\".\"); t.close()'",
    "tar --format=gnu -cf {} .",
    "tar --format=posix -cf {} .",
];

/// What compresses standard input, with the ending of the media type.
const COMPRESSORS: [(&str, &str); 7] = [
    ("gzip", "gzip -1"),
    ("gzip", "gzip -9"),
    ("gzip", "pigz -p 2 -b 128"),
    ("gzip", "pigz -p 2 -i"),
    ("gzip", "split -b 100000 --filter='gzip -c' -"),
    ("zstd", "zstd -3 -q"),
    ("zstd", "split -b 100000 --filter='zstd -1 -qc' -"),
];

fn archived(files: &Files, how: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let (inside, archive) = (folder.path().join("files"), folder.path().join("archive"));
    std::fs::create_dir(&inside).unwrap();
    for (path, content) in files {
        let path = inside.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let script = how.replace("{}", archive.to_str().unwrap());
    let ran = Command::new("sh").args(["-c", &script]).current_dir(&inside).status().unwrap();
    assert!(ran.success(), "{script}");
    std::fs::read(archive).unwrap()
}

fn compressed(content: &[u8], how: &str) -> Vec<u8> {
    let mut command = Command::new("sh");
    let mut child = command.args(["-c", how]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdin, content) = (child.stdin.take().unwrap(), content.to_vec());
    let writer = std::thread::spawn(move || stdin.write_all(&content));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success(), "{how}");
    output.stdout
}

/// Every file of a layer that goes by in pieces of so many bytes.
fn gone_by(suffix: &str, stored: &[u8], piece: usize) -> Files {
    let descriptor = Descriptor {
        media_type: format!("application/vnd.cncf.modelpack.model.layer.v1.tar+{suffix}"),
        digest: Digest::of(stored),
        size: stored.len().try_into().unwrap(),
        annotations: BTreeMap::new(),
    };
    let artifact = Artifact::read(Manifest { layers: vec![descriptor], ..Manifest::default() }).unwrap();
    let mut pass = Pass::new(&artifact.layers[0], 0, Spacing::new(64 << 10).unwrap()).unwrap();
    let mut contents: Vec<Vec<u8>> = Vec::new();
    let mut sink = |event: Event<'_>| {
        match event {
            Event::Extent(..) => contents.push(Vec::new()),
            Event::Content { extent, bytes, .. } => contents[extent].extend(bytes),
            Event::Entry(_) | Event::Window(_) => {}
        }
        Ok(())
    };
    for piece in stored.chunks(piece) {
        pass.step(piece, &mut sink).unwrap();
    }
    let passed = pass.finish(&mut sink).unwrap();
    let content = |entry: &Entry| match entry.kind {
        EntryKind::File { extent, .. } => Some(extent.map_or(Vec::new(), |id| contents[id.extent].clone())),
        _ => None,
    };
    passed.entries.iter().filter_map(|entry| Some((entry.path.clone(), content(entry)?))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, max_shrink_iters: 0, ..ProptestConfig::default() })]

    #[test]
    fn random_archives_of_random_writers_give_every_file_as_it_was(
        sizes in prop::collection::vec((0_usize..3, 0_usize..150_000), 1..6),
        archive in 0_usize..5, piece in 1_usize..100_000,
    ) {
        let file = |(number, (depth, size)): (usize, &(usize, usize))| {
            (format!("{}file {number} é{}", "folder/".repeat(*depth), "x".repeat(size % 90)), bytes(number as u64, *size))
        };
        let files: Files = sizes.iter().enumerate().map(file).collect();
        let content = archived(&files, ARCHIVES[archive]);
        for (suffix, how) in COMPRESSORS {
            let found = gone_by(suffix, &compressed(&content, how), piece);
            prop_assert!(found == files, "{} by {how}", ARCHIVES[archive]);
        }
    }
}

#[test]
fn every_writer_of_archives_is_read() {
    let files: Files = [("a", 70_000), ("deep/er/b", 513), ("empty", 0)]
        .map(|(path, size)| (path.to_owned(), bytes(3, size)))
        .into();
    for how in ARCHIVES {
        let content = archived(&files, how);
        let found = gone_by("gzip", &compressed(&content, "gzip"), 1000);
        assert!(found == files, "{how}");
    }
}
