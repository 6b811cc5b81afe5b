//! A handful of the same through the kernel: whole files while requests fail, an error that ends, a model that goes on.

use std::fs::File;
use std::time::Duration;

use nix::libc::EIO;
use weightfs::testing::registry::{Door, Fault, Habits, Registry, Rule, Tokens};

use super::kinds;
use super::setting::{Artifact, Form};
use crate::support::pack::Packing;
use crate::support::place::Place;
use crate::support::{read, wait};

const SIZE: usize = (5 << 20) + 333;

/// A registry in this process and its runtime; the program under test is another process.
struct Served {
    registry: Registry,
    runtime: tokio::runtime::Runtime,
}

impl Served {
    fn start(artifact: &Artifact, habits: Habits) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let registry = runtime.block_on(Registry::start(artifact.source(), habits)).unwrap();
        Self { registry, runtime }
    }

    fn reference(&self) -> String {
        format!("{}/test/model:v1", self.registry.host())
    }
}

fn assert_whole(place: &Place, artifact: &Artifact) {
    for (number, file) in artifact.files.iter().enumerate() {
        let path = place.path(&file.path);
        read::assert_same(&path, 0, &std::fs::read(&path).unwrap(), artifact.bytes(number));
    }
}

#[test]
fn a_mount_is_read_whole_while_tokens_and_addresses_end_and_a_third_of_the_requests_fail() {
    for form in [Form::Packed, Form::Plain] {
        let artifact = Artifact::of(4, SIZE, Packing::Raw, form);
        let tokens = Tokens { told: 2, ..Tokens::for_everybody() };
        let habits = Habits { door: Door::Tokens(tokens), storage: Some(Duration::from_secs(2)) };
        let served = Served::start(&artifact, habits);
        let place = Place::new();
        let mut command = place.command();
        command.env("WEIGHTFS_STALL", "2s").args(["mount", &served.reference()]).arg(place.dir());
        place.finish(command, Duration::from_secs(60)).ok();
        let storage = served.registry.storage().unwrap();
        storage.rule(Rule::mixture("/blobs/", 0.3, 11, kinds::passing()));
        assert_whole(&place, &artifact);
        let violations = served.registry.violations();
        assert!(violations.is_empty(), "{violations:?}");
        place.unmount();
    }
}

#[test]
fn a_registry_that_refuses_for_good_is_an_error_that_ends_and_the_mount_reads_on_when_it_relents() {
    let artifact = Artifact::of(2, SIZE, Packing::Raw, Form::Packed);
    let served = Served::start(&artifact, Habits::default());
    let place = Place::new();
    place.mount(&served.reference(), &["--warm", "none", "--read-deadline", "3s"]);
    let path = place.path(&artifact.files[0].path);
    let file = File::open(&path).unwrap();
    for fault in [Fault::Status(403), Fault::Status(500), Fault::Html200, Fault::Reset, Fault::Zeros] {
        served.registry.rule(Rule::always("/blobs/", fault.clone()));
        let error = read::range(&file, 2 << 20, 4096).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(EIO), "{fault:?}");
        served.registry.heal();
    }
    // The same open file, and no wait but what the client itself needs to see that all is well.
    let right = &artifact.bytes(0)[2 << 20..(2 << 20) + 4096];
    wait::until("it reads on", Duration::from_secs(30), || {
        read::range(&file, 2 << 20, 4096).is_ok_and(|got| got == right)
    });
    assert_whole(&place, &artifact);
    drop(file);
    place.unmount();
}

#[test]
fn a_registry_that_goes_and_comes_back_is_read_on_by_who_waits() {
    let artifact = Artifact::of(2, SIZE, Packing::Raw, Form::Packed);
    let mut served = Served::start(&artifact, Habits::default());
    let place = Place::new();
    place.mount(&served.reference(), &["--warm", "none"]);
    let path = place.path(&artifact.files[0].path);
    let file = File::open(&path).unwrap();
    let runtime = &served.runtime;
    let registry = &mut served.registry;
    runtime.block_on(registry.leave());
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read::range(&file, 1 << 20, 4096));
        assert!(!wait::eventually(Duration::from_secs(2), || reader.is_finished()), "read out of nowhere");
        runtime.block_on(registry.come_back()).unwrap();
        wait::until("the reader goes on", Duration::from_secs(40), || reader.is_finished());
        assert_eq!(reader.join().unwrap().unwrap(), &artifact.bytes(0)[1 << 20..(1 << 20) + 4096]);
    });
    drop(file);
    place.unmount();
}
