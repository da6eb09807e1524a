//! How the server ends its queues.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::event::{EventfdFlags, eventfd};

/// Asks queues to give up: they wait for what is in flight, commit what it finishes, and leave the rest to the kernel.
#[derive(Debug)]
pub(super) struct Stop(OwnedFd);

impl Stop {
    /// One that was not pulled yet.
    ///
    /// # Errors
    /// If the process has no file descriptor to spare.
    pub(super) fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(eventfd(0, flags)?))
    }

    /// Asks every queue that polls it. It cannot be undone.
    ///
    /// # Errors
    /// None that an open eventfd is known to give.
    pub(super) fn pull(&self) -> io::Result<()> {
        rustix::io::write(&self.0, &1_u64.to_ne_bytes())?;
        Ok(())
    }
}

impl AsRawFd for Stop {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
