//! Compressed archives as the programs in use and we ourselves write them: every file as it was when they have gone over once,
//! and any part of it, read at random while they go by and by the index that is known then.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use weightfs::codec::{gzip, tar_header, zstd};
use weightfs::content::store::prune::Prune;
use weightfs::content::{Config, Store, StoreConfig, Warm};
use weightfs::fs::Model;
use weightfs::index::pass::{Event, Pass, Spacing};
use weightfs::index::{Entry, EntryKind};
use weightfs::oci::manifest::{Manifest, OCI_MANIFEST};
use weightfs::oci::{Artifact, Descriptor, Digest};
use weightfs::repository::{Memory, Repository as _};

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

/// The archive as `pack` writes it.
fn archived_here(files: &Files) -> Vec<u8> {
    let mut archive = Vec::new();
    for (path, content) in files {
        archive.extend(tar_header::headers(path, content.len() as u64, 0o644, 0));
        archive.extend(content);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.extend([0; 1024]);
    archive
}

/// The content compressed as `pack` does it, for either media type.
fn compressed_here(content: &[u8]) -> [(&'static str, Vec<u8>); 2] {
    let (mut members, mut frames) = (Vec::new(), Vec::new());
    for piece in content.chunks(100_000) {
        gzip::member(piece, &mut members).unwrap();
    }
    let mut writer = zstd::Writer::new(3, 100_000).unwrap();
    writer.push(content, &mut frames).unwrap();
    writer.finish(&mut frames).unwrap();
    [("gzip", members), ("zstd", frames)]
}

/// A read: which file, from where on, how much; each in parts of 65536 of what there is.
type Read = (u16, u16, u16);

/// Reads of a model of this layer: while it goes by and nothing can be kept, while it goes by, and by the index that was made then
/// and nothing else.
fn assert_read_at_random(files: &Files, (suffix, stored): (&str, Vec<u8>), reads: &[Read]) {
    let memory = Arc::new(Memory::new());
    let blob = memory.put(stored);
    let layer = format!(
        r#"{{"mediaType":"application/vnd.cncf.modelpack.model.layer.v1.tar+{suffix}","digest":"{}","size":{}}}"#,
        blob.digest, blob.size
    );
    memory.put_manifest("v1", OCI_MANIFEST, format!(r#"{{"schemaVersion":2,"layers":[{layer}]}}"#));
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (nothing, enough) = (Some(0), Some(1 << 30));
    for (streamed, size) in [(true, nothing), (true, enough), (false, nothing)] {
        let store = StoreConfig { folder: folder.path().join("store"), size };
        let config = Config { warm: Warm::None, memory: 0, ..Config::default() };
        let reference = "127.0.0.1:1/a/b:v1".parse().unwrap();
        runtime.block_on(async {
            let model = Model::open(memory.clone(), reference, Store::open(&store).unwrap(), config).await;
            let model = model.unwrap();
            assert_eq!(model.is_named(), !streamed, "the third time there is an index");
            for read in reads {
                assert_read(&model, files, read).await;
            }
            model.all_named().await.unwrap();
            let (store, who) = (Store::open(&store).unwrap(), memory.identity());
            let reading = model.artifact.layers[0].reading();
            let indexed = async {
                loop {
                    match store.index(&who, &blob.digest, &reading) {
                        Some(index) => return index,
                        None => tokio::task::yield_now().await,
                    }
                }
            };
            if size == nothing {
                return model.close().await;
            }
            let index =
                tokio::time::timeout(Duration::from_secs(60), indexed).await.expect("no index was kept");
            model.close().await;
            drop(model);
            let evicted = async {
                while !store.holdings().is_empty() {
                    // The index is open, so it stays.
                    let _pruned = store.prune(Prune::Keep(0));
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), evicted).await.expect("files are still in use");
            drop(index);
        });
    }
}

async fn assert_read(model: &Model, files: &Files, (file, start, len): &Read) {
    let part = |of: usize, share: u16| of * usize::from(share) / 65536;
    let (path, content) = files.iter().nth(part(files.len(), *file)).unwrap();
    let start = part(content.len(), *start);
    let len = part(content.len() - start, *len) + 1;
    let expected = &content[start..(start + len).min(content.len())];
    let node = model.find(path).await.unwrap().unwrap_or_else(|| panic!("{path} is not there"));
    let bytes = model.read(node, start as u64, len as u64).await.unwrap();
    assert!(bytes == expected, "{path} at {start}, {len} bytes");
}

/// How many cases: as many as `PROPTEST_CASES` says, and few where it says nothing, since each runs programs.
fn cases() -> ProptestConfig {
    let default = ProptestConfig::default();
    let cases = if default.cases == 256 { 8 } else { default.cases };
    ProptestConfig { cases, max_shrink_iters: 0, failure_persistence: None, ..default }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn random_archives_of_random_writers_give_every_file_as_it_was(
        sizes in prop::collection::vec((0_usize..3, 0_usize..150_000), 1..6),
        archive in 0..=ARCHIVES.len(), compressor in 0..COMPRESSORS.len(), piece in 1_usize..100_000,
        reads in prop::collection::vec(any::<Read>(), 1..8),
    ) {
        let file = |(number, (depth, size)): (usize, &(usize, usize))| {
            (format!("{}file {number} é{}", "folder/".repeat(*depth), "x".repeat(size % 90)), bytes(number as u64, *size))
        };
        let files: Files = sizes.iter().enumerate().map(file).collect();
        let content = ARCHIVES.get(archive).map_or_else(|| archived_here(&files), |how| archived(&files, how));
        for (suffix, stored) in compressed_here(&content) {
            prop_assert!(gone_by(suffix, &stored, piece) == files, "archive {archive} by our own {suffix}");
            assert_read_at_random(&files, (suffix, stored), &reads);
        }
        for (number, (suffix, how)) in COMPRESSORS.into_iter().enumerate() {
            let stored = compressed(&content, how);
            prop_assert!(gone_by(suffix, &stored, piece) == files, "archive {archive} by {how}");
            if number == compressor {
                assert_read_at_random(&files, (suffix, stored), &reads);
            }
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
