//! The cases of `csi-sanity` (kubernetes-csi/csi-test, `pkg/sanity`) for Identity and Node, under their names there.
//!
//! Those that begin with a volume that a controller makes begin with a reference here. What the driver says it cannot do
//! (staging, expansion) is skipped there, and refused as unimplemented here.

use std::path::PathBuf;

use tonic::Code;
use weightfs::serve::csi::v1::node_service_capability::Type;
use weightfs::serve::csi::v1::node_service_capability::rpc;
use weightfs::serve::csi::v1::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest,
    NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse, NodePublishVolumeRequest,
    NodeStageVolumeRequest, NodeStageVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse,
    NodeUnstageVolumeRequest, NodeUnstageVolumeResponse, ProbeRequest, ProbeResponse,
};

use super::{assert_right, registry};
use crate::support::csi::{Client, code, volume};
use crate::support::node::Node;

/// What a case has: a driver, a model, a folder to publish at.
struct Given {
    client: Client,
    reference: String,
    target: PathBuf,
}

impl Given {
    fn volume(&self) -> NodePublishVolumeRequest {
        volume("sanity-volume", &self.target, &self.reference)
    }

    fn publish(&self) {
        self.client.publish(self.volume()).unwrap();
    }

    fn unpublish(&self) {
        self.client.unpublish("sanity-volume", &self.target).unwrap();
    }
}

