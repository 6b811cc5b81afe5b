//! Sockets that the service manager listens at and the plane inherits (sd_listen_fds(3)).
//!
//! They are told by names, and each stands in the place of what the plane would listen at itself; nothing of them is taken
//! away at the end, since they are the manager's, and who asks while no plane runs waits there for the next. Used by
//! `weightfs serve`.

use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt,
};

use crate::error::{Error, Kind, Result};
use crate::mount::inherited;

/// The name of the control socket.
pub const CONTROL: &str = "control";
/// The name of the socket of CSI.
pub const CSI: &str = "csi";
/// The name of the socket, or of the address of this machine, that the pages are shown at.
pub const METRICS: &str = "metrics";

/// The name of the socket that containerd asks for snapshots at.
pub const SNAPSHOTTER: &str = "snapshotter";

/// How a socket is named, for who has to set it right.
const NAMING: &str = "in its unit FileDescriptorName= is one of control, csi, metrics, snapshotter";

/// A socket that is listened at.
#[derive(Debug)]
pub enum Socket {
    /// At a file.
    Unix(UnixListener),
    /// At an address of this machine that nobody else reaches.
    Loopback(TcpListener),
}

/// What was inherited, by names.
#[derive(Debug, Default)]
pub struct Inherited(Vec<(String, Socket)>);

impl Inherited {
    /// Takes what was inherited under `names`, in the order of the descriptors. To be called before this process opens
    /// anything, and once.
    ///
    /// # Errors
    /// `Invalid` where one of them is no socket that is listened at, or can be reached from elsewhere.
    pub fn take(names: Vec<String>) -> Result<Self> {
        let sockets = inherited::descriptors(names.len())?;
        let named = names.into_iter().zip(sockets);
        named.map(|(name, socket)| Ok((name.clone(), read(&name, socket)?))).collect::<Result<_>>().map(Self)
    }

    /// The socket with this name, to be used in the runtime that this is called in.
    ///
    /// # Errors
    /// `Invalid` where two have the name.
    pub fn socket(&mut self, name: &str) -> Result<Option<Socket>> {
        let Some(at) = self.0.iter().position(|(found, _)| found == name) else { return Ok(None) };
        let (_, socket) = self.0.swap_remove(at);
        match self.0.iter().any(|(found, _)| found == name) {
            true => {
                Err(Error::new(Kind::Invalid, format!("two sockets were inherited under the name {name:?}")))
            }
            false => Ok(Some(socket)),
        }
    }

    /// The same of a name that stands for a socket's file.
    ///
    /// # Errors
    /// Those of [`socket`](Self::socket); `Invalid` where it is an address.
    pub fn unix(&mut self, name: &str) -> Result<Option<tokio::net::UnixListener>> {
        match self.socket(name)? {
            None => Ok(None),
            Some(Socket::Unix(listener)) => in_runtime(name, listener).map(Some),
            Some(Socket::Loopback(_)) => {
                let doing = format!(
                    "the socket that was inherited as {name:?} is an address, where everybody could ask"
                );
                Err(Error::new(Kind::Invalid, doing).hint("name a path in ListenStream="))
            }
        }
    }

    /// Makes sure that everything that was inherited is used: who listens somewhere means it.
    ///
    /// # Errors
    /// `Invalid` with the name of what is left.
    pub fn finish(self) -> Result<()> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => {
                let doing = format!("a socket was inherited under the name {name:?}, which nothing here has");
                Err(Error::new(Kind::Invalid, doing).hint(NAMING))
            }
        }
    }
}

/// A listener at a socket's file, for the runtime that this is called in.
///
/// # Errors
/// `Kernel` where the runtime cannot have it.
pub fn in_runtime(name: &str, listener: UnixListener) -> Result<tokio::net::UnixListener> {
    listener
        .set_nonblocking(true)
        .and_then(|()| tokio::net::UnixListener::from_std(listener))
        .map_err(|error| unusable(name, error))
}

