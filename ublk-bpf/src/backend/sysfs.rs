//! What `/sys` says about a block device.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::sys::loop_device::{self, Attached};

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
        text(&self.disk()?.join(name))
    }

    /// What the kernel calls the device, which is also its node's name in `/dev`.
    pub(super) fn name(&self) -> String {
        let name = self.device.file_name().unwrap_or_default();
        // A slash in a name is an exclamation mark here.
        name.to_string_lossy().replace('!', "/")
    }

    /// The number of the whole disk, and the sector at which this partition of it starts; `None` if it is none.
    pub(super) fn whole_disk(&self) -> Option<(u64, u64)> {
        self.device_text("partition")?;
        Some((number(self.device.parent()?)?, self.device("start")?))
    }

    /// The whole disk's folder.
    fn disk(&self) -> Option<&Path> {
        self.queue.parent()
    }

    /// The disk's sequence number: no two disks of a boot have the same, nor one disk before and after another medium or
    /// file was attached.
    pub(super) fn disk_sequence(&self) -> Option<u64> {
        self.disk_text("diskseq")?
            .parse()
            .ok()
            .filter(|&number| number != 0)
    }

    /// `stat` of every partition of the disk.
    pub(super) fn partitions(&self) -> impl Iterator<Item = String> {
        let entries = self.disk().and_then(|disk| fs::read_dir(disk).ok());
        let folders = entries.into_iter().flatten().flatten().map(|entry| entry.path());
        let partitions = folders.filter(|folder| folder.join("partition").is_file());
        partitions.filter_map(|folder| text(&folder.join("stat")))
    }

    /// Whether nothing changes the disk's content without being counted in `stat`: a disk behind a driver of its own, where
    /// it is counted at all.
    pub(super) fn counts_all(&self) -> bool {
        // The block layer counts requests. What takes bios counts by itself, or not (brd).
        let is_counted =
            self.disk().is_some_and(|disk| disk.join("mq").is_dir()) && self.queue("iostats") == Some(1);
        is_counted && !self.is_fed_from_elsewhere()
    }

    /// Whether its content is on another device or machine, and can change without a request to this disk.
    fn is_fed_from_elsewhere(&self) -> bool {
        let path = self.device.to_string_lossy();
        // Loop, device-mapper, md, zram, nbd, ublk, NVMe over fabrics and with several paths are under `virtual`. So is
        // null_blk, whose content is its own.
        let is_virtual = path.contains("/virtual/") && !self.is_null_blk();
        // Sessions are iSCSI's, remote ports Fibre Channel's.
        is_virtual
            || ["/rbd/", "/session", "/rport-", "/ublk"]
                .iter()
                .any(|part| path.contains(part))
    }

    /// By the name of its major number.
    fn is_null_blk(&self) -> bool {
        let number = self.disk().and_then(number);
        let drivers = fs::read_to_string("/proc/devices").unwrap_or_default();
        let (_, drivers) = drivers.split_once("Block devices:").unwrap_or_default();
        number.is_some_and(|number| {
            let line = format!("{} nullb", libc::major(number));
            drivers.lines().any(|driver| driver.trim() == line)
        })
    }

    /// What a loop device is attached to; `None` if it is none, or to nothing.
    pub(super) fn attached(&self) -> Option<Attached> {
        let path = self.device_text("loop/backing_file")?;
        let node = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(Path::new("/dev").join(self.name()));
        let asked = node.ok().and_then(|file| loop_device::attached(&file).ok());
        // Without its node, as in some containers, use its path.
        asked.or_else(|| {
            let found = fs::metadata(Path::new(&path)).ok()?;
            Some(Attached {
                device: found.dev(),
                inode: found.ino(),
                block_device: found.rdev(),
                offset: self.device("loop/offset").unwrap_or(0),
            })
        })
    }

    /// The numbers of the devices that it consists of.
    pub(super) fn slaves(&self) -> impl Iterator<Item = u64> {
        let slaves = fs::read_dir(self.device.join("slaves"));
        let slaves = slaves.into_iter().flatten().flatten();
        slaves.filter_map(|entry| number(&entry.path()))
    }

    /// A number of its queue.
    pub(super) fn queue(&self, name: &str) -> Option<u64> {
        self.queue_text(name)?.parse().ok()
    }

    /// A number of its queue that must fit 32 bits.
    pub(super) fn queue_u32(&self, name: &str) -> Option<u32> {
        self.queue(name)?.try_into().ok()
    }

    /// The latency of its write-back throttling, see [`Facts::throttle`](super::facts::Facts::throttle).
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

/// The number of the device whose folder this is.
fn number(folder: &Path) -> Option<u64> {
    let text = text(&folder.join("dev"))?;
    let (major, minor) = text.split_once(':')?;
    Some(libc::makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// The loop devices that are attached to something: names and numbers.
pub(super) fn attached_loop_devices() -> impl Iterator<Item = (String, u64)> {
    let disks = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    disks.filter_map(|entry| {
        let folder = entry.path();
        folder.join("loop/backing_file").exists().then_some(())?;
        Some((entry.file_name().to_string_lossy().into_owned(), number(&folder)?))
    })
}
