//! How the server ends its queues.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Asks queues to give up: they wait for what is in flight, commit what it finishes, and leave the rest to the kernel.
#[derive(Debug)]
pub(super) struct Stop(OwnedFd);

impl Stop {
    /// One that was not pulled yet.
    ///
    /// # Errors
    /// If the process has no file descriptor to spare.
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: takes no pointer.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call returned a new descriptor that nothing else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Asks every queue that polls it. It cannot be undone.
    ///
    /// # Errors
    /// None that an open eventfd is known to give.
    pub(super) fn pull(&self) -> io::Result<()> {
        let one = 1_u64.to_ne_bytes();
        // SAFETY: `one` is readable memory of that length.
        let written = unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        if written < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

impl AsRawFd for Stop {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
