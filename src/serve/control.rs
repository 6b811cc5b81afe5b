//! The control socket: `mount`, `unmount` and `list` ask the plane here, where one runs.
//!
//! One question and one answer a connection, each a line of JSON ([`Question`], [`Answer`]; docs/serve.md has them for people).
//! The socket is its owner's alone, and who is at the other end is looked at too. A question of a later version that is not
//! understood is answered as [`Answer::Failed`], never passed over in part.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream as Stream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::artifacts::{self, Artifacts, Registered};
use super::book::{Origin, Overrides, Volume};
use super::listen::accept;
use super::plane::{Plane, blocking, seen_through};
use super::start::{Mounted, kind};
use super::state::short;
use super::view::Shown;
use super::volumes::Published;
use super::wish::Wish;
use crate::error::{Error, Kind, Result, StorageContext};
use crate::mount::Detach;
use crate::repository::{Proxy, Secret};

/// The longest question, in bytes: more than any reference, folder and settings come to.
const QUESTION_LIMIT: u64 = 1 << 20;

/// How long a question may take to arrive, and an answer to be taken.
const WIRE: Duration = Duration::from_secs(10);

/// How many are answered at once.
const AT_ONCE: usize = 64;

/// How long who is being answered is still answered once the plane ends.
const GRACE: Duration = Duration::from_secs(5);

/// How long an answer is waited for that asks no registry.
const LOCAL: Duration = Duration::from_secs(60);

/// How long that of a mount is waited for: longer than the deadlines of all that it may wait for.
const REMOTE: Duration = Duration::from_secs(600);

