//! The plane's own questions to a dynamic volume's process, at the socket at which its pod asks.
//!
//! For who asks the plane to add a model to a volume, or to take one out of it, as model-csi-driver's CreateVolume and DeleteVolume
//! do. Whose names these are makes no difference: the process checks them as it does the pod's.

use std::path::Path;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tonic::Code;

use super::Folders;
use super::api::Addition;
use crate::error::{Error, Kind, Result, StorageContext};
use crate::serve::book::is_plain;
use crate::serve::refused::Refused;
use crate::serve::state::short;

/// The longest answer, in bytes: more than the status of a model of very many layers.
const ANSWER_LIMIT: u64 = 16 << 20;

/// How many headers an answer has at most.
const HEADERS: usize = 32;

/// Has a model shown in the volume whose folders these are; returns once it can be read.
///
/// # Errors
/// Why not, by the codes of CSI; `Unavailable` where the process does not answer.
pub(in crate::serve) async fn add(
    folders: &Folders,
    volume: &str,
    addition: &Addition,
) -> std::result::Result<(), Refused> {
    let body = serde_json::to_vec(addition).map_err(|error| Refused::invalid(error.to_string()))?;
    done(ask(folders, "POST", &place(volume, None)?, &body).await)
}

/// Has the model `id` taken out of the volume; none there is as well.
///
/// # Errors
/// As [`add`].
pub(in crate::serve) async fn remove(
    folders: &Folders,
    volume: &str,
    id: &str,
) -> std::result::Result<(), Refused> {
    done(ask(folders, "DELETE", &place(volume, Some(id))?, &[]).await)
}

/// Where it is asked about a volume's models, or about one of them.
fn place(volume: &str, id: Option<&str>) -> std::result::Result<String, Refused> {
    if !is_plain(volume) || id.is_some_and(|id| !is_plain(id)) {
        let message =
            "the id of a dynamic volume or of its model has other than letters, digits, '-' and '_'";
        return Err(Refused::invalid(message));
    }
    let below = id.map(|id| format!("/{id}")).unwrap_or_default();
    Ok(format!("/api/v1/volumes/{volume}/mounts{below}"))
}

/// Asks once, over a connection of its own; gives the status and the body.
async fn ask(folders: &Folders, method: &str, target: &str, body: &[u8]) -> Result<(u16, Vec<u8>)> {
    let socket = folders.socket();
    let doing = || format!("the process at {} does not answer", socket.display());
    let head = format!(
        "{method} {target} HTTP/1.1\r\nhost: volume\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = connect(&socket).await?;
    stream.write_all(&[head.as_bytes(), body].concat()).await.storage(doing)?;
    let mut answer = Vec::new();
    stream.take(ANSWER_LIMIT).read_to_end(&mut answer).await.storage(doing)?;
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut read = httparse::Response::new(&mut headers);
    match (read.parse(&answer), read.code) {
        (Ok(httparse::Status::Complete(length)), Some(status)) => {
            Ok((status, answer.get(length..).unwrap_or_default().to_vec()))
        }
        _ => Err(Error::new(Kind::Storage, doing())),
    }
}

async fn connect(socket: &Path) -> Result<UnixStream> {
    let (_open, inside) = short(socket)?;
    UnixStream::connect(&inside).await.storage(|| format!("nobody answers at {}", socket.display()))
}

/// What an answer comes to.
fn done(answer: Result<(u16, Vec<u8>)>) -> std::result::Result<(), Refused> {
    #[derive(Deserialize)]
    struct No {
        message: String,
    }
    let (status, body) = answer.map_err(|error| {
        // It has the node's paths in it, and what is refused here is told to whoever sees the claim.
        tracing::warn!("{error}");
        Refused::new(Code::Unavailable, "the volume's process does not answer; the node's log says why")
    })?;
    let code = match status {
        200..=299 => return Ok(()),
        400 => Code::InvalidArgument,
        404 => Code::NotFound,
        406 | 429 => Code::ResourceExhausted,
        409 => Code::AlreadyExists,
        _ => Code::Internal,
    };
    let said = serde_json::from_slice::<No>(&body).map(|no| no.message);
    Err(Refused::new(code, said.unwrap_or_else(|_| format!("the volume's process answers {status}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_refuses_has_a_code_of_csi_and_its_own_words() {
        let code = |status: u16| done(Ok((status, br#"{"message":"why"}"#.to_vec()))).unwrap_err();
        for (status, expected) in [
            (400, Code::InvalidArgument),
            (404, Code::NotFound),
            (406, Code::ResourceExhausted),
            (409, Code::AlreadyExists),
            (429, Code::ResourceExhausted),
            (500, Code::Internal),
        ] {
            assert_eq!(code(status), Refused::new(expected, "why"));
        }
        assert!(done(Ok((204, Vec::new()))).is_ok());
    }

    #[tokio::test]
    async fn who_gets_no_answer_learns_nothing_of_the_nodes_paths() {
        let folder = tempfile::tempdir().unwrap();
        let folders = Folders::at(&folder.path().join("hidden-place"));
        for are_there in [false, true] {
            if are_there {
                std::fs::create_dir_all(folders.socket().parent().unwrap()).unwrap();
            }
            let refused = remove(&folders, "csi-1", "one").await.unwrap_err();
            assert_eq!(refused.code, Code::Unavailable);
            assert!(!refused.message.contains("hidden") && !refused.message.contains('/'), "{refused:?}");
        }
    }

    #[test]
    fn names_are_no_way_to_another_question() {
        assert_eq!(place("csi-1", Some("one")).unwrap(), "/api/v1/volumes/csi-1/mounts/one");
        for (volume, id) in [("csi-1/..", None), ("", None), ("csi-1", Some("a b")), ("csi-1", Some("a\r\n"))]
        {
            assert_eq!(place(volume, id).unwrap_err().code, Code::InvalidArgument, "{volume:?} {id:?}");
        }
    }
}
