//! How somebody else ends a queue.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Asks queues to give up: they await what is in flight, commit what is done, and leave the rest to the kernel.
///
/// The ordinary end of a queue is the device's: STOP_DEV ends its FETCH commands. This is for a server that
/// leaves a device behind for another one to recover.
#[derive(Debug)]
pub struct Stop(OwnedFd);

impl Stop {
    /// One that nobody has pulled.
    ///
    /// # Errors
    /// If the process can have no more descriptors.
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes no pointer.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call returned a new descriptor that nothing else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Asks every queue that knows of this. It cannot be taken back.
    ///
    /// # Errors
    /// None that could happen to a descriptor that is open.
    pub fn pull(&self) -> io::Result<()> {
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
