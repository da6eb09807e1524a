//! Asking the server of a device, by the socket of its process.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::error::RecordError;
use super::lock::Lock;
use super::message::{DeviceCommand, Line, Reply, Request, WORKING};
use super::record::Record;
use super::run_dir::{RunDir, socket_name};
use crate::control::DeviceId;
use crate::sys::process;
use crate::sys::trust::{Distrusted, check_peer};

/// How long a server may take to reply. One that is at work says so more often.
const PATIENCE: Duration = WORKING.saturating_mul(10);

/// Why a server did not do what it was asked. One line: what was wanted, what was found, what to do.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The device has no server to ask.
    #[error(
        "ublkb{0} has no server, and only a device that is served can do this: see `ublk-bpf list`, and recover one that \
         waits with `ublk-bpf run --recover {0}`"
    )]
    NotServed(DeviceId),
    /// The server cannot be asked, or does not reply.
    #[error(
        "the server of {}, process {process}, does not reply: {source}: see its log, which `ublk-bpf show {id}` names",
        id.disk_name()
    )]
    NoReply {
        /// The device.
        id: DeviceId,
        /// Its server.
        process: u32,
        /// What happened.
        source: io::Error,
    },
    /// The paths of the command cannot be told to the server.
    #[error("cannot open the mount namespace of this command: {0}: is /proc mounted?")]
    NoNamespace(io::Error),
    /// Only root may ask.
    #[error("the server of ublkb{0} obeys root alone: run as root")]
    NotRoot(DeviceId),
    /// In the server's words.
    #[error("{0}")]
    Refused(String),
    /// What listens there is not the server.
    #[error(transparent)]
    Distrusted(#[from] Distrusted),
    /// The record or the lock of the device cannot be used.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Has the server of device `id` carry out a command, and passes what it says meanwhile to `progress`. Returns its last
/// line, which may be empty.
///
/// # Errors
/// If there is no server, it refuses, or it does not reply.
pub fn ask(id: DeviceId, command: DeviceCommand, progress: impl FnMut(&str)) -> Result<String, AskError> {
    converse(id, &Request::Device { id, command }, None, progress)
}

/// Has the server of device `id` read its configuration again, with the paths that this process sees, and make its devices
/// what that describes. Passes what it does to `progress`, and returns its last line.
///
/// # Errors
/// As [`ask`]; also if not all of it was done.
pub fn reload(id: DeviceId, progress: impl FnMut(&str)) -> Result<String, AskError> {
    let mounts = process::mount_namespace().map_err(AskError::NoNamespace)?;
    converse(id, &Request::Reload, Some(mounts.as_fd()), progress)
}

fn converse(
    id: DeviceId,
    request: &Request,
    with: Option<BorrowedFd<'_>>,
    mut progress: impl FnMut(&str),
) -> Result<String, AskError> {
    let process = Record::read(id)?.pid;
    if !Lock::is_served(id)? {
        return Err(AskError::NotServed(id));
    }
    let no_reply = |source| AskError::NoReply { id, process, source };
    let path = RunDir::open()?
        .ok_or(RecordError::Absent(id))?
        .path(&socket_name(process));
    let stream = UnixStream::connect(&path).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => AskError::NotRoot(id),
        _ => no_reply(error),
    })?;
    check_peer("server at", &path, stream.as_fd())?;
    let mut line = Line::new(stream).map_err(no_reply)?;
    line.send_request(request, with).map_err(no_reply)?;
    loop {
        match line.receive_reply(PATIENCE).map_err(no_reply)? {
            Reply::Working => {}
            Reply::Progress(text) => progress(&text),
            Reply::Ok(text) => return Ok(text),
            Reply::Error(why) => return Err(AskError::Refused(why)),
        }
    }
}
