//! Who is asked when, over repositories in memory.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::repository::around::Around;
use crate::repository::{Memory, PlainHttp, Retrying, read_all};

const ALL: Can = Can { pull: true, resolve: true, push: true };
const SIZE: usize = 300_000;

fn whole(blob: &Blob) -> StoredRange {
    StoredRange::new(0, blob.size)
}

/// Two mirrors and the registry itself, all with the same blob.
fn three() -> (Arc<Hosts<Memory>>, Blob) {
    let memories = [(); 3].map(|()| Memory::new());
    let bytes: Vec<u8> = (0..SIZE).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let blob = memories.iter().map(|memory| memory.put(bytes.clone())).last().unwrap();
    for memory in &memories {
        memory.put_manifest("v1", "application/json", b"{}".to_vec());
    }
    (Arc::new(Hosts::new(memories.map(|memory| (memory, ALL)).into(), Arc::default()).unwrap()), blob)
}

async fn read(hosts: &Arc<Hosts<Memory>>, blob: &Blob) -> Result<Vec<u8>> {
    let mut stream = hosts.clone().open(blob, whole(blob)).await?;
    let mut all = Vec::new();
    while let Some(piece) = stream.next().await {
        all.extend(piece?);
    }
    Ok(all)
}

async fn read_well(hosts: &Arc<Hosts<Memory>>, blob: &Blob) {
    let all = read(hosts, blob).await.unwrap();
    assert!(Digest::of(&all) == blob.digest && all.len() == SIZE);
}

/// How often each was asked for a blob since it was asked last.
fn asked(hosts: &Hosts<Memory>) -> [u64; 3] {
    [0, 1, 2].map(|at| hosts.get(at).repository.requests())
}

fn fails(hosts: &Hosts<Memory>, at: usize, kind: Kind) {
    hosts.get(at).repository.fail_with(move |_, _| Some(Error::new(kind, "no")));
}

fn heals(hosts: &Hosts<Memory>, at: usize) {
    hosts.get(at).repository.fail_with(|_, _| None);
}

