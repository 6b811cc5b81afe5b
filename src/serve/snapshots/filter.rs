//! Which snapshots are listed: filters in containerd's syntax (its package `filters`).
//!
//! A filter is terms with commas between, all of which have to hold: a field, and what its value has to be. Fields are `name`,
//! `parent`, `kind`, and `labels."KEY"`. What a filter cannot be read as is refused: a list that is too long would have more
//! removed than was meant.

use super::record::Record;
use crate::serve::refused::Refused;

/// The longest filter, in bytes: more than its labels may have.
const LIMIT: usize = 16 << 10;

/// All of these hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter(Vec<Term>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    field: Field,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Field {
    Name,
    Parent,
    Kind,
    Label(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Present,
    Equal(String),
    Different(String),
}

impl Filter {
    /// Reads a filter; an empty one lets all pass.
    ///
    /// # Errors
    /// `InvalidArgument`, also for what is compared by a regular expression.
    pub(super) fn parse(text: &str) -> Result<Self, Refused> {
        let wrong = |why: &str| Refused::invalid(format!("the filter {text:?}: {why}"));
        if text.len() > LIMIT {
            return Err(Refused::invalid("the filter is longer than 16 KiB"));
        }
        let (mut rest, mut terms) = (text, Vec::new());
        while !rest.is_empty() {
            let (term, after) = term(rest).map_err(wrong)?;
            terms.push(term);
            rest = match after.strip_prefix(',') {
                Some("") => return Err(wrong("it ends with a comma")),
                Some(more) => more,
                None if after.is_empty() => after,
                None => return Err(wrong("a comma is missing between its terms")),
            };
        }
        Ok(Self(terms))
    }

    /// Whether it lets this snapshot pass.
    pub(super) fn takes(&self, record: &Record) -> bool {
        self.0.iter().all(|term| term.holds(record))
    }
}

impl Term {
    fn holds(&self, record: &Record) -> bool {
        let value = match &self.field {
            Field::Name => Some(record.name.as_str()),
            Field::Parent => Some(record.parent.as_str()).filter(|parent| !parent.is_empty()),
            Field::Kind => Some(record.kind.name()),
            Field::Label(key) => record.labels.get(key).map(String::as_str),
        };
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value.unwrap_or_default() == wanted,
            Test::Different(other) => value.unwrap_or_default() != other,
        }
    }
}

/// The first term of `text`, and what follows it.
fn term(text: &str) -> Result<(Term, &str), &'static str> {
    let (field, rest) = field(text)?;
    let (test, rest): (fn(String) -> Test, &str) = match (rest.get(..2), rest.get(2..)) {
        (Some("=="), Some(rest)) => (Test::Equal, rest),
        (Some("!="), Some(rest)) => (Test::Different, rest),
        (Some("~="), _) => return Err("regular expressions are not understood"),
        _ => return Ok((Term { field, test: Test::Present }, rest)),
    };
    let (value, rest) = value(rest)?;
    Ok((Term { field, test: test(value) }, rest))
}

fn field(text: &str) -> Result<(Field, &str), &'static str> {
    let (first, mut rest) = part(text)?;
    let mut below = Vec::new();
    while let Some(after) = rest.strip_prefix('.') {
        let (part, after) = part(after)?;
        below.push(part);
        rest = after;
    }
    let field = match (first.as_str(), below.is_empty()) {
        ("name", true) => Field::Name,
        ("parent", true) => Field::Parent,
        ("kind", true) => Field::Kind,
        ("labels", false) => Field::Label(below.join(".")),
        _ => return Err("there is no such field"),
    };
    Ok((field, rest))
}

/// A word of a field, or one in quotes.
fn part(text: &str) -> Result<(String, &str), &'static str> {
    if text.starts_with('"') {
        return quoted(text);
    }
    let end = text.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    match text.split_at_checked(end.unwrap_or(text.len())) {
        Some((word, rest)) if !word.is_empty() => Ok((word.to_owned(), rest)),
        _ => Err("a field is missing"),
    }
}

fn value(text: &str) -> Result<(String, &str), &'static str> {
    if text.starts_with('"') {
        return quoted(text);
    }
    let (word, rest) = text.split_at_checked(text.find(',').unwrap_or(text.len())).unwrap_or((text, ""));
    Ok((word.to_owned(), rest))
}

/// What stands between two quotes, as Go writes it, which is as JSON does for all that names and labels have.
fn quoted(text: &str) -> Result<(String, &str), &'static str> {
    let mut words = serde_json::Deserializer::from_str(text).into_iter::<String>();
    let word = words.next().and_then(Result::ok).ok_or("what stands in quotes can't be read")?;
    Ok((word, text.get(words.byte_offset()..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::snapshots::record::Kind;

    fn takes(filter: &str) -> bool {
        let labels = [("containerd.io/snapshot.ref", "sha256:ab"), ("odd \" key", "v,w"), ("empty", "")];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let record = Record::new(1, "ns/1/name", "ns/2/p", Kind::Committed);
        let record = Record { labels: labels.into(), ..record };
        Filter::parse(filter).unwrap().takes(&record)
    }

    #[test]
    fn terms_are_held_to_names_parents_kinds_and_labels() {
        for filter in [
            "",
            "name==ns/1/name",
            r#"labels."containerd.io/snapshot.ref"==sha256:ab,parent=="ns/2/p""#,
            r#"labels."odd \" key"=="v,w""#,
            "labels.empty",
            "labels.none==,kind==committed",
            "kind!=active,labels.none!=x",
        ] {
            assert!(takes(filter), "{filter}");
        }
        for filter in
            ["name==ns/1", "kind==active", "labels.none", r#"labels."containerd.io/snapshot.ref"!=sha256:ab"#]
        {
            assert!(!takes(filter), "{filter}");
        }
    }

    #[test]
    fn what_is_no_filter_is_refused_and_lists_nothing() {
        for filter in [
            "name==a,",
            "==a",
            "size==1",
            "labels==a",
            "name~=a.*",
            r#"labels."open"#,
            r#"name=="a"b"#,
            "name.first==a",
            &"a".repeat(20_000),
        ] {
            assert!(Filter::parse(filter).is_err(), "{filter}");
        }
    }
}
