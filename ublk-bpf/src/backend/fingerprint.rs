//! Which backing a cache was filled from, and in what state, so that a cache that is kept over a restart is never taken for
//! another's data.
//!
//! An [`Identity`] is taken when a device stops and compared with that of the next start, after any number of reboots.
//! The comparison has three results:
//!
//! - a **difference** ([`Identity::compare`]): another backing, another size, or a changed one. The cache is refused.
//! - **proof** that nothing has changed ([`Identity::unproven`] is `None`). The cache is warm.
//! - **neither**: what is compared is equal, but would be after some changes too. No cached block is believed before it was
//!   compared with the backing.
//!
//! Nothing is inferred from numbers that start again: counters count only together with the boot's id and with the disk's
//! sequence number (`/sys/block/*/diskseq`), which the kernel gives to no other disk, and not to the same one again, before
//! the next boot (block/genhd.c, `inc_diskseq`).
//!
//! # What proves it, for each kind of backing
//!
//! | backing | its content changes between stop and start by | what shows it | proof |
//! |---|---|---|---|
//! | file on ext4, xfs, btrfs or tmpfs | writes, `mmap`, truncation, loop devices, clones: all through the file system | inode, file system's UUID, size, modification and status-change time; these file systems give a change after our last look another time even in the same tick (`FS_MGTIME`) | in the same boot |
//! | the same, time stamps of whole seconds (ext4 with inodes of 128 bytes) | a change in the same second | nothing | none |
//! | file on other file systems (network, FUSE, overlay, FAT, f2fs, ...) | another client, the lower file system, a change in the same tick | the same numbers, if the server or the clock says so | none |
//! | any file | replaced, or another of its name | inode, UUID | refused |
//! | any file, after a reboot | a power failure that kept new data and lost the new time stamp; another system | nothing | none |
//! | disk of its own driver (SCSI, NVMe on PCIe, virtio, MMC), null_blk | writes, write-zeroes, discards, through it or a partition of it | sectors written and discarded (`stat`) | in the same boot, same `diskseq`, request-based and with `queue/iostats` on |
//! | the same, taken out and put back; null_blk switched off and on | anything | `diskseq` | none |
//! | partition | through itself; through the whole disk | its counters; what the disk counts more than all of its partitions | as the disk, same start sector |
//! | loop device on a file | through itself or the file; attached again | the file's inode and time stamps, as above; offset and size | as the file, detached or not |
//! | loop device on a block device | through itself or that device | its own counters alone | none |
//! | device-mapper, md, bcache | another table, a merged snapshot, writes below, made anew | name, UUID, own counters, `diskseq` | none |
//! | zram | `reset`, which keeps the disk and zeroes its counters | own counters | none |
//! | brd, pmem | anything: not counted, or mapped | `diskseq` if the module was loaded anew | none |
//! | nbd, rbd, iSCSI, Fibre Channel, NVMe over fabrics, DRBD | another client; connected to another export | own counters | none |
//! | ublk | whatever its server does; another server by recovery | own counters | none |
//! | any block device, after a reboot | anything | samples (below) | none |
//! | memory, null | gone with the server | | never the same |
//!
//! In every row, a block device's counters that moved, a changed sample (64 KiB at each end and 64 places of 4 KiB between
//! them), another name and another size are differences.
//!
//! # What passes for unchanged although it was changed
//!
//! - to a file: writes below its file system (`debugfs`, a restored image of the whole file system in which this file has
//!   the same time stamps); on tmpfs, stores through a writable mapping that another process had touched before the stop;
//! - to a disk: commands that bypass the block layer (SG_IO and NVMe pass-through, a sanitise or format), writes
//!   while the machine hibernates, and by the host of a virtual disk or another initiator of a shared one;
//! - anything while root switches `queue/iostats` off and on again.
//!
//! After such an operation, reset the cache.

mod name;
mod samples;
mod saved;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;

use ublk_bpf_abi::SECTOR_SIZE;

use self::name::{Name, name};
use self::samples::samples;
use super::sysfs::BlockSysfs;
use super::{Backend, BackingKind, Size};
use crate::sys;

pub(crate) use name::Uuid;
pub(crate) use samples::scatter;
pub(crate) use saved::SavedIdentity;

/// Which backing, and in what state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A regular file.
    File(FileIdentity),
    /// A block device.
    Block(BlockIdentity),
    /// Memory or nothing: it matches no other, itself of another time included.
    Volatile(VolatileIdentity),
}

