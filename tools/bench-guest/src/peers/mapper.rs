//! Device-mapper: dm-linear, the smallest layer above a device, and dm-cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::disks::{FAST, META, SLOW, empty, fill};
use super::kernel_version;
use super::warm::warm;
use crate::counts::{Cached, Counts};
use crate::sizes::RAM_DISK_MIB;
use crate::sizes::RANGE_MIB;
use crate::subject::{Kind, Raw, Subject};
use host::command;

/// Bytes of a cache block, for all: the default of ublk-bpf.
pub const BLOCK: u64 = 64 << 10;
pub(crate) const SECTOR: u64 = 512;
/// The MiB of the metadata that says whether there is any.
const META_HEAD_MIB: u64 = 1;
/// Sectors that may be in flight to dm-cache's fast device: with the default, 2048, warming is slow.
const FAST_MIGRATION: u64 = 204_800;

pub(crate) const KINDS: [Kind; 2] = [
    Kind {
        name: "dm-linear",
        raw: Raw::Brd,
        options: "`linear`, on a ram disk",
        version: kernel_version,
        start: |_| {
            empty(FAST)?;
            Ok(Box::new(linear(FAST, RAM_DISK_MIB << 20)?))
        },
    },
    Kind {
        name: "dm-cache",
        raw: Raw::Brd,
        options: "`writethrough smq`, blocks of 64k, fully cached",
        version: kernel_version,
        start: |_| {
            empty(FAST)?;
            let cache = DmCache::create(Path::new(FAST), RANGE_MIB << 20)?;
            cache.set_migration_threshold(FAST_MIGRATION)?;
            cache.warm(RANGE_MIB)?;
            empty(FAST)?;
            Ok(Box::new(cache))
        },
    },
];

/// A device-mapper device; dropped, it is removed.
pub struct Mapped {
    name: &'static str,
    path: PathBuf,
}

impl Mapped {
    /// Makes one of this table.
    pub fn create(name: &'static str, table: &str) -> Result<Self> {
        command::output(dmsetup().args(["create", name, "--table", table]))?;
        Ok(Self {
            name,
            path: Path::new("/dev/mapper").join(name),
        })
    }

    /// The device's file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Subject for Mapped {
    fn path(&self) -> &Path {
        &self.path
    }

    fn servers(&self) -> Vec<u32> {
        Vec::new()
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // If it cannot be removed, the next one fails and says so.
        let _ = command::output(dmsetup().args(["remove", "--retry", self.name]));
    }
}

fn dmsetup() -> Command {
    let mut command = Command::new("dmsetup");
    // The guest has no udev: the program makes the files under /dev/mapper itself.
    command.env("DM_DISABLE_UDEV", "1");
    command
}

/// The first `bytes` of a device, as a device.
pub fn linear(device: &str, bytes: u64) -> Result<Mapped> {
    Mapped::create("bench-linear", &format!("0 {} linear {device} 0", bytes / SECTOR))
}

/// dm-cache with its default policy, smq.
pub struct DmCache {
    mapped: Mapped,
}

impl DmCache {
    /// A write-through cache, cold, with all of `fast` before the first `bytes` of [`SLOW`].
    pub fn create(fast: &Path, bytes: u64) -> Result<Self> {
        fill(META, META_HEAD_MIB)?;
        Self::of([Path::new(META), fast, Path::new(SLOW)], bytes, "writethrough")
    }

    /// A cache of a metadata device that begins with zeroes, a fast device and the first `bytes` of a slow one, in a
    /// mode of dm-cache's.
    pub fn of(devices: [&Path; 3], bytes: u64, mode: &str) -> Result<Self> {
        for module in ["dm_cache", "dm_cache_smq"] {
            command::output(Command::new("modprobe").arg(module))?;
        }
        let [meta, fast, slow] = devices.map(Path::display);
        let (sectors, block) = (bytes / SECTOR, BLOCK / SECTOR);
        let table = format!("0 {sectors} cache {meta} {fast} {slow} {block} 1 {mode} smq 0");
        let mapped = Mapped::create("bench-cache", &table)?;
        Ok(Self { mapped })
    }

    /// Sets how many sectors may be in flight between its devices.
    pub fn set_migration_threshold(&self, sectors: u64) -> Result<()> {
        let setting = ["migration_threshold", &sectors.to_string()].map(str::to_owned);
        command::output(dmsetup().args(["message", self.mapped.name, "0"]).args(setting)).map(drop)
    }

    /// Reads the first MiBs at random until everything hits: what is read in order smq promotes only slowly.
    pub fn warm(&self, mib: u64) -> Result<()> {
        warm(self.mapped.path(), mib, || {
            let counts = self.counts()?;
            Ok(counts.reads - counts.hits)
        })
    }

    /// See [`Self::set_migration_threshold`].
    pub fn migration_threshold(&self) -> Result<u64> {
        parse_threshold(&self.status()?)
    }

    fn status(&self) -> Result<String> {
        command::output(dmsetup().args(["status", self.mapped.name]))
    }
}

impl Subject for DmCache {
    fn path(&self) -> &Path {
        self.mapped.path()
    }

    fn servers(&self) -> Vec<u32> {
        Vec::new()
    }
}

impl Cached for DmCache {
    fn path(&self) -> &Path {
        self.mapped.path()
    }

    fn counts(&self) -> Result<Counts> {
        parse(&self.status()?)
    }
}

/// Reads the line that the kernel's Documentation/admin-guide/device-mapper/cache.rst describes; two numbers and the
/// target's name stand before it.
fn parse(status: &str) -> Result<Counts> {
    let words: Vec<&str> = status.split_whitespace().collect();
    ensure!(
        words.get(2) == Some(&"cache"),
        "dm-cache has failed, and says: {status}"
    );
    let number = |index: usize| {
        let value = words.get(index).and_then(|word| word.parse::<u64>().ok());
        value.with_context(|| format!("word {index} of dm-cache's status is no number: {status}"))
    };
    let hits = number(7)?;
    Ok(Counts {
        reads: hits + number(8)?,
        hits,
        promoted: number(12)?,
    })
}

fn parse_threshold(status: &str) -> Result<u64> {
    let mut words = status.split_whitespace();
    words
        .find(|word| *word == "migration_threshold")
        .and_then(|_| words.next()?.parse().ok())
        .with_context(|| format!("dm-cache's status has no migration_threshold: {status}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "0 262144 cache 8 19/65536 128 2048/4096 197049 20803 0 0 0 2048 0 1 writethrough \
                          2 migration_threshold 204800 smq 0 rw - \n";

    #[test]
    fn dm_caches_status_is_read() {
        let counts = Counts {
            reads: 217_852,
            hits: 197_049,
            promoted: 2048,
        };
        assert_eq!(parse(STATUS).expect("parsed"), counts);
        assert_eq!(parse_threshold(STATUS).expect("parsed"), 204_800);
    }

    #[test]
    fn a_cache_that_failed_is_told_about() {
        for text in ["0 262144 cache Fail", "0 8 linear", ""] {
            assert!(parse(text).is_err(), "{text}");
            assert!(parse_threshold(text).is_err(), "{text}");
        }
    }
}
