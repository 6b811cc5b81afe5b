//! `weightfs ls`: the files of a model, without a mount. Also how a path typed by a person finds its node.

use serde::Serialize;

use super::{args, open, print, reference, runtime};
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::fs::{Model, NodeId, NodeKind, Tree};

/// How many links are followed from one path, as the kernel has it (man 7 path_resolution).
const LINKS: u32 = 40;

/// One name as it is listed.
#[derive(Debug, Serialize)]
struct Row {
    path: String,
    #[serde(rename = "type")]
    kind: &'static str,
    /// As a mount shows it without `--umask`, octal.
    mode: String,
    size: u64,
    /// Seconds since 1970; 0 where unknown.
    mtime: i64,
    /// Where a link leads.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    /// The digest of the layer it comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    layer: Option<String>,
}

/// Lists what stands at a path and below it.
///
/// # Errors
/// Those of opening the model; `NotFound` where there is no such path.
pub(super) fn run(command: &args::Ls, settings: &Settings) -> Result<()> {
    let reference = reference(&command.reference)?;
    let rows = runtime()?.block_on(async {
        let model = open(reference, settings).await?;
        let listed = list(&model, &command.path).await;
        model.close().await;
        listed
    })?;
    if command.json {
        return print::json(&rows);
    }
    match rows.is_empty() {
        true => Ok(()),
        false => print::line(print::table(&rows.iter().map(cells).collect::<Vec<_>>())),
    }
}

async fn list(model: &Model, path: &str) -> Result<Vec<Row>> {
    let node = find(model, path).await?;
    model.all_named().await?;
    Ok(rows(model, node))
}

/// What stands at the path, links followed. Waits for names that are not known yet.
///
/// # Errors
/// `NotFound`, with the path; those of [`Model::look_up`].
pub(super) async fn find(model: &Model, path: &str) -> Result<NodeId> {
    let missing = || {
        let doing = format!("no such file in {}: {}", model.reference, print::safe(path));
        Error::new(Kind::NotFound, doing).hint(format!("run 'weightfs ls {}'", model.reference))
    };
    let look_up = async |parent, name: &str| model.look_up(parent, name.as_bytes()).await;
    follow(&model.tree, look_up, path).await?.ok_or_else(missing)
}

async fn follow(
    tree: &Tree,
    look_up: impl AsyncFn(NodeId, &str) -> Result<Option<NodeId>>,
    path: &str,
) -> Result<Option<NodeId>> {
    let mut at = NodeId::ROOT;
    let mut links = 0;
    let mut rest: Vec<String> = path.rsplit('/').map(str::to_owned).collect();
    while let Some(part) = rest.pop() {
        match &*part {
            "" | "." => continue,
            ".." => {
                at = tree.node(at).map_or(NodeId::ROOT, |node| node.parent);
                continue;
            }
            _ => {}
        }
        let Some(next) = look_up(at, &part).await? else { return Ok(None) };
        let Some(node) = tree.node(next) else { return Ok(None) };
        match &node.kind {
            NodeKind::Symlink(target) => {
                links += 1;
                if links > LINKS || target.starts_with('/') {
                    return Ok(None);
                }
                rest.extend(target.rsplit('/').map(str::to_owned));
            }
            NodeKind::File { .. } if rest.iter().any(|part| !part.is_empty()) => return Ok(None),
            NodeKind::File { .. } | NodeKind::Directory(_) => at = next,
        }
    }
    Ok(Some(at))
}

/// The node itself where it is no folder, else all below it in the order of names.
fn rows(model: &Model, node: NodeId) -> Vec<Row> {
    if model.tree.children(node).is_none() {
        return row(model, model.tree.path(node), node).into_iter().collect();
    }
    let mut rows = Vec::new();
    let mut waiting = vec![(model.tree.path(node), node)];
    while let Some((path, node)) = waiting.pop() {
        if !rows.is_empty() || node != NodeId::ROOT {
            rows.extend(row(model, path.clone(), node));
        }
        for child in model.tree.children(node).unwrap_or_default().iter().rev() {
            let below =
                if path.is_empty() { child.name.to_string() } else { format!("{path}/{}", child.name) };
            waiting.push((below, child.node));
        }
    }
    rows
}

fn row(model: &Model, path: String, id: NodeId) -> Option<Row> {
    let node = model.tree.node(id)?;
    let layer = node.layer.and_then(|layer| model.index.layers.get(layer));
    let (kind, mode, size, target) = match &node.kind {
        NodeKind::File { size, .. } => ("file", "0444", *size, None),
        NodeKind::Directory(_) => ("folder", "0555", 0, None),
        NodeKind::Symlink(target) => {
            ("link", "0777", u64::try_from(target.len()).unwrap_or(0), Some(target.to_string()))
        }
    };
    let layer = layer.map(|layer| layer.blob.digest.to_string());
    Some(Row { path, kind, mode: mode.to_owned(), size, mtime: node.mtime, target, layer })
}

fn cells(row: &Row) -> Vec<String> {
    let mode = match row.kind {
        "folder" => "dr-xr-xr-x",
        "link" => "lrwxrwxrwx",
        _ => "-r--r--r--",
    };
    let target = row.target.as_ref().map(|target| format!(" -> {target}")).unwrap_or_default();
    let name = print::safe(&format!("{}{target}", row.path));
    vec![mode.to_owned(), format!("{:>14}", row.size), print::time(row.mtime), name]
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::index::{Entry, EntryKind, Index};

    fn entry(path: &str, kind: EntryKind) -> Entry {
        Entry { path: path.into(), kind, mode: 0, mtime: 0, layer: 0 }
    }

    fn tree() -> Tree {
        let file = || EntryKind::File { extent: None, size: 0 };
        let link = |target: &str| EntryKind::Symlink(target.into());
        let entries = vec![
            entry("a/b/weights", file()),
            entry("latest", link("a/b")),
            entry("a/up", link("../latest/weights")),
            entry("loop", link("loop")),
        ];
        let index = Index { entries, ..Index::default() };
        Tree::build(&index, &mut Vec::new()).unwrap()
    }

    fn followed(tree: &Tree, path: &str) -> Option<NodeId> {
        let look_up = async |parent, name: &str| Ok(tree.lookup(parent, name.as_bytes()));
        follow(tree, look_up, path).now_or_never().unwrap().unwrap()
    }

    #[test]
    fn a_path_is_followed_through_links_inside_the_tree() {
        let tree = tree();
        let weights = tree.find("a/b/weights");
        assert!(weights.is_some());
        for path in ["a/b/weights", "/a//b/./weights", "latest/weights", "a/up", "a/../latest/weights"] {
            assert_eq!(followed(&tree, path), weights, "{path}");
        }
        assert_eq!(followed(&tree, ""), Some(NodeId::ROOT));
        assert_eq!(followed(&tree, "../.."), Some(NodeId::ROOT));
    }

    #[test]
    fn a_path_that_leads_nowhere_finds_nothing() {
        for path in ["loop", "a/b/weights/x", "missing", "latest/missing"] {
            assert_eq!(followed(&tree(), path), None, "{path}");
        }
    }
}
