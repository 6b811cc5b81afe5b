//! The code that was generated from the protocols is what it would be now.

use std::path::{Path, PathBuf};
use std::process::Command;

use prost::Message;
use prost_types::FileDescriptorSet;

/// A protocol, and the code that is made of it.
struct Protocol {
    /// What the code says first.
    head: &'static str,
    /// The folder, and the file in it that is read.
    folder: &'static str,
    file: &'static str,
    /// The packages whose types become code, each with the module that it is put into; empty for the file's own.
    packages: &'static [(&'static str, &'static str)],
    /// The services that are served; of the others only the types are there.
    served: &'static [&'static str],
    /// Requests that carry secrets: they print as nothing.
    secret: &'static [&'static str],
    code: &'static str,
}

const CSI: Protocol = Protocol {
    head: "\
//! The types and services of the Container Storage Interface, by `protoc` and `tonic-prost-build` from `proto/csi.proto`. Not written
//! by hand: run the test `serve::generated` with `WEIGHTFS_TEST_WRITE=1` to write it anew.

",
    folder: "proto",
    file: "csi.proto",
    packages: &[("csi.v1", "")],
    served: &["Identity", "Controller", "Node"],
    secret: &[
        "csi.v1.CreateVolumeRequest",
        "csi.v1.DeleteVolumeRequest",
        "csi.v1.ControllerPublishVolumeRequest",
        "csi.v1.ControllerUnpublishVolumeRequest",
        "csi.v1.ValidateVolumeCapabilitiesRequest",
        "csi.v1.CreateSnapshotRequest",
        "csi.v1.DeleteSnapshotRequest",
        "csi.v1.ListSnapshotsRequest",
        "csi.v1.ControllerExpandVolumeRequest",
        "csi.v1.ControllerModifyVolumeRequest",
        "csi.v1.NodePublishVolumeRequest",
        "csi.v1.NodeStageVolumeRequest",
    ],
    code: "src/serve/csi/v1.rs",
};

const SNAPSHOTS: Protocol = Protocol {
    head: "\
//! The types and the service of containerd's snapshots, by `protoc` and `tonic-prost-build` from `proto/containerd`. Not written
//! by hand: run the test `serve::generated` with `WEIGHTFS_TEST_WRITE=1` to write it anew.

",
    folder: "proto/containerd",
    file: "snapshots.proto",
    packages: &[("containerd.types", "types"), ("containerd.services.snapshots.v1", "")],
    served: &["Snapshots"],
    secret: &[],
    code: "src/serve/snapshots/v1.rs",
};

impl Protocol {
    fn generate(&self, root: &Path) -> String {
        let folder = tempfile::tempdir().unwrap();
        let set = folder.path().join("set");
        let mut protoc = Command::new("protoc");
        protoc
            .arg("--include_imports")
            .arg("-I")
            .arg(root.join(self.folder))
            .arg(self.file)
            .arg("-o")
            .arg(&set);
        assert!(protoc.status().expect("protoc; run tools/test, which installs it").success());
        let mut set = FileDescriptorSet::decode(std::fs::read(&set).unwrap().as_slice()).unwrap();
        for file in &mut set.file {
            file.service.retain(|service| self.served.contains(&service.name()));
        }
        let code = self.packages.iter().map(|(package, module)| {
            let text = self.package(&set, package, folder.path());
            match *module {
                "" => text,
                module => format!("/// Of the package `{package}`.\npub mod {module} {{\n{text}}}\n"),
            }
        });
        self.head.to_owned() + &code.collect::<String>()
    }

    /// The code of one package; types of the others are looked for in their modules.
    fn package(&self, set: &FileDescriptorSet, package: &str, folder: &Path) -> String {
        let builder = tonic_prost_build::configure().build_client(false).build_transport(false);
        let mut builder = builder.disable_comments(["."]).skip_debug(self.secret).out_dir(folder);
        for (other, module) in self.packages.iter().filter(|(other, _)| *other != package) {
            if !module.is_empty() {
                builder = builder.extern_path(format!(".{other}"), *module);
            }
        }
        builder.compile_fds(set.clone()).unwrap();
        std::fs::read_to_string(folder.join(format!("{package}.rs"))).unwrap()
    }
}

#[test]
fn the_code_agrees_with_the_protocols() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    for protocol in [CSI, SNAPSHOTS] {
        let (code, path) = (protocol.generate(&root), root.join(protocol.code));
        if std::env::var_os("WEIGHTFS_TEST_WRITE").is_some() {
            std::fs::write(&path, &code).unwrap();
        }
        assert!(std::fs::read_to_string(&path).unwrap() == code, "{} is of another protocol", protocol.code);
    }
}
