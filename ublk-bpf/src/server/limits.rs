//! What the system must allow this process, checked before anything is made, and named when it runs out.

use std::fs;
use std::io;
use std::path::Path;
use std::thread::{self, available_parallelism};

use super::control_socket::MAX_CLIENTS;
use super::error::ServeError;
use crate::sys::process::{self, Capability};

/// Open files of a process while it starts a device, beside what belongs to its devices: standard files, the main
/// thread's sockets, the control plane's ring, the control socket with its clients, and the BPF objects that are open until
/// they are pinned.
const FILES_OF_A_PROCESS: u64 = 48 + 1 + MAX_CLIENTS as u64;
/// A device's: its nodes, backing, cache, eventfds, lock and maps.
const FILES_OF_A_DEVICE: u64 = 12;
/// A queue's: its ring.
const FILES_OF_A_QUEUE: u64 = 1;

/// Checks that the process has the right to serve a device: without it the first thing to fail would name something
/// else.
pub(super) fn check_privilege() -> Result<(), ServeError> {
    match process::has_capability(Capability::SysAdmin) {
        Ok(false) => Err(ServeError::NoPrivilege),
        // If it is unknown, the call that needs it reports the error.
        Ok(true) | Err(_) => Ok(()),
    }
}

/// Raises the limit of open files to what devices with these numbers of queues need.
///
/// # Errors
/// If the hard limit is lower.
pub(super) fn raise_open_files(queues: impl IntoIterator<Item = u16>) -> Result<(), ServeError> {
    let needed = open_files(queues);
    let limit = process::raise_open_files().map_err(|source| ServeError::System {
        what: "raise the limit of open files",
        source,
    })?;
    if limit < needed {
        return Err(ServeError::TooFewFiles { needed, limit });
    }
    Ok(())
}

/// What the process of devices with these numbers of queues has open at most.
pub(crate) fn open_files(queues: impl IntoIterator<Item = u16>) -> u64 {
    // The kernel makes no more queues than there are CPUs.
    let cpus = available_parallelism().map_or(u64::MAX, |cpus| cpus.get() as u64);
    let of_device = |queues| FILES_OF_A_DEVICE + FILES_OF_A_QUEUE * cpus.min(u64::from(queues));
    FILES_OF_A_PROCESS + queues.into_iter().map(of_device).sum::<u64>()
}

/// The error of a thread that could not be started, with the limit that was reached: the system returns `EAGAIN` for each
/// of them.
pub(super) fn no_thread(what: &'static str) -> impl Fn(io::Error) -> ServeError {
    move |source| match exhausted() {
        Some(limit) if source.raw_os_error() == Some(libc::EAGAIN) => ServeError::NoThread { what, limit },
        _ => ServeError::System { what, source },
    }
}

/// Bytes of the stack of a thread. A stack is locked whole; a panic that prints its backtrace takes the most of it.
pub(super) const STACK: usize = 512 << 10;

/// A thread of this name, to be spawned.
pub(super) fn thread(name: String) -> thread::Builder {
    thread::Builder::new().name(name).stack_size(STACK)
}

/// The limit that leaves no room for another thread, in words. A process with the right to serve a device is exempt from
/// `RLIMIT_NPROC`.
fn exhausted() -> Option<String> {
    locked_memory().or_else(control_group)
}

/// Thread stacks are locked like all other memory.
fn locked_memory() -> Option<String> {
    let limit = process::locked_memory_limit();
    let locked = process::locked_memory().ok().filter(|&locked| locked > 0)?;
    let is_exempt = process::has_capability(Capability::IpcLock).unwrap_or(true);
    (!is_exempt && locked + STACK as u64 > limit).then(|| {
        format!(
            "{} of {} KiB of memory are locked already: raise RLIMIT_MEMLOCK (`ulimit -l`, LimitMEMLOCK=), or grant CAP_IPC_LOCK",
            locked >> 10,
            limit >> 10
        )
    })
}

/// The first full control group on the way up from the process's own.
fn control_group() -> Option<String> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let number = |file: &Path| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
    Path::new("/sys/fs/cgroup")
        .join(own)
        .ancestors()
        .find_map(|group| {
            let most = number(&group.join("pids.max"))?;
            let now = number(&group.join("pids.current"))?;
            (now >= most).then(|| {
                format!(
                    "the control group {} has {now} of at most {most} tasks: raise its pids.max (TasksMax=)",
                    group.display()
                )
            })
        })
}
