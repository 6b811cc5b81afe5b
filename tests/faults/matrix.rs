//! Each fault by itself: at the first attempt, at every attempt, for a time; with one reader and with 32.
//!
//! The three use files of their own, so that each has something to fetch. While it stays, what has been read before is read as
//! ever; after that the registry is healed, and the same model reads on. How long a time is, is said by
//! `WEIGHTFS_TEST_FAULT_SECONDS`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use weightfs::Result;
use weightfs::testing::registry::{Door, Fault, Habits, Registry, Rule, Tokens};

use super::kinds::{self, At, Fate, Row};
use super::setting::{FILES, Form, HEAD, Setting, TAIL, Times, is_clear, shared};
use crate::support::heavy;

/// How long the fault that passes by itself is there.
fn a_time() -> Duration {
    Duration::from_secs(super::scale("WEIGHTFS_TEST_FAULT_SECONDS", 2))
}

/// A deadline that is short, so that a fault that stays costs little, and long beside that time, a stall and a wait.
fn times() -> Times {
    Times { deadline: a_time() + Duration::from_secs(10), stall: Duration::from_secs(3) }
}

/// How many settings are at work at once. They wait most of the time.
const AT_ONCE: usize = 48;
/// The files of each of the three.
const SHARE: usize = FILES / 3;

#[test]
fn every_fault_by_itself_is_survived_by_a_packed_model_or_is_a_bounded_error() {
    let other = shared(Form::Packed).digest(FILES);
    run(Form::Packed, [kinds::rows(), kinds::lies(other)].concat());
}

#[test]
fn every_fault_that_shows_is_survived_by_a_plain_model_or_is_a_bounded_error() {
    run(Form::Plain, kinds::rows());
}

fn run(form: Form, rows: Vec<Row>) {
    let _alone = heavy();
    // Before any registry has somebody to answer: it takes the processor for seconds.
    let _made = shared(form);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(go_through(form, rows));
}

async fn go_through(form: Form, rows: Vec<Row>) {
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut cells = JoinSet::new();
    for row in rows {
        for readers in [1, 32] {
            let (turns, row) = (turns.clone(), row.clone());
            cells.spawn(async move {
                let _turn = turns.acquire_owned().await.unwrap();
                Cell::new(row, form, readers).await.run().await;
            });
        }
    }
    let mut failed = 0;
    while let Some(cell) = cells.join_next().await {
        failed += usize::from(cell.is_err());
    }
    assert_eq!(failed, 0, "cells failed; each has said why above");
}

/// One fault and so many readers.
struct Cell {
    row: Row,
    form: Form,
    readers: usize,
    setting: Setting,
}

impl Cell {
    async fn new(row: Row, form: Form, readers: usize) -> Self {
        let storage = (row.at == At::Storage).then_some(Duration::from_secs(3600));
        let door = if row.at == At::Door { Door::Tokens(Tokens::for_everybody()) } else { Door::Open };
        let setting = Setting::open(shared(form).source(), Habits { door, storage }, times(), 1 << 30).await;
        Self { row, form, readers, setting }
    }

    async fn run(self) {
        let what = format!(
            "{:?} at the {:?}, {:?}, {} readers",
            self.row.fault, self.row.at, self.form, self.readers
        );
        self.at_the_first_attempt(&what).await;
        self.at_every_attempt(&what).await;
        self.for_a_time(&what).await;
        self.setting.end(&what).await;
    }

    async fn at_the_first_attempt(&self, what: &str) {
        self.faulty().rule(match self.row.fault {
            // Of all at once; again and again would be no first attempt for who has a new one.
            Fault::Expire | Fault::Revoke => Rule::once("/blobs/", self.row.fault.clone()),
            _ => Rule::always("/blobs/", self.row.fault.clone()).first_of_each(),
        });
        for outcome in self.read(0).await {
            outcome.right(&format!("{what}, at first"));
        }
        self.faulty().heal();
    }

    async fn at_every_attempt(&self, what: &str) {
        let what = format!("{what}, every time");
        self.faulty().rule(Rule::always("/blobs/", self.row.fault.clone()));
        let begun = Instant::now();
        for outcome in self.read(0).await {
            outcome.right(&format!("{what}, read before"));
        }
        for outcome in self.read(1).await {
            match self.row.fate {
                Fate::Harmless => outcome.right(&what),
                Fate::Lossy if outcome.got.is_ok() => outcome.right(&what),
                _ => outcome.failed(&what),
            }
        }
        assert!(begun.elapsed() < times().patience(), "{what}: {:?}", begun.elapsed());
        self.faulty().heal();
        for outcome in self.read(1).await {
            outcome.right(&format!("{what}, healed"));
        }
    }

    async fn for_a_time(&self, what: &str) {
        self.faulty().rule(Rule::always("/blobs/", self.row.fault.clone()).lasting(a_time()));
        for outcome in self.read(2).await {
            if matches!(self.row.fate, Fate::Harmless | Fate::Passing | Fate::Lossy) {
                outcome.right(&format!("{what}, for a time"));
            }
        }
        self.faulty().heal();
        for outcome in self.read(2).await {
            outcome.right(&format!("{what}, after a time"));
        }
    }

    fn faulty(&self) -> &Registry {
        match self.row.at {
            At::Registry | At::Door => &self.setting.registry,
            At::Storage => self.setting.registry.storage().unwrap(),
        }
    }

    /// All readers at once, each somewhere in the second chunk of one of the files of this part.
    async fn read(&self, part: usize) -> Vec<Outcome> {
        let reads = (0..self.readers).map(|reader| {
            let file = part * SHARE + reader % SHARE;
            let start = reader / SHARE * 1_001;
            self.read_one(file, start, TAIL - 2 * start)
        });
        futures_util::future::join_all(reads).await
    }

    async fn read_one(&self, file: usize, start: usize, len: usize) -> Outcome {
        let artifact = shared(self.form);
        let path = artifact.files[file].path.clone();
        let at = HEAD + start;
        let got = self.setting.read(&path, at as u64, len as u64).await;
        Outcome { path, due: &artifact.bytes(file)[at..at + len], got }
    }
}

/// What a reader got.
struct Outcome {
    path: String,
    due: &'static [u8],
    got: Result<bytes::Bytes>,
}

impl Outcome {
    fn right(self, what: &str) {
        let got = self.got.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert!(got == self.due, "{what}: wrong bytes of {}", self.path);
    }

    fn failed(self, what: &str) {
        match self.got {
            Ok(got) => panic!("{what}: {} bytes of {}, as if nothing were", got.len(), self.path),
            Err(error) => is_clear(&error, &self.path, "127.0.0.1", what),
        }
    }
}
