//! What is compared on real disks.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::disk::Disk;
use crate::ours::Device;
use crate::peers::{Bcache, DmCache, Mapped, SECTOR};
use crate::subject::Subject;

/// Of the cache device, what dm-cache's metadata gets.
const META_MIB: u64 = 16;

/// A way to have a device.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// Makes it of the backing and the cache device, with the first MiBs of the backing.
    pub(crate) start: Start,
}

type Start = fn(&[Disk], u64) -> Result<Box<dyn Subject>>;

/// Those that the disks allow.
pub(crate) fn kinds(has_cache: bool) -> Vec<Kind> {
    let kind = |name, start: Start| Kind { name, start };
    let mut kinds = vec![
        kind("backing, raw", |disks, _| Ok(Box::new(Raw::of(disks, 0)?))),
        kind("**ublk-bpf**, passthrough", |disks, _| ours(disks, 1)),
    ];
    if has_cache {
        kinds.extend([
            kind("cache device, raw", |disks, _| Ok(Box::new(Raw::of(disks, 1)?))),
            kind("**ublk-bpf**, write-through", |disks, _| ours(disks, 2)),
            kind("dm-cache, writethrough", |disks, mib| {
                dm_cache(disks, mib, "writethrough")
            }),
            kind("dm-cache, writeback", |disks, mib| {
                dm_cache(disks, mib, "writeback")
            }),
            kind("bcache, writethrough", |disks, _| bcache(disks, "writethrough")),
            kind("bcache, writeback", |disks, _| bcache(disks, "writeback")),
        ]);
    }
    kinds
}

struct Raw(PathBuf);

impl Raw {
    fn of(disks: &[Disk], number: usize) -> Result<Self> {
        Ok(Self(disk(disks, number)?.path().to_path_buf()))
    }
}

impl Subject for Raw {
    fn path(&self) -> &std::path::Path {
        &self.0
    }

    fn servers(&self) -> Vec<u32> {
        Vec::new()
    }
}

fn disk(disks: &[Disk], number: usize) -> Result<&Disk> {
    disks
        .get(number)
        .context("a second device was wanted, as the cache")
}

struct Ours(Device);

impl Subject for Ours {
    fn path(&self) -> &std::path::Path {
        self.0.path()
    }

    fn servers(&self) -> Vec<u32> {
        self.0.server().into_iter().collect()
    }
}

/// The backing alone, or with the cache device.
fn ours(disks: &[Disk], used: usize) -> Result<Box<dyn Subject>> {
    let mut options = vec!["--backing", &disk(disks, 0)?.path];
    if used > 1 {
        options.extend(["--cache", &disk(disks, 1)?.path, "--cache-reset"]);
    }
    Ok(Box::new(Ours(Device::start(&options)?)))
}

/// dm-cache with its metadata at the start of the cache device.
struct InParts {
    cache: DmCache,
    /// After the cache, which is removed first.
    _parts: [Mapped; 2],
}

impl Subject for InParts {
    fn path(&self) -> &std::path::Path {
        Subject::path(&self.cache)
    }

    fn servers(&self) -> Vec<u32> {
        Vec::new()
    }
}

fn dm_cache(disks: &[Disk], mib: u64, mode: &str) -> Result<Box<dyn Subject>> {
    let fast = disk(disks, 1)?;
    let part = |name, from_mib: u64, to_mib: u64| {
        let [from, sectors] = [from_mib, to_mib - from_mib].map(|mib| (mib << 20) / SECTOR);
        Mapped::create(name, &format!("0 {sectors} linear {} {from}", fast.path))
    };
    // The start was overwritten with zeroes, by which dm-cache knows that there is no metadata.
    let parts = [
        part("bench-meta", 0, META_MIB)?,
        part("bench-fast", META_MIB, fast.mib)?,
    ];
    let devices = [parts[0].path(), parts[1].path(), disk(disks, 0)?.path()];
    let cache = DmCache::of(devices, mib << 20, mode)?;
    Ok(Box::new(InParts { cache, _parts: parts }))
}

fn bcache(disks: &[Disk], mode: &str) -> Result<Box<dyn Subject>> {
    let cache = Bcache::create(disk(disks, 1)?.path(), disk(disks, 0)?.path(), mode)?;
    Ok(Box::new(cache))
}
