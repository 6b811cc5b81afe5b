//! The cases of `csi-sanity` (kubernetes-csi/csi-test, `pkg/sanity`) for Identity, Controller and Node, under their names there.
//!
//! Those of Node that begin with a volume that a controller makes begin with a reference here. What the driver says it cannot do
//! (staging, expansion) is skipped there, and refused as unimplemented here.

use std::path::PathBuf;

use tonic::{Code, Status};
use weightfs::serve::csi::v1::node_service_capability::Type;
use weightfs::serve::csi::v1::node_service_capability::rpc;
use weightfs::serve::csi::v1::plugin_capability::{Type as PluginType, service};
use weightfs::serve::csi::v1::{
    CapacityRange, ControllerGetCapabilitiesRequest, ControllerGetCapabilitiesResponse, CreateVolumeRequest,
    CreateVolumeResponse, DeleteVolumeRequest, DeleteVolumeResponse, ValidateVolumeCapabilitiesRequest,
    ValidateVolumeCapabilitiesResponse, Volume, VolumeCapability, controller_service_capability,
};
use weightfs::serve::csi::v1::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest,
    NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse, NodePublishVolumeRequest,
    NodeStageVolumeRequest, NodeStageVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse,
    NodeUnstageVolumeRequest, NodeUnstageVolumeResponse, ProbeRequest, ProbeResponse,
};

use super::{assert_right, registry};
use crate::support::csi::{Client, REFERENCE, capability, code, volume};
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
        let able = said.capabilities.into_iter().map(|capability| match capability.r#type {
            Some(PluginType::Service(service)) => service.r#type(),
            other => panic!("{other:?}"),
        });
        assert!(able.eq([service::Type::ControllerService]));
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

/// A volume as a provisioner asks for it.
fn made(given: &Given, name: &str) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.to_owned(),
        volume_capabilities: vec![capability()],
        parameters: [(REFERENCE.to_owned(), given.reference.clone())].into(),
        ..CreateVolumeRequest::default()
    }
}

fn create(given: &Given, request: CreateVolumeRequest) -> Result<Volume, Status> {
    let said: CreateVolumeResponse = given.client.call("Controller/CreateVolume", request)?;
    Ok(said.volume.expect("a volume"))
}

fn delete(given: &Given, id: &str) -> Result<DeleteVolumeResponse, Status> {
    let request = DeleteVolumeRequest { volume_id: id.to_owned(), ..DeleteVolumeRequest::default() };
    given.client.call("Controller/DeleteVolume", request)
}

fn validate(
    given: &Given,
    id: &str,
    able: Vec<VolumeCapability>,
) -> Result<ValidateVolumeCapabilitiesResponse, Status> {
    let request = ValidateVolumeCapabilitiesRequest {
        volume_id: id.to_owned(),
        volume_capabilities: able,
        ..ValidateVolumeCapabilitiesRequest::default()
    };
    given.client.call("Controller/ValidateVolumeCapabilities", request)
}

fn sized(bytes: i64) -> Option<CapacityRange> {
    Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 })
}