/// Says a secret to who is asked, the one place where it is not hidden.
fn exposed<S: serde::Serializer>(secret: &Option<Secret>, to: S) -> Result<S::Ok, S::Error> {
    secret.as_ref().map(Secret::expose).serialize(to)
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase", deny_unknown_fields)]
pub enum Question {
    /// To show a model at a folder.
    Mount {
        /// What.
        reference: String,
        /// Where: absolute.
        dir: PathBuf,
        /// What is set for it, by the names of the configuration's keys; paths are absolute.
        #[serde(default)]
        settings: Overrides,
        /// The only credentials it may use, as `.dockerconfigjson` has them; none: those of the plane's own configuration.
        #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "exposed")]
        secret: Option<Secret>,
    },
    /// To take it away from there.
    Unmount {
        /// Where: absolute.
        dir: PathBuf,
        /// Also while it is in use.
        #[serde(default)]
        lazy: bool,
    },
    /// What is shown where.
    List {},
    /// Whether anybody answers.
    Health {},
    /// To have an artifact in the node's artifact store.
    #[serde(rename = "artifact-add")]
    AddArtifact {
        /// Which.
        reference: String,
        /// As of [`Mount`](Self::Mount).
        #[serde(default)]
        settings: Overrides,
        /// As of [`Mount`](Self::Mount).
        #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "exposed")]
        secret: Option<Secret>,
    },
    /// To have it there no longer.
    #[serde(rename = "artifact-remove")]
    RemoveArtifact {
        /// Which.
        reference: String,
    },
    /// What the store has.
    #[serde(rename = "artifact-list")]
    ListArtifacts {},
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// It answers at the folder.
    Mounted(Mounted),
    /// It is gone from the folder.
    Unmounted,
    /// The plane shows nothing at this folder, or has no such artifact.
    Nothing,
    /// All volumes.
    Volumes(Vec<Shown>),
    /// The plane answers.
    Healthy,
    /// The artifact is in the store.
    Artifact(Registered),
    /// It is in the store no longer.
    Removed,
    /// All artifacts of the store.
    Artifacts(Vec<Registered>),
    /// It was not done.
    Failed {
        /// The exit code of the kind of error.
        code: u8,
        /// The error, for people.
        message: String,
    },
}

/// Answers at `listener` until `end`, and then those who have asked already.
pub async fn serve(
    plane: Arc<Plane>,
    artifacts: Option<Arc<Artifacts>>,
    listener: UnixListener,
    end: impl Future<Output = ()> + Send,
) {
    let (mut tasks, places) = (JoinSet::new(), Arc::new(Semaphore::new(AT_ONCE)));
    tokio::pin!(end);
    loop {
        let stream = tokio::select! {
            stream = accept(&listener, "control") => stream,
            () = &mut end => break,
        };
        while tasks.try_join_next().is_some() {}
        let (plane, artifacts, places) = (plane.clone(), artifacts.clone(), places.clone());
        tasks.spawn(async move {
            let _place = places.acquire().await;
            attend(&plane, artifacts.as_ref(), stream).await;
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(GRACE, async { while tasks.join_next().await.is_some() {} }).await;
}

async fn attend(plane: &Arc<Plane>, artifacts: Option<&Arc<Artifacts>>, mut stream: UnixStream) {
    let asked = tokio::time::timeout(WIRE, hear(&mut stream)).await;
    let answer = match asked {
        Ok(Ok(question)) => answer(plane, artifacts, question).await.unwrap_or_else(|error| failed(&error)),
        Ok(Err(error)) => failed(&error),
        Err(_) => return,
    };
    let Ok(mut line) = serde_json::to_vec(&answer) else { return };
    line.push(b'\n');
    if !matches!(tokio::time::timeout(WIRE, stream.write_all(&line)).await, Ok(Ok(()))) {
        tracing::debug!("who asked did not wait for the answer");
    }
}

fn failed(error: &Error) -> Answer {
    Answer::Failed { code: error.kind().exit_code(), message: error.to_string() }
}

async fn hear(stream: &mut UnixStream) -> Result<Question> {
    let mut line = String::new();
    let mut limited = tokio::io::BufReader::new(stream.take(QUESTION_LIMIT));
    limited.read_line(&mut line).await.storage(|| "cannot read the question".to_owned())?;
    // The library's words may show a value, which may be a secret.
    serde_json::from_str(&line).map_err(|error| {
        let doing = format!("not understood: no question, at column {}", error.column());
        Error::new(Kind::Invalid, doing).hint("the plane and who asks it must be of the same version")
    })
}

async fn answer(
    plane: &Arc<Plane>,
    artifacts: Option<&Arc<Artifacts>>,
    question: Question,
) -> Result<Answer> {
    match question {
        Question::List {} => {
            let plane = plane.clone();
            blocking(move || Ok(Answer::Volumes(plane.list()))).await
        }
        Question::Health {} => Ok(Answer::Healthy),
        Question::Unmount { dir, lazy } => {
            let how = if lazy { Detach::Lazy } else { Detach::Unused };
            let Some(volume) = plane.volume_at(&dir) else { return Ok(Answer::Nothing) };
            refuse_others(&volume, artifacts)?;
            plane.unpublish(&volume.id, &dir, how).await?;
            Ok(Answer::Unmounted)
        }
        Question::Mount { reference, dir, settings, secret } => {
            refuse_secrets(&settings)?;
            let wish = Wish { reference: reference.parse()?, settings, secret };
            let plane = plane.clone();
            let id = dir.display().to_string();
            mounted(seen_through(async move { plane.publish(&id, &dir, Origin::Command, wish).await }).await?)
        }
        Question::AddArtifact { reference, settings, secret } => {
            refuse_secrets(&settings)?;
            let wish = Wish { reference: reference.parse()?, settings, secret };
            let artifacts = store(artifacts)?.clone();
            seen_through(async move { artifacts.add(wish).await }).await.map(Answer::Artifact)
        }
        Question::RemoveArtifact { reference } => {
            let (reference, artifacts) = (reference.parse()?, store(artifacts)?.clone());
            let removed = seen_through(async move { artifacts.remove(&reference).await }).await?;
            Ok(if removed { Answer::Removed } else { Answer::Nothing })
        }
        Question::ListArtifacts {} => store(artifacts)?.list().await.map(Answer::Artifacts),
    }
}

/// Whether the settings name a proxy with a password.
#[must_use]
pub fn has_password(settings: &Overrides) -> bool {
    let proxy = settings.get("registry.proxy").and_then(|text| text.parse::<Proxy>().ok());
    proxy.is_some_and(|proxy| proxy.has_password())
}

/// Settings are noted and shown; what must not be is asked for otherwise.
fn refuse_secrets(settings: &Overrides) -> Result<()> {
    if settings.contains_key("registry.auth") {
        let doing = "credentials are none of a mount's settings";
        return Err(Error::new(Kind::Invalid, doing).hint("send them as its secret"));
    }
    if has_password(settings) {
        let doing = "a proxy's password is none of a mount's settings";
        return Err(Error::new(Kind::Invalid, doing).hint("set it for 'weightfs serve' itself"));
    }
    Ok(())
}

fn mounted(published: Published) -> Result<Answer> {
    let Shown { reference, dir, digest, pid, .. } = published.ready()?;
    // The plane asks the registry itself before, and has its processes' warnings in their logs.
    let (unanswered, warnings) = (None, Vec::new());
    Ok(Answer::Mounted(Mounted { reference, dir, digest, pid: pid.unwrap_or(0), unanswered, warnings }))
}

/// The store of artifacts, where the plane has one.
///
/// # Errors
/// `Invalid` where it has none.
fn store(artifacts: Option<&Arc<Artifacts>>) -> Result<&Arc<Artifacts>> {
    artifacts.ok_or_else(|| {
        let error = Error::new(Kind::Invalid, "'weightfs serve' has no artifact store");
        error.hint("start it with --artifact-store DIR")
    })
}

/// A volume of the artifact store is looked after by that alone, where there is one, and a snapshot by containerd.
fn refuse_others(volume: &Volume, artifacts: Option<&Arc<Artifacts>>) -> Result<()> {
    let (error, way_out) = match volume.origin {
        Origin::Artifact if artifacts.is_some() => {
            let error = Error::new(Kind::Busy, format!("the artifact store shows {} there", volume.id));
            (error, format!("run 'weightfs artifact remove {}'", volume.id))
        }
        Origin::Snapshot => {
            let error = Error::new(Kind::Busy, "a snapshot of containerd is shown there");
            (error, "remove it by containerd, as with 'ctr snapshots remove'".to_owned())
        }
        _ => return Ok(()),
    };
    Err(error.hint(way_out))
}

/// Asks the plane whose control socket is at `path`; `None` where nobody listens there. Blocks: seconds at most, and minutes
/// for a mount whose registry is slow.
///
/// # Errors
/// What the plane says; `Storage` where the line breaks, `Busy` where no answer comes.
pub fn ask(path: &Path, question: &Question) -> Result<Option<Answer>> {
    let Ok((_open, inside)) = short(path) else { return Ok(None) };
    let Ok(mut stream) = Stream::connect(inside) else { return Ok(None) };
    let doing = || format!("cannot ask 'weightfs serve' at {}", path.display());
    let patience = patience(question);
    stream.set_read_timeout(Some(patience)).storage(doing)?;
    let mut line = serde_json::to_vec(question).map_err(std::io::Error::from).storage(doing)?;
    line.push(b'\n');
    stream.write_all(&line).storage(doing)?;
    let mut text = String::new();
    if let Err(error) = BufReader::new(stream).read_line(&mut text) {
        return Err(match error.kind() {
            std::io::ErrorKind::WouldBlock => unanswered(path, patience),
            _ => Error::from_source(Kind::Storage, doing(), error),
        });
    }
    let answer = serde_json::from_str(&text).map_err(std::io::Error::from).storage(doing)?;
    match answer {
        Answer::Failed { code, message } => Err(Error::new(kind(code), message)),
        answer => Ok(Some(answer)),
    }
}

/// How long an answer may take.
fn patience(question: &Question) -> Duration {
    match question {
        Question::Mount { .. } => REMOTE,
        Question::AddArtifact { .. } => artifacts::PATIENCE + LOCAL,
        _ => LOCAL,
    }
}

fn unanswered(path: &Path, waited: Duration) -> Error {
    let doing = format!("'weightfs serve' at {} has not answered in {waited:?}", path.display());
    Error::new(Kind::Busy, doing).hint("what was asked for goes on there; ask again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_a_line_of_json() {
        let question = Question::Mount {
            reference: "r.io/a/b:v1".into(),
            dir: "/mnt".into(),
            settings: Overrides::from([("content.warm".to_owned(), "all".to_owned())]),
            secret: None,
        };
        let text =
            r#"{"do":"mount","reference":"r.io/a/b:v1","dir":"/mnt","settings":{"content.warm":"all"}}"#;
        assert_eq!(serde_json::to_string(&question).unwrap(), text);
        assert_eq!(serde_json::from_str::<Question>(text).unwrap(), question);
        assert_eq!(serde_json::from_str::<Question>(r#"{"do":"list"}"#).unwrap(), Question::List {});
        for odd in [r#"{"do":"list","more":1}"#, r#"{"do":"format"}"#, "{}", ""] {
            assert!(serde_json::from_str::<Question>(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn credentials_are_asked_for_as_a_secret_and_refused_as_a_setting() {
        let text = r#"{"do":"mount","reference":"r.io/a/b","dir":"/mnt","settings":{},"secret":"canary-{}"}"#;
        let question: Question = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&question).unwrap(), text);
        assert!(!format!("{question:?}").contains("canary"));
        let refused = |key: &str, value: &str| {
            let refused = refuse_secrets(&Overrides::from([(key.to_owned(), value.to_owned())]));
            refused.inspect_err(|error| assert!(!error.to_string().contains("canary"))).is_err()
        };
        assert!(refused("registry.auth", "r.io=me:canary-x"));
        assert!(refused("registry.proxy", "http://me:canary-x@proxy:1"));
        assert!(!refused("registry.proxy", "http://proxy:1"));
    }

    #[test]
    fn nobody_is_asked_where_nobody_listens() {
        let folder = tempfile::tempdir().unwrap();
        let asked = |name: &str| ask(&folder.path().join(name), &Question::List {}).unwrap();
        assert_eq!(asked("none.sock"), None);
        assert_eq!(asked("none/none.sock"), None);
        drop(std::os::unix::net::UnixListener::bind(folder.path().join("dead.sock")).unwrap());
        assert_eq!(asked("dead.sock"), None);
    }
}
