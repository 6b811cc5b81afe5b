//! The fixtures themselves: the archives are what the real writers make, and every dialect gives one tree.

mod golden;
mod writers;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use weightfs::index::{self, EntryKind, Index};
use weightfs::oci::manifest::Document;
use weightfs::oci::{Artifact as Read, Blob, Descriptor, Digest, Which};
use weightfs::range::StoredRange;
use weightfs::repository::{ByteStream, Pace, Pinned, Repository};

use crate::support::artifacts::{self, Artifact, File, Layer, file, sample};
use crate::support::tar_writers::Writer;

/// The blobs of one artifact.
#[derive(Debug)]
struct Memory<'a> {
    artifact: &'a Artifact,
    blobs: BTreeMap<Digest, &'a [u8]>,
}

impl<'a> Memory<'a> {
    fn new(artifact: &'a Artifact) -> Self {
        Self { artifact, blobs: artifact.blobs().into_iter().collect() }
    }

    fn index(&self) -> Index {
        self.find().unwrap()
    }

    fn find(&self) -> weightfs::Result<Index> {
        let parsed = Document::parse(&self.artifact.manifest(), &self.artifact.media_type).unwrap();
        let Document::Manifest(manifest) = parsed else { panic!("not a manifest") };
        let read = Read::read(manifest).unwrap();
        index::find(self, &read, &|_| Vec::new()).now_or_never().unwrap()
    }

    fn slice(&self, blob: &Blob, range: StoredRange) -> &'a [u8] {
        &self.blobs[&blob.digest]
            [usize::try_from(range.start()).unwrap()..usize::try_from(range.end()).unwrap()]
    }
}

impl Repository for Memory<'_> {
    fn manifest<'a>(&'a self, _: &'a Which) -> BoxFuture<'a, weightfs::Result<Pinned>> {
        let (digest, bytes) = (self.artifact.digest(), self.artifact.manifest().into());
        async { Ok(Pinned { digest, media_type: String::new(), bytes }) }.boxed()
    }

    fn read<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, weightfs::Result<ByteStream>> {
        let piece = Bytes::copy_from_slice(self.slice(blob, range));
        let stream: ByteStream = stream::iter([Ok(piece)]).boxed();
        async { Ok(stream) }.boxed()
    }

    fn read_ahead<'a>(
        &'a self,
        blob: &'a Blob,
        range: StoredRange,
    ) -> BoxFuture<'a, weightfs::Result<ByteStream>> {
        self.read(blob, range)
    }

    fn pace(&self) -> Pace {
        Pace::default()
    }

    fn referrers<'a>(
        &'a self,
        _: &'a Digest,
        _: &'a str,
    ) -> BoxFuture<'a, weightfs::Result<Vec<Descriptor>>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn distrust(&self, _: &Blob) {}

    fn place(&self) -> String {
        "memory".to_owned()
    }

    fn identity(&self) -> String {
        String::new()
    }
}

/// Every file of an index with its bytes.
fn contents(artifact: &Artifact) -> BTreeMap<String, Vec<u8>> {
    let memory = Memory::new(artifact);
    let index = memory.index();
    let content = |kind: &EntryKind| match kind {
        EntryKind::File { extent: Some(id), size } => {
            let layer = &index.layers[id.layer];
            let range = layer.stored(layer.extents[id.extent]).unwrap();
            assert_eq!(range.len(), *size);
            memory.slice(&layer.blob, range).to_vec()
        }
        _ => Vec::new(),
    };
    index.entries.iter().map(|entry| (entry.path.clone(), content(&entry.kind))).collect()
}

fn expected(files: &[File]) -> BTreeMap<String, Vec<u8>> {
    files.iter().map(|file| (file.path.clone(), file.content.clone())).collect()
}

