//! The code that was generated from the protocol is what it would be now.

use std::path::Path;
use std::process::Command;

use prost::Message;
use prost_types::FileDescriptorSet;

const HEAD: &str = "\
//! The types and services of the Container Storage Interface, by `protoc` and `tonic-prost-build` from `proto/csi.proto`. Not written
//! by hand: run the test `serve::generated` with `WEIGHTFS_TEST_WRITE=1` to write it anew.

";

/// The services that are served; of the others only the types are there.
const SERVED: [&str; 3] = ["Identity", "Controller", "Node"];

/// Requests that carry secrets: they print as nothing.
const SECRET: [&str; 12] = [
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
];

fn generate(root: &Path) -> String {
    let folder = tempfile::tempdir().unwrap();
    let set = folder.path().join("set");
    let mut protoc = Command::new("protoc");
    protoc.arg("--include_imports").arg("-I").arg(root.join("proto")).arg("csi.proto").arg("-o").arg(&set);
    assert!(protoc.status().expect("protoc; run tools/test, which installs it").success());
    let mut set = FileDescriptorSet::decode(std::fs::read(&set).unwrap().as_slice()).unwrap();
    for file in &mut set.file {
        file.service.retain(|service| SERVED.contains(&service.name()));
    }
    let builder = tonic_prost_build::configure().build_client(false).build_transport(false);
    let builder = builder.disable_comments(["."]).skip_debug(SECRET).out_dir(folder.path());
    builder.compile_fds(set).unwrap();
    HEAD.to_owned() + &std::fs::read_to_string(folder.path().join("csi.v1.rs")).unwrap()
}

#[test]
fn the_code_agrees_with_the_protocol() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (code, path) = (generate(root), root.join("src/serve/csi/v1.rs"));
    if std::env::var_os("WEIGHTFS_TEST_WRITE").is_some() {
        std::fs::write(&path, &code).unwrap();
    }
    assert!(std::fs::read_to_string(&path).unwrap() == code, "src/serve/csi/v1.rs is of another protocol");
}