#[tokio::test(start_paused = true)]
async fn the_first_mirror_is_asked_and_nobody_else_while_it_answers() {
    let (hosts, blob) = three();
    for _ in 0..3 {
        read_well(&hosts, &blob).await;
    }
    assert_eq!(asked(&hosts), [3, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn who_fails_is_stepped_over_within_the_read_and_tried_again_later() {
    for kind in [Kind::Unreachable, Kind::Untrusted, Kind::Broken, Kind::Throttled, Kind::Denied] {
        let (hosts, blob) = three();
        fails(&hosts, 0, kind);
        read_well(&hosts, &blob).await;
        read_well(&hosts, &blob).await;
        assert_eq!((asked(&hosts), hosts.metrics.mirrors_left.value()), ([1, 2, 0], 1), "{kind:?}");
        heals(&hosts, 0);
        tokio::time::advance(Duration::from_secs(1)).await;
        read_well(&hosts, &blob).await;
        read_well(&hosts, &blob).await;
        assert_eq!(asked(&hosts), [3, 2, 0], "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_mirror_without_the_blob_is_asked_for_others_all_the_same() {
    for kind in [Kind::NotFound, Kind::Protocol, Kind::Integrity] {
        let (hosts, blob) = three();
        let other = hosts.get(0).repository.put(&b"other"[..]);
        let missing = blob.digest.clone();
        hosts
            .get(0)
            .repository
            .fail_with(move |blob, _| (blob.digest == missing).then(|| Error::new(kind, "not here")));
        read_well(&hosts, &blob).await;
        read_well(&hosts, &blob).await;
        assert_eq!(asked(&hosts), [1, 2, 0], "{kind:?}");
        assert_eq!(read(&hosts, &other).await.unwrap(), b"other");
        assert_eq!(asked(&hosts), [2, 2, 0], "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_registrys_own_word_is_the_one_that_counts() {
    let (hosts, blob) = three();
    fails(&hosts, 0, Kind::Unreachable);
    fails(&hosts, 1, Kind::NotFound);
    fails(&hosts, 2, Kind::Denied);
    assert_eq!(read(&hosts, &blob).await.unwrap_err().kind(), Kind::Denied);
    // Those that are stepped over are not asked after that word, and are where there is none.
    assert_eq!(read(&hosts, &blob).await.unwrap_err().kind(), Kind::Denied);
    assert_eq!(asked(&hosts), [1, 1, 2]);
    fails(&hosts, 2, Kind::Unreachable);
    heals(&hosts, 0);
    read_well(&hosts, &blob).await;
    assert_eq!(asked(&hosts), [2, 1, 3]);
}

#[tokio::test(start_paused = true)]
async fn the_registry_itself_is_asked_again_however_often_it_failed() {
    let (hosts, blob) = three();
    (0..3).for_each(|at| fails(&hosts, at, Kind::Unreachable));
    for _ in 0..5 {
        assert_eq!(read(&hosts, &blob).await.unwrap_err().kind(), Kind::Unreachable);
    }
    heals(&hosts, 2);
    read_well(&hosts, &blob).await;
}

#[tokio::test(start_paused = true)]
async fn a_mirror_on_trial_that_hangs_holds_one_reader_up_and_not_for_long() {
    let (hosts, blob) = three();
    fails(&hosts, 0, Kind::Broken);
    read_well(&hosts, &blob).await;
    heals(&hosts, 0);
    let _gate = hosts.get(0).repository.gate();
    tokio::time::advance(Duration::from_secs(1)).await;
    let start = tokio::time::Instant::now();
    let (trying, beside) = tokio::join!(read(&hosts, &blob), async {
        read_well(&hosts, &blob).await;
        start.elapsed()
    });
    trying.unwrap();
    assert_eq!((beside, start.elapsed()), (Duration::ZERO, TRIAL));
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_asks_to_be_left_alone_keeps_nobody_from_its_mirror() {
    let config = Config::default();
    let guarded = |memory, host: &str| {
        let root = url::Url::parse(&format!("https://{host}/v2/")).unwrap();
        Guarded::new(memory, config.budgets.of(&root, &config.metrics), &config)
    };
    let (mirror, own, mirror_of_another) = (Memory::new(), Memory::new(), Memory::new());
    let (here, there) = (mirror.put(&b"here"[..]), own.put(&b"there"[..]));
    mirror_of_another.put(&b"there"[..]);
    own.fail_with(|_, _| Some(Error::new(Kind::Throttled, "429").retry_after(Duration::from_secs(3600))));
    let hosts = vec![(guarded(mirror, "m.io"), ALL), (guarded(own, "r.io"), ALL)];
    let hosts = Arc::new(Hosts::new(hosts, Arc::default()).unwrap());
    let repository = Retrying::new(Mirrored { hosts: hosts.clone(), place: "r.io/a".into() }, &config);
    let start = tokio::time::Instant::now();
    let error = read_all(&repository, &there, whole(&there)).await.unwrap_err();
    assert!(error.kind() == Kind::Deadline && error.to_string().contains("429"), "{error}");
    assert_eq!(hosts.own.repository.within().requests(), 2, "at first, and before the reader fails");
    let start = (start.elapsed(), tokio::time::Instant::now());
    read_all(&repository, &here, whole(&here)).await.unwrap();
    assert_eq!((start.0 <= config.read_deadline, start.1.elapsed()), (true, Duration::ZERO));

    // Another repository of the same hosts knows of it too, and does without.
    let hosts = vec![(guarded(mirror_of_another, "r.io"), ALL), (guarded(Memory::new(), "n.io"), ALL)];
    let other = Arc::new(Hosts::new(hosts, Arc::default()).unwrap());
    let error = other.clone().open(&there, whole(&there)).await.err().unwrap();
    assert_eq!(error.kind(), Kind::NotFound, "the other host's word: {error}");
    assert_eq!(other.get(0).repository.within().requests(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_gave_wrong_bytes_is_not_asked_for_that_blob_again() {
    let (hosts, blob) = three();
    read_well(&hosts, &blob).await;
    hosts.distrust(&blob.digest);
    read_well(&hosts, &blob).await;
    hosts.distrust(&blob.digest);
    read_well(&hosts, &blob).await;
    hosts.distrust(&blob.digest);
    read_well(&hosts, &blob).await;
    assert_eq!(asked(&hosts), [1, 1, 2], "the registry itself is not distrusted");
}

#[tokio::test(start_paused = true)]
async fn only_hosts_that_can_are_asked() {
    let memories = [(); 3].map(|()| Memory::new());
    for memory in &memories {
        memory.put_manifest("v1", "application/json", b"{}".to_vec());
    }
    let pulls = Can { pull: true, resolve: false, push: false };
    let [first, second, own] = memories;
    let hosts = Hosts::new(vec![(first, pulls), (second, pulls), (own, pulls)], Arc::default()).unwrap();
    let error = hosts.pin(&Which::Tag("v1".into())).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.to_string().contains("capabilities"), "{error}");
    assert!(hosts.pin(&Which::Digest(Digest::of(b"{}"))).await.is_ok());
}

/// Breaks off after some bytes, while it is told to.
#[derive(Debug)]
struct Brittle(Memory, AtomicBool);

impl Around for Brittle {
    fn inner(&self) -> &dyn Repository {
        &self.0
    }

    fn read<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        Box::pin(async move {
            if !self.1.load(Ordering::SeqCst) {
                return self.0.read(blob, range).await;
            }
            let some = StoredRange::new(range.start(), range.start() + range.len() / 3);
            let bytes = self.0.read(blob, some).await?;
            Ok(bytes.chain(stream::iter([Err(Error::new(Kind::Broken, "reset"))])).boxed())
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_mirror_that_breaks_off_is_followed_by_the_next_at_that_byte() {
    let brittle = [true, true, false].map(|breaks| Brittle(Memory::new(), AtomicBool::new(breaks)));
    let blob = brittle.iter().map(|one| one.0.put(&b"0123456789abcdefghi"[..])).last().unwrap();
    let hosts = Arc::new(Hosts::new(brittle.map(|one| (one, ALL)).into(), Arc::default()).unwrap());
    let mut stream = hosts.clone().open(&blob, StoredRange::new(1, 19)).await.unwrap();
    let mut all = Vec::new();
    while let Some(piece) = stream.next().await {
        all.extend(piece.unwrap());
    }
    assert_eq!(all, b"123456789abcdefghi");
    let starts = |at: usize| hosts.get(at).repository.0.ranges().first().unwrap().1.start();
    assert_eq!([starts(0), starts(1), starts(2)], [1, 7, 11]);
}

#[tokio::test(start_paused = true)]
async fn what_goes_around_mirrors_sees_one_repository() {
    let named = ("r.io", "acme/llm");
    let own =
        Host { endpoint: super::super::registry::Endpoint::of("r.io", PlainHttp::Never).unwrap(), can: ALL };
    let root = url::Url::parse("http://127.0.0.1:1/v2/").unwrap();
    let mirror = Host { endpoint: super::super::registry::Endpoint::at(root, "r.io"), can: ALL };
    let config = Config::default();
    let alone = Mirrored::new(vec![own.clone()], named, &config).unwrap();
    let with_mirror = Retrying::new(Mirrored::new(vec![mirror, own], named, &config).unwrap(), &config);
    let with_mirror: &dyn Repository = &with_mirror;
    assert_eq!(with_mirror.place(), "r.io/acme/llm");
    assert_eq!(with_mirror.identity(), alone.identity());
    let blob = Memory::new().put(&b"x"[..]);
    assert!(read_all(with_mirror, &blob, StoredRange::new(1, 1)).await.unwrap().is_empty());
    with_mirror.distrust(&blob);
}
