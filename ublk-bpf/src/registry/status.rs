//! What can be said of a device from outside: its record, its lock, and what the kernel knows.

use std::collections::BTreeMap;

use serde::Serialize;
use ublk_bpf_abi::SECTOR_SIZE;

use super::ask::ask;
use super::error::RecordError;
use super::lock::Lock;
use super::message::DeviceCommand;
use super::name::DeviceName;
use super::record::{CacheRecord, Detached, Record};
use super::{logs, stale};
use crate::cache::evict::Algorithm;
use crate::cache::{FailingRange, Mode};
use crate::control::{Control, DeviceId, KernelState, Recovery};
use crate::observe::{self, Savings};
use crate::policy::{Disk, PinDir};

/// A device of this program. The names of its fields, as JSON has them, are stable.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    /// Its number.
    pub id: u32,
    /// `/dev/ublkbN`.
    pub device: String,
    /// Its name, if it has one.
    pub name: Option<DeviceName>,
    /// What it does.
    pub state: DeviceState,
    /// Its server's process id; none if there is no server.
    pub server: Option<u32>,
    /// When its server started, in seconds since 1970.
    pub started: u64,
    /// Its backing.
    pub backing: String,
    /// What classifies its requests.
    pub policy: String,
    /// Capacity in bytes.
    pub size: u64,
    /// Hardware queues.
    pub queues: u16,
    /// Requests that a queue holds at once.
    pub depth: u16,
    /// Writes are refused.
    pub read_only: bool,
    /// What happens to it if its server dies.
    pub recovery: Recovery,
    /// The policy may lose data or fail requests.
    pub allow_lossy: bool,
    /// Its cache, if it has one.
    pub cache: Option<CacheStatus>,
    /// Options that have changed since it was made, each with the value that it was made with.
    pub changed: BTreeMap<String, String>,
    /// Where its pins are.
    pub pins: String,
    /// Its server's log, if it runs in the background.
    pub log: Option<String>,
}

/// A device's cache. The names of its fields, as JSON has them, are stable.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CacheStatus {
    /// Where the copies are.
    pub device: String,
    /// Bytes of a cache block.
    pub block: u32,
    /// Slots of that size.
    pub slots: u32,
    /// How writes treat cached blocks.
    pub mode: Mode,
    /// The eviction algorithm.
    pub eviction: Algorithm,
    /// Limit of promoted bytes per second; none: no limit.
    pub promote_limit: Option<u64>,
    /// Percent of the slots that may be dirty.
    pub dirty_high: u8,
    /// Limit of bytes that are written back in a second; none: no limit.
    pub clean_limit: Option<u64>,
    /// What the backing lacks; none: writes never end in the cache, or the caller may not read the device's maps.
    pub dirty: Option<DirtyStatus>,
    /// Blocks of an earlier server that are yet to be compared with the backing, before which none of them is hit; none:
    /// the caller may not read the device's maps.
    pub unverified: Option<u64>,
    /// What it saved and cost; none: the caller may not read the device's maps.
    pub savings: Option<Savings>,
    /// When and why it was detached; none: it is in use.
    pub detached: Option<Detached>,
}

/// What a cache has that its backing lacks. The names of its fields, as JSON has them, are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DirtyStatus {
    /// Blocks of which some is dirty.
    pub blocks: u64,
    /// Seconds since the oldest became dirty, as far as its server knows.
    pub seconds: u64,
    /// The first ranges that cannot be written back at present; only [`Status::ask_failing`] finds some.
    pub failing: Vec<FailingRange>,
    /// Operations of writing back that have failed.
    #[serde(skip)]
    errors: u64,
}

