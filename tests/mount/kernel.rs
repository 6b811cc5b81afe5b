//! The mount as the kernel and the shell see it: flags, owners, folders, attributes, and files that cost the process nothing.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::support::pack::{self, Dialect, MTIME, Packing};
use crate::support::place::Place;
use crate::support::registry::Registry;
use crate::support::sample::{REPOSITORY, sample};
use crate::support::{heavy, read, wait};

const MIB: u64 = 1 << 20;

fn small() -> (Registry, Place, String) {
    let registry = Registry::start();
    let files =
        [pack::File::new("config.json", "{}"), pack::File::new("sub/folder/weights.bin", vec![3; 2 << 20])];
    let artifact = pack::pack(&files, Packing::Raw, Dialect::Upstream, Path::new("/nowhere"));
    let digest = registry.push("acme/llm", "v1", &artifact);
    (registry, Place::new(), digest)
}

#[test]
fn the_mount_is_read_only_without_suid_and_devices_and_says_what_it_is() {
    let (registry, place, _) = small();
    let reference = registry.reference("acme/llm:v1");
    place.mount(&reference, &[]);
    let line = place.mountinfo();
    let (before, after) = line.split_once(" - ").unwrap();
    let flags: BTreeSet<&str> = before.split(' ').nth(5).unwrap().split(',').collect();
    assert!(["ro", "nosuid", "nodev"].iter().all(|flag| flags.contains(flag)), "{line}");
    let words: Vec<&str> = after.split(' ').collect();
    assert_eq!(words[0], "fuse.weightfs", "{line}");
    assert!(words[1].contains("acme/llm"), "{line}");
}

#[test]
fn the_kernel_reads_ahead_a_megabyte() {
    let (registry, place, _) = small();
    place.mount(&registry.reference("acme/llm:v1"), &[]);
    let device = place.mountinfo().split(' ').nth(2).unwrap().to_owned();
    let ahead = fs::read_to_string(format!("/sys/class/bdi/{device}/read_ahead_kb")).unwrap();
    assert_eq!(ahead.trim(), "1024");
}

#[test]
fn files_and_folders_are_readable_by_all_and_writable_by_none() {
    let (registry, place, _) = small();
    place.mount(&registry.reference("acme/llm:v1"), &[]);
    let file = place.path("sub/folder/weights.bin").metadata().unwrap();
    assert_eq!((file.permissions().mode(), file.len(), file.mtime()), (0o100_444, 2 << 20, MTIME as i64));
    assert_eq!((file.uid(), file.gid()), (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()));
    for folder in ["", "sub", "sub/folder"] {
        assert_eq!(place.path(folder).metadata().unwrap().permissions().mode(), 0o40_555, "{folder:?}");
    }
}

#[test]
fn owner_and_mask_are_as_asked_for() {
    let (registry, place, _) = small();
    place.mount(&registry.reference("acme/llm:v1"), &["--uid", "1234", "--gid", "567", "--umask", "027"]);
    let (file, folder) =
        (place.path("config.json").metadata().unwrap(), place.path("sub").metadata().unwrap());
    assert_eq!((file.uid(), file.gid(), file.permissions().mode()), (1234, 567, 0o100_440));
    assert_eq!((folder.uid(), folder.gid(), folder.permissions().mode()), (1234, 567, 0o40_550));
}

#[test]
fn every_way_of_writing_is_refused_as_read_only() {
    let (registry, place, _) = small();
    place.mount(&registry.reference("acme/llm:v1"), &[]);
    let config = place.path("config.json");
    let refused = [
        ("create", File::create(place.path("new")).err()),
        ("open for writing", File::options().write(true).open(&config).err()),
        ("truncate", File::options().write(true).truncate(true).open(&config).err()),
        ("remove", fs::remove_file(&config).err()),
        ("rename", fs::rename(&config, place.path("other")).err()),
        ("make a folder", fs::create_dir(place.path("new")).err()),
        ("remove a folder", fs::remove_dir(place.path("sub")).err()),
        ("change the mode", fs::set_permissions(&config, PermissionsExt::from_mode(0o777)).err()),
        ("link", fs::hard_link(&config, place.path("link")).err()),
        ("link symbolically", std::os::unix::fs::symlink("config.json", place.path("link")).err()),
    ];
    for (what, error) in refused {
        assert_eq!(error.map(|error| error.kind()), Some(ErrorKind::ReadOnlyFilesystem), "{what}");
    }
}

#[test]
fn what_is_not_there_is_not_found() {
    let (registry, place, _) = small();
    place.mount(&registry.reference("acme/llm:v1"), &[]);
    for path in ["nothing", "sub/nothing", "config.json/below"] {
        let error = place.path(path).metadata().unwrap_err();
        let expected = match path {
            "config.json/below" => Errno::ENOTDIR,
            _ => Errno::ENOENT,
        };
        assert_eq!(error.raw_os_error(), Some(expected as i32), "{path}");
    }
}

#[test]
fn attributes_name_the_digest() {
    let (registry, place, digest) = small();
    place.mount(&registry.reference("acme/llm:v1"), &["--warm", "all"]);
    assert_eq!(read::xattr(&place.dir(), "user.weightfs.digest"), Some(digest));
    place.wait_until_complete();
    let file = place.path("sub/folder/weights.bin");
    let right = pack::digest(&vec![3; 2 << 20]);
    assert_eq!(read::xattr(&file, "user.modctl.sha256"), Some(right));
    assert_eq!(read::xattr(&file, "user.modctl.size"), Some((2 << 20).to_string()));
    assert_eq!(read::xattr(&file, "user.nothing"), None);
}

