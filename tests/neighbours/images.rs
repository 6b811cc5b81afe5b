//! Container images: layers put on one another.

use super::{expected, family, names, open, refusal};
use crate::support::artifacts::{Artifact, Layer};
use crate::support::neighbours::{image, image_of, ramalama_image};
use crate::support::tar_writers::Member::{File, Folder, HardLink, Symlink};
use crate::support::tar_writers::{MTIME, members};

#[test]
fn a_modelcar_shows_its_models_beside_the_rest_of_its_image() {
    let base = [Folder("bin/"), File("bin/busybox", "elf"), HardLink("bin/sh", "bin/busybox")];
    let model = [Folder("models/"), File("models/config.json", "{}"), File("models/model.safetensors", "w")];
    let artifact = image(&[&base, &model]);
    let wanted = expected([
        ("bin/busybox", "elf"),
        ("bin/sh", "elf"),
        ("models/config.json", "{}"),
        ("models/model.safetensors", "w"),
    ]);
    assert_eq!(names(&artifact), wanted);
    assert_eq!(family(&artifact), "image");
}

#[test]
fn a_ramalama_image_has_the_link_that_its_runtime_follows() {
    let model = [("models/llm/llm.gguf", "weights"), ("models/model.file", "-> llm/llm.gguf")];
    assert_eq!(names(&ramalama_image("raw", "llm", "weights")), expected(model));
    let car = ramalama_image("car", "llm", "weights");
    assert_eq!(names(&car), expected([("etc/os-release", "ID=ubi"), model[0], model[1]]));
    assert_eq!(family(&car), "image");
}

#[test]
fn marks_take_away_what_lower_layers_have_and_nothing_of_their_own() {
    let lower = [
        File("gone", "x"),
        File("stays", "old"),
        File("folder/a", "a"),
        File("folder/b", "b"),
        File("emptied/deep/c", "c"),
        File("tree/x/y", "y"),
    ];
    let upper = [
        File(".wh.gone", ""),
        File("emptied/new", "new"),
        File("emptied/.wh..wh..opq", ""),
        File("folder/.wh.a", ""),
        File("stays", "new"),
        File(".wh.tree", ""),
        File(".wh..wh.plnk", "aufs"),
    ];
    let wanted = [("emptied/new", "new"), ("folder/b", "b"), ("stays", "new")];
    assert_eq!(names(&image(&[&lower, &upper])), expected(wanted));
    let again = [File("gone", "again"), File(".wh.never", "")];
    let wanted = [("emptied/new", "new"), ("folder/b", "b"), ("gone", "again"), ("stays", "new")];
    assert_eq!(names(&image(&[&lower, &upper, &again])), expected(wanted));
    assert_eq!(names(&image(&[&lower, &[File(".wh..wh..opq", ""), File("a", "a")]])), expected([("a", "a")]));
}

#[test]
fn files_and_folders_replace_one_another() {
    let lower = [File("a", "file"), File("b/c", "below"), Symlink("l", "b"), File("d", "file")];
    let upper = [Folder("a/"), File("a/x", "x"), File("b", "file"), Folder("l/"), File("d/e", "e")];
    let wanted = [("a/x", "x"), ("b", "file"), ("d/e", "e"), ("l", "/")];
    assert_eq!(names(&image(&[&lower, &upper])), expected(wanted));
}

#[test]
fn links_are_as_written_wherever_they_lead() {
    let artifact = image(&[&[Symlink("etc/mtab", "/proc/mounts"), Symlink("up", "../../x")]]);
    assert_eq!(names(&artifact), expected([("etc/mtab", "-> /proc/mounts"), ("up", "-> ../../x")]));
    let mut model = Artifact::modctl_tar(&[]);
    let archive = members(0, MTIME, &[Symlink("etc/mtab", "/proc/mounts")]);
    model.layers.push(Layer::new("application/vnd.cncf.model.code.v1.tar", archive));
    assert!(
        refusal(&model).to_string().contains("leaves the tree")
            || refusal(&model).to_string().contains("symbolic")
    );
}

#[test]
fn what_lies_below_a_link_to_a_folder_is_put_where_it_leads() {
    let lower = [Folder("usr/lib/"), Symlink("lib", "usr/lib"), Symlink("lib64", "/lib")];
    let upper = [File("lib64/libc.so", "elf"), File("lib/.wh.none", "")];
    let wanted = [("lib", "-> usr/lib"), ("lib64", "-> /lib"), ("usr/lib/libc.so", "elf")];
    assert_eq!(names(&image(&[&lower, &upper])), expected(wanted));
    let round = [Symlink("a", "b"), Symlink("b", "a"), File("a/x", "x")];
    assert!(refusal(&image(&[&round])).to_string().contains("links"));
}

#[test]
fn hard_links_lead_to_files_of_lower_layers_and_outlive_them() {
    let lower = [File("a", "one"), Symlink("s", "a")];
    let upper = [HardLink("b", "/a"), HardLink("c", "b"), HardLink("t", "s")];
    let artifact = image(&[&lower, &upper, &[File(".wh.a", "")]]);
    assert_eq!(names(&artifact), expected([("b", "one"), ("c", "one"), ("s", "-> a"), ("t", "-> a")]));
    let opened = open(&artifact).unwrap();
    let (b, c) = (opened.model.tree.find("b"), opened.model.tree.find("c"));
    assert_eq!(b, c);
    assert_eq!(opened.model.tree.node(b.unwrap()).unwrap().nlink(), 2);
    opened.names();
    let error = refusal(&image(&[&[HardLink("b", "nothing")]]));
    assert!(error.to_string().contains("nothing"), "{error}");
}

#[test]
fn names_are_taken_as_unpackers_take_them_and_none_leaves_the_image() {
    let artifact = image(&[&[Folder("./"), Folder("/"), File("/etc//passwd", "p"), File("./a/./b", "b")]]);
    assert_eq!(names(&artifact), expected([("a/b", "b"), ("etc/passwd", "p")]));
    for name in ["../x", "a/../../x", ".wh..", "a/.wh..."] {
        let error = refusal(&image(&[&[File(name, "x")]]));
        assert!(error.to_string().contains("refused path"), "{name}: {error}");
    }
}

#[test]
fn side_data_of_other_tools_is_no_part_of_an_image() {
    let archive = members(
        0,
        MTIME,
        &[
            File(".no.prefetch.landmark", "\u{f}"),
            File("models/m", "weights"),
            File("models/stargz.index.json", "a file"),
            File("stargz.index.json", "{}"),
        ],
    );
    let tar = "application/vnd.oci.image.layer.v1.tar";
    let stargz = Layer::new(tar, archive).annotate("containerd.io/snapshot/stargz/toc.digest", "sha256:0");
    let bootstrap = Layer::new(tar, "a bootstrap").annotate("containerd.io/snapshot/nydus-bootstrap", "true");
    let ztoc = Layer::new("application/octet-stream", "a table")
        .annotate("com.amazon.soci.image-layer-digest", "sha256:0");
    let other = Layer::new("application/vnd.example.other", "whatever");
    let artifact = image_of(vec![stargz, bootstrap, ztoc, other]);
    let wanted = [("models/m", "weights"), ("models/stargz.index.json", "a file")];
    assert_eq!(names(&artifact), expected(wanted));
    let nydus = Layer::new("application/vnd.oci.image.layer.nydus.blob.v1", "a blob")
        .annotate("containerd.io/snapshot/nydus-blob", "true");
    assert!(refusal(&image_of(vec![nydus])).to_string().contains("nydus"));
}