/// Files whose names and sizes meet the edges of the formats.
fn edges() -> Vec<(String, Vec<u8>)> {
    let names = ["a".to_owned(), "x".repeat(100), "folder/".repeat(20) + "file", "y".repeat(90) + "/z"];
    let sizes = [0, 1, 511, 512, 513];
    names.into_iter().zip(sizes).map(|(name, size)| (name, artifacts::bytes(7, size))).collect()
}

fn write_files(folder: &Path, files: &[(String, Vec<u8>)]) {
    for (name, content) in files {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
}

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn every_dialect_gives_the_same_files() {
    let files = sample();
    for (dialect, artifact) in Artifact::every_dialect(&files) {
        assert!(contents(&artifact) == expected(&files), "{dialect}");
    }
}

#[test]
fn names_that_need_extensions_come_through() {
    let long = "very/".repeat(60) + "long.bin";
    let files = [
        file(&long, artifacts::bytes(1, 3000)),
        file("模型/é.bin", artifacts::bytes(2, 10)),
        file(&"n".repeat(120), artifacts::bytes(3, 5)),
    ];
    for artifact in [Artifact::modctl_tar(&files), Artifact::aikit_tar(&files), Artifact::seed_tar(&files)] {
        assert!(contents(&artifact) == expected(&files));
    }
}

#[test]
fn the_gnu_form_is_what_gnu_tar_writes() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = edges();
    files.push(("n".repeat(101), artifacts::bytes(8, 9)));
    write_files(folder.path(), &files);
    let mut tar = Command::new("tar");
    tar.args([
        "--format=gnu",
        "--owner=root:0",
        "--group=root:0",
        "--mode=644",
        "--mtime=@1735689600",
        "-cf",
        "-",
    ]);
    let real = run(tar.arg("-C").arg(folder.path()).args(files.iter().map(|(name, _)| name)));
    let ours = Writer::Gnu.archive(files.iter().map(|(name, content)| (name.as_str(), content.as_slice())));
    assert!(real == ours);
}

#[test]
fn the_python_form_is_what_tarfile_writes_and_it_reads_the_go_form() {
    const WRITE: &str = "
import io, sys, tarfile
out = sys.stdout.buffer
with tarfile.open(mode='w|', fileobj=out, format=tarfile.USTAR_FORMAT) as tar:
    for name in sys.argv[2:]:
        info = tarfile.TarInfo(name)
        content = open(sys.argv[1] + '/' + name, 'rb').read()
        info.size, info.mtime, info.mode = len(content), 1735689600, 0o644
        tar.addfile(info, io.BytesIO(content))
";
    const READ: &str = "
import sys, tarfile
for member in tarfile.open(sys.argv[1]):
    assert member.isreg() and member.mode == 0o644 and member.mtime == 1735689600 and member.uname == 'root'
    print(member.name, member.size, member.offset_data)
";
    let folder = tempfile::tempdir().unwrap();
    let files = edges();
    write_files(folder.path(), &files);
    let pieces = || files.iter().map(|(name, content)| (name.as_str(), content.as_slice()));
    let names = files.iter().map(|(name, _)| name);
    let real = run(Command::new("python3").args(["-c", WRITE]).arg(folder.path()).args(names));
    assert!(real == Writer::Python.archive(pieces()));

    let long = "é".repeat(90);
    let go = Writer::Go.archive(pieces().chain([(long.as_str(), &b"pax"[..])]));
    let path = folder.path().join("go.tar");
    std::fs::write(&path, go).unwrap();
    let listed = String::from_utf8(run(Command::new("python3").args(["-c", READ]).arg(&path))).unwrap();
    assert_eq!(listed.lines().count(), files.len() + 1);
    assert!(listed.lines().last().unwrap().starts_with(&format!("{long} 3 ")), "{listed}");
}

