//! How a process moves to the background.

use std::io;
use std::os::fd::AsFd;

use rustix::process::{
    Pid, Signal, WaitOptions, kill_process, set_parent_process_death_signal, setsid, waitpid,
};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use signal_hook::{SigId, low_level};

/// How the names of io_uring's workers begin (`io_uring/io-wq.c`).
const WORKER: &str = "iou-wrk-";

/// Which of the two processes this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The caller, with the child's process id.
    Parent(Pid),
    /// The new one.
    Child,
}

/// Creates a second process that continues from here.
///
/// # Errors
/// If the process has more than one thread (the child would have one, and locks that are never released), or the
/// kernel refuses another process.
pub fn fork() -> io::Result<Side> {
    let threads = threads()?;
    if threads != 1 {
        return Err(io::Error::other(format!(
            "the process already has {threads} threads"
        )));
    }
    // SAFETY: the process has one thread, so the child's copy of its memory is consistent.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        child => Ok(Pid::from_raw(child).map_or(Side::Child, Side::Parent)),
    }
}

/// The threads of this process that run its code: io_uring's workers are among its tasks, stay for a while after the last
/// operation that needed one, and have nothing of its memory locked.
fn threads() -> io::Result<usize> {
    let mut threads = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        // One that has ended has no name.
        let name = std::fs::read_to_string(task?.path().join("comm")).unwrap_or_default();
        threads += usize::from(!name.is_empty() && !name.starts_with(WORKER));
    }
    Ok(threads)
}

/// Waits until a child process ends, and returns the signal that ended it, if one did. A child that cannot be waited for
/// has ended.
pub fn wait_for(child: Pid) -> Option<i32> {
    let ended = rustix::io::retry_on_intr(|| waitpid(Some(child), WaitOptions::empty()));
    let (_, status) = ended.ok()??;
    status.terminating_signal()
}

/// Has the kernel send SIGTERM to the calling process when its parent ends, until [`outlive_parent`]. The parent is
/// process `parent`, and has one thread.
///
/// # Errors
/// If the parent has ended already, or the kernel refuses.
pub fn end_with_parent(parent: u32) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::TERM))?;
    // The kernel sends nothing for a parent that ended before the call.
    if is_parent(parent) {
        Ok(())
    } else {
        Err(io::Error::other("the process that started it has ended"))
    }
}

/// Cancels [`end_with_parent`], and returns whether the parent still runs: if so, no signal was sent.
pub fn outlive_parent(parent: u32) -> bool {
    set_parent_process_death_signal(None).is_ok() && is_parent(parent)
}

fn is_parent(process: u32) -> bool {
    std::os::unix::process::parent_id() == process
}

/// While this lives, SIGINT and SIGTERM do not end the calling process: they are forwarded to a child as SIGTERM.
#[derive(Debug)]
pub struct ForwardSignals(Vec<SigId>);

impl ForwardSignals {
    /// Installs the handlers.
    ///
    /// # Errors
    /// If the kernel refuses a handler.
    pub fn to(child: Pid) -> io::Result<Self> {
        let mut handlers = Self(Vec::new());
        for signal in [libc::SIGINT, libc::SIGTERM] {
            let forward = move || {
                // A child that has ended needs no signal.
                let _ = kill_process(child, Signal::TERM);
            };
            // SAFETY: the handler only makes the system call kill(2), which is async-signal-safe (signal-safety(7)).
            let id = unsafe { low_level::register(signal, forward) }?;
            handlers.0.push(id);
        }
        Ok(handlers)
    }
}

impl Drop for ForwardSignals {
    fn drop(&mut self) {
        for handler in self.0.drain(..) {
            low_level::unregister(handler);
        }
    }
}

/// Starts a new session, which has no controlling terminal.
pub fn leave_session() -> io::Result<()> {
    setsid()?;
    Ok(())
}

/// Replaces standard input and output by `null`, and standard error by `errors`.
pub fn replace_standard_files(null: impl AsFd, errors: impl AsFd) -> io::Result<()> {
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(errors)?;
    Ok(())
}
