//! bcache, the kernel's other block cache, with everything in it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::disks::{FAST, SLOW, empty};
use super::mapper::{BLOCK, Mapped, SECTOR};
use super::warm::warm;
use super::{kernel_version, wait_until};
use crate::sizes::RANGE_MIB;
use crate::subject::{Kind, Raw, Subject};
use host::command;

/// The name of the one set of caches that exists here.
const SET: &str = "5b9c5a5e-6b2f-4c7d-9f0e-2d1f6f3c8a10";
/// Quiet about a device that is registered already: where there is udev it does that by itself.
const REGISTER: &str = "/sys/fs/bcache/register_quiet";
/// Bytes before the data of a backing device: make-bcache's default of 16 sectors.
const HEAD: u64 = 16 * SECTOR;

pub(crate) const KINDS: [Kind; 1] = [Kind {
    name: "bcache",
    raw: Raw::Brd,
    options: "write-through, `sequential_cutoff` 0, no congestion limits, fully cached",
    version: kernel_version,
    start: |_| Ok(Box::new(OnRam::start()?)),
}];

/// A write-through bcache on the RAM disks that holds all of its device; dropped, it is gone.
struct OnRam {
    cache: Bcache,
    /// In front of the RAM disk, because it counts the reads that reach it, which a RAM disk does not.
    backing: Mapped,
}

impl OnRam {
    fn start() -> Result<Self> {
        // Neither device may look like bcache's already.
        empty(FAST)?;
        empty(SLOW)?;
        let sectors = ((RANGE_MIB << 20) + HEAD) / SECTOR;
        let backing = Mapped::create("bench-backing", &format!("0 {sectors} linear {SLOW} 0"))?;
        let cache = Bcache::create(Path::new(FAST), backing.path(), "writethrough")?;
        let cache = Self { cache, backing };
        // In order and by blocks first: what is promoted by small random reads makes a larger tree, and slower hits.
        read_all(&cache.cache.path)?;
        warm(&cache.cache.path, RANGE_MIB, || cache.misses())?;
        // Of bcache's own data on the cache device only its index would be read again, and that is small
        // enough here to stay in memory.
        empty(FAST)?;
        Ok(cache)
    }

    /// Reads that reached the backing. bcache's own counters lag by many seconds.
    fn misses(&self) -> Result<u64> {
        let stat = block_folder(self.backing.path())?.join("stat");
        let text = fs::read_to_string(&stat).with_context(|| format!("cannot read {}", stat.display()))?;
        let reads = text.split_whitespace().next().and_then(|word| word.parse().ok());
        reads.with_context(|| format!("{} begins with no number", stat.display()))
    }
}

impl Subject for OnRam {
    fn path(&self) -> &Path {
        &self.cache.path
    }

    fn servers(&self) -> Vec<u32> {
        Vec::new()
    }
}

/// A bcache, cold; dropped, it is gone.
pub(crate) struct Bcache {
    path: PathBuf,
}

impl Bcache {
    /// Makes one of two devices that do not look like bcache's yet.
    pub(crate) fn create(fast: &Path, backing: &Path, mode: &str) -> Result<Self> {
        command::output(Command::new("modprobe").arg("bcache"))?;
        let path = make(fast, backing)?;
        let cache = Self { path };
        write(&cache.settings().join("cache_mode"), mode)?;
        cache.bypass_nothing()?;
        Ok(cache)
    }

    /// Caches sequential I/O too, and what takes long.
    fn bypass_nothing(&self) -> Result<()> {
        let set = Path::new("/sys/fs/bcache").join(SET);
        write(&self.settings().join("sequential_cutoff"), "0")?;
        write(&set.join("congested_read_threshold_us"), "0")?;
        write(&set.join("congested_write_threshold_us"), "0")
    }

    fn settings(&self) -> PathBuf {
        Path::new("/sys/block")
            .join(self.path.file_name().unwrap_or_default())
            .join("bcache")
    }

    fn stop(&self) -> Result<()> {
        let set = Path::new("/sys/fs/bcache").join(SET);
        let settings = self.settings();
        write(&settings.join("stop"), "1")?;
        write(&set.join("stop"), "1")?;
        wait_until("bcache has stopped", || !set.exists() && !settings.exists())
    }
}

impl Subject for Bcache {
    fn path(&self) -> &Path {
        &self.path
    }

    fn servers(&self) -> Vec<u32> {
        Vec::new()
    }
}

impl Drop for Bcache {
    fn drop(&mut self) {
        // If it cannot be stopped, the next one fails and says so.
        let _ = self.stop();
    }
}

/// Formats both devices, and tells the kernel, which attaches them as belonging together.
fn make(fast: &Path, backing: &Path) -> Result<PathBuf> {
    let mut format = Command::new("make-bcache");
    format.args(["--cset-uuid", SET, "-C"]);
    command::output(format.arg(fast).arg("-B").arg(backing))?;
    write(Path::new(REGISTER), &fast.to_string_lossy())?;
    write(Path::new(REGISTER), &backing.to_string_lossy())?;
    let link = block_folder(backing)?.join("bcache/dev");
    let device =
        fs::read_link(&link).with_context(|| format!("bcache made no device of {}", backing.display()))?;
    let name = device.file_name().context("bcache's device has no name")?;
    Ok(Path::new("/dev").join(name))
}

fn read_all(device: &Path) -> Result<()> {
    let mut dd = Command::new("dd");
    dd.arg(format!("if={}", device.display()));
    dd.args(["of=/dev/null", &format!("bs={BLOCK}"), "iflag=direct"]);
    command::output(&mut dd).map(drop)
}

fn write(path: &Path, value: &str) -> Result<()> {
    fs::write(path, value).with_context(|| format!("cannot write {value} to {}", path.display()))
}

/// What the kernel shows of a block device.
fn block_folder(device: &Path) -> Result<PathBuf> {
    let meta = fs::metadata(device).with_context(|| format!("cannot read {}", device.display()))?;
    let (major, minor) = (libc::major(meta.rdev()), libc::minor(meta.rdev()));
    Ok(PathBuf::from(format!("/sys/dev/block/{major}:{minor}")))
}
