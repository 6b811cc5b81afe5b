//! Which files of a model are left out of its tree: patterns as `.gitignore` has them, held to the last part of a path.
//!
//! As model-csi-driver means its attribute `exclude-file-patterns`: the last pattern that matches decides, and one after `!`
//! takes a file in again. Only words: who lays out a tree asks.

use globset::{GlobBuilder, GlobMatcher};

/// What model-csi-driver's `exclude-model-weights` leaves out.
pub const WEIGHTS: [&str; 2] = ["*.safetensors", "model.safetensors.index.json"];

/// How many patterns there may be.
const LIMIT: usize = 256;

/// What to leave out. Nothing, by default.
#[derive(Clone, Debug, Default)]
pub struct Exclude {
    patterns: Vec<Pattern>,
}

#[derive(Clone, Debug)]
struct Pattern {
    matches: GlobMatcher,
    /// Whether what matches is left out, or taken in again.
    leaves_out: bool,
}

impl Exclude {
    /// Reads patterns, written as a JSON array of texts. Empty ones and comments say nothing.
    ///
    /// # Errors
    /// Why they cannot be meant.
    pub fn parse(json: &str) -> Result<Self, String> {
        let texts: Vec<String> =
            serde_json::from_str(json).map_err(|_| format!("{json:?} is no JSON array of patterns"))?;
        if texts.len() > LIMIT {
            return Err(format!("there are more than {LIMIT} patterns"));
        }
        let patterns = texts.iter().filter(|text| !text.trim().is_empty() && !text.starts_with('#'));
        Ok(Self { patterns: patterns.map(|text| Pattern::parse(text)).collect::<Result<_, _>>()? })
    }

    /// Whether nothing is left out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether the file at `path` is left out.
    #[must_use]
    pub fn excludes(&self, path: &str) -> bool {
        let name = path.rsplit('/').next().unwrap_or(path);
        let last = self.patterns.iter().rfind(|pattern| pattern.matches.is_match(name));
        last.is_some_and(|pattern| pattern.leaves_out)
    }
}

impl Pattern {
    fn parse(text: &str) -> Result<Self, String> {
        let (leaves_out, text) = match text.strip_prefix('!') {
            Some(rest) => (false, rest),
            None => (true, text),
        };
        // Where a name begins it is anchored anyway.
        let glob = GlobBuilder::new(text.trim_end().strip_prefix('/').unwrap_or(text.trim_end()))
            .literal_separator(true)
            .build()
            .map_err(|error| format!("{text:?} is no pattern: {}", error.kind()))?;
        Ok(Self { matches: glob.compile_matcher(), leaves_out })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_pattern_that_matches_a_files_name_decides() {
        let exclude = Exclude::parse(
            r##"["*.safetensors", "# no", "", "!small-*.safetensors", "/README.md", "*.[ab]in"]"##,
        );
        let exclude = exclude.unwrap();
        for out in ["model.safetensors", "sub/deep/model.safetensors", "sub/README.md", "x.bin", "x.ain"] {
            assert!(exclude.excludes(out), "{out}");
        }
        for kept in
            ["small-1.safetensors", "sub/small-2.safetensors", "config.json", "x.cin", "safetensors/a"]
        {
            assert!(!exclude.excludes(kept), "{kept}");
        }
        assert!(!exclude.is_empty() && Exclude::parse("[]").unwrap().is_empty());
    }

    #[test]
    fn what_is_no_list_of_patterns_is_refused() {
        let many = serde_json::to_string(&vec!["a"; 257]).unwrap();
        for wrong in ["", "*.bin", "{}", "[1]", r#"["a[b"]"#, &many] {
            assert!(Exclude::parse(wrong).is_err(), "{wrong}");
        }
    }
}
