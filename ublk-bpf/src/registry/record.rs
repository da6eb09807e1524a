//! The record of a device, which its server writes to `/run/ublk-bpf`.
//!
//! A [`Lock`] says whether the server is alive. The process id in the record does not: the kernel may
//! have reused it. If the lock of a record is free, its server died and the record is stale.

use std::collections::BTreeMap;
use std::fs;

use serde::{Deserialize, Serialize};
use ublk_bpf_abi::SECTOR_SIZE;

use super::error::RecordError;
use super::lock::Lock;
use super::name::DeviceName;
use super::options::{CacheOptions, DeviceOptions, MAX_DIRTY, Role, Scheduler};
use super::run_dir::{RunDir, file_name};
use crate::backend::{Backend, Spec, StorageStack};
use crate::cache::{MAX_BLOCK, MIN_BLOCK};
use crate::control::{DeviceId, DeviceInfo, Recovery};
use crate::policy::{DEFAULT_POLICY_MEMORY, Observe};
use crate::sys::uapi::{UBLK_MAX_NR_QUEUES, UBLK_MAX_QUEUE_DEPTH};

/// Version of the record's format.
const VERSION: u32 = 2;

/// A device as its server made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Version of this format.
    version: u32,
    /// The device's id.
    id: u32,
    /// Its name, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<DeviceName>,
    /// The server's process id.
    pub pid: u32,
    /// When the server started, in seconds since 1970.
    pub started: u64,
    /// The machine's boot id at that time, for readers of the file: the next boot clears `/run`.
    pub boot_id: String,
    /// Where its bytes are, as `--backing` takes it; a path is absolute.
    #[serde(with = "crate::backend::spec_text")]
    pub backing: Spec,
    /// Which file or device that path led to.
    pub identity: String,
    /// What that is on; `None` for memory and nothing, and in records of older programs.
    #[serde(default)]
    pub storage: Option<StorageStack>,
    /// The policy's name, or the absolute path of its object.
    pub policy: String,
    /// Memory limit for the maps of a policy loaded from a file, in bytes.
    #[serde(default = "default_policy_memory")]
    pub policy_memory: u64,
    /// Hardware queues.
    pub queues: u16,
    /// Requests that a queue holds at once.
    pub depth: u16,
    /// Capacity in sectors of 512 bytes.
    pub sectors: u64,
    /// The capacity that it was made with, if it has grown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grown_from: Option<u64>,
    /// The logical block that was asked for, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logical_block: Option<u32>,
    /// Writes are refused.
    pub read_only: bool,
    /// What happens to the device if its server dies.
    pub recovery: Recovery,
    /// The policy may lose data or fail requests.
    pub allow_lossy: bool,
    /// What is counted of its requests.
    #[serde(default, skip_serializing_if = "Observe::is_default")]
    pub observe: Observe,
    /// Its cache, if it has one.
    pub cache: Option<CacheRecord>,
    /// Options that have changed since the device was made, each with the value that it was made with.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub changed: BTreeMap<String, String>,
}

/// A device's cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheRecord {
    /// What it was asked to be.
    pub options: CacheOptions,
    /// Which file or device its path led to.
    pub identity: String,
    /// What that is on; `None` for memory, and in records of older programs.
    #[serde(default)]
    pub storage: Option<StorageStack>,
    /// Slots that it has.
    pub slots: u32,
    /// Slots that the device's maps have room for, if they were made for a larger one.
    #[serde(default)]
    pub map_slots: Option<u32>,
    /// Writes may end in it: the device was made so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub writes_back: bool,
    /// Set if it failed, or a command detached it.
    pub detached: Option<Detached>,
    /// Another device was put in its place while it was detached: the next server takes what is on that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_attached_anew: bool,
}

/// A cache that was detached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Detached {
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// Why.
    pub why: String,
}

impl Record {
    /// The record of a device that this process is about to serve on `backing`. `policy` and paths in `options` are
    /// absolute.
    #[must_use]
    pub fn new(
        info: &DeviceInfo,
        options: &DeviceOptions,
        sectors: u64,
        backing: &Backend,
        cache: Option<CacheRecord>,
    ) -> Self {
        Self {
            version: VERSION,
            id: info.id.number(),
            name: options.name.clone(),
            pid: std::process::id(),
            started: now(),
            boot_id: boot_id(),
            backing: options.backing.clone(),
            identity: backing.identity(),
            storage: backing.storage(),
            policy: options.policy.clone(),
            policy_memory: options.policy_memory,
            queues: info.queues,
            depth: info.depth,
            sectors,
            grown_from: None,
            logical_block: options.logical_block,
            read_only: options.read_only,
            recovery: options.recovery,
            allow_lossy: options.allow_lossy,
            observe: options.observe,
            cache,
            changed: BTreeMap::new(),
        }
    }

