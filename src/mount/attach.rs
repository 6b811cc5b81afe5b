//! Mounting itself: an open `/dev/fuse` at a folder, by mount(2) or by the setuid helper `fusermount3`.
//!
//! The mounting that `fuser` brings is not used: it unmounts whatever stands at the path when a session ends, also
//! a mount that another process has made there since, and leaves the subtype out. Called by the session.
#![allow(unsafe_code, reason = "a descriptor that arrives over a socket has to be taken into ownership")]

use std::fs::OpenOptions;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg, socketpair,
};

use super::kernel;
use crate::error::{Error, Kind, Result};

/// The setuid program that mounts and unmounts for who is not root.
pub(super) const HELPER: &str = "fusermount3";

const DEVICE: &str = "/dev/fuse";

/// Who may use a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Audience {
    /// Only the user who mounts.
    Owner,
    /// Everybody, as far as file permissions allow.
    Everyone,
}

/// Mounts at `dir` and gives the descriptor that the kernel asks its questions on. The mount is read-only,
/// without suid, devices and access times, checks permissions in the kernel, and shows `source` as its name.
///
/// # Errors
/// `Kernel`, with what to do, where `/dev/fuse` or the helper is missing or the kernel refuses.
pub(super) fn attach(dir: &Path, source: &str, audience: Audience) -> Result<OwnedFd> {
    let device = open_device()?;
    match mount_directly(dir, source, audience, &device) {
        Ok(()) => Ok(device),
        Err(Errno::EPERM) => {
            drop(device);
            mount_by_helper(dir, source, audience)
        }
        Err(errno) => Err(Error::from_source(Kind::Kernel, cannot_mount(dir), io::Error::from(errno))),
    }
}

fn cannot_mount(dir: &Path) -> String {
    format!("cannot mount at {}", dir.display())
}

fn open_device() -> Result<OwnedFd> {
    let device = OpenOptions::new().read(true).write(true).open(DEVICE);
    device.map(OwnedFd::from).map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::NotFound => {
                "run 'modprobe fuse', or give the container the device (--device /dev/fuse)"
            }
            io::ErrorKind::PermissionDenied => "give this user or container access to /dev/fuse",
            _ => "load the kernel's FUSE module ('modprobe fuse')",
        };
        Error::from_source(Kind::Kernel, format!("cannot open {DEVICE}"), error).hint(hint)
    })
}

fn mount_directly(dir: &Path, source: &str, audience: Audience, device: &OwnedFd) -> nix::Result<()> {
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        nix::unistd::getuid(),
        nix::unistd::getgid()
    );
    if audience == Audience::Everyone {
        data.push_str(",allow_other");
    }
    nix::mount::mount(Some(source), dir, Some(kernel::FSTYPE), flags, Some(data.as_str()))
}

/// The helper mounts and sends the descriptor over a socket, which it is given as its standard input.
fn mount_by_helper(dir: &Path, source: &str, audience: Audience) -> Result<OwnedFd> {
    if !kernel::on_path(HELPER, std::env::var_os("PATH").as_deref()) {
        return Err(no_helper(&io::Error::from(io::ErrorKind::NotFound)));
    }
    let socket = |error: Errno| Error::from_source(Kind::Kernel, cannot_mount(dir), io::Error::from(error));
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).map_err(socket)?;
    let mut helper = Command::new(HELPER);
    helper.arg("-o").arg(helper_options(source, audience)).arg("--").arg(dir);
    helper.env("_FUSE_COMMFD", "0").stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = helper.spawn().map_err(|error| no_helper(&error))?;
    // The command keeps the other end open, which would hide that the helper has ended.
    drop(helper);
    let device = receive(&ours);
    let output = child.wait_with_output().map_err(|error| no_helper(&error))?;
    device.map_err(|errno| refused(dir, &String::from_utf8_lossy(&output.stderr), errno))
}

fn helper_options(source: &str, audience: Audience) -> String {
    let source = kernel::escape_option(source);
    let everyone = match audience {
        Audience::Owner => "",
        Audience::Everyone => ",allow_other",
    };
    format!("ro,nosuid,nodev,noatime,default_permissions,subtype=weightfs,fsname={source}{everyone}")
}

fn receive(socket: &OwnedFd) -> nix::Result<OwnedFd> {
    let mut byte = [0u8];
    let mut buffers = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(RawFd);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = loop {
        match recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut buffers, Some(&mut space), flags) {
            Err(Errno::EINTR) => {}
            message => break message?,
        }
    };
    let descriptor = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
        _ => None,
    });
    let descriptor = descriptor.filter(|descriptor| *descriptor >= 0).ok_or(Errno::EPROTO)?;
    // SAFETY: the kernel has just made this descriptor for us while receiving, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn refused(dir: &Path, stderr: &str, errno: Errno) -> Error {
    let why = stderr.trim();
    let error = match why.is_empty() {
        true => Error::from_source(Kind::Kernel, cannot_mount(dir), io::Error::from(errno)),
        false => Error::new(Kind::Kernel, format!("{}: {why}", cannot_mount(dir))),
    };
    match why.contains("user_allow_other") {
        true => error.hint("add the line 'user_allow_other' to /etc/fuse.conf, or leave out --allow-other"),
        false => error,
    }
}

/// The error for a helper that can't be run.
pub(super) fn no_helper(error: &io::Error) -> Error {
    Error::new(Kind::Kernel, format!("cannot run {HELPER}: {error}"))
        .hint("install the package fuse3, or run as root")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_helper_is_asked_for_a_read_only_mount_under_a_protected_name() {
        let options = helper_options("oci:/a,b", Audience::Everyone);
        assert_eq!(
            options,
            "ro,nosuid,nodev,noatime,default_permissions,subtype=weightfs,fsname=oci:/a\\,b,allow_other"
        );
    }

    #[test]
    fn a_refusal_over_allow_other_says_which_line_to_add() {
        let stderr =
            "fusermount3: option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf\n";
        let text = refused(Path::new("/m"), stderr, Errno::EPROTO).to_string();
        assert!(text.contains("/etc/fuse.conf, or leave out --allow-other"), "{text}");
    }

    #[test]
    fn a_socket_that_closes_without_a_descriptor_is_an_error() {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).expect("a pair");
        drop(theirs);
        assert_eq!(receive(&ours).unwrap_err(), Errno::EPROTO);
    }
}
