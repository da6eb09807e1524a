//! What a process in the writeback path must do to itself, lest it wait for its own device.

use std::path::Path;

use super::mounts;
use crate::sys::process;

/// What the server itself goes on to use, by path.
const KEPT: [&str; 4] = ["/dev", "/proc", "/run", "/sys"];

/// Cuts the process off from what could make it wait for its own device. To be called once, while the process
/// has one thread, with everything open that is named by paths elsewhere than under [`KEPT`].
///
/// What fails is told and not fatal: containers deny some of it, and the device works without.
pub(super) fn isolate() {
    if let Err(error) = leave_mounts() {
        tracing::warn!(
            "cannot leave the mount namespace: {error}: do not mount the device in this one while the server lives"
        );
    }
    protect_thread();
    if let Err(error) = process::lock_memory() {
        tracing::warn!("cannot lock the server's memory: {error}: do not swap to this device");
    }
}

/// Marks the calling thread, and those that it makes, as one that writeback waits for.
pub(super) fn protect_thread() {
    if let Err(error) = process::set_io_flusher() {
        tracing::warn!("cannot become an I/O flusher: {error}: the device may hang when memory runs out");
    }
}

/// Gives the process a mount namespace with little in it: a mount of the device there would be closed only with the
/// process that has to serve it; and one of any other device could not be unmounted while this server lives.
fn leave_mounts() -> std::io::Result<()> {
    process::leave_mount_namespace()?;
    let mounts = mounts::of("self")?;
    // Later ones may be mounted on earlier ones.
    for mount in mounts.iter().rev().filter(|mount| !is_kept(&mount.path)) {
        if let Err(error) = process::detach_mount(&mount.path) {
            tracing::debug!("{} stays mounted for the server: {error}", mount.path.display());
        }
    }
    Ok(())
}

fn is_kept(path: &Path) -> bool {
    path == Path::new("/") || KEPT.iter().any(|kept| path.starts_with(kept))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_uses_stays() {
        for path in ["/", "/dev", "/sys/fs/bpf", "/run"] {
            assert!(is_kept(Path::new(path)), "{path}");
        }
        for path in ["/mnt", "/home", "/device", "/tmp"] {
            assert!(!is_kept(Path::new(path)), "{path}");
        }
    }
}
