//! Cleanup after servers that died, whose locks are free.
//!
//! Every start of a server removes stale files, pins and devices ([`sweep`]). A device that waits for `run --recover` is
//! kept until it is stopped by its id.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::error::RecordError;
use super::lock::Lock;
use super::run_dir::{RunDir, file_name, process_of_socket};
use super::{logs, record};
use crate::control::{Control, ControlError, DeviceId, DeviceInfo, Features, KernelState};
use crate::policy::{Disk, PinDir, PolicyError, pinned_disks};
use crate::sys::process::is_dying;

/// How long the kernel may take to free the id of an unused device.
pub(crate) const FREEING: Duration = Duration::from_secs(5);
/// How long the kernel may take to notice that a server is gone.
pub(crate) const SETTLING: Duration = Duration::from_secs(20);
pub(crate) const POLL: Duration = Duration::from_millis(10);

/// Why a stale device could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// The kernel refused to delete it.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Its record could not be removed.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Its pins could not be removed.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// An operation of its dead server has not ended.
    #[error(
        "{} is still held by its dead server, whose last operation on the backing or the cache has not ended: run `ublk-bpf stop {}` again when it has",
        .0.disk_name(), .0
    )]
    Held(DeviceId),
}

/// Every device that has a record, a lock or pins, in ascending order; whether its server lives or not.
///
/// # Errors
/// If a directory is there but cannot be read.
pub fn known() -> Result<Vec<DeviceId>, RecordError> {
    let mut ids: BTreeSet<DeviceId> = record::ids()?.into_iter().collect();
    let pinned = match pinned_disks() {
        Err(PolicyError::Distrusted(why)) => return Err(why.into()),
        // Without the right to look at the pins, the records have to do.
        other => other.unwrap_or_default(),
    };
    ids.extend(pinned.iter().filter_map(Disk::id).filter_map(DeviceId::new));
    Ok(ids.into_iter().collect())
}

/// Cleans up after dead servers whose devices are gone. Failures are logged.
pub fn sweep(control: &Control) {
    remove_of_dead_processes();
    let ids = match known() {
        Ok(ids) => ids,
        Err(error) => return tracing::warn!("{error}"),
    };
    for id in ids {
        let Ok(lock) = Lock::serve(id) else { continue };
        let result = settled(control, id)
            .map_err(RemoveError::from)
            .and_then(|device| match device {
                // It waits for a server, or will once its dead one's last operation has ended.
                Some(info) if info.state.is_recoverable() || is_held(&info) => Ok(()),
                device => {
                    tracing::info!("cleaning up {} after its server died", id.disk_name());
                    remove(control, id, device, &lock)
                }
            });
        if let Err(error) = result {
            tracing::warn!(
                "cannot clean up {} after its server died: {error}",
                id.disk_name()
            );
        }
    }
}

/// Removes the first logs and the sockets of processes that were killed.
pub(crate) fn remove_of_dead_processes() {
    let Ok(Some(run)) = RunDir::open() else { return };
    for name in run.names().unwrap_or_default() {
        let process = logs::process_of_first_log(&name).or_else(|| process_of_socket(&name));
        if process.is_some_and(is_dying) {
            logs::remove_extra(&run.path(&name));
        }
    }
}

/// Removes everything of a device whose server is dead: `device` is what [`settled`] said, and the caller holds its lock.
/// Nothing while the kernel still has it for that server.
pub(crate) fn remove(
    control: &Control,
    id: DeviceId,
    device: Option<DeviceInfo>,
    lock: &Lock,
) -> Result<(), RemoveError> {
    match device.filter(|info| info.flags.contains(Features::SERVED)) {
        Some(info) if is_held(&info) => return Err(RemoveError::Held(id)),
        Some(info) if info.state != KernelState::Live => delete(control, id)?,
        // There is none, or it is another program's, which got the id after ours had gone.
        _ => {}
    }
    PinDir::of(&Disk::ublk(id.number())).remove()?;
    forget(id)?;
    logs::remove_log(id);
    remove_of_dead_processes();
    lock.remove_file();
    Ok(())
}

/// Removes the record of device `id`, which is gone. Waits for a change of its policy in progress, which would write the
/// record again, perhaps over that of the next device with this id.
///
/// # Errors
/// If the file system refuses.
pub(crate) fn forget(id: DeviceId) -> Result<(), RecordError> {
    let policy = Lock::change_policy(id)?;
    let run = RunDir::make()?;
    let name = file_name(id, "json");
    run.remove(&run.new_name(&name))?;
    run.remove(&name)?;
    policy.remove_file();
    Ok(())
}

/// Deletes a device and waits until its id is free, unless it is still open after a forced stop:
/// then the kernel frees the id at the last close.
pub(crate) fn delete(control: &Control, id: DeviceId) -> Result<(), ControlError> {
    match control.delete_async(id) {
        Err(error) if error.is_no_device() => return Ok(()),
        other => other?,
    }
    let deadline = Instant::now() + FREEING;
    while control.info(id).is_ok() {
        if Instant::now() >= deadline {
            tracing::warn!(
                "the id of {} becomes free when its last user closes it",
                id.disk_name()
            );
            break;
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// Waits until the kernel has noticed that this process serves the device no longer. It does when the last of the queues' rings
/// is gone, which it takes apart in the background.
pub(crate) fn wait_for_departure(control: &Control, id: DeviceId) {
    let deadline = Instant::now() + SETTLING;
    while control.info(id).is_ok_and(|info| info.state == KernelState::Live) {
        if Instant::now() >= deadline {
            let seconds = SETTLING.as_secs();
            tracing::warn!(
                "the kernel still reports {} as served after {seconds} s",
                id.disk_name()
            );
            break;
        }
        std::thread::sleep(POLL);
    }
}

/// The kernel's device of this id, once it has noticed that its server is gone. `None`: there is none.
///
/// Until the last operation of a killed server's rings has ended, which may be on a slow cache device, the kernel calls
/// the device live and names the dead process.
pub(crate) fn settled(control: &Control, id: DeviceId) -> Result<Option<DeviceInfo>, ControlError> {
    let deadline = Instant::now() + SETTLING;
    loop {
        match control.info(id) {
            Ok(info) if is_held(&info) && Instant::now() < deadline => std::thread::sleep(POLL),
            Ok(info) => return Ok(Some(info)),
            Err(error) if error.is_no_device() => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

/// Whether the kernel calls a device live whose server is dead.
pub(crate) fn is_held(info: &DeviceInfo) -> bool {
    info.state == KernelState::Live && info.server.is_none_or(is_dying)
}