const CONTROLLER: [Case; 15] = [
    ("ControllerGetCapabilities should return appropriate capabilities", |given| {
        let request = ControllerGetCapabilitiesRequest {};
        let said: ControllerGetCapabilitiesResponse =
            given.client.call("Controller/ControllerGetCapabilities", request).unwrap();
        let able = said.capabilities.into_iter().map(|capability| match capability.r#type {
            Some(controller_service_capability::Type::Rpc(rpc)) => rpc.r#type(),
            None => panic!("no capability"),
        });
        assert!(able.eq([controller_service_capability::rpc::Type::CreateDeleteVolume]));
    }),
    ("CreateVolume should fail when no name is provided", |given| {
        assert_eq!(code(create(given, made(given, ""))), Code::InvalidArgument);
    }),
    ("CreateVolume should fail when no volume capabilities are provided", |given| {
        let request = CreateVolumeRequest { volume_capabilities: Vec::new(), ..made(given, "sanity-none") };
        assert_eq!(code(create(given, request)), Code::InvalidArgument);
    }),
    ("CreateVolume should return appropriate values SingleNodeWriter NoCapacity", |given| {
        let volume = create(given, made(given, "sanity-made")).unwrap();
        assert_eq!(
            (&*volume.volume_id, volume.volume_context[REFERENCE].as_str()),
            ("sanity-made", &*given.reference)
        );
        delete(given, &volume.volume_id).unwrap();
    }),
    ("CreateVolume should return appropriate values SingleNodeWriter WithCapacity 1Gi", |given| {
        let request = CreateVolumeRequest { capacity_range: sized(1 << 30), ..made(given, "sanity-sized") };
        let volume = create(given, request).unwrap();
        assert!(volume.capacity_bytes == 0 || volume.capacity_bytes >= 1 << 30);
        delete(given, &volume.volume_id).unwrap();
    }),
    (
        "CreateVolume should not fail when requesting to create a volume with already existing name and same capacity",
        |given| {
            let request =
                || CreateVolumeRequest { capacity_range: sized(1 << 30), ..made(given, "sanity-twice") };
            assert_eq!(create(given, request()).unwrap(), create(given, request()).unwrap());
            delete(given, "sanity-twice").unwrap();
        },
    ),
    (
        "CreateVolume should fail when requesting to create a volume with already existing name and different capacity",
        |given| {
            let request =
                |bytes| CreateVolumeRequest { capacity_range: sized(bytes), ..made(given, "sanity-other") };
            create(given, request(1 << 30)).unwrap();
            assert_eq!(code(create(given, request(2 << 30))), Code::AlreadyExists);
            delete(given, "sanity-other").unwrap();
            create(given, request(2 << 30)).unwrap();
            delete(given, "sanity-other").unwrap();
        },
    ),
    ("CreateVolume should not fail when creating volume with maximum-length name", |given| {
        let name = "a".repeat(128);
        assert_eq!(create(given, made(given, &name)).unwrap().volume_id, name);
        delete(given, &name).unwrap();
    }),
    ("DeleteVolume should fail when no volume id is provided", |given| {
        assert_eq!(code(delete(given, "")), Code::InvalidArgument);
    }),
    ("DeleteVolume should succeed when an invalid volume id is used", |given| {
        delete(given, "reallyfakevolumeid").unwrap();
    }),
    ("DeleteVolume should return appropriate values (no optional values added)", |given| {
        let volume = create(given, made(given, "sanity-gone")).unwrap();
        delete(given, &volume.volume_id).unwrap();
        delete(given, &volume.volume_id).unwrap();
    }),
    ("ValidateVolumeCapabilities should fail when no volume id is provided", |given| {
        assert_eq!(code(validate(given, "", vec![capability()])), Code::InvalidArgument);
    }),
    ("ValidateVolumeCapabilities should fail when no volume capabilities are provided", |given| {
        create(given, made(given, "sanity-able")).unwrap();
        assert_eq!(code(validate(given, "sanity-able", Vec::new())), Code::InvalidArgument);
        delete(given, "sanity-able").unwrap();
    }),
    ("ValidateVolumeCapabilities should return appropriate values (no optional values added)", |given| {
        create(given, made(given, "sanity-able")).unwrap();
        let confirmed = validate(given, "sanity-able", vec![capability()]).unwrap().confirmed;
        assert_eq!(confirmed.expect("confirmed").volume_capabilities, [capability()]);
        delete(given, "sanity-able").unwrap();
    }),
    ("ValidateVolumeCapabilities should fail when the requested volume does not exist", |given| {
        assert_eq!(code(validate(given, "some-vol-id", vec![capability()])), Code::NotFound);
    }),
];

const NODE: [Case; 20] = [
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
    ("should work", |given| {
        // A volume of a claim: made, published with the context that it was given, read, taken away, unmade.
        let Volume { volume_id, volume_context, .. } = create(given, made(given, "sanity-claim")).unwrap();
        let request =
            NodePublishVolumeRequest { volume_id: volume_id.clone(), volume_context, ..given.volume() };
        given.client.publish(request).unwrap();
        assert_right(&given.target, 1);
        given.client.unpublish(&volume_id, &given.target).unwrap();
        delete(given, &volume_id).unwrap();
    }),
    ("should be idempotent", |given| {
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
fn every_case_of_the_interfaces_own_suite_for_identity_controller_and_node_passes() {
    let registry = registry(1..=1);
    let (node, client) = Node::for_pods();
    let given = Given { client, reference: registry.reference("models/1:v1"), target: node.target("target") };
    for (service, cases) in [
        ("Identity Service", IDENTITY.as_slice()),
        ("Controller Service", CONTROLLER.as_slice()),
        ("Node Service", NODE.as_slice()),
    ] {
        for (name, case) in cases {
            case(&given);
            println!("pass: {service} {name}");
        }
    }
}