    /// The device's id.
    #[must_use]
    pub fn id(&self) -> DeviceId {
        DeviceId::new(self.id).expect("it came from an id, or was compared with one")
    }

    /// The options that make the same device again.
    #[must_use]
    pub fn options(&self) -> DeviceOptions {
        DeviceOptions {
            backing: self.backing.clone(),
            policy: self.policy.clone(),
            policy_memory: self.policy_memory,
            id: Some(self.id()),
            name: self.name.clone(),
            queues: self.queues,
            depth: self.depth,
            logical_block: self.logical_block,
            read_only: self.read_only,
            scheduler: Scheduler::default(),
            recovery: self.recovery,
            allow_lossy: self.allow_lossy,
            observe: self.observe,
            cache: self.cache.as_ref().map(|cache| cache.options.clone()),
            abandon_dirty: false,
        }
    }

    /// The storage that no other device may use while this one exists.
    pub(crate) fn storages(&self) -> Vec<(Role, StorageStack)> {
        let storage =
            |known: &Option<StorageStack>, spec: &Spec, identity: &str, read_only| match (known, spec) {
                (Some(storage), _) => Some(storage.clone()),
                (None, Spec::Path(_)) => Some(StorageStack::named(identity, read_only)),
                (None, _) => None,
            };
        let backing = storage(&self.storage, &self.backing, &self.identity, self.read_only);
        let cache = self.cache.as_ref();
        let cache = cache.and_then(|of| storage(&of.storage, &of.options.device, &of.identity, false));
        let backing = backing.map(|storage| (Role::Backing, storage));
        backing
            .into_iter()
            .chain(cache.map(|storage| (Role::Cache, storage)))
            .collect()
    }

    /// Whether its cache has failed.
    #[must_use]
    pub fn is_detached(&self) -> bool {
        self.cache.as_ref().is_some_and(|cache| cache.detached.is_some())
    }

    /// Reads the record of device `id`.
    ///
    /// # Errors
    /// If there is none, or it is not one.
    pub fn read(id: DeviceId) -> Result<Self, RecordError> {
        let name = file_name(id, "json");
        let run = RunDir::open()?.ok_or(RecordError::Absent(id))?;
        let text = run.read(&name)?.ok_or(RecordError::Absent(id))?;
        Self::parse(&text, id).map_err(|reason| RecordError::Corrupt {
            path: run.path(&name),
            id,
            reason,
        })
    }

    fn parse(text: &[u8], id: DeviceId) -> Result<Self, String> {
        /// Read before the rest, which another version may have changed.
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let Head { version } = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        if version != VERSION {
            return Err(format!(
                "its version is {version}, this program supports {VERSION}"
            ));
        }
        let record: Self = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        if record.id != id.number() {
            return Err(format!("it describes ublkb{}", record.id));
        }
        record.check_ranges()?;
        Ok(record)
    }

    /// Refuses numbers that no device has: calculations with them could overflow.
    fn check_ranges(&self) -> Result<(), String> {
        let is_shape = (1..=UBLK_MAX_NR_QUEUES).contains(&self.queues)
            && (1..=UBLK_MAX_QUEUE_DEPTH).contains(&self.depth);
        if !is_shape {
            return Err(format!("it has {} queues of depth {}", self.queues, self.depth));
        }
        // The kernel counts a disk's bytes in a signed number.
        if self.sectors > i64::MAX.unsigned_abs() / SECTOR_SIZE {
            return Err(format!("it has {} sectors", self.sectors));
        }
        let block = self.cache.as_ref().map(|cache| cache.options.block);
        let is_block = |block: u32| block.is_power_of_two() && (MIN_BLOCK..=MAX_BLOCK).contains(&block);
        if let Some(block) = block.filter(|&block| !is_block(block)) {
            return Err(format!("it has cache blocks of {block} bytes"));
        }
        let dirty = self.cache.as_ref().map(|cache| cache.options.dirty_high);
        match dirty.filter(|percent| !(1..=MAX_DIRTY).contains(percent)) {
            Some(percent) => Err(format!("{percent} % of its cache may be dirty")),
            None => Ok(()),
        }
    }

