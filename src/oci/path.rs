//! Virtual paths: which names of files, from annotations and from archives, may stand in a tree.
//!
//! One rule for both sources, since an annotation is as much a stranger's text as an archive member's name.
//! Nothing here resolves links or touches a file system; the callers are the readers of layers on floor 2.

use crate::error::{Error, Kind, Result};

/// The longest component in bytes: what Linux file systems and FUSE allow (`NAME_MAX`).
pub const COMPONENT_LIMIT: usize = 255;

/// The longest path in bytes (`PATH_MAX`).
pub const PATH_LIMIT: usize = 4096;

/// The path as text, where it may stand in a tree: relative, UTF-8, no empty, `.` or `..` component, no NUL,
/// components of at most [`COMPONENT_LIMIT`] bytes and at most [`PATH_LIMIT`] in all.
///
/// # Errors
/// [`Kind::Invalid`], naming the path (escaped) and what is wrong with it. The caller adds the layer.
pub fn validate(path: &[u8]) -> Result<String> {
    if path.len() > PATH_LIMIT {
        return Err(refused(path, "it is longer than 4096 bytes"));
    }
    let text = std::str::from_utf8(path).map_err(|_| refused(path, "it is not UTF-8"))?;
    if text.is_empty() {
        return Err(refused(path, "it is empty"));
    }
    if text.starts_with('/') {
        return Err(refused(path, "it is absolute"));
    }
    for component in text.split('/') {
        check_component(component).map_err(|why| refused(path, why))?;
    }
    Ok(text.to_owned())
}

/// The path of an archive member, as [`validate`] gives it, once the leading `./` that `tar -C folder .`
/// writes is taken away; `None` for the root folder itself (`./`).
///
/// # Errors
/// As [`validate`].
pub fn of_member(name: &[u8]) -> Result<Option<String>> {
    validate(without_dot(name)).map(Some)
}

/// The path of a folder in an archive, without the leading `./` and the trailing `/` that tar writes there;
/// `None` for the root itself (`./` or `.`).
///
/// # Errors
/// As [`validate`].
pub fn of_folder(name: &[u8]) -> Result<Option<String>> {
    if matches!(name, b"." | b"./") {
        return Ok(None);
    }
    let name = without_dot(name);
    validate(name.strip_suffix(b"/").unwrap_or(name)).map(Some)
}

/// The path of a member of a container image's layer: as those who unpack images do, every leading `/` and every
/// empty or `.` component is dropped; `None` for the root itself.
///
/// # Errors
/// As [`validate`]: for `..` components above all.
pub fn of_layered(name: &[u8]) -> Result<Option<String>> {
    let parts = name.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
    let clean = parts.collect::<Vec<_>>().join(&b'/');
    if clean.is_empty() { Ok(None) } else { validate(&clean).map(Some) }
}

/// `path` within the folder `below`, which is empty for the root. Validates nothing.
#[must_use]
pub fn below(below: &str, path: &str) -> String {
    if below.is_empty() { path.to_owned() } else { format!("{below}/{path}") }
}

/// The target of a symbolic link as it is written, wherever it leads: text that a link can hold.
///
/// # Errors
/// [`Kind::Invalid`], naming link and target: empty, not UTF-8, with NUL, or longer than [`PATH_LIMIT`].
pub fn link_text(link: &str, target: &[u8]) -> Result<String> {
    let text = std::str::from_utf8(target)
        .ok()
        .filter(|text| !text.is_empty() && text.len() < PATH_LIMIT && !text.contains('\0'));
    text.map(str::to_owned).ok_or_else(|| {
        let shown = target.get(..PATH_LIMIT).unwrap_or(target).escape_ascii();
        Error::new(
            Kind::Invalid,
            format!("refused symbolic link {link:?} to \"{shown}\": no target that a link can have"),
        )
    })
}

