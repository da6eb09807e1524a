//! Setup of a process in the writeback path, so that it never waits for its own device.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::registry::{dirty_pair, run_dir};
use crate::sys::mounts::{self, Mount};
use crate::sys::{memory, process};

/// What a server uses by its path once its devices are open: nodes, processes, its records and logs, block devices and
/// the kernel's BTF, pins, and the limits of its control group.
const USED: [&str; 6] = [
    "/dev",
    "/proc",
    run_dir::DIRECTORY,
    "/sys",
    "/sys/fs/bpf",
    "/sys/fs/cgroup",
];

/// Isolates the process from everything that could make it wait for its own device. To be called once, while the process
/// has one thread, with everything open that is named by paths elsewhere than under [`USED`].
///
/// `records_dirty`: it records which caches are dirty, too.
///
/// A step that fails is logged and not fatal: containers deny some of them, and the device works without.
pub(super) fn isolate(records_dirty: bool) {
    match leave_mounts(records_dirty) {
        Ok(kept) if kept.is_empty() => {}
        Ok(kept) => tracing::warn!(
            "the server cannot detach {} from its mount namespace: a file system unmounted there stays in use until the server ends",
            in_words(&kept)
        ),
        Err(error) => tracing::warn!(
            "cannot create a mount namespace: {error}: unmount the device before you stop the server, or it cannot end; file systems that are unmounted elsewhere may stay in use until then"
        ),
    }
    if let Err(error) = process::refuse_oom_killer() {
        tracing::warn!(
            "cannot set oom_score_adj to -1000: {error}: the server and its devices may be killed when memory runs out"
        );
    }
    protect_thread();
    memory::keep_one_heap();
}

/// Marks the calling thread, and those that it makes, as one that writeback waits for.
pub(super) fn protect_thread() {
    if let Err(error) = process::set_io_flusher() {
        tracing::warn!("cannot become an I/O flusher: {error}: the device may hang when memory runs out");
    }
}

/// Locks the memory that the process has and all that it will have, where no limit could make a later allocation or
/// thread fail for it. Repeating it is harmless.
pub(super) fn lock_all_memory() {
    if !memory::may_lock_all_memory() {
        return;
    }
    match memory::lock_all_memory() {
        Ok(()) => tracing::debug!("all memory of the server is locked, present and future"),
        Err(error) => tracing::warn!("cannot lock the server's memory: {error}: do not swap to this device"),
    }
}

/// Gives back the memory that only the start has used, and locks the rest: all of it for good, or as much as the limit
/// allows. To be called when all threads have what they need.
pub(super) fn settle_memory() {
    memory::shrink_heap();
    if memory::may_lock_all_memory() {
        return lock_all_memory();
    }
    match memory::lock_present_memory() {
        Ok(amount) => tracing::warn!(
            "RLIMIT_MEMLOCK is {} KiB and CAP_IPC_LOCK is missing: {} of the server's {} KiB are locked, and no later allocation: do not swap to this device",
            amount.limit >> 10,
            amount.locked >> 10,
            amount.present >> 10
        ),
        Err(error) => tracing::warn!("cannot lock the server's memory: {error}: do not swap to this device"),
    }
}

/// Gives the process a mount namespace with nothing in it but the root and what is [`USED`]. A mount of the device there
/// would be closed only with the process that has to serve it, and a file system of any other device, unmounted by its
/// user, would stay in use as long as this server lives. Returns the mounts that could not be detached.
///
/// A mount that another one hides cannot be named. So the few mounts in use are copied, everything is detached, and
/// the copies are attached again.
fn leave_mounts(records_dirty: bool) -> io::Result<Vec<PathBuf>> {
    process::leave_mount_namespace()?;
    // A working directory holds its mount.
    std::env::set_current_dir("/")?;
    let mut table = mounts::table("self")?;
    let copies = copy_used(&mounts::list(&mut table)?, records_dirty)?;
    let kept = detach_all(|| mounts::list(&mut table))?;
    for (path, copy) in copies {
        process::attach_mount(&copy, &path)?;
    }
    Ok(kept)
}

/// Copies of the mounts on the way to what is used, each before those that are on it.
fn copy_used(mounts: &[Mount], records_dirty: bool) -> io::Result<Vec<(PathBuf, OwnedFd)>> {
    let mut paths: Vec<&Path> = mounts.iter().map(|mount| mount.path.as_path()).collect();
    paths.retain(|path| is_used(path) || (records_dirty && is_on_the_way(path, dirty_pair::DIRECTORY)));
    paths.sort_by_key(|path| path.components().count());
    // Mounts on one another: the topmost is copied.
    paths.dedup();
    let copy = |path: &Path| Ok((path.to_owned(), process::copy_mount(path)?));
    paths.into_iter().map(copy).collect()
}

/// Whether the way to something that is used leads through this mount point.
fn is_used(path: &Path) -> bool {
    USED.iter().any(|used| is_on_the_way(path, used))
}

fn is_on_the_way(path: &Path, to: &str) -> bool {
    path != Path::new("/") && Path::new(to).starts_with(path)
}

/// Detaches everything but the root. What another mount hid comes to light as that one goes, so until nothing can be
/// detached. Returns the remaining mounts.
fn detach_all(mut list: impl FnMut() -> io::Result<Vec<Mount>>) -> io::Result<Vec<PathBuf>> {
    loop {
        let mut paths: Vec<PathBuf> = list()?.into_iter().map(|mount| mount.path).collect();
        paths.retain(|path| path != Path::new("/"));
        let detached = paths
            .iter()
            .rev()
            .filter(|path| process::detach_mount(path).is_ok());
        if detached.count() == 0 {
            return Ok(paths);
        }
    }
}

fn in_words(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths.iter().map(|path| format!("{path:?}")).collect();
    paths.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_way_to_what_the_server_uses_stays() {
        for path in [
            "/dev",
            "/proc",
            "/sys",
            "/sys/fs",
            "/sys/fs/bpf",
            "/run",
            "/run/ublk-bpf",
        ] {
            assert!(is_used(Path::new(path)), "{path}");
        }
        for path in [
            "/",
            "/run/media/stick",
            "/run/user/1000",
            "/run/ublk-bpf/x",
            "/dev/shm",
            "/device",
            "/sys/kernel/debug",
            "/proc/sys/fs/binfmt_misc",
            "/mnt",
        ] {
            assert!(!is_used(Path::new(path)), "{path}");
        }
    }
}
