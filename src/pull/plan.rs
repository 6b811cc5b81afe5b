//! Which files of a model are meant: patterns of names that are in, less those that are out.
//!
//! Pure; asks neither disk nor network.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::error::{Error, Kind, Result};

/// How many names an error lists.
const NAMED: usize = 20;
/// How many names are said to be near a pattern.
const NEAR: usize = 3;
/// How much of a name is compared.
const LETTERS: usize = 128;
/// How many paths are compared with what was typed.
const COMPARED: usize = 4096;

/// A choice among the paths of a model.
#[derive(Clone, Debug)]
pub struct Choice {
    include: Option<GlobSet>,
    exclude: GlobSet,
    /// As typed, of `include`.
    patterns: Vec<String>,
}

impl Choice {
    /// What matches any of `include` (everything, where there is none) and none of `exclude`. `*` stays within a
    /// folder, `**` does not; a pattern without `/` is matched against the last component too.
    ///
    /// # Errors
    /// `Invalid` where a pattern cannot be read.
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self> {
        let patterns = include.to_vec();
        let include = (!include.is_empty()).then(|| set("--include", include)).transpose()?;
        Ok(Self { include, exclude: set("--exclude", exclude)?, patterns })
    }

    /// Whether the path is meant.
    #[must_use]
    pub fn takes(&self, path: &str) -> bool {
        self.include.as_ref().is_none_or(|include| include.is_match(path)) && !self.exclude.is_match(path)
    }

    /// Those of `paths` that are meant.
    ///
    /// # Errors
    /// `NotFound` where none is, naming what there is, what looks most like what was typed first.
    pub fn among<'a>(&self, paths: &[&'a str]) -> Result<Vec<&'a str>> {
        let taken: Vec<_> = paths.iter().copied().filter(|path| self.takes(path)).collect();
        if taken.is_empty() && !paths.is_empty() {
            let mut near = paths.to_vec();
            near.truncate(COMPARED);
            near.sort_by_cached_key(|path| self.patterns.iter().map(|typed| distance(typed, path)).min());
            let doing = match &self.patterns[..] {
                [] => "no file is meant".to_owned(),
                typed => format!("no file is meant by --include {}", typed.join(", ")),
            };
            let doing = format!("{doing}; there are {}", named(&near, NAMED, paths.len()));
            return Err(Error::new(Kind::NotFound, doing).hint("change --include or --exclude"));
        }
        Ok(taken)
    }

    /// A line for each pattern of those that are to be in that none of `paths` matches, with the paths that look most like
    /// it.
    #[must_use]
    pub fn in_vain(&self, paths: &[&str]) -> Vec<String> {
        let is_vain = |typed: &&String| {
            let alone = set("--include", std::slice::from_ref(*typed));
            alone.is_ok_and(|alone| !paths.iter().any(|path| alone.is_match(path)))
        };
        let line = |typed: &String| {
            let mut near: Vec<_> = paths.iter().copied().take(COMPARED).collect();
            near.sort_by_cached_key(|path| distance(typed, path));
            format!("--include {typed} matches no file; near it are {}", named(&near, NEAR, paths.len()))
        };
        self.patterns.iter().filter(is_vain).map(line).collect()
    }
}

/// The first `most` of these names, and how many of `all` there are beside them.
fn named(paths: &[&str], most: usize, all: usize) -> String {
    let mut names: Vec<_> = paths.iter().take(most).map(|path| format!("{path:?}")).collect();
    if all > names.len() {
        names.push(format!("{} more", all - names.len()));
    }
    names.join(", ")
}

/// How many letters must be changed to make one of the other, whatever their case (Levenshtein's distance): of the last
/// component where the pattern has no other.
fn distance(pattern: &str, path: &str) -> usize {
    let path = if pattern.contains('/') { path } else { path.rsplit('/').next().unwrap_or(path) };
    let (pattern, path) = (pattern.to_lowercase(), path.to_lowercase());
    let letters: Vec<char> = path.chars().take(LETTERS).collect();
    let mut row: Vec<usize> = (0..=letters.len()).collect();
    for (at, typed) in pattern.chars().take(LETTERS).enumerate() {
        let mut next = vec![at + 1];
        for ((letter, pair), left) in letters.iter().zip(row.windows(2)).zip(1..) {
            let [before, above] = pair else { continue };
            let changed = before + usize::from(*letter != typed);
            let put_in = next.last().map_or(left, |last| last + 1);
            next.push(changed.min(above + 1).min(put_in));
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

fn set(flag: &str, patterns: &[String]) -> Result<GlobSet> {
    let wrong =
        |error: globset::Error| Error::from_source(Kind::Invalid, format!("{flag}: no pattern"), error);
    let mut builder = GlobSetBuilder::new();
    for pattern in patterns {
        let anywhere = if pattern.contains('/') { pattern.clone() } else { format!("**/{pattern}") };
        builder.add(GlobBuilder::new(&anywhere).literal_separator(true).build().map_err(wrong)?);
    }
    builder.build().map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(include: &[&str], exclude: &[&str]) -> Choice {
        let owned = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>();
        Choice::new(&owned(include), &owned(exclude)).unwrap()
    }

    #[test]
    fn a_star_stays_in_its_folder_and_a_bare_pattern_is_found_in_any() {
        assert!(choice(&["*.json"], &[]).takes("config.json"));
        assert!(choice(&["*.json"], &[]).takes("a/b/config.json"));
        assert!(!choice(&["a/*.json"], &[]).takes("a/b/config.json"));
        assert!(choice(&["a/**/*.json"], &[]).takes("a/b/config.json"));
        assert!(!choice(&[], &["*.bin"]).takes("x/y.bin"));
        assert!(!choice(&["*.json"], &["config.*"]).takes("config.json"));
    }

    #[test]
    fn nothing_meant_is_an_error_that_names_what_there_is() {
        let error = choice(&["*.gguf"], &[]).among(&["a.json", "b/c.bin"]).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.to_string().contains("b/c.bin"), "{error}");
        assert!(choice(&[], &[]).among(&[]).unwrap().is_empty());
        assert!(Choice::new(&["[".to_owned()], &[]).is_err());
    }

    #[test]
    fn a_pattern_that_matches_nothing_is_named_with_what_looks_like_it() {
        let paths = ["config.json", "README.md", "sub/model.safetensors", "tokenizer.json"];
        let typed = choice(&["*.json", "modle.Safetensors"], &[]);
        assert_eq!(typed.among(&paths).unwrap(), ["config.json", "tokenizer.json"]);
        let [line] = &typed.in_vain(&paths)[..] else { panic!("one") };
        assert!(line.contains("--include modle.Safetensors matches no file"), "{line}");
        assert!(line.contains("near it are \"sub/model.safetensors\""), "{line}");
        let error = choice(&["modle.safetensors"], &[]).among(&paths).unwrap_err().to_string();
        assert!(error.contains("modle.safetensors; there are \"sub/model.safetensors\""), "{error}");
        assert!(choice(&["*.md"], &[]).in_vain(&paths).is_empty());
    }

    #[test]
    fn what_differs_in_fewer_letters_is_nearer() {
        assert_eq!(distance("model", "model"), 0);
        assert_eq!(distance("modle", "MODEL"), 2);
        assert_eq!(distance("a", ""), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("b.json", "a/b.json"), 0);
        assert_eq!(distance("c/b.json", "a/b.json"), 1);
    }
}
