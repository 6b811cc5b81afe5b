//! Faults and rules in words, as a person types them: `GET */blobs/* 503 30%`.
//!
//! [`FORMS`] is all there is to say, and so what [`grammar`] shows. Left out are the faults of uploads, which only who takes
//! uploads can carry out.

use std::fmt::Write;
use std::str::FromStr;
use std::time::Duration;

use super::fault::{Fault, Rule};

/// A fault as it is typed.
struct Form {
    name: &'static str,
    /// What is typed after the name.
    args: &'static str,
    /// What happens.
    what: &'static str,
    make: fn(&mut Args<'_>) -> Result<Fault, String>,
}

const fn form(
    name: &'static str,
    args: &'static str,
    what: &'static str,
    make: fn(&mut Args<'_>) -> Result<Fault, String>,
) -> Form {
    Form { name, args, what, make }
}

/// The longest time that can be said, in seconds: what is counted from now with it is a time of day still.
const LONGEST: u64 = 365 * 24 * 3600;
/// The most bytes that are made up for one answer.
const MOST_BYTES: usize = 256 << 20;
/// The most headers that one answer can have beside its own, in the table that they are kept in.
const MOST_HEADERS: usize = 16_000;

/// Every fault, in the order of [`Fault`].
static FORMS: &[Form] = &[
    form("reset", "", "the connection is reset", |_| Ok(Fault::Reset)),
    form("close", "", "the connection is closed", |_| Ok(Fault::Close)),
    form("garbage", "", "bytes that are no HTTP", |_| Ok(Fault::Garbage)),
    form("silence", "", "nothing at all", |_| Ok(Fault::Silence)),
    form("slow-head", "PAUSE", "forty pieces of the head, a pause before each", |a| {
        Ok(Fault::SlowHead(a.time()?))
    }),
    form("endless-head", "PAUSE", "a head that comes byte by byte for ever", |a| {
        Ok(Fault::EndlessHead(a.time()?))
    }),
    form("huge-header", "BYTES", "a header of this size", |a| Ok(Fault::HugeHeader(a.count()?))),
    form("many-headers", "COUNT", "so many headers more", |a| Ok(Fault::ManyHeaders(a.up_to(MOST_HEADERS)?))),
    form("two-lengths", "", "two Content-Length that differ", |_| Ok(Fault::TwoLengths)),
    form("twice-the-same", "HEADER", "a header twice, alike", |a| Ok(Fault::TwiceTheSame(a.header()?))),
    form("header", "HEADER VALUE", "a header with this value, %20 for a space", |a| {
        Ok(Fault::Header(a.header()?, a.text()?))
    }),
    form("no-header", "HEADER", "a header is missing", |a| Ok(Fault::NoHeader(a.header()?))),
    form("truncate", "BYTES", "the body is cut, the connection closed", |a| Ok(Fault::Truncate(a.number()?))),
    form("reset-at", "BYTES", "the body is cut, the connection reset", |a| Ok(Fault::ResetAt(a.number()?))),
    form("stall", "BYTES", "the body stops", |a| Ok(Fault::Stall(a.number()?))),
    form("slow", "PIECES PAUSE", "the body comes in pieces, a pause before each", |a| {
        Ok(Fault::Slow(a.number()?, a.time()?))
    }),
    form("extra", "BYTES", "bytes after the end of the body", |a| Ok(Fault::Extra(a.count()?))),
    form("no-length", "", "the body ends with the connection", |_| Ok(Fault::NoLength)),
    form("chunked", "", "chunks in the place of a length", |_| Ok(Fault::Chunked)),
    form("chunked-cut", "BYTES", "the same, cut within a chunk", |a| Ok(Fault::ChunkedCut(a.number()?))),
    form("short", "BYTES", "chunks, and the body ends so much early", |a| Ok(Fault::Short(a.number()?))),
    form("overlong", "BYTES", "chunks, and so much more than was asked for", |a| {
        Ok(Fault::Overlong(a.count()?))
    }),
    form("padded", "BYTES", "so much more, and a length that says so", |a| Ok(Fault::Padded(a.count()?))),
    form("ignore-range", "", "200 with the whole blob", |_| Ok(Fault::IgnoreRange)),
    form("partial200", "", "200 with the range alone", |_| Ok(Fault::Partial200)),
    form("whole206", "", "206 with the whole blob", |_| Ok(Fault::Whole206)),
    form("elsewhere", "BYTES", "206 with a range that begins so much later", |a| {
        Ok(Fault::Elsewhere(a.number()?))
    }),
    form("short206", "BYTES", "206 with a range that ends so much early, which is legal", |a| {
        Ok(Fault::Short206(a.number()?))
    }),
    form("multipart", "", "the range as the one part of several", |_| Ok(Fault::Multipart)),
    form("status", "STATUS", "this status; the number alone says the same", |a| {
        Ok(Fault::Status(a.status()?))
    }),
    form("retry-after", "STATUS SECONDS", "this status, and a wait in seconds", |a| {
        Ok(Fault::RetryAfter(a.status()?, a.seconds()?))
    }),
    form("retry-at", "STATUS TIME", "this status, and a wait as a date so long from now", |a| {
        Ok(Fault::RetryAt(a.status()?, a.time()?))
    }),
    form("unauthorized", "", "401 with a challenge", |_| Ok(Fault::Unauthorized)),
    form("redirect", "ORIGIN", "307 to the same path there, signed", |a| {
        Ok(Fault::Redirect(a.text()?.to_owned()))
    }),
    form("redirect-to", "URL", "307 to exactly this", |a| Ok(Fault::RedirectTo(a.text()?))),
    form("redirect-chain", "COUNT", "so many 307 before the answer", |a| {
        Ok(Fault::RedirectChain(a.number()?))
    }),
    form("redirect-loop", "", "307 to what was asked for", |_| Ok(Fault::RedirectLoop)),
    form("instead", "DIGEST", "what this digest names, in the place of what was asked for", |a| {
        Ok(Fault::Instead(a.read("a digest")?))
    }),
    form("html200", "", "200 with a page for people", |_| Ok(Fault::Html200)),
    form("html206", "", "206 with a page for people", |_| Ok(Fault::Html206)),
    form("flip", "BYTE", "one byte of the body is another", |a| Ok(Fault::Flip(a.number()?))),
    form("shifted", "BYTES", "the bytes of so many places later", |a| Ok(Fault::Shifted(a.number()?))),
    form("zeros", "", "nothing but zeros", |_| Ok(Fault::Zeros)),
    form("swap", "DIGEST", "the bytes of another blob", |a| Ok(Fault::Swap(a.read("a digest")?))),
    form("revoke", "", "all tokens are over from now on", |_| Ok(Fault::Revoke)),
    form("expire", "", "all signed addresses are over from now on", |_| Ok(Fault::Expire)),
];

/// What is typed after a fault, and when it happens then.
const WHEN: &[(&str, &str)] = &[
    ("30%", "of the requests, by chance; always where none of these is said"),
    ("once", "the first time"),
    ("5 times", "the first five times"),
    ("after 5", "not before five requests have been answered well"),
    ("for 30s", "for so long after the first such request"),
    ("first-of-each", "the first time for each path"),
];

/// How rules are written, for a person: a line for each fault. Times are as `20ms` or `2s`.
#[must_use]
pub fn grammar() -> String {
    let mut text =
        "A rule is METHOD PATH FAULT [WHEN], as 'GET */blobs/* 503 30%'. In METHOD and PATH, which has the \
        query too, * stands for anything. Of several rules that fit a request the first counts, or the next where its chance spares the request.\n\nFAULT:\n"
            .to_owned();
    let mut line = |typed: String, what: &str| {
        let _ = writeln!(text, "  {typed:<28}  {what}");
    };
    for form in FORMS {
        line(format!("{} {}", form.name, form.args), form.what);
    }
    line("\nWHEN:".to_owned(), "");
    for (typed, what) in WHEN {
        line((*typed).to_owned(), what);
    }
    let lines: Vec<_> = text.lines().map(str::trim_end).collect();
    lines.join("\n")
}

impl FromStr for Rule {
    type Err = String;

    /// Reads a rule as [`grammar`] says.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut args = Args(text.split_whitespace().peekable());
        let pattern = format!("{} {}", args.next("METHOD")?, args.next("PATH")?);
        let pattern = if pattern.contains('*') { pattern } else { format!("{pattern}*") };
        let rule = Self::always(pattern, args.fault()?);
        args.when(rule, text)
    }
}

/// Says what can be meant in the place of `name`.
fn no_fault(name: &str) -> String {
    let names: Vec<_> = FORMS.iter().map(|form| form.name).collect();
    format!("{name:?} is no fault: it can be a status, as 503, or {}", names.join(", "))
}

/// The words of a rule that are left.
struct Args<'a>(std::iter::Peekable<std::str::SplitWhitespace<'a>>);