#[test]
fn the_file_system_is_as_large_as_the_model_and_full() {
    let (registry, place, _) = small();
    place.mount(&registry.reference("acme/llm:v1"), &[]);
    let figures = nix::sys::statvfs::statvfs(&place.dir()).unwrap();
    let size = figures.blocks() * figures.fragment_size();
    assert!((2 * MIB..3 * MIB).contains(&size), "{size}");
    assert_eq!((figures.blocks_free(), figures.blocks_available()), (0, 0));
    assert_eq!(figures.name_max(), 255);
}

#[test]
fn a_folder_of_three_thousand_files_is_listed_whole_and_the_same_each_time() {
    let _alone = heavy();
    let (registry, place) = (Registry::start(), Place::new());
    let name = |n: u32| format!("data/{:03}/file-{n:05}-with-a-name-of-some-length.json", n % 2);
    let files: Vec<_> = (0..3000).map(|n| pack::File::new(name(n), format!("{{\"n\":{n}}}"))).collect();
    let artifact = pack::pack(&files, Packing::OneTar, Dialect::Upstream, Path::new("/nowhere"));
    registry.push("acme/many", "v1", &artifact);
    place.mount(&registry.reference("acme/many:v1"), &[]);
    for half in 0..2 {
        let folder = place.path(&format!("data/{half:03}"));
        let expected: BTreeSet<String> = (0..3000)
            .filter(|n| n % 2 == half)
            .map(|n| name(n).rsplit('/').next().unwrap().to_owned())
            .collect();
        let list = || -> Vec<String> {
            fs::read_dir(&folder)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect()
        };
        let first = list();
        assert_eq!(first.len(), 1500, "each name once");
        assert_eq!(first.iter().cloned().collect::<BTreeSet<_>>(), expected);
        assert_eq!(first, list());
    }
    for n in [0, 1, 1499, 2999] {
        assert_eq!(fs::read_to_string(place.path(&name(n))).unwrap(), format!("{{\"n\":{n}}}"));
    }
}

#[test]
fn a_reader_may_take_any_steps_in_a_folder_and_go_back_to_any_place() {
    let (registry, place) = (Registry::start(), Place::new());
    let files: Vec<_> = (0..400).map(|n| pack::File::new(format!("f{n:04}"), "x")).collect();
    let artifact = pack::pack(&files, Packing::OneTar, Dialect::Upstream, Path::new("/nowhere"));
    registry.push("acme/many", "v1", &artifact);
    place.mount(&registry.reference("acme/many:v1"), &[]);
    let mut folder = read::Folder::open(&place.dir());
    let all = folder.rest(64 << 10);
    assert_eq!(all.iter().map(|entry| &entry.name).collect::<BTreeSet<_>>().len(), 402, "with . and ..");
    for (room, skip) in [(64, 0), (1000, 1), (4096, 17), (32 << 10, 399), (128, 402)] {
        folder.seek(if skip == 0 { 0 } else { all[skip - 1].next });
        assert_eq!(folder.rest(room), all[skip..], "steps of {room} bytes after {skip} names");
    }
}

#[test]
fn a_complete_verified_model_is_read_past_the_process() {
    let _alone = heavy();
    let (registry, place) = (sample().registry(), Place::new());
    for tag in ["raw", "tar"] {
        let reference = registry.reference(&format!("{REPOSITORY}:{tag}"));
        place.mount(&reference, &["--warm", "all", "--passthrough", "auto"]);
        place.wait_until_complete();
        place.unmount();
        // The first mount may have been gone before it had read the file back; then the next one does, when it is opened.
        wait::until(&format!("{tag}: the kernel reads by itself"), Duration::from_secs(120), || {
            place.mount(&reference, &["--warm", "none", "--passthrough", "auto"]);
            let served = served_of(&place, &sample().shards[1]);
            place.unmount();
            served < MIB
        });
    }
}

/// How many bytes the mount's process serves while a file is read and mapped as a whole.
fn served_of(place: &Place, name: &str) -> u64 {
    let (pid, path) = (place.pid(), place.path(name));
    let file = File::open(&path).unwrap();
    let before = written(pid);
    read::compare_whole(&path, &sample().original(name));
    let map = read::map(&path);
    read::assert_same(&path, 0, &map, &read::map(&sample().original(name)));
    let served = written(pid) - before;
    drop((map, file));
    served
}

/// Bytes that a process has handed to write calls: what it serves to the kernel is among them.
fn written(pid: Pid) -> u64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap();
    line.parse().unwrap()
}

#[test]
fn descriptors_and_threads_return_to_where_they_were() {
    let _alone = heavy();
    let (registry, place) = (sample().registry(), Place::new());
    place.mount(&registry.reference(&format!("{REPOSITORY}:raw")), &[]);
    registry.settled();
    let pid = place.pid();
    let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
    read::assert_whole_sample(&place, sample());
    registry.settled();
    let before = (count("fd"), count("task"));
    for _again in 0..200 {
        let file = File::open(place.path(&sample().shards[0])).unwrap();
        read::range(&file, 0, 4096).unwrap();
    }
    let after = (count("fd"), count("task"));
    assert!(after.0 <= before.0 + 16 && after.1 <= before.1 + 16, "{before:?} became {after:?}");
}
