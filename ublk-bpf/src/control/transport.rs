//! The one way by which commands reach the kernel, replaced in tests.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use super::error::{CONTROL_PATH, ControlError};
use crate::sys::command::{self, NoReply, Reply};
use crate::sys::uapi::CtrlCmd;

/// Who carries control commands.
pub(super) trait Transport: Send + Sync {
    /// Sends the command with ioctl number `code` and this buffer and waits for the answer, at most `within`.
    fn send(
        &self,
        code: u32,
        command: CtrlCmd,
        buffer: Box<[u8]>,
        within: Duration,
    ) -> Result<Reply, NoReply>;
}

/// The driver of this kernel.
pub(super) struct Kernel(File);

impl Kernel {
    pub(super) fn open() -> Result<Self, ControlError> {
        let file = OpenOptions::new().read(true).write(true).open(CONTROL_PATH);
        file.map(Self).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ControlError::NoDriver,
            io::ErrorKind::PermissionDenied => ControlError::NoPermission,
            // The node exists, but there is no driver behind it.
            _ if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => ControlError::NoDriver,
            _ => ControlError::Open(error),
        })
    }
}

impl Transport for Kernel {
    fn send(
        &self,
        code: u32,
        command: CtrlCmd,
        buffer: Box<[u8]>,
        within: Duration,
    ) -> Result<Reply, NoReply> {
        command::execute(self.0.as_fd(), code, command, buffer, within)
    }
}
