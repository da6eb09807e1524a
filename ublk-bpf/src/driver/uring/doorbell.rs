//! How the mover is woken.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// Wakes the mover. A queue's ring writes to the descriptor, which costs the queue no system call.
#[derive(Debug)]
pub(super) struct Doorbell {
    eventfd: OwnedFd,
    stop: AtomicBool,
}

impl Doorbell {
    /// One that was not rung yet.
    ///
    /// # Errors
    /// If the process has no file descriptor to spare.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            // Blocking: the ring that reads it waits, not the thread.
            eventfd: eventfd(0, EventfdFlags::CLOEXEC)?,
            stop: AtomicBool::new(false),
        })
    }

    /// Asks the mover to finish what it has in flight and to end.
    ///
    /// # Errors
    /// None that an open eventfd is known to give.
    pub(super) fn stop(&self) -> io::Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        rustix::io::write(&self.eventfd, &1_u64.to_ne_bytes())?;
        Ok(())
    }

    /// Whether the mover was asked to end.
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

impl AsRawFd for Doorbell {
    fn as_raw_fd(&self) -> RawFd {
        self.eventfd.as_raw_fd()
    }
}
