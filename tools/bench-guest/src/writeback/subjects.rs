//! The caches of the comparison, each with all of the range in it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use host::command;

use super::RANGE_MIB;
use super::disks::{FAST, SLOW};
use crate::hits::read_until_promoted;
use crate::ours::Device;
use crate::peers::{BLOCK, Bcache, DmCache, Mapped, SECTOR, fill};
use crate::subject::Subject;

/// Of the cache device, what dm-cache's metadata gets.
const META_MIB: u64 = 16;
/// MiB of the cache device.
const FAST_MIB: u64 = 1024;

/// A cache to be measured.
pub(crate) struct Kind {
    /// What the table calls it.
    pub(crate) name: &'static str,
    /// Makes it, with the range in the cache.
    pub(crate) start: fn() -> Result<Box<dyn Subject>>,
}

/// Those that there are: ours writes back as soon as its `run` says so.
pub(crate) fn kinds() -> Result<Vec<Kind>> {
    let kind = |name, start: fn() -> Result<Box<dyn Subject>>| Kind { name, start };
    let mut kinds = vec![
        kind("the backing itself", || Ok(Box::new(Bare(SLOW.into())))),
        kind("dm-writecache", writecache),
        kind("dm-cache, writeback", || dm_cache("writeback")),
        kind("bcache, writeback", || bcache("writeback")),
        kind("dm-cache, writethrough", || dm_cache("writethrough")),
        kind("bcache, writethrough", || bcache("writethrough")),
        kind("**ublk-bpf, passthrough**", passthrough),
        kind("**ublk-bpf, write-through**", || ours("write-through")),
    ];
    if writes_back()? {
        kinds.push(kind("**ublk-bpf, write-back**", || ours("write-back")));
    }
    Ok(kinds)
}

fn writes_back() -> Result<bool> {
    let help = command::output(Command::new("ublk-bpf").args(["run", "--help"]))?;
    Ok(help.contains("write-back"))
}

/// A disk as it is.
struct Bare(PathBuf);

impl Subject for Bare {
    fn path(&self) -> &Path {
        &self.0
    }

    fn servers(&self) -> Vec<u32> {
        Vec::new()
    }
}

/// Takes each write, wherever it goes, as long as it has room: nothing has to be read first.
fn writecache() -> Result<Box<dyn Subject>> {
    command::output(Command::new("modprobe").arg("dm_writecache"))?;
    let sectors = (RANGE_MIB << 20) / SECTOR;
    let table = format!("0 {sectors} writecache s {SLOW} {FAST} 4096 0");
    Ok(Box::new(Mapped::create("bench-writecache", &table)?))
}

/// dm-cache with its metadata at the start of the cache device.
struct DmCacheInParts {
    cache: DmCache,
    /// After the cache, which is removed first.
    _parts: [Mapped; 2],
}

impl Subject for DmCacheInParts {
    fn path(&self) -> &Path {
        Subject::path(&self.cache)
    }

    fn servers(&self) -> Vec<u32> {
        Vec::new()
    }
}

fn dm_cache(mode: &str) -> Result<Box<dyn Subject>> {
    let part = |name, from_mib: u64, to_mib: u64| {
        let [from, sectors] = [from_mib, to_mib - from_mib].map(|mib| (mib << 20) / SECTOR);
        Mapped::create(name, &format!("0 {sectors} linear {FAST} {from}"))
    };
    let parts = [
        part("bench-meta", 0, META_MIB)?,
        part("bench-fast", META_MIB, FAST_MIB)?,
    ];
    fill(&parts[0].path().to_string_lossy(), 1)?;
    let devices = [parts[0].path(), parts[1].path(), Path::new(SLOW)];
    let cache = DmCache::of(devices, RANGE_MIB << 20, mode)?;
    cache.warm(RANGE_MIB)?;
    Ok(Box::new(DmCacheInParts { cache, _parts: parts }))
}

/// Each write and each read brings its block in: writing the range does.
fn bcache(mode: &str) -> Result<Box<dyn Subject>> {
    let cache = Bcache::create(Path::new(FAST), Path::new(SLOW), mode)?;
    Ok(Box::new(cache))
}

struct Ours(Device);

impl Subject for Ours {
    fn path(&self) -> &Path {
        self.0.path()
    }

    fn servers(&self) -> Vec<u32> {
        self.0.server().into_iter().collect()
    }
}

/// Without a cache: what any ublk server pays.
fn passthrough() -> Result<Box<dyn Subject>> {
    Ok(Box::new(Ours(Device::passthrough(SLOW)?)))
}

fn ours(mode: &str) -> Result<Box<dyn Subject>> {
    let storage = ["--backing", SLOW, "--cache", FAST, "--cache-mode", mode];
    let shape = ["--policy", "lru", "--queues", "1", "--depth", "128"];
    let device = Device::start(&[&storage[..], &shape].concat())?;
    read_until_promoted(&device, (RANGE_MIB << 20) / BLOCK)?;
    Ok(Box::new(Ours(device)))
}