/// Identifies a file and its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    bytes: u64,
    inode: u64,
    /// Zero if the file system has none.
    file_system: [u8; 16],
    modified: Stamp,
    changed: Stamp,
    /// Which boot it was seen in; zero if unknown.
    boot: [u8; 16],
    /// Every later change gives it other time stamps.
    exact: bool,
}

/// Identifies a block device and its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockIdentity {
    bytes: u64,
    name: Name,
    /// Which boot the counters count from; zero if unknown.
    boot: [u8; 16],
    /// The disk's sequence number in that boot; zero if unknown.
    disk_sequence: u64,
    /// Written and discarded through the device.
    counted: Counters,
    /// The same of a partition's disk, in no partition of it.
    beside: Counters,
    /// Nothing changes the content without being counted.
    counts_all: bool,
    /// The file that a loop device is attached to, if its time stamps are exact.
    file: Option<FileIdentity>,
    /// CRC-32C of the sampled content.
    samples: u32,
}

/// Sectors written to and discarded from a block device since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counters {
    written: u64,
    discarded: u64,
}

/// Identifies memory: a number that only this process has for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolatileIdentity {
    bytes: u64,
    memory: bool,
    nonce: [u8; 16],
}

/// A time stamp of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    seconds: i64,
    nanoseconds: i64,
}

/// How a backing differs from the one that a cache was saved with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// It is not the same file or device.
    #[error("it was made for another backing, {saved}, and this one is {now}")]
    Another {
        /// The one that it was saved with, in words.
        saved: String,
        /// This one.
        now: String,
    },
    /// Its size is another.
    #[error("its backing had {saved} bytes when the cache was saved, and has {now} now")]
    Resized {
        /// Bytes then.
        saved: u64,
        /// Bytes now.
        now: u64,
    },
    /// It was written to, or may have been.
    #[error("its backing was changed since the cache was saved: {0}")]
    Changed(&'static str),
    /// Memory does not outlive its server.
    #[error("its backing was memory, which is gone")]
    Gone,
}

impl Identity {
    /// Identifies the backend as it is now. Before this is kept, everything written to the backend must be durable
    /// (fsync): time stamps and counters that are yet to move would not match later.
    ///
    /// Of a block device this reads up to 384 KiB in up to 66 places.
    ///
    /// # Errors
    /// If the backend cannot be read.
    pub fn of(backend: &Backend) -> io::Result<Self> {
        let bytes = backend.facts.sectors * SECTOR_SIZE;
        match (backend.kind(), backend.file()) {
            (BackingKind::File, Some(file)) => FileIdentity::of(file, bytes).map(Self::File),
            (BackingKind::Block, Some(file)) => BlockIdentity::of(file, bytes).map(Self::Block),
            (kind, _) => Ok(Self::Volatile(VolatileIdentity {
                bytes,
                memory: kind == BackingKind::Memory,
                nonce: sys::process::random()?,
            })),
        }
    }

