//! The page of metrics, what the documentation says of it, and the dashboard that is drawn from it: one tells of no more than
//! the other has.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::registry;
use crate::support::http;
use crate::support::node::Node;

/// The labels that Prometheus gives to everything it asks for.
const GIVEN: [&str; 3] = ["job", "instance", "node"];

/// The table's first two lines; its rows follow up to the next empty line.
const TABLE: &str = "| metric | type | unit | labels | what |\n|---|---|---|---|---|\n";

/// A metric as the page has it.
struct Family {
    name: String,
    form: String,
    help: String,
    labels: BTreeSet<String>,
}

impl Family {
    fn row(&self) -> String {
        let (help, unit) = self.help.rsplit_once(" Unit: ").unwrap_or((&self.help, ""));
        let labels: Vec<String> = self.labels.iter().map(|label| format!("`{label}`")).collect();
        let (unit, labels) = (unit.trim_end_matches('.'), labels.join(", "));
        format!("| `{}` | {} | {unit} | {labels} | {help} |\n", self.name, self.form)
    }
}

/// All that the page of a plane shows that has a mount with a volume.
fn families() -> Vec<Family> {
    let (registry, node) = (registry(1..=1), Node::start());
    node.mount(&registry.reference("models/1:v1"), &node.dir("a"));
    let page = String::from_utf8(http::unchunked(&node.get("/metrics").unwrap())).unwrap();
    read(&page)
}

fn read(page: &str) -> Vec<Family> {
    let mut families: Vec<Family> = Vec::new();
    for line in page.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            let (form, labels) = (String::new(), BTreeSet::new());
            families.push(Family { name: name.to_owned(), form, help: help.to_owned(), labels });
            continue;
        }
        let family = families.last_mut().unwrap_or_else(|| panic!("{line:?} is of no metric"));
        if let Some((name, form)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            assert_eq!(name, family.name, "the type follows the help");
            form.clone_into(&mut family.form);
            continue;
        }
        let (name, rest) = line.split_at(line.find(['{', ' ']).unwrap());
        assert_eq!(name, family.name, "{line:?}");
        family.labels.extend(labels(rest));
    }
    families
}

/// The names in `{name="value",…} number`; a value's quotation marks are escaped.
fn labels(rest: &str) -> Vec<String> {
    let Some(rest) = rest.strip_prefix('{') else { return Vec::new() };
    let plain = rest.replace("\\\\", "").replace("\\\"", "");
    let names = plain.split('"').step_by(2).filter_map(|part| part.strip_suffix('='));
    names.map(|name| name.trim_start_matches(',').to_owned()).collect()
}

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[test]
fn the_documentation_lists_every_metric_as_the_page_shows_it() {
    let path = root("docs/metrics.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(TABLE).expect("a table");
    let (_, after) = rest.split_once("\n\n").expect("something after the table");
    let rows: String = families().iter().map(Family::row).collect();
    let meant = format!("{before}{TABLE}{rows}\n{after}");
    if std::env::var_os("WEIGHTFS_TEST_WRITE").is_some() {
        std::fs::write(&path, &meant).unwrap();
    }
    assert!(
        std::fs::read_to_string(&path).unwrap() == meant,
        "docs/metrics.md has other metrics: run this test with WEIGHTFS_TEST_WRITE=1"
    );
}

/// Every string under one of these keys, wherever it stands.
fn strings<'a>(value: &'a Value, keys: &[&str], found: &mut Vec<(String, &'a str)>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| strings(value, keys, found)),
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::String(text) if keys.contains(&key.as_str()) => found.push((key.clone(), text)),
                    other => strings(other, keys, found),
                }
            }
        }
        _ => {}
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
}

#[test]
fn the_dashboard_draws_metrics_that_are_there_and_by_labels_that_they_have() {
    let dashboard = std::fs::read_to_string(root("tools/grafana/weightfs.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let families = families();
    let known: BTreeMap<&str, &Family> = families.iter().map(|family| (&*family.name, family)).collect();
    let (mut queries, mut drawn, mut wrong) = (Vec::new(), BTreeSet::new(), String::new());
    strings(&dashboard, &["expr", "query"], &mut queries);
    for (_, query) in queries {
        for name in words(query).filter(|word| word.starts_with("weightfs_")) {
            drawn.insert(name);
            let Some(family) = known.get(name) else {
                let _ = writeln!(wrong, "{name} of {query} is not shown");
                continue;
            };
            // A counter by itself says little but since when the process runs; of layers each one counts.
            let is_rated = query.contains(&format!("rate({name}")) || name.ends_with("_layers_total");
            if family.form == "counter" && !is_rated {
                let _ = writeln!(wrong, "{name} of {query} only grows: its rate is meant");
            }
        }
    }
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let (query, legend) =
                (target["expr"].as_str().unwrap(), target["legendFormat"].as_str().unwrap());
            for label in legend.split("{{").skip(1).filter_map(|rest| rest.split("}}").next()) {
                let has = |name: &str| known.get(name).is_some_and(|family| family.labels.contains(label));
                if !GIVEN.contains(&label) && !words(query).any(has) {
                    let _ = writeln!(wrong, "no metric of {query} has the label {label}");
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(drawn.len() > 25, "{} metrics are drawn", drawn.len());
}

#[test]
fn the_places_of_panels_do_not_overlap() {
    let dashboard = std::fs::read_to_string(root("tools/grafana/weightfs.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let (mut cells, mut ids) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{}", panel["title"]);
        assert!(at("x") + at("w") <= 24, "{}", panel["title"]);
        for y in at("y")..at("y") + at("h") {
            for x in at("x")..at("x") + at("w") {
                assert!(cells.insert((x, y)), "{} lies on another panel", panel["title"]);
            }
        }
    }
}

#[test]
fn labels_are_read_whatever_their_values_have_in_them() {
    assert_eq!(labels(r#"{reference="a\"=,{\\",digest="d"} 5"#), ["reference", "digest"]);
    assert!(labels(" 5").is_empty());
}