/// The same of an address.
///
/// # Errors
/// `Kernel` where the runtime cannot have it.
pub fn address_in_runtime(name: &str, listener: TcpListener) -> Result<tokio::net::TcpListener> {
    listener
        .set_nonblocking(true)
        .and_then(|()| tokio::net::TcpListener::from_std(listener))
        .map_err(|error| unusable(name, error))
}

fn unusable(name: &str, error: std::io::Error) -> Error {
    Error::from_source(
        Kind::Kernel,
        format!("cannot listen at the socket that was inherited as {name:?}"),
        error,
    )
}

/// What kind of socket it is, if it is listened at.
fn read(name: &str, socket: OwnedFd) -> Result<Socket> {
    let refused = |why: &str| {
        Err(Error::new(Kind::Invalid, format!("what was inherited as {name:?} {why}")).hint(NAMING))
    };
    let is_stream = getsockopt(&socket, sockopt::SockType).is_ok_and(|kind| kind == SockType::Stream);
    if !is_stream || !getsockopt(&socket, sockopt::AcceptConn).unwrap_or(false) {
        return refused("is no socket that is listened at (ListenStream=)");
    }
    let family = getsockname::<SockaddrStorage>(socket.as_raw_fd()).ok().and_then(|address| address.family());
    match family {
        Some(AddressFamily::Unix) => Ok(Socket::Unix(socket.into())),
        Some(AddressFamily::Inet | AddressFamily::Inet6) => {
            let listener = TcpListener::from(socket);
            match listener.local_addr() {
                Ok(address) if address.ip().is_loopback() => Ok(Socket::Loopback(listener)),
                _ => refused("can be reached from elsewhere; name an address as 127.0.0.1:PORT"),
            }
        }
        _ => refused("is neither a socket's file nor an address"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(folder: &tempfile::TempDir) -> Socket {
        let listener = UnixListener::bind(folder.path().join("a.sock")).unwrap();
        read(CONTROL, listener.into()).unwrap()
    }

    #[test]
    fn only_what_is_listened_at_and_is_not_reached_from_elsewhere_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(listener(&folder), Socket::Unix(_)));
        let tcp = |address: &str| TcpListener::bind(address).unwrap();
        assert!(matches!(read(METRICS, tcp("127.0.0.1:0").into()).unwrap(), Socket::Loopback(_)));
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let datagrams = std::os::unix::net::UnixDatagram::unbound().unwrap();
        let file = tempfile::tempfile().unwrap();
        for refused in [tcp("0.0.0.0:0").into(), one.into(), datagrams.into(), OwnedFd::from(file)] {
            let error = read(METRICS, refused).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.to_string().contains("\"metrics\""), "{error}");
        }
    }

    #[tokio::test]
    async fn a_socket_is_found_by_its_name_once_and_what_nobody_asks_for_is_named() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut sockets = Inherited(vec![(CSI.into(), listener(&folder)), ("web".into(), listener(&other))]);
        assert!(sockets.unix(CONTROL).unwrap().is_none());
        assert!(sockets.unix(CSI).unwrap().is_some() && sockets.unix(CSI).unwrap().is_none());
        let error = sockets.finish().unwrap_err();
        assert!(error.to_string().contains("\"web\"") && error.kind() == Kind::Invalid, "{error}");
        Inherited::default().finish().unwrap();
    }

    #[tokio::test]
    async fn two_of_a_name_and_an_address_in_a_files_place_are_refused() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut twice = Inherited(vec![(CSI.into(), listener(&folder)), (CSI.into(), listener(&other))]);
        assert_eq!(twice.socket(CSI).unwrap_err().kind(), Kind::Invalid);
        let address = Socket::Loopback(TcpListener::bind("127.0.0.1:0").unwrap());
        assert_eq!(Inherited(vec![(CSI.into(), address)]).unix(CSI).unwrap_err().kind(), Kind::Invalid);
    }
}