    /// The backing's capacity in bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        match self {
            Self::File(file) => file.bytes,
            Self::Block(block) => block.bytes,
            Self::Volatile(volatile) => volatile.bytes,
        }
    }

    /// Whether the backing ends with its server.
    #[must_use]
    pub const fn is_volatile(&self) -> bool {
        matches!(self, Self::Volatile(_))
    }

    /// Whether it is told from every other backing: by the file system's id and the inode, or by the device's name.
    pub(crate) fn is_named(&self) -> bool {
        match self {
            Self::File(file) => file.file_system != [0; 16],
            Self::Block(block) => !block.name.0.is_empty(),
            Self::Volatile(_) => false,
        }
    }

    /// `Ok` if nothing shows that `now` is another backing than `self`, the saved one, or holds other data. That alone
    /// proves nothing: see [`unproven`](Self::unproven).
    ///
    /// # Errors
    /// Says the first difference.
    pub fn compare(&self, now: &Self) -> Result<(), Difference> {
        self.same_backing(now)?;
        match (self, now) {
            (Self::File(saved), Self::File(now)) => saved.unchanged(now),
            (Self::Block(saved), Self::Block(now)) => saved.unchanged(now),
            _ => Err(Difference::Gone),
        }
    }

    /// Why the backing may hold other data though [`compare`](Self::compare) finds no difference, in words that follow "its
    /// backing"; `None`: it holds the same.
    #[must_use]
    pub fn unproven(&self, now: &Self) -> Option<&'static str> {
        match (self, now) {
            (Self::File(saved), Self::File(now)) => saved.unproven(now),
            (Self::Block(saved), Self::Block(now)) => saved.unproven(now),
            _ => Some("was memory, which is gone"),
        }
    }

    /// `Ok` if `now` is the same file or device as `self`, of the same size, whatever it holds.
    ///
    /// # Errors
    /// Says the first difference.
    pub fn same_backing(&self, now: &Self) -> Result<(), Difference> {
        let same = match (self, now) {
            (Self::File(saved), Self::File(now)) => {
                (saved.inode, saved.file_system) == (now.inode, now.file_system)
            }
            (Self::Block(saved), Self::Block(now)) => saved.name == now.name,
            (Self::Volatile(_), Self::Volatile(_)) => return Err(Difference::Gone),
            _ => false,
        };
        if !same {
            return Err(Difference::Another {
                saved: self.to_string(),
                now: now.to_string(),
            });
        }
        if self.bytes() != now.bytes() {
            return Err(Difference::Resized {
                saved: self.bytes(),
                now: now.bytes(),
            });
        }
        Ok(())
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = Size(self.bytes());
        match self {
            Self::File(file) if file.file_system == [0; 16] => {
                write!(f, "a file of {size} (inode {})", file.inode)
            }
            Self::File(file) => write!(
                f,
                "a file of {size} (inode {} of file system {})",
                file.inode,
                Uuid(file.file_system)
            ),
            Self::Block(block) if block.name.0.is_empty() => write!(f, "a block device of {size}"),
            Self::Block(block) => write!(f, "a block device of {size} ({})", block.name.0),
            Self::Volatile(VolatileIdentity { memory: true, .. }) => write!(f, "memory of {size}"),
            Self::Volatile(_) => write!(f, "nothing of {size}"),
        }
    }
}

impl FileIdentity {
    fn of(file: &File, bytes: u64) -> io::Result<Self> {
        let found = file.metadata()?;
        let changed = Stamp {
            seconds: found.ctime(),
            nanoseconds: found.ctime_nsec(),
        };
        let magic = sys::file::file_system_magic(file)?;
        Ok(Self {
            bytes,
            inode: found.ino(),
            file_system: sys::file::file_system_uuid(file).unwrap_or_default(),
            modified: Stamp {
                seconds: found.mtime(),
                nanoseconds: found.mtime_nsec(),
            },
            changed,
            boot: boot(),
            // A whole second is one that was cut to seconds, or nearly so.
            exact: EXACT.contains(&magic) && changed.nanoseconds != 0,
        })
    }

    fn unchanged(&self, now: &Self) -> Result<(), Difference> {
        if self.modified != now.modified {
            return Err(Difference::Changed(
                "the file was modified later, or is an older copy",
            ));
        }
        // A program that sets the modification time back cannot set this one.
        if self.changed != now.changed {
            return Err(Difference::Changed("its status-change time is another"));
        }
        Ok(())
    }

    fn unproven(&self, now: &Self) -> Option<&'static str> {
        if !is_same_boot(self.boot, now.boot) {
            Some("was on a machine that has been booted since, which may have lost time stamps")
        } else if !self.exact || !now.exact {
            Some("is a file whose file system does not give every change another time stamp")
        } else {
            None
        }
    }
}

#[cfg(test)]
impl Identity {
    /// This one as if its file system gave every change another time stamp, wherever the tests run.
    pub(crate) fn with_exact_time_stamps(mut self) -> Self {
        if let Self::File(file) = &mut self {
            file.exact = true;
        }
        self
    }

    pub(crate) fn in_another_boot(mut self) -> Self {
        match &mut self {
            Self::File(file) => file.boot[0] ^= 1,
            Self::Block(block) => block.boot[0] ^= 1,
            Self::Volatile(_) => {}
        }
        self
    }
}

/// File systems that give a change after a look at the time stamps other ones, by `statfs(2)`: those with `FS_MGTIME`
/// (Linux 6.13; fs/inode.c, `inode_set_ctime_current`).
const EXACT: [i64; 4] = [
    libc::EXT4_SUPER_MAGIC,
    libc::XFS_SUPER_MAGIC,
    libc::BTRFS_SUPER_MAGIC,
    libc::TMPFS_MAGIC,
];

