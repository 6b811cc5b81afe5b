//! What is written in Kubernetes for model-csi-driver, as it reaches a driver: each of its forms works here as it is.
//!
//! Attributes of a pod's volume, and parameters of a storage class, with what the kubelet and the provisioner add to them.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use weightfs::serve::csi::v1::{
    CreateVolumeRequest, CreateVolumeResponse, DeleteVolumeRequest, DeleteVolumeResponse,
    NodePublishVolumeRequest,
};

use super::{assert_right, registry};
use crate::support::csi::{Client, capability, volume};
use crate::support::node::Node;

type Pairs<'a> = &'a [(&'a str, &'a str)];

/// What the kubelet adds to the attributes of a pod's volume (`podInfoOnMount`, ephemeral volumes).
const KUBELET: Pairs<'static> = &[
    ("csi.storage.k8s.io/ephemeral", "true"),
    ("csi.storage.k8s.io/pod.name", "model-inference-pod"),
    ("csi.storage.k8s.io/pod.namespace", "default"),
    ("csi.storage.k8s.io/pod.uid", "6a5d5d3c-8f3a-4a76-9d0e-2f5cf2b1c0de"),
    ("csi.storage.k8s.io/serviceAccount.name", "default"),
];

/// What the provisioner adds to the parameters of a storage class, and that driver's own controller.
const PROVISIONER: Pairs<'static> = &[
    ("csi.storage.k8s.io/pv/name", "pvc-1"),
    ("csi.storage.k8s.io/pvc/name", "model"),
    ("csi.storage.k8s.io/pvc/namespace", "default"),
    ("volume.kubernetes.io/selected-node", "node-1"),
];

fn table(parts: [Pairs<'_>; 2]) -> HashMap<String, String> {
    parts.concat().iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// A volume of a claim: made first, and published with the context that was given for it.
fn claim(client: &Client, target: &Path, parameters: Pairs<'_>) -> NodePublishVolumeRequest {
    let request = CreateVolumeRequest {
        name: "pvc-0d1c".to_owned(),
        volume_capabilities: vec![capability()],
        parameters: table([parameters, PROVISIONER]),
        ..CreateVolumeRequest::default()
    };
    let made: CreateVolumeResponse = client.call("Controller/CreateVolume", request).unwrap();
    let made = made.volume.unwrap();
    let mut context = made.volume_context;
    context.insert("storage.kubernetes.io/csiProvisionerIdentity".to_owned(), "1-2-3".to_owned());
    NodePublishVolumeRequest { volume_context: context, ..volume(&made.volume_id, target, "") }
}

#[test]
fn manifests_for_model_csi_driver_work_unchanged() {
    let registry = registry(1..=1);
    let (node, client) = Node::for_pods();
    let reference = &*registry.reference("models/1:v1");
    let named = ("model.csi.modelpack.org/reference", reference);
    let form = ("model.csi.modelpack.org/type", "image");
    let fits = ("model.csi.modelpack.org/check-disk-quota", "true");
    let no_weights = ("model.csi.modelpack.org/exclude-model-weights", "true");
    let patterns = ("model.csi.modelpack.org/exclude-file-patterns", r#"["*.md", "*.json", "!config.json"]"#);
    let at_node = ("model.csi.modelpack.org/node-ip", "10.0.0.1");
    let inline = |target: &Path, attributes: Pairs<'_>| NodePublishVolumeRequest {
        volume_context: table([attributes, KUBELET]),
        ..volume("csi-5e5e", target, "")
    };
    let by_claim = |target: &Path, parameters: Pairs<'_>| claim(&client, target, parameters);
    let made_by_it = |target: &Path, context: Pairs<'_>| NodePublishVolumeRequest {
        volume_context: table([context, &[]]),
        ..volume("pvc-0d1c", target, "")
    };
    type Ask<'a> = &'a dyn Fn(&Path, Pairs<'_>) -> NodePublishVolumeRequest;
    type Form<'a> = (&'a str, Ask<'a>, Vec<(&'a str, &'a str)>);
    let forms: [Form<'_>; 8] = [
        ("a pod's volume, as in its first steps", &inline, vec![named]),
        ("one by the name of the specification's examples", &inline, vec![("modelRef", reference)]),
        ("one that must fit", &inline, vec![named, fits]),
        ("one without weights", &inline, vec![named, no_weights]),
        ("one without some files", &inline, vec![named, patterns]),
        ("a claim", &by_claim, vec![form, named]),
        ("a claim with everything", &by_claim, vec![form, named, fits, no_weights, patterns]),
        ("a volume that its own controller made", &made_by_it, vec![named, at_node]),
    ];
    for (what, ask, pairs) in forms {
        let target = node.target("pod");
        let request = ask(&target, &pairs);
        let id = request.volume_id.clone();
        client.publish(request).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_right(&target, 1);
        client.unpublish(&id, &target).unwrap();
        assert!(!target.exists(), "{what}");
        let request = DeleteVolumeRequest { volume_id: id, ..DeleteVolumeRequest::default() };
        let _gone: DeleteVolumeResponse = client.call("Controller/DeleteVolume", request).unwrap();
    }
    let target = node.target("dynamic");
    client.publish(NodePublishVolumeRequest { ..inline(&target, &[]) }).unwrap();
    let names: Vec<_> = fs::read_dir(&target).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    client.unpublish("csi-5e5e", &target).unwrap();
}