type Case = (&'static str, fn(&Given));

const IDENTITY: [Case; 3] = [
    ("GetPluginCapabilities should return appropriate capabilities", |given| {
        let said: GetPluginCapabilitiesResponse =
            given.client.call("Identity/GetPluginCapabilities", GetPluginCapabilitiesRequest {}).unwrap();
        assert!(said.capabilities.is_empty());
    }),
    ("Probe should return appropriate information", |given| {
        let said: ProbeResponse = given.client.call("Identity/Probe", ProbeRequest {}).unwrap();
        assert_eq!(said.ready, Some(true));
    }),
    ("GetPluginInfo should return appropriate information", |given| {
        let said: GetPluginInfoResponse =
            given.client.call("Identity/GetPluginInfo", GetPluginInfoRequest {}).unwrap();
        assert_eq!(said.name, "model.csi.modelpack.org");
        assert!(said.name.len() <= 63 && !said.vendor_version.is_empty());
    }),
];

const NODE: [Case; 19] = [
    ("NodeGetCapabilities should return appropriate capabilities", |given| {
        let said: NodeGetCapabilitiesResponse =
            given.client.call("Node/NodeGetCapabilities", NodeGetCapabilitiesRequest {}).unwrap();
        let able: Vec<_> = said
            .capabilities
            .into_iter()
            .map(|capability| match capability.r#type {
                Some(Type::Rpc(rpc)) => rpc.r#type(),
                None => panic!("no capability"),
            })
            .collect();
        assert_eq!(able, [rpc::Type::GetVolumeStats, rpc::Type::VolumeCondition]);
    }),
    ("NodeGetInfo should return appropriate values", |given| {
        let said: NodeGetInfoResponse = given.client.call("Node/NodeGetInfo", NodeGetInfoRequest {}).unwrap();
        assert_eq!(said.node_id, "node-1");
        assert!(said.max_volumes_per_node >= 0);
    }),
    ("NodePublishVolume should fail when no volume id is provided", |given| {
        let request = NodePublishVolumeRequest { volume_id: String::new(), ..given.volume() };
        assert_eq!(code(given.client.publish(request)), Code::InvalidArgument);
    }),
    ("NodePublishVolume should fail when no target path is provided", |given| {
        let request = NodePublishVolumeRequest { target_path: String::new(), ..given.volume() };
        assert_eq!(code(given.client.publish(request)), Code::InvalidArgument);
    }),
    ("NodePublishVolume should fail when no volume capability is provided", |given| {
        let request = NodePublishVolumeRequest { volume_capability: None, ..given.volume() };
        assert_eq!(code(given.client.publish(request)), Code::InvalidArgument);
    }),
    ("NodeUnpublishVolume should fail when no volume id is provided", |given| {
        let request = NodeUnpublishVolumeRequest { target_path: "/t".into(), ..Default::default() };
        let said = given.client.call::<_, NodeUnpublishVolumeResponse>("Node/NodeUnpublishVolume", request);
        assert_eq!(code(said), Code::InvalidArgument);
    }),
    ("NodeUnpublishVolume should fail when no target path is provided", |given| {
        let request = NodeUnpublishVolumeRequest { volume_id: "v".into(), ..Default::default() };
        let said = given.client.call::<_, NodeUnpublishVolumeResponse>("Node/NodeUnpublishVolume", request);
        assert_eq!(code(said), Code::InvalidArgument);
    }),
    ("NodeUnpublishVolume should remove target path", |given| {
        given.publish();
        assert!(given.target.is_dir());
        given.unpublish();
        assert!(!given.target.exists());
    }),
    ("NodeStageVolume should fail when no volume id is provided (unimplemented)", staging),
    ("NodeStageVolume should fail when no staging target path is provided (unimplemented)", staging),
    ("NodeStageVolume should fail when no volume capability is provided (unimplemented)", staging),
    ("NodeUnstageVolume should fail when no volume id is provided (unimplemented)", unstaging),
    ("NodeUnstageVolume should fail when no staging target path is provided (unimplemented)", unstaging),
    ("NodeGetVolumeStats should fail when no volume id is provided", |given| {
        assert_eq!(code(given.client.stats("", "some/path")), Code::InvalidArgument);
    }),
    ("NodeGetVolumeStats should fail when no volume path is provided", |given| {
        assert_eq!(code(given.client.stats("some-volume", "")), Code::InvalidArgument);
    }),
    ("NodeGetVolumeStats should fail when volume is not found", |given| {
        assert_eq!(code(given.client.stats("some-volume", "some/path")), Code::NotFound);
    }),
    ("NodeGetVolumeStats should fail when volume does not exist on the specified path", |given| {
        given.publish();
        assert_eq!(code(given.client.stats("sanity-volume", "some/path")), Code::NotFound);
        given.unpublish();
    }),
    ("NodeExpandVolume should fail when no volume id is provided (unimplemented)", |given| {
        let request = NodeExpandVolumeRequest::default();
        let said = given.client.call::<_, NodeExpandVolumeResponse>("Node/NodeExpandVolume", request);
        assert_eq!(code(said), Code::Unimplemented);
    }),
    ("should work, and should be idempotent", |given| {
        for _ in 0..3 {
            given.publish();
        }
        let stats = given.client.stats("sanity-volume", &given.target.display().to_string()).unwrap();
        assert!(stats.usage[0].total > 0);
        assert_right(&given.target, 1);
        for _ in 0..3 {
            given.unpublish();
        }
    }),
];

fn staging(given: &Given) {
    let request = NodeStageVolumeRequest::default();
    let said = given.client.call::<_, NodeStageVolumeResponse>("Node/NodeStageVolume", request);
    assert_eq!(code(said), Code::Unimplemented);
}

fn unstaging(given: &Given) {
    let request = NodeUnstageVolumeRequest::default();
    let said = given.client.call::<_, NodeUnstageVolumeResponse>("Node/NodeUnstageVolume", request);
    assert_eq!(code(said), Code::Unimplemented);
}

#[test]
fn every_case_of_the_interfaces_own_suite_for_identity_and_node_passes() {
    let registry = registry(1..=1);
    let (node, client) = Node::for_pods();
    let given = Given { client, reference: registry.reference("models/1:v1"), target: node.target("target") };
    for (service, cases) in [("Identity Service", IDENTITY.as_slice()), ("Node Service", NODE.as_slice())] {
        for (name, case) in cases {
            case(&given);
            println!("pass: {service} {name}");
        }
    }
}