impl BlockIdentity {
    fn of(file: &File, bytes: u64) -> io::Result<Self> {
        let sysfs = BlockSysfs::find(file.metadata()?.rdev()).ok_or(io::ErrorKind::NotFound)?;
        let beside = beside(&sysfs);
        Ok(Self {
            bytes,
            name: name(&sysfs),
            boot: boot(),
            disk_sequence: sysfs.disk_sequence().unwrap_or(0),
            counted: counters(&sysfs.device_text("stat").unwrap_or_default()),
            counts_all: beside.is_some() && sysfs.counts_all(),
            beside: beside.unwrap_or_default(),
            file: loop_file(&sysfs).filter(|file| file.exact),
            samples: samples(file, bytes)?,
        })
    }

    fn unchanged(&self, now: &Self) -> Result<(), Difference> {
        let same_boot = is_same_boot(self.boot, now.boot);
        // Caches of older programs do not have it.
        if same_boot && (self.disk_sequence == 0 || self.disk_sequence == now.disk_sequence) {
            if self.counted != now.counted {
                return Err(Difference::Changed(
                    "the device was written to, or taken out and put back",
                ));
            }
            if self.counts_all && now.counts_all && self.beside != now.beside {
                return Err(Difference::Changed(
                    "its whole disk was written to, or partitioned again",
                ));
            }
        }
        if let Some((saved, now)) = self.file.as_ref().zip(now.file.as_ref()) {
            let is_same = (saved.inode, saved.file_system) == (now.inode, now.file_system);
            if same_boot && !is_same {
                return Err(Difference::Changed("the loop device is attached to another file"));
            }
            saved.unchanged(now)?;
        }
        if self.samples != now.samples {
            return Err(Difference::Changed("samples of its content are different"));
        }
        Ok(())
    }

    fn unproven(&self, now: &Self) -> Option<&'static str> {
        if !is_same_boot(self.boot, now.boot) {
            return Some("is a block device of a machine that has been booted since");
        }
        if let Some((saved, now)) = self.file.as_ref().zip(now.file.as_ref()) {
            return saved.unproven(now);
        }
        if self.disk_sequence == 0 || self.disk_sequence != now.disk_sequence {
            return Some("is a block device that was made or attached anew");
        }
        let counts_all = self.counts_all && now.counts_all;
        (!counts_all).then_some("is a block device that can be changed without being counted")
    }
}

fn is_same_boot(saved: [u8; 16], now: [u8; 16]) -> bool {
    saved != [0; 16] && saved == now
}

/// The file that a loop device is attached to, if it can still be had by its path.
fn loop_file(sysfs: &BlockSysfs) -> Option<FileIdentity> {
    let attached = sysfs.attached().filter(|attached| attached.block_device == 0)?;
    let path = sysfs.device_text("loop/backing_file")?;
    let file = File::open(path).ok()?;
    let found = file.metadata().ok()?;
    let is_it = (found.dev(), found.ino()) == (attached.device, attached.inode);
    FileIdentity::of(&file, 0).ok().filter(|_| is_it)
}

/// What a partition's disk counts more than all of its partitions: what went past them. Nothing for what is no partition;
/// `None` if the disk is too busy to be read at one moment.
fn beside(sysfs: &BlockSysfs) -> Option<Counters> {
    /// Reads in a row that others' writes may spoil.
    const TRIES: usize = 1000;
    if sysfs.whole_disk().is_none() {
        return Some(Counters::default());
    }
    let of_disk = || counters(&sysfs.disk_text("stat").unwrap_or_default());
    (0..TRIES).find_map(|_| {
        let disk = of_disk();
        // Wrapping, for a try that is spoilt.
        let beside = sysfs.partitions().fold(disk, |left, partition| {
            let inside = counters(&partition);
            Counters {
                written: left.written.wrapping_sub(inside.written),
                discarded: left.discarded.wrapping_sub(inside.discarded),
            }
        });
        (of_disk() == disk).then_some(beside)
    })
}

/// What `stat` says (Documentation/block/stat.rst: the 7th and the 14th number).
fn counters(stat: &str) -> Counters {
    let number = |at| {
        let word: Option<&str> = stat.split_whitespace().nth(at);
        word.and_then(|word| word.parse().ok()).unwrap_or(0)
    };
    Counters {
        written: number(6),
        discarded: number(13),
    }
}

fn boot() -> [u8; 16] {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    u128::from_str_radix(&text.trim().replace('-', ""), 16)
        .unwrap_or(0)
        .to_be_bytes()
}
