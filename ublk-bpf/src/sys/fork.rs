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

/// Waits for the end of a child process, and says which signal ended it, if one did. A child that cannot be waited for has
/// ended.
pub fn wait_for(child: i32) -> Option<i32> {
    let mut status = 0;
    // SAFETY: `status` is writable and lives over the call.
    while unsafe { libc::waitpid(child, &raw mut status, 0) } < 0 {
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return None;
        }
    }
    libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status))
}

/// The calling process gets SIGTERM when its parent, process `parent` with one thread, ends however it ends; until
/// [`outlive_parent`].
///
/// # Errors
/// If the parent has ended already, or the kernel refuses.
pub fn end_with_parent(parent: u32) -> io::Result<()> {
    parent_death_signal(libc::SIGTERM.unsigned_abs())?;
    // A parent that ended before is not noticed by the kernel any more.
    if is_parent(parent) {
        Ok(())
    } else {
        Err(io::Error::other("the process that started it is gone"))
    }
}

/// Takes [`end_with_parent`] back, and says whether the parent still lives: if so, the signal has not come.
pub fn outlive_parent(parent: u32) -> bool {
    parent_death_signal(0).is_ok() && is_parent(parent)
}

fn parent_death_signal(signal: u32) -> io::Result<()> {
    // SAFETY: the option takes a number, no pointer.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::c_ulong::from(signal)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn is_parent(process: u32) -> bool {
    std::os::unix::process::parent_id() == process
}

/// While this lives, SIGINT and SIGTERM do not end the calling process: they are passed on to a child as SIGTERM.
#[derive(Debug)]
pub struct PassOn(Vec<signal_hook_registry::SigId>);

impl PassOn {
    /// Begins to.
    ///
    /// # Errors
    /// If the kernel refuses a handler.
    pub fn to(child: i32) -> io::Result<Self> {
        let mut handlers = Self(Vec::new());
        for signal in [libc::SIGINT, libc::SIGTERM] {
            let pass = move || {
                // SAFETY: takes numbers, no pointer.
                unsafe { libc::kill(child, libc::SIGTERM) };
            };
            // SAFETY: the handler does nothing but call kill(2), which is allowed in one (signal-safety(7)).
            let id = unsafe { signal_hook_registry::register(signal, pass) }?;
            handlers.0.push(id);
        }
        Ok(handlers)
    }
}

impl Drop for PassOn {
    fn drop(&mut self) {
        for handler in self.0.drain(..) {
            signal_hook_registry::unregister(handler);
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
