//! The store's folder by itself.

use super::*;
use crate::oci::artifact::INDEX_KEY;
use crate::oci::manifest::OCI_MANIFEST;

/// An artifact whose layers are `blobs`, its manifest kept.
fn kept(layout: &Layout, name: &str, blobs: &[&[u8]]) -> Named {
    let blobs: Vec<_> = blobs.iter().map(|blob| (*blob, "files")).collect();
    kept_as(layout, name, &blobs)
}

/// The same, of layers that have this annotation each.
fn kept_as(layout: &Layout, name: &str, blobs: &[(&[u8], &str)]) -> Named {
    let layers: Vec<_> = blobs
        .iter()
        .map(|(blob, key)| {
            let digest = Digest::of(blob);
            format!(
                r#"{{"mediaType":"x.raw","digest":"{digest}","size":{},"annotations":{{"{key}":"v1"}}}}"#,
                blob.len()
            )
        })
        .collect();
    let bytes = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","annotations":{{"name":"{name}"}},"layers":[{}]}}"#,
        layers.join(",")
    );
    let digest = Digest::of(bytes.as_bytes());
    layout.keep_manifest(&digest, bytes.as_bytes()).unwrap();
    let settings = Overrides::from([("content.view".to_owned(), "blobs".to_owned())]);
    let size = bytes.len().try_into().unwrap();
    let (name, media_type, chunks) = (name.to_owned(), OCI_MANIFEST.to_owned(), BTreeMap::new());
    Named { name, digest, media_type, size, settings, chunks }
}

fn blob(layout: &Layout, content: &[u8]) -> PathBuf {
    layout.folder.join("blobs").join(path_of(&Digest::of(content)))
}

/// Why `new` is not registered beside `known`.
fn refused(layout: &Layout, known: &[Named], new: &Named) -> Result<()> {
    let manifest = std::fs::read(layout.folder.join("blobs").join(path_of(&new.digest))).unwrap();
    layout.doubts(known, new, &manifest)?.iter().try_for_each(Doubt::look)
}

/// Has the artifact's mount show this as the blob `digest`.
fn show(layout: &Layout, named: &Named, digest: &Digest, content: &[u8]) {
    let path = layout.mount_of(named).join(path_of(digest));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

/// Below which volume the blob is looked for.
fn shown_by(layout: &Layout, content: &[u8]) -> Option<PathBuf> {
    let target = std::fs::read_link(blob(layout, content)).ok()?;
    let path = layout.folder.join("blobs/sha256").join(target);
    path.parent().and_then(Path::parent).map(|mount| {
        let name = mount.file_name().unwrap();
        layout.mounts().join(name)
    })
}

#[test]
fn what_is_registered_is_found_again_with_its_settings_and_other_tools_can_read_it() {
    let place = tempfile::tempdir().unwrap();
    let layout = Layout::open(place.path()).unwrap();
    let all = [kept(&layout, "r.io/a/b:v1", &[b"one"]), kept(&layout, "r.io/a/b:v2", &[b"two"])];
    layout.arrange(&all).unwrap();
    drop(layout);
    let layout = Layout::open(place.path()).unwrap();
    assert_eq!(layout.named().unwrap(), all);
    assert!(layout.has_manifest(&all[0]));
    let folder = place.path().join("artifacts");
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("index.json")).unwrap()).unwrap();
    assert_eq!(index["manifests"][1]["annotations"][TAG], "r.io/a/b:v2");
    assert_eq!(index["manifests"][1]["mediaType"], OCI_MANIFEST);
    assert_eq!(std::fs::read(folder.join("oci-layout")).unwrap(), MARKER);
    assert!(folder.join("index.lock").is_file());
}

#[test]
fn a_layer_of_two_artifacts_stays_as_long_as_either_does() {
    let place = tempfile::tempdir().unwrap();
    let layout = Layout::open(place.path()).unwrap();
    let (first, second) =
        (kept(&layout, "a", &[b"shared", b"one"]), kept(&layout, "b", &[b"shared", b"two"]));
    layout.arrange(&[first.clone(), second.clone()]).unwrap();
    assert_eq!(shown_by(&layout, b"shared"), Some(layout.mount_of(&first)));
    assert_eq!(shown_by(&layout, b"two"), Some(layout.mount_of(&second)));
    layout.arrange(std::slice::from_ref(&second)).unwrap();
    assert_eq!(shown_by(&layout, b"shared"), Some(layout.mount_of(&second)));
    assert_eq!(shown_by(&layout, b"one"), None);
    assert!(!layout.has_manifest(&first) && layout.has_manifest(&second));
    layout.arrange(&[]).unwrap();
    assert!(list(&layout.folder.join("blobs/sha256")).unwrap().is_empty());
    assert!(layout.named().unwrap().is_empty());
}