#[test]
fn what_tarfile_writes_in_every_format_is_read() {
    const WRITE: &str = "
import io, sys, tarfile
form = getattr(tarfile, sys.argv[1])
with tarfile.open(mode='w|', fileobj=sys.stdout.buffer, format=form) as tar:
    def add(name, content=b'', **fields):
        info = tarfile.TarInfo(name)
        info.size, info.mtime = len(content), 1735689600.25
        for key, value in fields.items(): setattr(info, key, value)
        tar.addfile(info, io.BytesIO(content))
    add('./', type=tarfile.DIRTYPE)
    add('./d/', type=tarfile.DIRTYPE)
    add('./d/' + 'n' * 150, b'long', pax_headers={'comment': 'x'})
    add('a', b'a' * 1000)
    add('hard', type=tarfile.LNKTYPE, linkname='a')
    add('soft', type=tarfile.SYMTYPE, linkname='d/' + 'n' * 150)
";
    for format in ["PAX_FORMAT", "GNU_FORMAT"] {
        let archive = run(Command::new("python3").args(["-c", WRITE, format]));
        let layer = Layer::new("application/vnd.cncf.model.code.v1.tar", archive);
        let artifact = Artifact::seed_raw(&[]).with(layer);
        let memory = Memory::new(&artifact);
        let index = memory.index();
        let long = format!("d/{}", "n".repeat(150));
        let paths: Vec<_> = index.entries.iter().map(|entry| entry.path.as_str()).collect();
        assert_eq!(paths, ["d", &long, "a", "hard", "soft"], "{format}");
        assert_eq!(index.entries[3].kind, EntryKind::HardLink("a".to_owned()));
        assert_eq!(index.entries[4].kind, EntryKind::Symlink(long.clone()));
        assert!(index.entries.iter().all(|entry| entry.mtime == 1_735_689_600));
        assert_eq!(contents(&artifact)[&long], b"long");
    }
}

#[test]
fn what_gnu_tar_writes_in_every_format_is_read_unless_it_is_sparse() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = edges();
    files.push(("n".repeat(101), artifacts::bytes(8, 9)));
    write_files(folder.path(), &files);
    let hole = std::fs::File::create(folder.path().join("hole")).unwrap();
    hole.set_len(1 << 20).unwrap();
    let layer_of = |options: &[&str]| {
        let archive =
            run(Command::new("tar").args(options).arg("-C").arg(folder.path()).args(["-cf", "-", "."]));
        Artifact::seed_raw(&[]).with(Layer::new("application/vnd.cncf.model.code.v1.tar", archive))
    };
    for format in ["--format=gnu", "--format=posix", "--format=oldgnu"] {
        let found = contents(&layer_of(&[format]));
        for (name, content) in &files {
            assert!(found[name] == *content, "{format} {name}");
        }
    }
    for sparse in ["--format=gnu", "--format=posix"] {
        let artifact = layer_of(&[sparse, "--sparse"]);
        let error = Memory::new(&artifact).find().unwrap_err();
        assert_eq!(error.kind(), weightfs::Kind::Unsupported);
        assert!(error.to_string().contains("sparse"), "{error}");
    }
}

#[test]
fn a_layout_holds_what_was_written_under_its_tags() {
    let folder = tempfile::tempdir().unwrap();
    let files = [file("config.json", "{}")];
    let first = Artifact::modctl_raw(&files).write(folder.path(), "v1");
    let second = Artifact::aikit_raw(&files).write_in_index(folder.path(), "v2");
    assert_eq!(Artifact::modctl_raw(&files).write(folder.path(), "v1"), first);
    let index = std::fs::read(folder.path().join("index.json")).unwrap();
    let Document::Index(choice) = Document::parse(&index, "").unwrap() else { panic!("not an index") };
    assert_eq!(choice.manifests.len(), 2);
    let read = |hex: &str| std::fs::read(folder.path().join("blobs/sha256").join(hex)).unwrap();
    let inner = choice.manifests.iter().find(|one| one.descriptor.digest != first).unwrap();
    let Document::Index(inner) = Document::parse(&read(inner.descriptor.digest.hex()), "").unwrap() else {
        panic!("not an index")
    };
    assert_eq!(inner.choose(None).unwrap().digest, second);
    assert!(second.matches(&read(second.hex())));
}