impl<'a> Args<'a> {
    fn next(&mut self, what: &str) -> Result<&'a str, String> {
        self.0.next().ok_or_else(|| format!("{what} is missing"))
    }

    fn fault(&mut self) -> Result<Fault, String> {
        let is_status = |word: &&str| word.parse::<u16>().is_ok();
        if self.0.peek().is_some_and(is_status) {
            return self.status().map(Fault::Status);
        }
        let name = self.next("FAULT")?;
        let form = FORMS.iter().find(|form| form.name == name);
        let form = form.ok_or_else(|| no_fault(name))?;
        (form.make)(self).map_err(|why| format!("{name} {}: {why}", form.args))
    }

    /// The rule with what the rest says of when it holds. `seed` makes the choices of two rules differ.
    fn when(mut self, mut rule: Rule, seed: &str) -> Result<Rule, String> {
        while let Some(word) = self.0.next() {
            rule = match word {
                "once" => rule.at_most(1),
                "after" => rule.after(self.number()?),
                "for" => rule.lasting(self.time()?),
                "first-of-each" => rule.first_of_each(),
                _ if self.0.peek() == Some(&"times") => {
                    self.0.next();
                    rule.at_most(read(word, "a number of times")?)
                }
                _ => rule.sometimes(share(word)?, seed.bytes().map(u64::from).sum()),
            };
        }
        Ok(rule)
    }

    fn read<T: FromStr>(&mut self, what: &str) -> Result<T, String> {
        read(self.next(what)?, what)
    }

    fn number<T: FromStr>(&mut self) -> Result<T, String> {
        self.read("a number")
    }

    /// A number of what is made up for an answer, at most so many.
    fn up_to(&mut self, most: usize) -> Result<usize, String> {
        let count = self.number()?;
        if count <= most { Ok(count) } else { Err(format!("{count} is more than {most}")) }
    }

    fn count(&mut self) -> Result<usize, String> {
        self.up_to(MOST_BYTES)
    }

    /// A wait in seconds; or other words, which no client can mean.
    fn seconds(&mut self) -> Result<&'static str, String> {
        let word = self.text()?;
        match word.parse::<u64>() {
            Ok(seconds) => bounded(Duration::from_secs(seconds)).map(|_| word),
            Err(_) => Ok(word),
        }
    }

    fn status(&mut self) -> Result<u16, String> {
        let status: u16 = self.read("a status")?;
        if (200..600).contains(&status) { Ok(status) } else { Err(format!("{status} is no status")) }
    }

    fn header(&mut self) -> Result<http::HeaderName, String> {
        self.read("the name of a header")
    }

    fn time(&mut self) -> Result<Duration, String> {
        let word = self.next("a time")?;
        let (number, unit) = word.split_at(word.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.len()));
        match (number.parse(), unit) {
            (Ok(number), "ms") => bounded(Duration::from_millis(number)),
            (Ok(number), "s") => bounded(Duration::from_secs(number)),
            _ => Err(format!("{word:?} is no time as 20ms or 2s")),
        }
    }

    /// A text for as long as the process lives, as what a person has typed does.
    fn text(&mut self) -> Result<&'static str, String> {
        Ok(self.next("a value")?.replace("%20", " ").leak())
    }
}

