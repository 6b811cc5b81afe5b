//! Floor 1: stored bytes. A place in a registry, or a folder, that has manifests and blobs.
//!
//! [`Repository`] is the one trait; registry, layout folder and memory implement it, and what goes around
//! them (trying again, limits) implements it by wrapping another. Nothing here knows what a blob means.

use std::fmt;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use crate::error::Result;
use crate::oci::{Blob, Digest, Which};
use crate::range::StoredRange;

/// The bytes of one read, in order: exactly as many as were asked for, or an error as the last item.
pub type ByteStream = BoxStream<'static, Result<Bytes>>;

/// A manifest or index whose bytes are what `digest` names: checked by whoever made this value.
#[derive(Clone, Debug)]
pub struct Pinned {
    /// The digest of `bytes`.
    pub digest: Digest,
    /// The media type the repository gave with it; empty where it gave none.
    pub media_type: String,
    /// The JSON, at most [`MANIFEST_LIMIT`] bytes.
    pub bytes: Bytes,
}

/// The largest manifest or index that is read: 4 MiB, the limit that registries themselves apply.
pub const MANIFEST_LIMIT: u64 = 4 << 20;

/// A place that has manifests and blobs, under their digests.
///
/// Every implementation passes the contract suite in `tests/contract/repository.rs`.
pub trait Repository: Send + Sync + fmt::Debug {
    /// The manifest or index, its digest verified.
    ///
    /// Costs one request where credentials and redirects are known already.
    ///
    /// # Errors
    /// `NotFound`, `Denied`, `Unreachable`, `Integrity` (the bytes are not what the digest says), and what
    /// the wire may bring.
    fn manifest<'a>(&'a self, which: &'a Which) -> BoxFuture<'a, Result<Pinned>>;

    /// The stored bytes of `range` of `blob`: exactly `range.len()` of them, in order, or an error.
    ///
    /// The bytes are not verified against a digest here; that is floor 3's. An empty range asks nobody.
    ///
    /// # Errors
    /// From the call, or as the stream's last item: `Invalid` where the range leaves the blob, else as
    /// [`manifest`](Self::manifest); `Protocol` where the answer is not the range asked for.
    fn read<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>>;

    /// Where this is, as error messages name it: `ghcr.io/acme/llm` or `oci:/models/llm`.
    fn place(&self) -> String;

    /// Who is asking: a stable name of the place and the credentials used there, without any secret in it.
    ///
    /// Two callers with the same identity may see the same kept bytes. Folders give the same for everyone.
    fn identity(&self) -> String;
}

/// Reads all of `range` into one buffer.
///
/// # Errors
/// As [`Repository::read`]; `Protocol` where the stream gives another number of bytes.
pub async fn read_all(repository: &dyn Repository, blob: &Blob, range: StoredRange) -> Result<Bytes> {
    use futures_util::StreamExt;
    let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
    let mut stream = repository.read(blob, range).await?;
    let mut all = Vec::with_capacity(len.min(16 << 20));
    while let Some(piece) = stream.next().await {
        all.extend_from_slice(&piece?);
    }
    if all.len() != len {
        let doing = format!(
            "{} gave {} of the {len} bytes asked for of {}",
            repository.place(),
            all.len(),
            blob.digest
        );
        return Err(crate::Error::new(crate::Kind::Protocol, doing));
    }
    Ok(all.into())
}