impl CacheStatus {
    fn of(disk: &Disk, record: CacheRecord) -> Self {
        let options = record.options;
        let counted = observe::stats(disk).ok();
        let counters = counted.as_ref().and_then(|counted| Some(counted.cache?.0));
        Self {
            device: options.device.to_string(),
            block: options.block,
            slots: record.slots,
            mode: options.mode,
            eviction: options.eviction,
            promote_limit: options.promote_limit,
            dirty_high: options.dirty_high,
            clean_limit: options.clean_limit,
            dirty: counters.filter(|_| record.writes_back).map(|of| DirtyStatus {
                blocks: of.dirty,
                seconds: of.dirty_seconds,
                failing: Vec::new(),
                errors: of.clean_errors,
            }),
            unverified: counters.map(|of| of.unverified),
            savings: counted.and_then(|counted| counted.savings),
            detached: record.detached,
        }
    }
}

impl Status {
    /// Asks the server for the dirty ranges that cannot be written back, if there may be some. If it does not say, none is
    /// listed.
    pub fn ask_failing(&mut self) {
        let dirty = self.cache.as_mut().and_then(|cache| cache.dirty.as_mut());
        let (Some(dirty), Some(id)) = (dirty, DeviceId::new(self.id)) else {
            return;
        };
        if dirty.blocks != 0 && dirty.errors != 0 {
            let said = ask(id, DeviceCommand::Failing, |_| {}).unwrap_or_default();
            dirty.failing = serde_json::from_str(&said).unwrap_or_default();
        }
    }
}

/// What a device does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceState {
    /// It is served.
    Live,
    /// Its server is starting or ending.
    Changing,
    /// It waits for another server (`run --recover`), and its requests wait or fail as its recovery mode says.
    Waiting,
    /// Its server died and the device is gone; the next `run` or `stop` cleans up.
    Dead,
}

impl DeviceState {
    /// The name that commands print.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Changing => "changing",
            Self::Waiting => "waiting",
            Self::Dead => "dead",
        }
    }
}

/// What can be said of device `id`. `control` is `None` for a caller without the right to ask the kernel.
///
/// # Errors
/// If it has no record, or one that cannot be read.
pub fn of(control: Option<&Control>, id: DeviceId) -> Result<Status, RecordError> {
    let record = Record::read(id)?;
    let is_served = Lock::is_served(id)?;
    let log = logs::log_path(id);
    let disk = Disk::ublk(id.number());
    Ok(Status {
        id: id.number(),
        device: id.block_path().display().to_string(),
        name: record.name,
        state: state(control, id, is_served),
        server: is_served.then_some(record.pid),
        started: record.started,
        backing: record.backing.to_string(),
        policy: record.policy,
        size: record.sectors * SECTOR_SIZE,
        queues: record.queues,
        depth: record.depth,
        read_only: record.read_only,
        recovery: record.recovery,
        allow_lossy: record.allow_lossy,
        cache: record.cache.map(|cache| CacheStatus::of(&disk, cache)),
        changed: record.changed,
        pins: PinDir::of(&disk).path().display().to_string(),
        log: log.exists().then(|| log.display().to_string()),
    })
}

/// All devices, live and dead. One whose record cannot be read comes as that error.
///
/// # Errors
/// If the records cannot be found at all.
pub fn all(control: Option<&Control>) -> Result<Vec<Result<Status, RecordError>>, RecordError> {
    let known = stale::known()?.into_iter();
    // A lock or pins without a record: a server that is starting, or a leftover of one that did not get far.
    Ok(known
        .map(|id| of(control, id))
        .filter(|status| !matches!(status, Err(RecordError::Absent(_))))
        .collect())
}

fn state(control: Option<&Control>, id: DeviceId, is_served: bool) -> DeviceState {
    let kernel = control
        .and_then(|control| control.info(id).ok())
        .map(|info| info.state);
    match (is_served, kernel) {
        (true, Some(KernelState::Live)) => DeviceState::Live,
        (true, None) if control.is_none() => DeviceState::Live,
        (true, _) => DeviceState::Changing,
        (false, Some(KernelState::Quiesced | KernelState::FailIo)) => DeviceState::Waiting,
        (false, _) => DeviceState::Dead,
    }
}
