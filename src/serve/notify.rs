//! What systemd is told of the plane: that it is ready, that it reads its configuration anew, that it ends (sd_notify(3)).
//!
//! The protocol is one datagram to the socket that `NOTIFY_SOCKET` names. Without that nobody is told.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Whom to tell.
#[derive(Debug, Default)]
pub struct Notifier(Option<SocketAddr>);

impl Notifier {
    /// The one at `socket`: a path, or an abstract name after `@`. One that can't be meant is nobody.
    #[must_use]
    pub fn new(socket: Option<&OsStr>) -> Self {
        let address = socket.and_then(|socket| match socket.as_bytes().split_first()? {
            (b'@', name) => SocketAddr::from_abstract_name(name).ok(),
            (b'/', _) => SocketAddr::from_pathname(socket).ok(),
            _ => None,
        });
        Self(address)
    }

    /// It serves.
    pub fn ready(&self) {
        self.say("READY=1\nSTATUS=serving");
    }

    /// It reads its configuration anew; [`ready`](Self::ready) follows.
    pub fn reloading(&self) {
        // The moment, which systemd wants for Type=notify-reload, by the clock it uses itself.
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let micros =
            i128::from(now.tv_sec).saturating_mul(1_000_000).saturating_add(i128::from(now.tv_nsec) / 1000);
        self.say(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
    }

    /// It ends.
    pub fn stopping(&self) {
        self.say("STOPPING=1");
    }

    fn say(&self, text: &str) {
        let Some(address) = &self.0 else { return };
        let told = UnixDatagram::unbound().and_then(|socket| socket.send_to_addr(text.as_bytes(), address));
        if let Err(error) = told {
            tracing::warn!(%error, "the service manager could not be told");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_named_is_told_by_path_and_by_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let name = format!("weightfs-test-{}", std::process::id());
        let here = UnixDatagram::bind(&path).unwrap();
        let nowhere = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (socket, named) in [(here, path.into_os_string()), (nowhere, format!("@{name}").into())] {
            let notifier = Notifier::new(Some(&named));
            notifier.ready();
            notifier.reloading();
            let mut heard = [0; 200];
            let len = socket.recv(&mut heard).unwrap();
            assert!(heard[..len].starts_with(b"READY=1\n"));
            let len = socket.recv(&mut heard).unwrap();
            assert!(heard[..len].starts_with(b"RELOADING=1\nMONOTONIC_USEC="));
        }
    }

    #[test]
    fn nobody_is_told_where_nobody_is_named() {
        Notifier::new(None).ready();
        Notifier::new(Some(OsStr::new(""))).ready();
        Notifier::new(Some(OsStr::new("/no/such/socket"))).stopping();
    }
}
