//! One device at the time of a scrape.

use crate::control::DeviceId;
use crate::observe::{self, Stats};
use crate::policy::Disk;
use crate::registry::Record;

/// What a device is, and what it has counted.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) backing: String,
    pub(super) policy: String,
    pub(super) is_detached: bool,
    pub(super) stats: Stats,
}

impl Series {
    pub(super) fn read(id: DeviceId) -> anyhow::Result<Self> {
        let record = Record::read(id)?;
        Ok(Self {
            name: record.name.as_ref().map_or_else(String::new, ToString::to_string),
            backing: record.backing.to_string(),
            is_detached: record.is_detached(),
            policy: record.policy,
            stats: observe::stats(&Disk::ublk(id.number()))?,
        })
    }
}
