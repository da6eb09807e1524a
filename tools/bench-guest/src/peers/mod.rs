//! What ublk-bpf is compared with: every other way to have such a device, each on the same empty ram disks.
//!
//! `cargo xtask bench --only peers` starts each of them once and says what it reads; the host obtains the
//! programs.

mod bcache;
mod check;
mod disks;
mod kernel;
mod mapper;
mod nbd;
mod ublk;
mod warm;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::subject::Kind;

/// Where the guest has the version of the sources that kublk was built from: it does not print it.
pub const KUBLK_VERSION: &str = "/usr/local/share/kublk/version";

pub(crate) use bcache::Bcache;
pub use check::table;
pub use disks::{FAST, SLOW, empty, fill, make_ram_disks};
pub(crate) use mapper::SECTOR;
pub use mapper::{BLOCK, DmCache, Mapped, linear};

/// Gives a disk this I/O scheduler, on a kernel that has mq-deadline loaded. `false`: the disk maps bios, and has none to
/// choose.
pub fn schedule(device: &Path, scheduler: &str) -> Result<bool> {
    let name = device.file_name().context("a device has a name")?;
    let path = Path::new("/sys/class/block").join(name).join("queue/scheduler");
    let can = fs::read_to_string(&path).is_ok_and(|known| known.contains("mq-deadline"));
    if can {
        fs::write(&path, scheduler).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(can)
}

/// What takes longer than this to appear or to end has failed.
const WAIT_LIMIT: Duration = Duration::from_secs(10);

/// All of them. They use the ram disks, which [`make_ram_disks`] has to have made; so only one may exist at a time.
pub fn kinds() -> Vec<Kind> {
    [
        &kernel::KINDS[..],
        &mapper::KINDS,
        &bcache::KINDS,
        &nbd::KINDS,
        &ublk::KUBLK,
        &ublk::RUBLK,
    ]
    .concat()
}

/// The version of what the running kernel makes.
fn kernel_version() -> Result<String> {
    let path = "/proc/sys/kernel/osrelease";
    let release = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    Ok(format!("Linux {}", release.trim()))
}

/// Waits for a condition, which `what` describes.
pub(crate) fn wait_until(what: &str, is_so: impl Fn() -> bool) -> Result<()> {
    let started = Instant::now();
    while !is_so() {
        ensure!(
            started.elapsed() < WAIT_LIMIT,
            "{what}: waited for this for {} s in vain",
            WAIT_LIMIT.as_secs()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_name_stands_for_one_peer() {
        let kinds = kinds();
        let names: BTreeSet<&str> = kinds.iter().map(|kind| kind.name).collect();
        assert_eq!(names.len(), kinds.len());
        for name in ["brd", "dm-cache", "kublk-batch-zc-null", "rublk-loop"] {
            assert!(names.contains(name), "{name}");
        }
    }

    #[test]
    fn waiting_ends_when_it_is_so() {
        let asked = std::cell::Cell::new(0);
        let third_time = || asked.replace(asked.get() + 1) == 2;
        wait_until("the third time", third_time).expect("it comes");
        assert_eq!(asked.get(), 3);
    }
}
