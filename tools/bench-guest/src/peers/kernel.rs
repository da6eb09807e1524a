//! Devices that the kernel makes alone, without device-mapper: a plain RAM disk, null_blk, and loop.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::disks::{FAST, empty};
use super::{kernel_version, wait_until};
use crate::subject::{Kind, Raw, Shape, Subject};
use host::command;

pub(crate) const KINDS: [Kind; 3] = [
    Kind {
        name: "brd",
        raw: Raw::Brd,
        options: "a ram disk as it is",
        version: kernel_version,
        start: |_| {
            empty(FAST)?;
            Ok(Box::new(RamDisk))
        },
    },
    Kind {
        name: "null_blk",
        raw: Raw::NullBlk,
        options: "`queue_mode=2 irqmode=0 memory_backed=0`",
        version: kernel_version,
        start: |shape| Ok(Box::new(NullBlk::load(shape)?)),
    },
    Kind {
        name: "loop-direct",
        raw: Raw::Brd,
        options: "`--direct-io=on`, on a ram disk",
        version: kernel_version,
        start: |_| {
            empty(FAST)?;
            Ok(Box::new(Loop::attach(FAST)?))
        },
    },
];

/// A ram disk; it stays.
struct RamDisk;

impl Subject for RamDisk {
    fn path(&self) -> &Path {
        Path::new(FAST)
    }

    fn servers(&self) -> Vec<u32> {
        Vec::new()
    }
}

/// null_blk's only device; dropped, the module is unloaded.
struct NullBlk;

impl NullBlk {
    /// Completes at once, in the submitter's context (irqmode 0), and keeps nothing.
    fn load(shape: Shape) -> Result<Self> {
        let mut modprobe = Command::new("modprobe");
        modprobe.args([
            "null_blk",
            "nr_devices=1",
            "queue_mode=2",
            "irqmode=0",
            "memory_backed=0",
            "gb=1",
            "bs=512",
        ]);
        modprobe.arg(format!("submit_queues={}", shape.queues));
        modprobe.arg(format!("hw_queue_depth={}", shape.depth));
        command::output(&mut modprobe)?;
        let device = Self;
        let path = device.path();
        ensure!(
            path.exists(),
            "null_blk is loaded, but made no {}",
            path.display()
        );
        Ok(device)
    }
}

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
        // If it cannot be unloaded, the next one fails and says so.
        let _ = command::output(Command::new("rmmod").arg("null_blk"));
    }
}

/// A loop device, with direct I/O to its block device: no file system is between them. Its one
/// queue of depth 128 is the module's default.
struct Loop {
    path: PathBuf,
}

impl Loop {
    fn attach(device: &str) -> Result<Self> {
        let mut losetup = Command::new("losetup");
        let said = command::output(losetup.args(["--find", "--show", "--direct-io=on", device]))?;
        let attached = Self {
            path: PathBuf::from(said.trim()),
        };
        let direct = attached.settings().join("dio");
        let is_direct =
            fs::read_to_string(&direct).with_context(|| format!("cannot read {}", direct.display()))?;
        ensure!(
            is_direct.trim() == "1",
            "loop uses no direct I/O on {device}, though asked to"
        );
        Ok(attached)
    }

    /// What the kernel shows of it while it is attached.
    fn settings(&self) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default();
        Path::new("/sys/block").join(name).join("loop")
    }
}

impl Subject for Loop {
    fn path(&self) -> &Path {
        &self.path
    }

    fn servers(&self) -> Vec<u32> {
        Vec::new()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // As above. The kernel releases a detached file a little later.
        let _ = command::output(Command::new("losetup").arg("--detach").arg(&self.path));
        let _ = wait_until("the loop device is detached", || !self.settings().exists());
    }
}
