//! How a process goes to the background.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Which of the two processes this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that called, with the other's process id.
    Parent(i32),
    /// The new one.
    Child,
}

/// Makes a second process that goes on from here.
///
/// # Errors
/// If the process has more than one thread (the child would have one, and locks that nobody opens), or the system
/// has no room for another.
pub fn fork() -> io::Result<Side> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!(
            "the process has {threads} threads already"
        )));
    }
    // SAFETY: the process has one thread, so the child is whole.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child),
        child => Ok(Side::Parent(child)),
    }
}

/// Waits for the end of a child process. A child that cannot be waited for has ended.
pub fn wait_for(child: i32) {
    // SAFETY: a null pointer asks for no status.
    while unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) } < 0 {
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return;
        }
    }
}

/// Leaves the caller's session, and its terminal with it.
pub fn leave_session() -> io::Result<()> {
    // SAFETY: takes no pointer.
    if unsafe { libc::setsid() } < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Puts `null` in the place of standard input and output, and `errors` in that of standard error.
pub fn replace_standard_files(null: impl AsFd, errors: impl AsFd) -> io::Result<()> {
    duplicate(null.as_fd(), libc::STDIN_FILENO)?;
    duplicate(null.as_fd(), libc::STDOUT_FILENO)?;
    duplicate(errors.as_fd(), libc::STDERR_FILENO)
}

fn duplicate(file: BorrowedFd<'_>, over: i32) -> io::Result<()> {
    // SAFETY: `over` is a standard descriptor, which nobody in this process owns: it is replaced, never closed.
    if unsafe { libc::dup2(file.as_raw_fd(), over) } < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
