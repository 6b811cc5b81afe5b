//! Answers that are legal and unusual, answers that ignore the range, answers that are none: over real connections.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{CONTENT_RANGE, RANGE};
use axum::response::Response;
use bytes::Bytes;
use weightfs::Kind;
use weightfs::content::{self, Loader, Store, StoreConfig};
use weightfs::index::{Coding, Entry, EntryKind, ExtentId, Index, Layer};
use weightfs::oci::{Blob, Digest};
use weightfs::range::{ContentRange, StoredRange};
use weightfs::repository::{Config, Repository, connect, read_all};
use weightfs::testing::registry::{Serving, serve};

const MIB: u64 = 1 << 20;

/// A registry of one blob that answers ranges in its own way.
struct Own {
    serving: Serving,
    blob: Blob,
    bytes: Bytes,
    asked: Arc<AtomicU64>,
}

impl Own {
    /// `answer` is given the range asked for and the blob.
    async fn start(
        size: u64,
        answer: impl Fn(StoredRange, &Bytes) -> Response + Clone + Send + Sync + 'static,
    ) -> Self {
        let bytes: Bytes = (0..size / 8).flat_map(u64::to_le_bytes).collect::<Vec<_>>().into();
        let asked = Arc::new(AtomicU64::new(0));
        let (given, counted) = (bytes.clone(), asked.clone());
        let router = Router::new().fallback(move |request: Request| {
            counted.fetch_add(1, Ordering::SeqCst);
            let response = answer(range_of(&request, given.len() as u64), &given);
            async move { response }
        });
        let blob = Blob { digest: Digest::of(&bytes), size };
        Self { serving: serve(router).await.unwrap(), blob, bytes, asked }
    }

    fn repository(&self, config: &Config) -> Arc<dyn Repository> {
        connect(&format!("{}/test/sample:v1", self.serving.address()).parse().unwrap(), config).unwrap()
    }

    async fn read(&self, repository: &dyn Repository, start: u64, end: u64) -> weightfs::Result<()> {
        let bytes = read_all(repository, &self.blob, StoredRange::new(start, end)).await?;
        assert!(bytes == self.bytes.slice(start as usize..end as usize), "{start}-{end}");
        Ok(())
    }

    fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }
}

fn range_of(request: &Request, size: u64) -> StoredRange {
    let text = request.headers().get(RANGE).and_then(|value| value.to_str().ok());
    let ends = text.and_then(|text| text.strip_prefix("bytes=")?.split_once('-'));
    ends.map_or(StoredRange::new(0, size), |(first, last)| {
        StoredRange::new(first.parse().unwrap(), last.parse::<u64>().unwrap() + 1)
    })
}

fn part(range: StoredRange, bytes: &Bytes) -> Response {
    let builder = Response::builder().status(206);
    let builder = builder.header(CONTENT_RANGE, format!("bytes {range}/{}", bytes.len()));
    builder.body(Body::from(bytes.slice(range.start() as usize..range.end() as usize))).unwrap()
}

fn whole(_: StoredRange, bytes: &Bytes) -> Response {
    Response::new(Body::from(bytes.clone()))
}

#[tokio::test]
async fn an_answer_that_ends_early_is_gone_on_with_until_all_is_here() {
    let own = Own::start(4 * MIB, |range, bytes| {
        part(StoredRange::new(range.start(), range.end().min(range.start() + 300_000)), bytes)
    })
    .await;
    let repository = own.repository(&Config::default());
    own.read(&*repository, 5, 3_000_005).await.unwrap();
    assert_eq!(own.asked(), 10);
    own.read(&*repository, 0, 4 * MIB).await.unwrap();
}

#[tokio::test]
async fn a_registry_that_ignores_ranges_is_read_in_order_out_of_few_answers() {
    let own = Own::start(48 * MIB, whole).await;
    let repository = own.repository(&Config::default());
    for at in 0..48 {
        own.read(&*repository, at * MIB, (at + 1) * MIB).await.unwrap();
    }
    assert!(own.asked() <= 24, "{} answers for 48 reads", own.asked());
    assert_eq!(repository.pace().requests, 1, "one after the other");
    let before = own.asked();
    for at in 0..48 {
        own.read(&*repository, at * MIB, (at + 1) * MIB).await.unwrap();
    }
    assert!(own.asked() <= before + 1, "{} answers for 48 reads more", own.asked() - before);
    own.read(&*repository, 3 * MIB + 7, 20 * MIB).await.unwrap();
    own.read(&*repository, 0, 48 * MIB).await.unwrap();
}

