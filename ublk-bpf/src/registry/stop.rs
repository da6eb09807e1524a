//! Stopping a device from another process than its server.
//!
//! The kernel is asked, not the server: it knows whether the device is open, it answers, and it ends the server's
//! queues. The server then removes what it made, and ends with its last device. If it is dead, this does it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::error::RecordError;
use super::lock::{self, Lock};
use super::stale::{self, POLL, RemoveError};
use super::{logs, users};
use crate::control::{Control, ControlError, DeviceId};
use crate::errno::Errno;

/// How long a server may take from the end of its device to its own.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a start may take to undo its work, which includes waiting for commands of the kernel.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// Why a device was not stopped. One line: what was wanted, what was found, what to do.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// It is in use.
    #[error(
        "{} is in use by {users}: unmount or close it first, or fail its I/O with `ublk-bpf stop {id} --force`",
        id.disk_name()
    )]
    InUse {
        /// The device.
        id: DeviceId,
        /// By whom.
        users: String,
    },
    /// A start did not end although it was signalled.
    #[error(
        "process {} has not cancelled its start within {} s: kill it with SIGKILL, then run `ublk-bpf stop --all` again",
        .0.iter().map(u32::to_string).collect::<Vec<_>>().join(", "), START_PATIENCE.as_secs()
    )]
    StartGoesOn(Vec<u32>),
    /// Its disk is gone but its server still holds it.
    #[error(
        "the server of {} has not released it within {} s: see its log, {}; to end it with all of its devices, kill it with SIGKILL",
        .0.disk_name(), PATIENCE.as_secs(), logs::log_path(*.0).display()
    )]
    Stuck(DeviceId),
    /// The kernel refused.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// There is no such device, or its record cannot be used.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The cleanup after its dead server failed.
    #[error(transparent)]
    Remove(#[from] RemoveError),
}

/// Cancels the starts in progress and waits until they have ended. Each removes the devices that it created; those that it
/// was to recover keep waiting.
///
/// # Errors
/// If one does not end, or cannot be found.
pub fn stop_starts() -> Result<(), StopError> {
    let deadline = Instant::now() + START_PATIENCE;
    let mut asked = BTreeSet::new();
    while let Some(processes) = lock::starts()? {
        for &process in &processes {
            if asked.insert(process) {
                lock::end_start(process);
            }
        }
        if Instant::now() >= deadline {
            return Err(StopError::StartGoesOn(processes));
        }
        std::thread::sleep(POLL);
    }
    stale::remove_of_dead_processes();
    Ok(())
}

/// Stops a device and waits until it is removed completely. With `force` even if it is in use, which fails its I/O.
///
/// # Errors
/// If it is in use, or is none of this program's devices, or the kernel or its server does not end it.
pub fn stop(control: &Control, id: DeviceId, force: bool) -> Result<(), StopError> {
    stop_by(control, id, || control.remove_disk(id, force))
}

/// The same, with the command that removes the block device: the device's own server must not wait for that.
pub(crate) fn stop_by(
    control: &Control,
    id: DeviceId,
    command: impl Fn() -> Result<(), ControlError>,
) -> Result<(), StopError> {
    if !stale::known()?.contains(&id) {
        return Err(RecordError::Absent(id).into());
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Lock::serve(id) {
            Ok(lock) => return remove_dead(control, id, &lock, command),
            Err(RecordError::Locked(_)) => {}
            Err(error) => return Err(error.into()),
        }
        // Repeated, because the server may be starting its disk at this moment.
        remove_disk(id, command())?;
        if Instant::now() >= deadline {
            return Err(StopError::Stuck(id));
        }
        std::thread::sleep(POLL);
    }
}

/// The server is dead or has just ended: the kernel may no longer have the device.
fn remove_dead(
    control: &Control,
    id: DeviceId,
    lock: &Lock,
    command: impl Fn() -> Result<(), ControlError>,
) -> Result<(), StopError> {
    let device = stale::settled(control, id)?;
    if device.as_ref().is_some_and(|info| info.state.is_recoverable()) {
        remove_disk(id, command())?;
    }
    Ok(stale::remove(control, id, device, lock)?)
}

/// What the command that removes the block device has said: it may have none.
fn remove_disk(id: DeviceId, result: Result<(), ControlError>) -> Result<(), StopError> {
    match result {
        Ok(()) => Ok(()),
        Err(error) if error.is_no_device() => Ok(()),
        Err(error) if error.errno() == Some(Errno::EBUSY) => Err(StopError::InUse {
            id,
            users: users::in_words(id),
        }),
        Err(error) => Err(error.into()),
    }
}
