//! JSON changed as text: a value replaced, one appended to a list, every other byte as it was.
//!
//! So that fields nobody here knows, their order and their spelling outlive a change. What is given has been parsed
//! before, and whoever calls parses what comes of it; here nothing is checked beyond what it takes to find the place.
//! [`add`](super::add) changes manifests and configs with it.

use std::collections::HashMap;
use std::ops::Range;

/// `text` with the value at `path` replaced; `None` where there is no such place.
pub(super) fn replace(text: &str, path: &[&str], value: &str) -> Option<String> {
    let place = find(text, path)?;
    Some([text.get(..place.start)?, value, text.get(place.end..)?].concat())
}

/// `text` with one more value at the end of the list at `path`; `None` where there is no such list.
pub(super) fn append(text: &str, path: &[&str], value: &str) -> Option<String> {
    let place = find(text, path)?;
    let inside = text.get(place)?.strip_prefix('[')?.strip_suffix(']')?;
    let kept = inside.trim_end();
    let comma = if kept.trim_start().is_empty() { "" } else { "," };
    let whole = ["[", kept, comma, value, inside.get(kept.len()..)?, "]"].concat();
    replace(text, path, &whole)
}

/// Two keys of one object that differ by case alone, where there are any. Go's `encoding/json` takes either for the field,
/// so that others would read another value than the one that is changed here. Costs memory for the keys of the objects
/// that enclose one another.
pub(super) fn twins(text: &str) -> Option<(String, String)> {
    let mut scan = Scan { bytes: text.as_bytes(), at: 0 };
    let mut objects: Vec<HashMap<String, String>> = Vec::new();
    while let Some(byte) = scan.peek() {
        match byte {
            b'{' => objects.push(HashMap::new()),
            b'}' => drop(objects.pop()),
            b'"' => {
                let start = scan.at;
                scan.string()?;
                let end = scan.at;
                scan.space();
                if scan.peek() == Some(b':') {
                    let key: String = serde_json::from_str(text.get(start..end)?).ok()?;
                    let twin = objects.last_mut()?.insert(folded(&key), key.clone());
                    if let Some(twin) = twin.filter(|twin| *twin != key) {
                        return Some((twin, key));
                    }
                }
                continue;
            }
            _ => {}
        }
        scan.at += 1;
    }
    None
}

/// The same for all spellings by case; beyond ASCII too, where `ſ` is an `s` and the sign of Kelvin a `k`.
fn folded(key: &str) -> String {
    key.to_uppercase().to_lowercase()
}

/// Where the value stands that the keys lead to; of a key that occurs twice the last, as parsers have it.
fn find(text: &str, path: &[&str]) -> Option<Range<usize>> {
    let mut scan = Scan { bytes: text.as_bytes(), at: 0 };
    scan.space();
    for key in path {
        scan.at = scan.member(text, key)?;
    }
    let start = scan.at;
    scan.value()?;
    Some(start..scan.at)
}

struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Scan<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn space(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        self.space();
        (self.peek()? == byte).then(|| self.at += 1)
    }

    /// Where the value of `key` begins, in the object that begins here.
    fn member(&mut self, text: &str, key: &str) -> Option<usize> {
        let mut found = None;
        self.take(b'{')?;
        self.space();
        while self.peek()? != b'}' {
            self.space();
            let start = self.at;
            self.string()?;
            let name: String = serde_json::from_str(text.get(start..self.at)?).ok()?;
            self.take(b':')?;
            self.space();
            if name == key {
                found = Some(self.at);
            }
            self.value()?;
            self.space();
            if self.peek()? == b',' {
                self.at += 1;
            }
        }
        found
    }

    fn string(&mut self) -> Option<()> {
        self.take(b'"')?;
        loop {
            let byte = self.peek()?;
            self.at += if byte == b'\\' { 2 } else { 1 };
            if byte == b'"' {
                return Some(());
            }
        }
    }

    /// Steps over one value, however deep.
    fn value(&mut self) -> Option<()> {
        let mut depth = 0_usize;
        loop {
            self.space();
            match self.peek()? {
                b'"' => self.string()?,
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                    continue;
                }
                b'}' | b']' => {
                    depth = depth.checked_sub(1)?;
                    self.at += 1;
                }
                b',' | b':' => {
                    self.at += 1;
                    continue;
                }
                _ => self.word(),
            }
            if depth == 0 {
                return Some(());
            }
        }
    }

    /// A number, `true`, `false` or `null`.
    fn word(&mut self) {
        let ends = |byte: u8| byte.is_ascii_whitespace() || matches!(byte, b',' | b'}' | b']' | b':');
        while self.peek().is_some_and(|byte| !ends(byte)) {
            self.at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#" { "b" : {"x":[ ], "y\u0041": "}]\"" },
  "a":[ {"n":1.5e3} , true ],"b":{"list":["p"],"n":-2} } "#;

    #[test]
    fn a_value_is_replaced_and_nothing_else() {
        assert_eq!(replace(TEXT, &["b", "n"], "7").unwrap(), TEXT.replace("-2", "7"));
        assert_eq!(replace(TEXT, &["a"], "[]").unwrap(), TEXT.replace(r#"[ {"n":1.5e3} , true ]"#, "[]"));
        assert_eq!(replace("1", &[], "2").unwrap(), "2");
    }

    #[test]
    fn a_value_is_appended_in_the_style_of_the_list() {
        assert_eq!(append(TEXT, &["a"], "0").unwrap(), TEXT.replace("true ]", "true,0 ]"));
        assert_eq!(append(TEXT, &["b", "list"], "0").unwrap(), TEXT.replace(r#"["p"]"#, r#"["p",0]"#));
        assert_eq!(append(r#"{"x":[ ]}"#, &["x"], "0").unwrap(), r#"{"x":[0 ]}"#);
    }

    #[test]
    fn keys_of_one_object_that_differ_by_case_alone_are_found() {
        for text in [
            r#"{"layers":[],"Layers":[]}"#,
            r#"[{"a":{"b":"}","digest":1,"x":{},"DIGEST":2}}]"#,
            r#"{"layer\u0073":[],"layer\u017f":[]}"#,
            "{\"kind\" : 1 , \"\u{212a}ind\" : 1}",
        ] {
            assert!(twins(text).is_some(), "{text}");
        }
        for text in
            [TEXT, r#"{"a":{"A":1},"b":["a","A",{"B":":"}],"c":"C"}"#, r#"{"a":1,"a":2}"#, "", "}}", "\""]
        {
            assert_eq!(twins(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        for path in [&["c"][..], &["a", "n"], &["b", "x"], &["b", "n", "z"]] {
            assert_eq!(replace(TEXT, path, "0"), None, "{path:?}");
        }
        assert_eq!(append(TEXT, &["b", "n"], "0"), None);
        for broken in ["", "{", r#"{"a"#, r#"{"a":"#, r#"{"a":[}"#, r#"{"a":"\"#, "]", r#"{"a" 1}"#] {
            assert_eq!(append(broken, &["a"], "0"), None, "{broken}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(text in r#"[\[\]{}:,"\\ab 1]{0,40}"#) {
            let _whatever = (append(&text, &["a"], "0"), replace(&text, &["a", "b"], "0"), replace(&text, &[], "0"), twins(&text));
        }

        #[test]
        fn what_is_appended_is_all_that_changes(
            before in proptest::collection::vec(r#"[a-c"\\\]\[{}]{0,4}"#, 0..4),
            list in proptest::collection::vec(r#"["\\\]a,]{0,4}"#, 0..4),
        ) {
            let mut value = serde_json::json!({"zz": before, "layers": list, "more": {"layers": before}});
            for text in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
                let new = append(&text, &["layers"], "\"new\"").unwrap();
                value["layers"] = list.iter().map(String::as_str).chain(["new"]).collect();
                proptest::prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&new).unwrap(), value.clone());
            }
        }
    }
}