#[tokio::test]
async fn readers_beside_one_another_share_the_stream_of_a_registry_that_ignores_ranges() {
    let own = Arc::new(Own::start(12 * MIB, whole).await);
    let repository = own.repository(&Config::default());
    for far in [9, 10, 11] {
        own.read(&*repository, far * MIB, far * MIB + 10).await.unwrap();
    }
    let before = own.asked();
    let readers: Vec<_> = (0..12)
        .map(|at| {
            let (own, repository) = (Arc::clone(&own), Arc::clone(&repository));
            tokio::spawn(async move { own.read(&*repository, at * MIB, (at + 1) * MIB).await })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap().unwrap();
    }
    assert!(own.asked() <= before + 1, "{} answers for 12 readers", own.asked() - before);
}

#[tokio::test]
async fn a_range_that_is_ignored_once_costs_an_answer_and_no_more() {
    let first = Arc::new(AtomicU64::new(0));
    let once = first.clone();
    let own = Own::start(16 * MIB, move |range, bytes| {
        if once.fetch_add(1, Ordering::SeqCst) == 0 { whole(range, bytes) } else { part(range, bytes) }
    })
    .await;
    let repository = own.repository(&Config::default());
    own.read(&*repository, 12 * MIB, 13 * MIB).await.unwrap();
    assert_eq!(own.asked(), 2);
    first.store(0, Ordering::SeqCst);
    own.read(&*repository, MIB, 2 * MIB).await.unwrap();
    assert_eq!(own.asked(), 3, "near the beginning the answer itself is used");
    assert!(repository.pace().requests > 1);
}

/// A loader of one file, which is the blob.
fn loader(own: &Own, store: &std::path::Path) -> Arc<Loader> {
    let extent = ContentRange::new(0, own.blob.size);
    let kind = EntryKind::File { extent: Some(ExtentId { layer: 0, extent: 0 }), size: own.blob.size };
    let entry = Entry { path: "a.bin".into(), kind, mode: 0, mtime: 0, layer: 0 };
    let layer = Layer {
        blob: own.blob.clone(),
        media_type: String::new(),
        diff_id: None,
        coding: Coding::Stored,
        extents: vec![extent],
        gaps: Vec::new(),
        bound: None,
    };
    let index = Arc::new(Index { entries: vec![entry], layers: vec![layer], warnings: Vec::new() });
    let store = Store::open(&StoreConfig { folder: store.to_owned(), size: Some(1 << 30) }).unwrap();
    let config = content::Config::default();
    let metrics = config.metrics.clone();
    Loader::new(own.repository(&Config::default()), index, store, config, metrics)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_a_registry_that_ignores_ranges_is_read_once_in_all() {
    let own = Own::start(64 * MIB, whole).await;
    let folder = tempfile::tempdir().unwrap();
    let loader = loader(&own, &folder.path().join("store"));
    let id = ExtentId { layer: 0, extent: 0 };
    for at in (0..64 * MIB).step_by(256 << 10) {
        let bytes = loader.read(id, ContentRange::new(at, at + (256 << 10))).await.unwrap();
        assert!(bytes == own.bytes.slice(at as usize..at as usize + (256 << 10)), "{at}");
    }
    // Until it is known, each request near the beginning is an answer; then one stream brings the rest.
    assert!(own.asked() <= 16, "{} answers for 64 MiB", own.asked());
    loader.close().await;
}

/// Answers each connection with the same bytes, whatever is asked, and closes it.
fn raw(answer: Vec<u8>) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((mut connection, _)) = listener.accept() {
            let mut asked = [0; 4096];
            let _ = connection.read(&mut asked);
            if asked.starts_with(b"GET /end") {
                return;
            }
            let _ = connection.write_all(&answer);
        }
    });
    address
}

fn end(address: std::net::SocketAddr) {
    let mut connection = std::net::TcpStream::connect(address).unwrap();
    connection.write_all(b"GET /end HTTP/1.1\r\n\r\n").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_none_is_an_error_within_the_deadline_and_costs_no_memory() {
    let head = "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 0-9/100\r\n";
    let many: String = (0..500).map(|n| format!("x-{n}: y\r\n")).collect();
    let huge = format!("x: {}\r\n", "y".repeat(2 << 20));
    let answers = [
        "\x16\x03\x01\x02\x00 garbage\r\n\r\n".to_owned(),
        String::new(),
        format!("{head}content-length: 10\r\ncontent-length: 11\r\n\r\n0123456789"),
        format!("{head}content-length: 10\r\ncontent-range: bytes 0-8/100\r\n\r\n0123456789"),
        format!("{head}content-length: 10\r\n{many}\r\n0123456789"),
        format!("{head}content-length: 10\r\n{huge}\r\n0123456789"),
        format!("{head}transfer-encoding: chunked\r\n\r\nff\r\n0123"),
        format!("{head}transfer-encoding: chunked\r\n\r\nnonsense"),
        "HTTP/1.1 206 Partial Content\r\ncontent-type: multipart/byteranges; boundary=x\r\ncontent-length: 3\r\n\r\n--x"
            .to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 13\r\n\r\n<html></html>".to_owned(),
    ];
    let cases = answers.into_iter().map(|answer| {
        tokio::spawn(async move {
            let address = raw(answer.clone().into_bytes());
            let config = Config {
                read_deadline: Duration::from_secs(2),
                stall: Duration::from_millis(500),
                ..Config::default()
            };
            let repository = connect(&format!("{address}/a/b:c").parse().unwrap(), &config).unwrap();
            let blob = Blob { digest: Digest::of(b""), size: 100 };
            let start = Instant::now();
            let error = read_all(&*repository, &blob, StoredRange::new(0, 10)).await.unwrap_err();
            let shown = answer.get(..60).unwrap_or(&answer);
            assert_eq!(error.kind(), Kind::Deadline, "{shown:?}: {error}");
            assert!(start.elapsed() < Duration::from_secs(30), "{shown:?}: {:?}", start.elapsed());
            assert!(error.to_string().len() < 2000, "{shown:?}: {} bytes", error.to_string().len());
            end(address);
        })
    });
    for case in cases.collect::<Vec<_>>() {
        case.await.unwrap();
    }
}
