//! Where the plane listens: sockets of its own user, and addresses of this machine.
//!
//! A socket's file is made for its owner alone; one that is left over from a process that has died is taken away, one that is
//! answered is not. Used by the control socket, by CSI and by the pages.

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};

use super::csi::DRIVER;
use super::snapshots::DiffIds;
use super::state::short;
use crate::error::{Error, Kind, Result, StorageContext};

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// An address of this machine that nobody else reaches.
    Loopback(SocketAddr),
    /// A socket's file.
    Socket(PathBuf),
}

impl FromStr for Listen {
    type Err = String;

    /// `127.0.0.1:PORT`, `[::1]:PORT` or `unix:///PATH`.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("unix:") {
            return socket(text).map(Self::Socket);
        }
        let form = || format!("{text:?} is neither 127.0.0.1:PORT nor unix:///PATH");
        let address: SocketAddr = text.parse().map_err(|_| form())?;
        match address.ip().is_loopback() {
            true => Ok(Self::Loopback(address)),
            false => {
                Err(format!("{text:?} can be reached from elsewhere; name an address as 127.0.0.1:PORT"))
            }
        }
    }
}

/// The path of a socket: `unix:///PATH`, or an absolute path.
///
/// # Errors
/// Why it is none.
pub fn socket(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")).unwrap_or(text));
    match path.is_absolute() && path.file_name().is_some() {
        true => Ok(path.to_owned()),
        false => Err(format!("{text:?} is not of the form unix:///PATH")),
    }
}

/// What the plane listens at, and what it says of itself there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listening {
    /// The control socket; `None`: `control.sock` in the state folder.
    pub control: Option<PathBuf>,
    /// The page of metrics and health.
    pub metrics: Option<Listen>,
    /// The socket of the Container Storage Interface; `None`: no volumes of pods are served.
    pub csi: Option<PathBuf>,
    /// What the node is called there.
    pub node_id: Option<String>,
    /// What the driver is called there.
    pub csi_driver: String,
    /// The folder of the node's artifact store; `None`: there is none.
    pub artifact_store: Option<PathBuf>,
    /// Where traces are sent, as `http://HOST:PORT`; `None`: nowhere.
    pub traces: Option<String>,
    /// The socket of containerd's snapshotter; `None`: containerd is served none.
    pub snapshotter: Option<PathBuf>,
    /// Where snapshots are kept: a folder that lasts as long as containerd's own. Default `/var/lib/weightfs/snapshots`.
    pub snapshots: PathBuf,
    /// Whether an image is believed what its compressed layers hold.
    pub diff_ids: DiffIds,
    /// How many mounts there may be, each a process with descriptors and memory of its own. Default 256.
    pub max_mounts: usize,
    /// How many models a dynamic volume may have at once. Default 32.
    pub max_models: usize,
}

impl Default for Listening {
    fn default() -> Self {
        Self {
            control: None,
            metrics: None,
            csi: None,
            node_id: None,
            csi_driver: DRIVER.to_owned(),
            artifact_store: None,
            traces: None,
            snapshotter: None,
            snapshots: "/var/lib/weightfs/snapshots".into(),
            diff_ids: DiffIds::default(),
            max_mounts: 256,
            max_models: 32,
        }
    }
}

/// A name as CSI has it: at most `limit` bytes, letters and digits with `-`, `.` and, within a node's, `_` between.
///
/// # Errors
/// Why it is none.
pub fn name(text: &str, limit: usize) -> Result<String, String> {
    let plain = |letter: char| letter.is_ascii_alphanumeric();
    let fine = !text.is_empty()
        && text.len() <= limit
        && text.starts_with(plain)
        && text.ends_with(plain)
        && text.chars().all(|letter| plain(letter) || matches!(letter, '-' | '.' | '_'));
    match fine {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is no name of at most {limit} letters, digits, '-' and '.'")),
    }
}

impl Listening {
    /// The control socket's path.
    #[must_use]
    pub fn control(&self, live: &Path) -> PathBuf {
        self.control.clone().unwrap_or_else(|| live.join("control.sock"))
    }
}

/// Listens at a socket's file, for its owner alone. Must be called within a tokio runtime.
///
/// # Errors
/// `Busy` where somebody answers there, `Invalid` where something that is no socket has its place, `Storage`.
pub fn listen(path: &Path) -> Result<UnixListener> {
    listen_as(path, 0o600)
}

/// The same, for all who get to the folder.
///
/// # Errors
/// As [`listen`].
pub fn listen_to_all(path: &Path) -> Result<UnixListener> {
    listen_as(path, 0o666)
}

fn listen_as(path: &Path, mode: u32) -> Result<UnixListener> {
    let doing = || format!("cannot listen at {}", path.display());
    let (_open, inside) = short(path)?;
    match std::fs::symlink_metadata(&inside) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(Error::new(Kind::Invalid, format!("{}: it is no socket", doing())));
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(&inside).is_ok() => {
            return Err(Error::new(Kind::Busy, format!("{}: somebody does already", doing())));
        }
        Ok(_) => std::fs::remove_file(&inside).storage(doing)?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(&inside).storage(doing)?;
    std::fs::set_permissions(&inside, Permissions::from_mode(mode)).storage(doing)?;
    Ok(listener)
}

/// The next connection of somebody who may ask at `listener`, which is called `what` in the log. Can be given up at any time.
pub async fn accept(listener: &UnixListener, what: &str) -> UnixStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) if is_trusted(&stream) => return stream,
            Ok(_) => tracing::warn!("somebody else's process was turned away at the {what} socket"),
            Err(error) => {
                tracing::warn!(%error, "nobody can ask at the {what} socket for a moment");
                // No descriptor is free, as a rule: asked again at once it would say the same.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// Whether who is at the other end is this process's user or root.
fn is_trusted(stream: &UnixStream) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn an_address_that_others_reach_is_refused() {
        assert_eq!("127.0.0.1:9".parse(), Ok(Listen::Loopback(([127, 0, 0, 1], 9).into())));
        assert_eq!("unix:///run/x.sock".parse(), Ok(Listen::Socket("/run/x.sock".into())));
        for refused in ["0.0.0.0:9", "[::]:9", "10.0.0.1:9", "9", "localhost:9", "unix://x", "unix:///"] {
            assert!(refused.parse::<Listen>().is_err(), "{refused}");
        }
        assert_eq!(socket("/csi/csi.sock"), Ok("/csi/csi.sock".into()));
        assert!(socket("csi.sock").is_err());
    }

    #[tokio::test]
    async fn a_socket_that_is_left_over_is_replaced_and_one_that_is_answered_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let first = listen(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(listen(&path).unwrap_err().kind(), Kind::Busy);
        drop(first);
        let _second = listen(&path).unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "mine").unwrap();
        assert_eq!(listen(&file).unwrap_err().kind(), Kind::Invalid);
        assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    }

    #[tokio::test]
    async fn this_user_is_trusted() {
        let (one, _other) = UnixStream::pair().unwrap();
        assert!(is_trusted(&one));
    }
}
