//! Devices that the kernel serves alone.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::compared::RANGE_MIB;
use super::counts::Cached as _;
use super::fio::{self, Job};
use super::hits;
use super::peers::{self, DmCache, FAST, Mapped};
use super::subject::{Kind, Shape, Subject};
use crate::command;

/// In the order of tables.
pub(super) fn kinds() -> Vec<Kind> {
    let kind = |name, start| Kind {
        name,
        version: linux,
        start,
    };
    vec![
        kind("brd", brd as fn(Shape) -> _),
        kind("null_blk", null_blk),
        kind("dm-linear", dm_linear),
        kind("dm-cache", dm_cache),
    ]
}

fn linux() -> Result<String> {
    let release = command::output(Command::new("uname").arg("-r"))?;
    Ok(format!("Linux {}", release.trim()))
}

/// A device that was there before and stays.
struct Node(PathBuf);

impl Subject for Node {
    fn path(&self) -> &Path {
        &self.0
    }

    fn servers(&self) -> Vec<u32> {
        Vec::new()
    }
}

fn brd(_: Shape) -> Result<Box<dyn Subject>> {
    ensure!(Path::new(FAST).exists(), "there is no {FAST}");
    Ok(Box::new(Node(FAST.into())))
}

struct NullBlk;

impl Subject for NullBlk {
    fn path(&self) -> &Path {
        Path::new("/dev/nullb0")
    }

    fn servers(&self) -> Vec<u32> {
        Vec::new()
    }
}

impl Drop for NullBlk {
    fn drop(&mut self) {
        // One that stays is in the way of the next, which will tell.
        let _ = command::output(Command::new("modprobe").args(["-r", "null_blk"]));
    }
}

fn null_blk(shape: Shape) -> Result<Box<dyn Subject>> {
    // It completes a request where it was submitted, at once, as ublk's null targets do.
    let options = [
        "nr_devices=1".to_owned(),
        "queue_mode=2".to_owned(),
        "irqmode=0".to_owned(),
        "gb=8".to_owned(),
        format!("submit_queues={}", shape.queues),
        format!("hw_queue_depth={}", shape.depth),
    ];
    command::output(Command::new("modprobe").arg("null_blk").args(options))?;
    Ok(Box::new(NullBlk))
}

impl Subject for Mapped {
    fn path(&self) -> &Path {
        Self::path(self)
    }

    fn servers(&self) -> Vec<u32> {
        Vec::new()
    }
}

fn dm_linear(_: Shape) -> Result<Box<dyn Subject>> {
    Ok(Box::new(peers::linear(FAST, super::RAM_DISK_MIB << 20)?))
}

/// dm-cache promotes behind the reads.
const WARM_LIMIT: Duration = Duration::from_secs(60);
/// Sectors that may be on their way to its fast device: the default, 2048, only makes the warming slow.
const MIGRATION_THRESHOLD: u64 = 204_800;

struct Warm(DmCache);

impl Subject for Warm {
    fn path(&self) -> &Path {
        self.0.path()
    }

    fn servers(&self) -> Vec<u32> {
        Vec::new()
    }
}

/// dm-cache with all that is read in its cache, whose pages are then discarded.
fn dm_cache(_: Shape) -> Result<Box<dyn Subject>> {
    let cache = DmCache::create(Path::new(FAST), RANGE_MIB << 20)?;
    cache.set_migration_threshold(MIGRATION_THRESHOLD)?;
    let job = Job {
        device: cache.path(),
        block: "4k",
        range_mib: Some(RANGE_MIB),
    };
    let started = Instant::now();
    while started.elapsed() < WARM_LIMIT {
        // Random reads: what is read in order smq promotes only slowly.
        let before = cache.counts()?;
        fio::run(&job, &[])?;
        let after = cache.counts()?.since(before);
        if after.hits == after.reads {
            hits::discard_fast()?;
            return Ok(Box::new(Warm(cache)));
        }
    }
    bail!("dm-cache still misses after {} s", WARM_LIMIT.as_secs())
}
