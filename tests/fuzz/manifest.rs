//! A manifest or a list of them from anybody: refused, or an artifact whose layers say what they are.

use weightfs::oci::manifest::{Document, OCI_MANIFEST};
use weightfs::oci::{Artifact, path};

/// Runs the input, and panics where it shows a fault.
pub fn run(data: &[u8]) {
    for content_type in ["", OCI_MANIFEST] {
        match Document::parse(data, content_type) {
            Ok(Document::Manifest(manifest)) => {
                let layers = manifest.layers.len();
                let Ok(artifact) = Artifact::read(manifest) else { continue };
                assert_eq!(artifact.layers.len(), layers);
                let _ = artifact.bound_index();
                for layer in artifact.visible() {
                    assert!(!layer.name().contains('\n'), "one line of a log");
                    let _ = layer.path.as_ref().map(|path| path::validate(path.as_bytes()));
                }
            }
            Ok(Document::Index(choice)) => drop(choice.choose(None)),
            Err(_) => {}
        }
    }
}