fn bounded(time: Duration) -> Result<Duration, String> {
    let seconds = time.as_secs();
    if seconds <= LONGEST { Ok(time) } else { Err(format!("{seconds} s is more than {LONGEST} s")) }
}

fn read<T: FromStr>(word: &str, what: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("{word:?} is not {what}"))
}

/// `30%` as a share of one.
fn share(word: &str) -> Result<f64, String> {
    let percent = word.strip_suffix('%').and_then(|number| number.parse::<f64>().ok());
    let percent = percent.filter(|percent| (0.0..=100.0).contains(percent));
    percent.map(|percent| percent / 100.0).ok_or_else(|| {
        let forms: Vec<_> = WHEN.iter().map(|(typed, _)| *typed).collect();
        format!("{word:?} does not say when: that can be {}", forms.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::super::fault::Rules;
    use super::*;

    /// What stands for an argument.
    fn sample(arg: &str) -> String {
        match arg {
            "PAUSE" | "TIME" => "2s".to_owned(),
            "HEADER" => "content-range".to_owned(),
            "VALUE" => "bytes%20*/10".to_owned(),
            "STATUS" => "503".to_owned(),
            "ORIGIN" | "URL" => "http://127.0.0.1:1".to_owned(),
            "DIGEST" => crate::oci::Digest::of(b"").to_string(),
            _ => "17".to_owned(),
        }
    }

    fn hits(rule: &str, requests: usize) -> Vec<bool> {
        let mut rules = Rules::default();
        rules.add(rule.parse().unwrap());
        (0..requests).map(|_| rules.fault("GET /v2/a/blobs/sha256:00").is_some()).collect()
    }

    #[test]
    fn every_fault_is_said_by_its_name_and_what_it_needs() {
        for form in FORMS {
            let args: Vec<_> = form.args.split_whitespace().map(sample).collect();
            let mut rules = Rules::default();
            rules.add(format!("GET * {} {}", form.name, args.join(" ")).parse().unwrap());
            let fault = rules.fault("GET /").unwrap();
            assert_eq!(fault.name(), form.name);
            if !args.is_empty() {
                let error = format!("GET * {}", form.name).parse::<Rule>().unwrap_err();
                assert!(error.contains(form.name) && error.contains("missing"), "{error}");
            }
        }
    }

    #[test]
    fn when_a_fault_happens_is_said_after_it() {
        let blobs = |rest: &str, count| hits(&format!("GET */blobs/* {rest}"), count);
        assert_eq!(blobs("503", 2), [true, true]);
        assert_eq!(blobs("503 once", 3), [true, false, false]);
        assert_eq!(blobs("reset 2 times after 1", 4), [false, true, true, false]);
        assert_eq!(blobs("slow 4 20ms first-of-each", 2), [true, false]);
        assert_eq!(blobs("zeros for 0s", 2), [true, false]);
        let due = blobs("503 30%", 1000).iter().filter(|due| **due).count();
        assert!((250..350).contains(&due), "{due}");
        assert_eq!(hits("PUT * 503", 1), [false]);
        assert_eq!(hits("GET /v2/a 503", 1), [true], "a path without stars is a beginning");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (rule, names) in [
            ("", "METHOD"),
            ("GET", "PATH"),
            ("GET *", "FAULT"),
            ("GET * nonsense", "nonsense"),
            ("GET * 99", "99"),
            ("GET * reset sometimes", "sometimes"),
            ("GET * reset 130%", "130%"),
            ("GET * reset after x", "x"),
            ("GET * slow 3 fast", "fast"),
            ("GET * stall -1", "-1"),
            ("GET * retry-at 503 999999999999s", "999999999999"),
            ("GET * retry-after 503 999999999999", "999999999999"),
            ("GET * slow 3 18446744073709551615ms", "18446744073709551"),
            ("GET * reset for 999999999999s", "999999999999"),
            ("GET * many-headers 40000", "40000"),
            ("GET * huge-header 999999999999999", "999999999999999"),
            ("GET * padded 999999999999999", "999999999999999"),
            ("GET * overlong 999999999999999", "999999999999999"),
            ("GET * extra 999999999999999", "999999999999999"),
        ] {
            let error = rule.parse::<Rule>().unwrap_err();
            assert!(error.contains(names), "{rule}: {error}");
        }
    }

    #[test]
    fn the_grammar_names_all() {
        let grammar = grammar();
        assert!(
            FORMS.iter().all(|form| grammar.contains(format!("  {} {}", form.name, form.args).trim_end()))
        );
        assert!(WHEN.iter().all(|(typed, _)| grammar.contains(typed)));
    }
}
