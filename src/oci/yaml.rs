//! YAML as Go's `yaml.v3` writes it with an indent of two: the form of a Kitfile on disk.
//!
//! Only writing, and only what JSON can hold. Which way a text is quoted follows that library's rules, so that a file
//! made here is the one that `kit unpack` makes. Called by [`kitfile`](super::kitfile).

use serde_json::Number;

use super::bounded::Text;
use crate::error::Result;

/// A value to be written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Yaml<'a> {
    Null,
    Bool(bool),
    Number(&'a Number),
    Text(&'a str),
    /// A list, an element a line.
    List(Vec<Yaml<'a>>),
    /// A list in one line.
    Flow(Vec<Yaml<'a>>),
    /// Keys in the order they are written.
    Map(Vec<(&'a str, Yaml<'a>)>),
}

/// The document that `root` is, with a line end at its end. It was read from `source` bytes.
///
/// # Errors
/// As [`Text::finish`]: lines that stand deep in others may begin with more spaces than they have letters.
pub(super) fn document(root: &Yaml<'_>, source: usize) -> Result<String> {
    let mut text = Text::of(source);
    block(root, 0, &mut text);
    text.finish()
}

/// Writes a value whose first line has been begun at column `indent`, and ends its last line.
fn block(value: &Yaml<'_>, indent: usize, out: &mut Text) {
    match value {
        Yaml::Map(fields) if !fields.is_empty() => {
            for (at, (key, value)) in fields.iter().enumerate() {
                begin_line(at, indent, out);
                inline(key, Place::Key, out);
                out.push(':');
                field(value, indent, out);
            }
        }
        Yaml::List(all) if !all.is_empty() => {
            for (at, value) in all.iter().enumerate() {
                begin_line(at, indent, out);
                out.push_str("- ");
                block(value, indent + 2, out);
            }
        }
        Yaml::Text(text) if text.contains('\n') && may_be_literal(text) => literal(text, indent, out),
        other => {
            one_line(other, Place::Block, out);
            out.push('\n');
        }
    }
}

/// Writes what follows a key that stands at column `indent`.
fn field(value: &Yaml<'_>, indent: usize, out: &mut Text) {
    match value {
        Yaml::Map(fields) if !fields.is_empty() => out.push('\n'),
        Yaml::List(all) if !all.is_empty() => out.push('\n'),
        _ => {
            out.push(' ');
            return block(value, indent + 2, out);
        }
    }
    out.indent(indent + 2);
    block(value, indent + 2, out);
}

fn begin_line(at: usize, indent: usize, out: &mut Text) {
    if at > 0 {
        out.indent(indent);
    }
}

fn one_line(value: &Yaml<'_>, place: Place, out: &mut Text) {
    match value {
        Yaml::Null => out.push_str("null"),
        Yaml::Bool(yes) => out.push_str(&yes.to_string()),
        Yaml::Number(number) => out.push_str(&decimal(number)),
        Yaml::Text(text) => inline(text, place, out),
        Yaml::List(all) | Yaml::Flow(all) => {
            out.push('[');
            for (at, one) in all.iter().enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                one_line(one, Place::Flow, out);
            }
            out.push(']');
        }
        Yaml::Map(fields) => {
            out.push('{');
            for (at, (key, value)) in fields.iter().enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                inline(key, Place::Key, out);
                out.push_str(": ");
                one_line(value, Place::Flow, out);
            }
            out.push('}');
        }
    }
}

/// Where a text stands: what may be plain hangs on it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Block,
    Flow,
    Key,
}

fn inline(text: &str, place: Place, out: &mut Text) {
    let many_lines = text.contains('\n');
    if many_lines || means_another(text) || text.chars().any(is_special) {
        return quoted(text, out);
    }
    let bare_space = place != Place::Block && text.is_empty();
    if !bare_space && may_be_plain(text, place) {
        return out.push_str(text);
    }
    out.push('\'');
    for (at, part) in text.split('\'').enumerate() {
        out.push_str(if at > 0 { "''" } else { "" });
        out.push_str(part);
    }
    out.push('\'');
}

