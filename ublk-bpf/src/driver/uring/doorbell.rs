//! How the promoter is woken.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Wakes the promoter. A queue's ring writes to the descriptor, which costs the queue no system call.
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
        // SAFETY: takes no pointer. Blocking: the ring that reads it waits, not the thread.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            // SAFETY: the call returned a new descriptor that nothing else owns.
            eventfd: unsafe { OwnedFd::from_raw_fd(fd) },
            stop: AtomicBool::new(false),
        })
    }

    /// Asks the promoter to finish what it has in flight and to end.
    ///
    /// # Errors
    /// None that an open eventfd is known to give.
    pub(super) fn stop(&self) -> io::Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        let one = 1_u64.to_ne_bytes();
        // SAFETY: `one` is readable memory of that length.
        let written = unsafe { libc::write(self.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        if written < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Whether the promoter was asked to end.
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

impl AsRawFd for Doorbell {
    fn as_raw_fd(&self) -> RawFd {
        self.eventfd.as_raw_fd()
    }
}
