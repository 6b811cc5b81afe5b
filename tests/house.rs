//! The house holds: floors look only down, and what belongs to one place stands nowhere else.
//!
//! Reads the sources as text, line by line. Floors hold for tests too; the other rules are about code that ships.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The floors, lowest first. A module may use its own floor and those below it.
const FLOORS: [&[&str]; 9] = [
    &["error", "range", "metrics", "buffer"],
    &["oci", "codec"],
    &["repository"],
    &["index"],
    &["content"],
    &["fs"],
    &["mount", "pack", "pull", "testing"],
    &["serve"],
    &["cli"],
];

/// The roof: put together from all floors, used by the commands only.
const ROOF: &str = "config";

/// What may be used from the crate's root itself: re-exports of the rails.
const RAILS: [&str; 3] = ["Error", "Kind", "Result"];

const LINES: usize = 500;

struct Source {
    /// Below `src/`, as `mount/session.rs`.
    path: PathBuf,
    text: String,
}

impl Source {
    /// The module of the crate's root that the file belongs to.
    fn module(&self) -> String {
        let first = self.path.components().next().unwrap();
        let name = first.as_os_str().to_str().unwrap();
        name.trim_end_matches(".rs").trim_end_matches("_tests").to_owned()
    }

    fn is_test(&self) -> bool {
        self.path.to_str().unwrap().ends_with("tests.rs")
    }

    /// What ships: everything before the file's test module.
    fn shipped(&self) -> &str {
        if self.is_test() { "" } else { self.text.split("#[cfg(test)]\nmod tests").next().unwrap() }
    }

    /// What ships, without comments.
    fn code(&self) -> String {
        uncommented(self.shipped())
    }

    fn is_below(&self, folder: &str) -> bool {
        self.path.starts_with(folder)
    }
}

/// A comment may name what stands above, as documentation does.
fn uncommented(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push(Source { path: path.strip_prefix(&root).unwrap().to_owned(), text });
            }
        }
    }
    assert!(found.len() > 20, "the sources are found");
    found
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

/// The modules of the crate's root that `code` names: `crate::a`, and `crate::{a, b::c}`.
fn used(code: &str) -> BTreeSet<String> {
    let mut modules = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        let names = match rest.strip_prefix('{') {
            Some(group) => outermost(group),
            None => vec![rest],
        };
        let word = |name: &str| -> String {
            name.trim_start()
                .chars()
                .take_while(|letter| letter.is_alphanumeric() || *letter == '_')
                .collect()
        };
        modules.extend(names.into_iter().map(word).filter(|name| !name.is_empty()));
    }
    modules
}

/// The parts of `{a, b::{c, d}, e}` after its opening brace that no inner brace encloses.
fn outermost(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => {
                parts.push(&group[start..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&group[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts
}

#[test]
fn groups_of_uses_are_read_name_by_name() {
    let used =
        used("use crate::{error::{Error, Kind}, oci, range::X};\nuse crate::fs::Model; crate::Error::new()");
    let names: Vec<_> = used.iter().map(String::as_str).collect();
    assert_eq!(names, ["Error", "error", "fs", "oci", "range"]);
}

#[test]
fn floors_look_only_down() {
    let mut wrong = Vec::new();
    for source in sources() {
        let module = source.module();
        if ["lib", "main", ROOF].contains(&&*module) {
            continue;
        }
        let own = floor(&module).unwrap_or_else(|| panic!("src/{module} is on no floor"));
        for name in used(&uncommented(&source.text)) {
            let below = match &*name {
                name if RAILS.contains(&name) => true,
                ROOF => module == "cli",
                name => floor(name).is_some_and(|floor| floor <= own),
            };
            if !below {
                wrong.push(format!("{} uses crate::{name}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Files that ship and have the text, except those that may.
fn offenders(texts: &[&str], may: impl Fn(&Source) -> bool) -> Vec<String> {
    let sources = sources();
    let wrong = sources.iter().filter(|source| !may(source));
    let wrong = wrong.filter(|source| texts.iter().any(|text| source.code().contains(text)));
    wrong.map(|source| source.path.display().to_string()).collect()
}

#[test]
fn unsafe_code_stands_only_at_the_kernels_door_and_around_inflate() {
    let unsafe_code = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "unsafe_code"];
    let may = |source: &Source| source.is_below("mount") || source.path == Path::new("codec/gzip/inflate.rs");
    assert_eq!(offenders(&unsafe_code, may), Vec::<String>::new());
}

#[test]
fn only_the_roof_looks_at_the_environment() {
    let looks = ["env::var", "env::home_dir", "env::temp_dir", "env::current_dir"];
    // Where programs are found is a matter of running them, and no setting.
    let may = |source: &Source| {
        let path_only = source.code().replace("std::env::var_os(\"PATH\")", "");
        source.path == Path::new("config.rs") || !looks.iter().any(|look| path_only.contains(look))
    };
    assert_eq!(offenders(&looks, may), Vec::<String>::new());
}

#[test]
fn only_the_commands_print_or_end_the_process() {
    let prints = ["println!", "print!(", "stdout()", "stderr()", "process::exit", "process::abort"];
    assert_eq!(offenders(&prints, |source| source.is_below("cli")), Vec::<String>::new());
}

#[test]
fn every_file_says_first_what_it_is_and_stays_readable() {
    for source in sources() {
        let path = source.path.display();
        assert!(source.text.starts_with("//!"), "{path} does not open with what it is");
        let lines = source.shipped().lines().count();
        assert!(lines <= LINES, "{path} has {lines} lines: look for its second idea");
    }
}