/// Whether the text, written plainly, would be read as no text: a number, a time, a truth or nothing.
fn means_another(text: &str) -> bool {
    const WORDS: [&str; 17] = [
        "", "~", "null", "true", "false", "y", "n", "yes", "no", "on", "off", "<<", ".nan", ".inf", "+.inf",
        "-.inf", "=",
    ];
    // Longer ones are none of them, and a text may have megabytes.
    let longest = WORDS.iter().map(|word| word.len()).max().unwrap_or(0);
    let lower = if text.len() <= longest { text.to_lowercase() } else { String::from("longer") };
    let cased = text == lower || text == text.to_uppercase() || text == capital(&lower);
    (cased && WORDS.contains(&lower.as_str())) || is_number(text) || is_time(text)
}

fn capital(lower: &str) -> String {
    let mut letters = lower.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn is_number(text: &str) -> bool {
    if !text.starts_with(|first: char| first.is_ascii_digit() || matches!(first, '-' | '+' | '.' | '_')) {
        return false;
    }
    let plain = text.replace('_', "");
    let unsigned = plain.strip_prefix(['-', '+']).unwrap_or(&plain);
    let begins = |text: &str| text.starts_with(|first: char| first.is_ascii_digit());
    if !begins(unsigned) && !unsigned.strip_prefix('.').is_some_and(begins) {
        return false;
    }
    let all = |text: &str, radix| !text.is_empty() && text.chars().all(|digit| digit.is_digit(radix));
    let radix = [("0x", 16), ("0o", 8), ("0b", 2)];
    if radix.iter().any(|(prefix, radix)| unsigned.strip_prefix(prefix).is_some_and(|rest| all(rest, *radix)))
    {
        return true;
    }
    let in_sixties = unsigned.split(':').all(|part| all(part, 10)) && unsigned.contains(':');
    let known = |letter: char| letter.is_ascii_digit() || matches!(letter, '.' | 'e' | 'E' | '+' | '-');
    in_sixties || (unsigned.chars().all(known) && unsigned.parse::<f64>().is_ok())
}

/// A date, alone or with a time after it.
fn is_time(text: &str) -> bool {
    let date = text.split(['T', 't', ' ']).next().unwrap_or_default();
    let parts: Vec<_> = date.splitn(4, '-').collect();
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    matches!(*parts, [year, month, day] if year.len() == 4
        && [month, day].iter().all(|part| matches!(part.len(), 1 | 2))
        && parts.iter().all(|part| digits(part)))
}

fn may_be_plain(text: &str, place: Place) -> bool {
    const LEADING: [char; 16] =
        ['#', ',', '[', ']', '{', '}', '&', '*', '!', '|', '>', '\'', '"', '%', '@', '`'];
    let ends_in_space = text.starts_with(' ') || text.ends_with(' ');
    let marks = text.starts_with("---") || text.starts_with("...");
    let leads = |text: &str| {
        let mut letters = text.chars();
        let (first, then) = (letters.next(), letters.next());
        let alone = then.is_none_or(|then| then == ' ');
        first.is_some_and(|first| LEADING.contains(&first) || (matches!(first, '-' | '?' | ':') && alone))
    };
    let flow = place == Place::Flow
        && (text.contains([',', '?', '[', ']', '{', '}', ':']) || text.starts_with(['?', ':']));
    let breaks = text.contains(": ") || text.ends_with(':') || text.contains(" #");
    !(ends_in_space || marks || leads(text) || flow || breaks)
}

/// Letters that only a double-quoted text can hold.
fn is_special(letter: char) -> bool {
    letter.is_control() || matches!(letter, '\u{feff}' | '\u{2028}' | '\u{2029}' | '\u{fffe}' | '\u{ffff}')
}

fn quoted(text: &str, out: &mut Text) {
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\0' => out.push_str("\\0"),
            special if is_special(special) && u32::from(special) < 0x100 => {
                out.push_str(&format!("\\x{:02X}", u32::from(special)));
            }
            special if is_special(special) => out.push_str(&format!("\\u{:04X}", u32::from(special))),
            other => out.push(other),
        }
    }
    out.push('"');
}

/// Whether lines can stand as they are: a space before a line's end, or at the text's, would be lost.
fn may_be_literal(text: &str) -> bool {
    let special = |letter: char| !matches!(letter, '\n' | '\t') && is_special(letter);
    !text.contains(" \n") && !text.ends_with(' ') && !text.chars().any(special)
}