/// The target of the symbolic link at `link`, where following it can't leave the tree.
///
/// Relative, and `..` only before the first name: a `..` after a name would climb from wherever a link of
/// that name leads, which may be out of the tree although the text looks as if it stayed inside.
///
/// # Errors
/// [`Kind::Invalid`], naming link and target.
pub fn link_target(link: &str, target: &[u8]) -> Result<String> {
    let bad = |why: &str| {
        let shown = target.escape_ascii();
        Error::new(Kind::Invalid, format!("refused symbolic link {link:?} to \"{shown}\": {why}"))
    };
    let text = std::str::from_utf8(target).map_err(|_| bad("the target is not UTF-8"))?;
    if text.is_empty() || text.len() >= PATH_LIMIT || text.contains('\0') {
        return Err(bad("the target is empty, longer than 4095 bytes or contains NUL"));
    }
    if text.starts_with('/') {
        return Err(bad("the target is absolute"));
    }
    let mut depth = link.matches('/').count();
    let mut named = false;
    for component in text.split('/').filter(|component| !matches!(*component, "" | ".")) {
        if component != ".." {
            named = true;
        } else if named {
            return Err(bad("the target has '..' after a name"));
        } else {
            depth = depth.checked_sub(1).ok_or_else(|| bad("the target leaves the tree"))?;
        }
    }
    Ok(text.to_owned())
}

fn without_dot(name: &[u8]) -> &[u8] {
    name.strip_prefix(b"./").unwrap_or(name)
}

fn check_component(component: &str) -> Result<(), &'static str> {
    match component {
        "" => Err("it has an empty component"),
        "." => Err("it has a '.' component"),
        ".." => Err("it has a '..' component"),
        _ if component.len() > COMPONENT_LIMIT => Err("it has a component of more than 255 bytes"),
        _ if component.contains('\0') => Err("it contains NUL"),
        _ => Ok(()),
    }
}

fn refused(path: &[u8], why: &str) -> Error {
    let head = path.get(..PATH_LIMIT).unwrap_or(path);
    Error::new(Kind::Invalid, format!("refused path \"{}\": {why}", head.escape_ascii()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_paths_stand_as_they_are() {
        let long = "x".repeat(255);
        for path in ["a", "sub/dir/model.safetensors", "a..b", ".hidden", "new\nline", "é/模型", &long] {
            assert_eq!(validate(path.as_bytes()).unwrap(), path);
        }
    }

    #[test]
    fn a_path_that_could_mislead_is_refused_by_name() {
        let long = "x".repeat(256);
        let deep = "x/".repeat(2100) + "y";
        let bad = [
            "",
            "/etc/passwd",
            "..",
            "../x",
            "a/../b",
            "a//b",
            "a/",
            "./a",
            "a/.",
            "a\0b",
            "//",
            &long,
            &deep,
        ];
        for path in bad {
            let error = validate(path.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{path}");
            assert!(error.to_string().starts_with("refused path \""), "{error}");
        }
        assert!(validate(b"a\xff").unwrap_err().to_string().contains("a\\xff"));
    }

    #[test]
    fn the_dot_and_slash_that_tar_writes_are_taken_away() {
        assert_eq!(of_member(b"./a/b").unwrap().unwrap(), "a/b");
        assert_eq!(of_folder(b"./a/").unwrap().unwrap(), "a");
        assert_eq!(of_folder(b"./").unwrap(), None);
        assert!(of_member(b"a/").is_err());
        assert!(of_member(b"././a").is_err());
        assert!(of_folder(b"a//").is_err());
        assert!(of_folder(b"/").is_err());
    }

    #[test]
    fn a_member_of_an_image_is_named_as_those_who_unpack_it_do() {
        for (name, path) in
            [("./a//b/", Some("a/b")), ("/a/./b", Some("a/b")), ("/", None), ("./", None), ("", None)]
        {
            assert_eq!(of_layered(name.as_bytes()).unwrap().as_deref(), path, "{name}");
        }
        assert!(of_layered(b"a/../b").is_err());
        assert!(of_layered(b"a\xff").is_err());
        assert_eq!(link_text("l", b"/usr/../bin//sh").unwrap(), "/usr/../bin//sh");
        for target in [&b""[..], b"a\0b", b"a\xff", &[b'x'; 5000]] {
            assert_eq!(link_text("l", target).unwrap_err().kind(), Kind::Invalid);
        }
    }

    #[test]
    fn a_link_may_climb_only_within_the_tree_and_only_first() {
        for (link, target) in [("a", "b"), ("s/a", "../b"), ("s/t/a", "../../x/./y"), ("a", "s//b")] {
            assert_eq!(link_target(link, target.as_bytes()).unwrap(), target);
        }
        for (link, target) in [("a", "../b"), ("s/a", "../../b"), ("a", "/b"), ("a", ""), ("a", "s/../b")] {
            assert_eq!(link_target(link, target.as_bytes()).unwrap_err().kind(), Kind::Invalid, "{target}");
        }
    }
}
