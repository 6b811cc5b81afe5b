//! What the examples for Kubernetes ask for is what the driver understands.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use super::{DRIVER, request};
use crate::serve::volumes::Wanted;

/// Every document of every example.
fn documents() -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/kubernetes/examples");
    let mut documents = Vec::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let read: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        documents.extend(read.into_iter().map(|document| (name.clone(), document)));
    }
    documents
}

/// The sources of volumes that are this driver's, wherever they stand.
fn volumes<'a>(value: &'a Value, found: &mut Vec<&'a Value>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| volumes(value, found)),
        Value::Object(map) => {
            found.extend(map.get("csi").filter(|source| source["driver"] == DRIVER));
            map.values().for_each(|value| volumes(value, found));
        }
        _ => {}
    }
}

/// The texts of a table, as the kubelet hands them on.
fn texts(table: &Value) -> HashMap<String, String> {
    let table = table.as_object().into_iter().flatten();
    table.map(|(key, value)| (key.clone(), value.as_str().expect("a text").to_owned())).collect()
}

/// The secrets by their names.
fn secrets(documents: &[(String, Value)]) -> HashMap<String, HashMap<String, String>> {
    let secrets = documents.iter().filter(|(_, document)| document["kind"] == "Secret");
    let named = secrets.map(|(_, secret)| {
        (secret["metadata"]["name"].as_str().unwrap().to_owned(), texts(&secret["stringData"]))
    });
    named.collect()
}

#[test]
fn every_storage_class_of_the_examples_makes_volumes_that_the_driver_understands() {
    let (documents, mut seen) = (documents(), 0);
    for (file, class) in documents.iter().filter(|(_, document)| document["kind"] == "StorageClass") {
        assert_eq!(class["provisioner"], DRIVER, "{file}");
        let mut parameters = texts(&class["parameters"]);
        // These are the provisioner's own.
        parameters.retain(|key, _| !key.starts_with("csi.storage.k8s.io/"));
        let made = request::context(DRIVER, &parameters);
        let made = made.unwrap_or_else(|refused| panic!("{file}: {}", refused.message));
        request::asked(DRIVER, "pvc-1", &made, &HashMap::new()).unwrap();
        seen += 1;
    }
    assert!(seen >= 1, "{seen} storage classes in the examples");
}

#[test]
fn every_volume_of_the_examples_is_one_that_the_driver_understands() {
    let documents = documents();
    let (secrets, mut seen) = (secrets(&documents), 0);
    for (file, document) in &documents {
        let mut sources = Vec::new();
        volumes(document, &mut sources);
        for source in sources {
            let named = source["nodePublishSecretRef"]["name"].as_str();
            let none = HashMap::new();
            let secret = named.map_or(&none, |name| secrets.get(name).expect("a secret of the examples"));
            // The kubelet adds these where podInfoOnMount is set (CSIDriver).
            let mut context = texts(&source["volumeAttributes"]);
            context.insert("csi.storage.k8s.io/pod.name".into(), "llm".into());
            context.insert("csi.storage.k8s.io/ephemeral".into(), "true".into());
            let asked = request::asked(DRIVER, "csi-1", &context, secret);
            let asked = asked.unwrap_or_else(|refused| panic!("{file}: {}", refused.message));
            let Wanted::Model(wish) = asked.wanted else { panic!("{file}: a volume without a model") };
            assert_eq!(wish.secret.is_some(), named.is_some(), "{file}");
            seen += 1;
        }
    }
    assert!(seen >= 5, "{seen} volumes in the examples");
}