fn literal(text: &str, indent: usize, out: &mut Text) {
    out.push('|');
    if text.starts_with([' ', '\n']) {
        out.push('2');
    }
    let body = text.strip_suffix('\n');
    match body {
        None => out.push('-'),
        Some(body) if body.is_empty() || body.ends_with('\n') => out.push('+'),
        Some(_) => {}
    }
    out.push('\n');
    for line in body.unwrap_or(text).split('\n') {
        if !line.is_empty() {
            out.indent(indent);
            out.push_str(line);
        }
        out.push('\n');
    }
}

/// A number as Go prints what it has read as a float: the shortest digits, with an exponent from a million on and below
/// a ten-thousandth.
fn decimal(number: &Number) -> String {
    let Some(value) = number.as_f64() else { return number.to_string() };
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let Ok(exponent) = exponent.parse::<i32>() else { return scientific };
    if (-4..6).contains(&exponent) {
        return format!("{value}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Yaml<'_> {
        Yaml::Text(text)
    }

    fn map<'a, const N: usize>(fields: [(&'a str, Yaml<'a>); N]) -> Yaml<'a> {
        Yaml::Map(fields.into())
    }

    fn document(root: &Yaml<'_>) -> String {
        super::document(root, 0).unwrap()
    }

    #[test]
    fn maps_and_lists_are_indented_by_two() {
        let inner = map([("path", text("./src")), ("parts", Yaml::List(vec![text("a"), text("b")]))]);
        let root = map([
            ("version", text("1.0.0")),
            ("authors", Yaml::Flow(vec![text("A"), text("b, c")])),
            ("code", Yaml::List(vec![inner, map([("path", text("x"))])])),
            ("none", Yaml::List(Vec::new())),
        ]);
        let expected = "version: 1.0.0\nauthors: [A, 'b, c']\ncode:\n  - path: ./src\n    parts:\n      - a\n      - b\n  \
                        - path: x\nnone: []\n";
        assert_eq!(document(&root), expected);
    }

    #[test]
    fn what_would_be_read_as_another_thing_is_quoted() {
        for word in ["", "1.0", "7", "-3", "0x1f", "1e3", "1:20", "true", "No", "~", "2024-01-31", ".5"] {
            assert_eq!(document(&text(word)), format!("\"{word}\"\n"), "{word}");
        }
        for word in
            ["1.0.0", "llama-3", "8b", "./a/b", "apache-2.0", "a: b".trim_end_matches(": b"), "nO", "v1"]
        {
            assert_eq!(document(&text(word)), format!("{word}\n"));
        }
        for word in ["a: b", "- a", "# x", "a #b", " a", "@home", "[a]", "key:"] {
            assert_eq!(document(&text(word)), format!("'{word}'\n"));
        }
        assert_eq!(document(&text("it's: so")), "'it''s: so'\n");
        assert_eq!(document(&text("a\tb")), "\"a\\tb\"\n");
    }

    #[test]
    fn texts_of_several_lines_stand_as_they_are() {
        let root = map([("d", text("one\ntwo\n\nthree\n")), ("e", text("one\ntwo")), ("f", text("a \nb"))]);
        let expected = "d: |\n  one\n  two\n\n  three\ne: |-\n  one\n  two\nf: \"a \\nb\"\n";
        assert_eq!(document(&root), expected);
    }

    #[test]
    fn numbers_are_those_of_go() {
        let of = |text: &str| decimal(&serde_json::from_str(text).unwrap());
        for (number, expected) in [
            ("7", "7"),
            ("0.7", "0.7"),
            ("131072", "131072"),
            ("1000000", "1e+06"),
            ("1234567", "1.234567e+06"),
            ("0.00001", "1e-05"),
            ("-2.50", "-2.5"),
        ] {
            assert_eq!(of(number), expected);
        }
    }

    #[test]
    fn what_would_be_longer_than_its_source_by_far_is_an_error() {
        let lines = "a\n".repeat(50_000);
        let mut deep = text(&lines);
        for _ in 0..60 {
            deep = Yaml::List(vec![deep]);
        }
        assert!(super::document(&deep, lines.len()).is_err());
        let special = "\u{7f}".repeat(100_000);
        assert!(super::document(&text(&special), special.len()).is_err());
        assert!(super::document(&text(&lines), lines.len()).is_ok());
    }
}