#[test]
fn a_blob_of_two_artifacts_is_shown_where_the_same_word_counts_for_both_or_none_but_its_digest() {
    let place = tempfile::tempdir().unwrap();
    let layout = Layout::open(place.path()).unwrap();
    let shared = Digest::of(b"shared");
    let named = |name: &str, chunks: &str| {
        let mut named = kept(&layout, name, &[b"shared"]);
        named.chunks.extend((!chunks.is_empty()).then(|| (shared.clone(), Digest::of(chunks.as_bytes()))));
        named
    };
    let (plain, bound) = (named("r.io/a:v1", ""), named("r.io/b:v1", "chunks"));
    let (forged, far) = (named("r.io/evil:v1", "others"), named("evil.io/a:v1", ""));
    let (again, beside) = (named("mirror.io/b:v1", "chunks"), named("r.io/c:v1", ""));
    for (one, other, is_refused) in [
        // Anybody on the same registry may say what he likes of a blob.
        (&plain, &bound, true),
        (&plain, &beside, false),
        (&bound, &again, false),
        (&bound, &forged, true),
        (&plain, &far, true),
        (&bound, &far, true),
    ] {
        for (known, new) in [(one, other), (other, one)] {
            let refused = refused(&layout, std::slice::from_ref(known), new);
            let refused = refused.map_err(|error| error.kind());
            assert_eq!(refused, if is_refused { Err(Kind::Busy) } else { Ok(()) }, "{known:?} {new:?}");
        }
    }
    // As their mounts would show it: small enough to be looked at.
    show(&layout, &plain, &shared, b"shared");
    for (content, is_refused) in [(&b"others"[..], true), (b"shared", false)] {
        show(&layout, &far, &shared, content);
        assert_eq!(refused(&layout, std::slice::from_ref(&plain), &far).is_err(), is_refused);
    }
    let all = [plain, bound];
    layout.arrange(&all).unwrap();
    assert_eq!(shown_by(&layout, b"shared"), Some(layout.mount_of(&all[1])), "its own index holds for it");
    assert_eq!(layout.named().unwrap(), all);
    let mut strict = named(&forged.name, "others");
    strict.settings.insert("content.integrity".to_owned(), "strict".to_owned());
    let [plain, bound] = all;
    refused(&layout, &[plain.clone(), bound.clone()], &strict).unwrap();
    layout.arrange(&[plain, bound, strict.clone()]).unwrap();
    assert_eq!(shown_by(&layout, b"shared"), Some(layout.mount_of(&strict)));
}

#[test]
fn a_large_blob_of_two_registries_is_compared_where_it_is_the_index_of_both_and_refused_as_too_large_otherwise()
 {
    let place = tempfile::tempdir().unwrap();
    let layout = Layout::open(place.path()).unwrap();
    let large = vec![7; 5 << 20];
    let digest = Digest::of(&large);
    let named = |name: &str, key: &str| {
        let named = kept_as(&layout, name, &[(&large, key)]);
        show(&layout, &named, &digest, &large);
        named
    };
    let (one, other) = (named("r.io/a:v1", INDEX_KEY), named("mirror.io/a:v1", INDEX_KEY));
    let weights = named("far.io/a:v1", "files");
    refused(&layout, std::slice::from_ref(&one), &other).unwrap();
    let too_large = refused(&layout, std::slice::from_ref(&one), &weights).unwrap_err();
    assert!(
        too_large.kind() == Kind::Busy && too_large.to_string().contains("more than 4 MiB"),
        "{too_large}"
    );
    show(&layout, &other, &digest, b"others");
    let wrong = refused(&layout, std::slice::from_ref(&one), &other).unwrap_err();
    assert!(wrong.to_string().contains("as its digest says"), "{wrong}");
}

#[test]
fn what_is_missing_is_put_back_and_a_damaged_manifest_is_known_as_such() {
    let place = tempfile::tempdir().unwrap();
    let layout = Layout::open(place.path()).unwrap();
    let named = kept(&layout, "a", &[b"one"]);
    layout.arrange(std::slice::from_ref(&named)).unwrap();
    std::fs::remove_file(blob(&layout, b"one")).unwrap();
    std::fs::write(blob(&layout, b"stray"), "left over").unwrap();
    layout.arrange(std::slice::from_ref(&named)).unwrap();
    assert_eq!(shown_by(&layout, b"one"), Some(layout.mount_of(&named)));
    assert!(!blob(&layout, b"stray").exists());
    std::fs::write(layout.folder.join("blobs").join(path_of(&named.digest)), "{}").unwrap();
    assert!(!layout.has_manifest(&named));
}

#[test]
fn a_store_of_somebody_elses_and_one_that_is_in_use_are_refused() {
    let (place, used) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = place.path().join("artifacts");
    std::fs::create_dir(&folder).unwrap();
    // As CRI-O makes it where it starts first.
    std::fs::write(folder.join("index.json"), r#"{"schemaVersion":2,"manifests":null}"#).unwrap();
    drop(Layout::open(place.path()).unwrap());
    std::fs::remove_dir(folder.join("mounts")).unwrap();
    let entry = format!(r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{}","size":1}}"#, Digest::of(b"x"));
    std::fs::write(folder.join("index.json"), format!(r#"{{"schemaVersion":2,"manifests":[{entry}]}}"#))
        .unwrap();
    assert_eq!(Layout::open(place.path()).unwrap_err().kind(), Kind::Invalid);
    let _first = Layout::open(used.path()).unwrap();
    assert_eq!(Layout::open(used.path()).unwrap_err().kind(), Kind::Busy);
}
