//! What ublk-bpf is compared with: dm-cache and dm-linear, on the same ram disks.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::counts::{Cached, Counts};
use crate::command;

/// The ram disk that is the cache's fast device, and passthrough's backing.
pub(super) const FAST: &str = "/dev/ram0";
/// The ram disk that is the cache's backing.
pub(super) const SLOW: &str = "/dev/ram1";
/// The ram disk of dm-cache's metadata.
const META: &str = "/dev/ram2";
/// Bytes of a cache block, for all: the default of ublk-bpf.
pub(super) const BLOCK: u64 = 64 << 10;
const SECTOR: u64 = 512;
/// The megabyte of the metadata that says whether there is any.
const META_HEAD: [&str; 2] = ["bs=1M", "count=1"];

/// Makes the ram disks, of so many MiB each. They are empty: memory is taken only for what is written.
pub(super) fn make_ram_disks(mib: u64) -> Result<()> {
    let size = format!("rd_size={}", mib << 10);
    command::output(Command::new("modprobe").args(["brd", "rd_nr=3", &size])).map(drop)
}

/// Writes zeroes over the first MiBs of a device.
pub(super) fn fill(device: &str, mib: u64) -> Result<()> {
    write_zeroes(device, &["bs=1M", &format!("count={mib}")])
}

fn write_zeroes(device: &str, what: &[&str]) -> Result<()> {
    let mut dd = Command::new("dd");
    dd.args(["if=/dev/zero", &format!("of={device}"), "oflag=direct"])
        .args(what);
    command::output(&mut dd).map(drop)
}

/// A device-mapper device; dropped, it is removed.
pub(super) struct Mapped {
    name: &'static str,
    path: PathBuf,
}

impl Mapped {
    fn create(name: &'static str, table: &str) -> Result<Self> {
        command::output(dmsetup().args(["create", name, "--table", table]))?;
        Ok(Self {
            name,
            path: Path::new("/dev/mapper").join(name),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // What cannot be removed is in the way of the next one, which will tell.
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
pub(super) fn linear(device: &str, bytes: u64) -> Result<Mapped> {
    Mapped::create("bench-linear", &format!("0 {} linear {device} 0", bytes / SECTOR))
}

/// dm-cache with its default policy, smq, write-through.
pub(super) struct DmCache {
    mapped: Mapped,
}

impl DmCache {
    /// A cache, cold, with all of `fast` before the first `bytes` of [`SLOW`].
    pub(super) fn create(fast: &Path, bytes: u64) -> Result<Self> {
        for module in ["dm_cache", "dm_cache_smq"] {
            command::output(Command::new("modprobe").arg(module))?;
        }
        write_zeroes(META, &META_HEAD)?;
        let table = format!(
            "0 {} cache {META} {} {SLOW} {} 1 writethrough smq 0",
            bytes / SECTOR,
            fast.display(),
            BLOCK / SECTOR
        );
        let mapped = Mapped::create("bench-cache", &table)?;
        Ok(Self { mapped })
    }

    /// Sets how many sectors may be on their way between its devices at once.
    pub(super) fn set_migration_threshold(&self, sectors: u64) -> Result<()> {
        let setting = ["migration_threshold", &sectors.to_string()].map(str::to_owned);
        command::output(dmsetup().args(["message", self.mapped.name, "0"]).args(setting)).map(drop)
    }

    /// See [`Self::set_migration_threshold`].
    pub(super) fn migration_threshold(&self) -> Result<u64> {
        parse_threshold(&self.status()?)
    }

    fn status(&self) -> Result<String> {
        command::output(dmsetup().args(["status", self.mapped.name]))
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
