//! The two disks of a write-back cache: memory behind a volatile write cache, so that flushes arrive and are counted.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use host::command;

use crate::peers::wait_until;

/// The cache device.
pub(crate) const FAST: &str = "/dev/nullb0";
/// The backing.
pub(crate) const SLOW: &str = "/dev/nullb1";
/// How they are made, as modprobe takes it.
const OPTIONS: &str =
    "nr_devices=2 queue_mode=2 irqmode=0 memory_backed=1 cache_size=64 gb=1 bs=512 hw_queue_depth=128";

/// Both disks, empty; dropped, they are gone.
pub(crate) struct Disks;

impl Disks {
    pub(crate) fn make() -> Result<Self> {
        ensure!(
            !Path::new("/sys/module/null_blk").exists(),
            "null_blk is loaded already, with other disks"
        );
        let mut modprobe = Command::new("modprobe");
        modprobe.arg("null_blk").args(OPTIONS.split(' '));
        command::output(&mut modprobe)?;
        Ok(Self)
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        // bcache lets its devices go a little later than it says. What cannot be unloaded is in the way of the next ones.
        let _ = wait_until("null_blk is unloaded", || {
            command::output(Command::new("rmmod").arg("null_blk")).is_ok()
        });
    }
}
