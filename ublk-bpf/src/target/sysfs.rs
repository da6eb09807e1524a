//! What `/sys` says about a block device.

use std::fs;
use std::path::{Path, PathBuf};

/// The folder of one block device in `/sys`.
pub(super) struct BlockSysfs {
    /// The device's own folder: `size`, `ro`, `discard_alignment`.
    device: PathBuf,
    /// The queue's: the device's, or for a partition that of the whole disk.
    queue: PathBuf,
}

impl BlockSysfs {
    /// The folder of the device of this number, if it is one that has a queue.
    pub(super) fn find(dev: u64) -> Option<Self> {
        let device = PathBuf::from(format!(
            "/sys/dev/block/{}:{}",
            libc::major(dev),
            libc::minor(dev)
        ));
        let device = fs::canonicalize(device).ok()?;
        let queue = [device.join("queue"), device.parent()?.join("queue")]
            .into_iter()
            .find(|q| q.is_dir())?;
        Some(Self { device, queue })
    }

    /// A number of the device.
    pub(super) fn device(&self, name: &str) -> Option<u64> {
        fs::read_to_string(self.device.join(name))
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    /// A text of the device, trimmed; `None` if there is none or it is empty.
    pub(super) fn device_text(&self, name: &str) -> Option<String> {
        text(&self.device.join(name))
    }

    /// The same of the whole disk, which a partition is a part of.
    pub(super) fn disk_text(&self, name: &str) -> Option<String> {
        text(&self.queue.parent()?.join(name))
    }

    /// A number of its queue.
    pub(super) fn queue(&self, name: &str) -> Option<u64> {
        self.queue_text(name)?.parse().ok()
    }

    /// A number of its queue that must fit 32 bits.
    pub(super) fn queue_u32(&self, name: &str) -> Option<u32> {
        self.queue(name)?.try_into().ok()
    }

    /// The latency of its write-back throttling, see [`Facts::throttle`](super::Facts::throttle).
    pub(super) fn throttle(&self) -> Option<u64> {
        // What only remaps requests does not throttle; those below it may.
        let is_lowest =
            || fs::read_dir(self.queue.with_file_name("slaves")).is_ok_and(|mut all| all.next().is_none());
        self.queue("wbt_lat_usec").or_else(|| is_lowest().then_some(0))
    }

    /// A text of its queue.
    pub(super) fn queue_text(&self, name: &str) -> Option<String> {
        Some(fs::read_to_string(self.queue.join(name)).ok()?.trim().to_owned())
    }
}

fn text(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// The loop device that a file already backs, by name.
pub(super) fn loop_device_on(file: &Path) -> Option<String> {
    fs::read_dir("/sys/block").ok()?.flatten().find_map(|entry| {
        let backing = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        (Path::new(backing.trim_end_matches('\n')) == file)
            .then(|| entry.file_name().to_string_lossy().into_owned())
    })
}
