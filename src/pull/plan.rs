//! Which files of a model are meant: patterns of names that are in, less those that are out.
//!
//! Pure; asks neither disk nor network.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::error::{Error, Kind, Result};

/// How many names an error lists.
const NAMED: usize = 20;

/// A choice among the paths of a model.
#[derive(Clone, Debug)]
pub struct Choice {
    include: Option<GlobSet>,
    exclude: GlobSet,
}

impl Choice {
    /// What matches any of `include` (everything, where there is none) and none of `exclude`. `*` stays within a
    /// folder, `**` does not; a pattern without `/` is matched against the last component too.
    ///
    /// # Errors
    /// `Invalid` where a pattern cannot be read.
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self> {
        let include = (!include.is_empty()).then(|| set("--include", include)).transpose()?;
        Ok(Self { include, exclude: set("--exclude", exclude)? })
    }

    /// Whether the path is meant.
    #[must_use]
    pub fn takes(&self, path: &str) -> bool {
        self.include.as_ref().is_none_or(|include| include.is_match(path)) && !self.exclude.is_match(path)
    }

    /// Those of `paths` that are meant.
    ///
    /// # Errors
    /// `NotFound` where none is, naming what there is.
    pub fn among<'a>(&self, paths: &[&'a str]) -> Result<Vec<&'a str>> {
        let taken: Vec<_> = paths.iter().copied().filter(|path| self.takes(path)).collect();
        if taken.is_empty() && !paths.is_empty() {
            let mut names: Vec<_> = paths.iter().take(NAMED).map(|path| format!("{path:?}")).collect();
            if paths.len() > NAMED {
                names.push(format!("{} more", paths.len() - NAMED));
            }
            let doing = format!("no file is meant; there are {}", names.join(", "));
            return Err(Error::new(Kind::NotFound, doing).hint("change --include or --exclude"));
        }
        Ok(taken)
    }
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
}