    /// Changes the record of device `id`, one process at a time: those that change a device and its record, as a swap of
    /// the policy does, do both in `change`. The record is as it was if that fails.
    ///
    /// # Errors
    /// If there is no record, it cannot be written, or `change` fails.
    pub fn change<T, E: From<RecordError>>(
        id: DeviceId,
        change: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<T, E> {
        // Without a device there is nothing to lock.
        Self::read(id)?;
        let lock = Lock::change_policy(id)?;
        let mut record = Self::read(id).inspect_err(|error| {
            // The device has ended and removed the lock's file, so this file is a new one.
            if matches!(error, RecordError::Absent(_)) {
                lock.remove_file();
            }
        })?;
        let changed = change(&mut record)?;
        record.write()?;
        Ok(changed)
    }

    /// Writes the record, replacing the one before as a whole.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn write(&self) -> Result<(), RecordError> {
        let run = RunDir::make()?;
        let name = file_name(self.id(), "json");
        let mut text = serde_json::to_vec_pretty(self).map_err(|error| RecordError::System {
            what: "write the record",
            path: run.path(&name),
            source: error.into(),
        })?;
        text.push(b'\n');
        run.write_record(&name, &text)
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// The ids of all devices that have a record or a lock, in ascending order.
///
/// # Errors
/// If the directory is there but cannot be read.
pub fn ids() -> Result<Vec<DeviceId>, RecordError> {
    let Some(run) = RunDir::open()? else {
        return Ok(Vec::new());
    };
    let mut ids = Vec::new();
    for name in run.names()? {
        let Some((stem, "json" | "lock")) = name.split_once('.') else {
            continue;
        };
        ids.extend(
            stem.strip_prefix("ublkb")
                .and_then(|digits| digits.parse().ok())
                .and_then(DeviceId::new),
        );
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// The device that has this name, served or waiting.
///
/// # Errors
/// If the records cannot be listed. One that cannot be read has no name.
pub fn named(name: &DeviceName) -> Result<Option<DeviceId>, RecordError> {
    let has_it = |id: &DeviceId| Record::read(*id).is_ok_and(|record| record.name.as_ref() == Some(name));
    Ok(ids()?.into_iter().find(has_it))
}

/// The limit of records that were written before it could be set.
const fn default_policy_memory() -> u64 {
    DEFAULT_POLICY_MEMORY
}

/// The kernel's id of this boot; empty if `/proc` is not mounted.
fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: DeviceId = DeviceId::new(3).expect("small");

    fn record() -> Record {
        let options = DeviceOptions {
            backing: Spec::Memory(1 << 30),
            policy: "passthrough".into(),
            policy_memory: default_policy_memory(),
            id: None,
            name: Some("mail".parse().unwrap()),
            queues: 4,
            depth: 128,
            logical_block: Some(4096),
            read_only: false,
            scheduler: Scheduler::default(),
            recovery: Recovery::Reissue,
            allow_lossy: false,
            observe: Observe::Full,
            cache: Some(CacheOptions::on(Spec::Path("/dev/fast".into()))),
            abandon_dirty: false,
        };
        let info = DeviceInfo::dead(ID, 2, 128);
        let cache = options.cache.clone().map(|options| CacheRecord {
            options,
            identity: "block device 1:2".into(),
            storage: None,
            slots: 100,
            map_slots: Some(120),
            writes_back: true,
            detached: Some(Detached {
                since: 1,
                why: "reading failed".into(),
            }),
            is_attached_anew: true,
        });
        let backing = Backend::open(&options.backing, false).unwrap();
        Record::new(&info, &options, 1 << 21, &backing, cache)
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let record = record();
        let text = serde_json::to_vec(&record).unwrap();
        assert_eq!(Record::parse(&text, ID), Ok(record.clone()));
        assert_eq!(record.options().queues, 2);
    }

    #[test]
    fn a_record_says_which_storage_its_device_has() {
        let mut record = record();
        // An older program's has the names alone. Memory is not shared.
        let cache = (Role::Cache, StorageStack::named("block device 1:2", false));
        assert_eq!(record.storages(), [cache]);
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("backing");
        fs::write(&path, [0; 4096]).unwrap();
        let backing = Backend::open(&Spec::Path(path), false).unwrap();
        record.storage = backing.storage();
        assert_eq!(record.storages()[0], (Role::Backing, backing.storage().unwrap()));
    }

    #[test]
    fn what_is_no_record_is_refused_in_words() {
        let good = serde_json::to_string(&record()).unwrap();
        for (text, words) in [
            ("", "EOF"),
            ("{}", "version"),
            (
                &good.replace("\"version\":2", "\"version\":1"),
                "version is 1, this program supports 2",
            ),
            (&good.replace("\"id\":3", "\"id\":4"), "describes ublkb4"),
            (&good.replace("mem:1G", "mem:1X"), "not a size"),
            (&good.replace("mail", "../mail"), "cannot be the name"),
            (&good.replace("\"depth\"", "\"death\""), "unknown field"),
            (&good[..good.len() - 2], "EOF"),
            (&good.replace("\"queues\":2", "\"queues\":0"), "0 queues of depth"),
            (
                &good.replace("\"sectors\":2097152", "\"sectors\":18446744073709551615"),
                "sectors",
            ),
            (
                &good.replace("\"block\":65536", "\"block\":0"),
                "cache blocks of 0 bytes",
            ),
            (&format!("{{\"x\":{}", "[".repeat(60_000)), "EOF"),
        ] {
            let reason = Record::parse(text.as_bytes(), ID).unwrap_err();
            assert!(reason.contains(words), "{text}: {reason}");
        }
    }
}
