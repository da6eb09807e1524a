//! The claim of this server on a device: id chosen, locked, added, and deleted at the end.

use std::thread;
use std::time::Instant;

use super::cache::CacheDevice;
use super::error::ServeError;
use crate::backend::Backend;
use crate::control::{
    AddDevice, Control, ControlCommand, ControlError, DeviceId, DeviceInfo, MIN_BATCH_DEPTH,
};
use crate::errno::Errno;
use crate::registry::lock::Lock;
use crate::registry::stale::{FREEING, POLL};
use crate::registry::{DeviceOptions, Record, RecordError, Role, owners, record, stale};

/// Most bytes of a request: what the block layer's own default comes to on fast devices.
const MAX_IO_BYTES: u32 = 1 << 20;

/// A device of this server: locked, and deleted when this is dropped.
pub(super) struct Claim<'c> {
    control: &'c Control,
    pub(super) info: DeviceInfo,
    lock: Lock,
    leave: bool,
}

impl<'c> Claim<'c> {
    /// Makes a device with these options on what was opened for it, and its record. If the options name no id, it gets
    /// none of the `reserved` ones. Until the lock that comes with it is dropped, no other process changes the policy.
    ///
    /// From the record on other starts know what is this device's, and they look for it under the same lock.
    pub(super) fn make(
        control: &'c Control,
        options: &DeviceOptions,
        reserved: &[DeviceId],
        backing: &Backend,
        cache: Option<&CacheDevice>,
    ) -> Result<(Self, Lock), ServeError> {
        let choice = Lock::choose()?;
        stale::sweep(control);
        owners::check_open(control, Role::Backing, backing)?;
        if let Some(cache) = cache {
            owners::check_open(control, Role::Cache, cache.backend())?;
        }
        if let Some(name) = &options.name
            && let Some(id) = record::named(name)?
        {
            let name = name.clone();
            return Err(ServeError::NameTaken { name, id });
        }
        let device = AddDevice {
            id: options.id,
            queues: options.queues,
            depth: options.depth.max(MIN_BATCH_DEPTH),
            max_io_bytes: MAX_IO_BYTES,
            recovery: options.recovery,
            ..AddDevice::default()
        };
        let (info, lock) = match options.id {
            Some(id) => add(control, id, &device)?,
            None => add_lowest(control, &device, reserved)?,
        };
        let claim = Self {
            control,
            info,
            lock,
            leave: false,
        };
        let policy_lock = Lock::change_policy(claim.info.id)?;
        let sectors = backing.facts().sectors;
        let record = Record::new(
            &claim.info,
            options,
            sectors,
            backing,
            cache.map(CacheDevice::record),
        );
        record.write()?;
        drop(choice);
        claim.warn(options);
        Ok((claim, policy_lock))
    }

    /// Warns of what the kernel did not grant.
    fn warn(&self, options: &DeviceOptions) {
        let info = &self.info;
        if info.queues < options.queues {
            tracing::warn!(
                "{} queues were asked for; the number of CPUs limits them to {}",
                options.queues,
                info.queues
            );
        }
        if info.depth > options.depth {
            tracing::warn!(
                "a depth of {} was asked for; batch mode needs at least {MIN_BATCH_DEPTH}",
                options.depth
            );
        }
    }

    /// Takes over a device that another server made. It is not deleted unless [`Self::delete_when_dropped`] is called.
    pub(super) fn take_over(control: &'c Control, info: DeviceInfo, lock: Lock) -> Self {
        Self {
            control,
            info,
            lock,
            leave: true,
        }
    }

    /// Keeps the device for another server. Returns when it waits: until the kernel has noticed that this server is gone,
    /// the device looks served.
    pub(super) fn leave(&mut self) {
        self.leave = true;
        stale::wait_for_departure(self.control, self.info.id);
    }

    /// Deletes the device when this is dropped.
    pub(super) fn delete_when_dropped(&mut self) {
        self.leave = false;
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if self.leave {
            return;
        }
        let id = self.info.id;
        if let Err(error) = stale::delete(self.control, id) {
            tracing::error!("{error}");
        }
        if let Err(error) = stale::forget(id) {
            tracing::error!("{error}");
        }
        self.lock.remove_file();
    }
}

/// Makes the device with the lowest id that is free.
fn add_lowest(
    control: &Control,
    device: &AddDevice,
    reserved: &[DeviceId],
) -> Result<(DeviceInfo, Lock), ServeError> {
    for id in (0..).map_while(DeviceId::new) {
        // The kernel is asked first: to try a lock would make its file.
        if reserved.contains(&id) || control.info(id).is_ok() {
            continue;
        }
        match add(control, id, device) {
            // Another program was faster, or another server is still removing it.
            Err(ServeError::Control(error)) if error.errno() == Some(Errno::EEXIST) => {}
            other => return other,
        }
    }
    Err(refused(None, Errno::ENOSPC).into())
}

/// Makes the device with this id. The lock comes first: a server that is killed at any point leaves at least its
/// lock's file, by which the next one notices.
fn add(control: &Control, id: DeviceId, device: &AddDevice) -> Result<(DeviceInfo, Lock), ServeError> {
    let lock = match Lock::serve(id) {
        Err(RecordError::Locked(_)) => return Err(refused(Some(id), Errno::EEXIST).into()),
        other => other?,
    };
    let device = AddDevice {
        id: Some(id),
        ..*device
    };
    match add_once_free(control, id, &device) {
        Ok(info) => Ok((info, lock)),
        Err(error) => {
            lock.remove_file();
            Err(error.into())
        }
    }
}

/// Makes the device, or waits until it can: the kernel does not find a deleted device from its last reference on, and frees
/// the id a while later, after the memory of its queues (`ublk_cdev_rel` in `drivers/block/ublk_drv.c`).
fn add_once_free(control: &Control, id: DeviceId, device: &AddDevice) -> Result<DeviceInfo, ControlError> {
    let deadline = Instant::now() + FREEING;
    loop {
        let error = match control.add(device) {
            Err(error) if error.errno() == Some(Errno::EEXIST) => error,
            other => return other,
        };
        let is_being_freed = control.info(id).is_err_and(|error| error.is_no_device());
        if !is_being_freed || Instant::now() >= deadline {
            return Err(error);
        }
        thread::sleep(POLL);
    }
}

/// The error that the kernel would return.
const fn refused(device: Option<DeviceId>, errno: Errno) -> ControlError {
    ControlError::Refused {
        command: ControlCommand::Add,
        device,
        errno,
    }
}
