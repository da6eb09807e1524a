//! The RAM disks that hold the data of all subjects.

use std::process::Command;

use anyhow::Result;

use crate::discard::discard;
use crate::sizes::RAM_DISK_MIB;
use host::command;

/// The ram disk that is a cache's fast device, and the backing of what has no cache.
pub const FAST: &str = "/dev/ram0";
/// The ram disk that is a cache's backing.
pub const SLOW: &str = "/dev/ram1";
/// The ram disk of dm-cache's metadata.
pub(crate) const META: &str = "/dev/ram2";

/// Makes the RAM disks, of this many MiB each. They are empty: memory is taken only for what is written.
pub fn make_ram_disks(mib: u64) -> Result<()> {
    let size = format!("rd_size={}", mib << 10);
    command::output(Command::new("modprobe").args(["brd", "rd_nr=3", &size])).map(drop)
}

/// Writes zeroes over the first MiBs of a device.
pub fn fill(device: &str, mib: u64) -> Result<()> {
    let mut dd = Command::new("dd");
    dd.args(["if=/dev/zero", &format!("of={device}"), "oflag=direct", "bs=1M"])
        .arg(format!("count={mib}"));
    command::output(&mut dd).map(drop)
}

/// Discards all pages of a RAM disk, even while a cache uses it.
pub fn empty(device: &str) -> Result<()> {
    discard(device, RAM_DISK_MIB << 20)
}
