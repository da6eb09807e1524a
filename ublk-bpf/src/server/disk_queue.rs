//! The block device's request queue in sysfs: what a server sets there, because ublk has no parameter for it.

use std::path::PathBuf;
use std::{fs, io};

use super::errands::Errands;
use super::error::ServeError;
use crate::control::DeviceId;
use crate::registry::Scheduler;

/// `/sys/block/ublkbN/queue` of a device whose disk exists.
pub(super) struct DiskQueue(DeviceId);

impl DiskQueue {
    pub(super) const fn of(id: DeviceId) -> Self {
        Self(id)
    }

    fn path(&self, attribute: &str) -> PathBuf {
        format!("/sys/block/{}/queue/{attribute}", self.0.disk_name()).into()
    }

    /// Selects the I/O scheduler. A disk with one hardware queue gets mq-deadline where the kernel has it
    /// (`elevator_set_default` in `block/elevator.c`). That costs a quarter more instructions per I/O, to sort requests
    /// that the backing's own queue sorts again.
    pub(super) fn schedule(&self, scheduler: &Scheduler, errands: &Errands) -> Result<(), ServeError> {
        let Some(name) = scheduler.name() else {
            return Ok(());
        };
        let path = self.path("scheduler");
        let found = fs::read_to_string(&path).unwrap_or_default();
        if found.contains(&format!("[{name}]")) {
            return Ok(());
        }
        errands
            .write(&path, name)
            .map_err(|source| ServeError::Scheduler {
                name: name.to_owned(),
                found: found.trim().to_owned(),
                source,
            })
    }

    /// The I/O scheduler that it has; empty if the kernel does not say.
    pub(super) fn scheduler(&self) -> String {
        let found = fs::read_to_string(self.path("scheduler")).unwrap_or_default();
        let selected = found.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
        selected.map_or_else(String::new, |(name, _)| name.to_owned())
    }

    /// Lets the kernel throttle writeback as it does in front of the backing. The server's own writes are direct, which
    /// are never throttled, so it has to be done here. A queue that throttles nothing has no need to time requests.
    pub(super) fn throttle(&self, latency_usec: u64, errands: &Errands) {
        let path = self.path("wbt_lat_usec");
        // A kernel without the file does not throttle.
        if let Err(error) = errands.write(&path, &latency_usec.to_string()) {
            tracing::debug!("cannot set the writeback throttling: {}: {error}", path.display());
        }
    }

    /// Keeps the page cache from changing a page while it is written. Nothing relies on it: direct I/O may change its
    /// pages all the same, so data for two devices is copied once (`queue/machine.rs`).
    pub(super) fn keep_pages_stable(&self, errands: &Errands) {
        let path = self.path("stable_writes");
        let set = || -> io::Result<String> {
            errands.write(&path, "1")?;
            fs::read_to_string(&path)
        };
        match set() {
            Ok(now) if now.trim() == "1" => {}
            Ok(now) => tracing::warn!("{} should be 1 and is {}", path.display(), now.trim()),
            Err(error) => tracing::warn!("cannot set {} to 1: {error}", path.display()),
        }
    }
}
