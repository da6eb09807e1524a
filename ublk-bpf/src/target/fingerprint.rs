//! Which backing a cache was filled from, so that a cache kept over a restart is never taken for another's data.
//!
//! An [`Identity`] is taken when a device stops and compared when the next one starts, after any number of reboots.
//! What it notices in between:
//!
//! - **A file**: another file, another size, and every change made through a file system that keeps time stamps:
//!   inode, size, and the modification and status-change times are those of before, to the nanosecond. (The
//!   number of the device is not kept, for it changes with reboots; the file system's UUID is.)
//! - **A block device**: another device or partition, as far as the kernel names it (WWID, serial number, the UUID
//!   of a device-mapper or md device, a loop device's file); another size; within one boot everything that was
//!   written or discarded through this device, by the kernel's counters; and any change to the first or last 64 KiB
//!   or to one of 64 samples of 4 KiB between them. File systems write their superblock on every mount, which lies
//!   there.
//! - **Memory** and nothing never match: what they held is gone.
//!
//! What it **cannot** notice:
//!
//! - on a block device, a write made elsewhere between a stop and a start with a reboot in between (another
//!   system was booted, the disk was in another machine) that touches no sample, such as one sector written with
//!   `dd` into the middle;
//! - the same within one boot, if it went to the same storage by another way than this device: to the whole
//!   disk where this is a partition, to a loop device's file, below a device-mapper device, or on the other end of
//!   a network; or if counting is off (`queue/iostats`) or a driver does not count (brd);
//! - to a file, what does not change its time stamps: writes to the disk below its file system, or a change
//!   in the same tick of a coarse clock as the device's own last write;
//! - a file system that was set back as a whole to an older image of itself in which this very file was the same.
//!
//! Who does such things resets the cache.

mod saved;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use ublk_bpf_abi::SECTOR_SIZE;

use super::sysfs::BlockSysfs;
use super::{Kind, Size, Target};
use crate::sys;
use crate::sys::aligned::Aligned;

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

/// What tells a file from others, and from itself changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    bytes: u64,
    inode: u64,
    /// Zero if the file system has none.
    file_system: [u8; 16],
    modified: Stamp,
    changed: Stamp,
}

/// What tells a block device from others, and from itself changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockIdentity {
    bytes: u64,
    name: Name,
    /// Which boot the counters count from; zero if unknown.
    boot: [u8; 16],
    sectors_written: u64,
    sectors_discarded: u64,
    /// CRC-32C of the sampled content.
    samples: u32,
}

/// What tells memory from other memory: it was this process's at that time.
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

/// What the kernel calls a device, in at most [`Name::LEN`] bytes of printable text; empty if it has no name for it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name(String);

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
    /// Identifies the target as it is now. Before this is kept, everything written to the target must be durable
    /// (fsync): time stamps and counters that are yet to move would not match later.
    ///
    /// Of a block device this reads up to 384 KiB in up to 66 places.
    ///
    /// # Errors
    /// If the target cannot be read.
    pub fn of(target: &Target) -> io::Result<Self> {
        let bytes = target.facts.sectors * SECTOR_SIZE;
        match (target.kind, &target.file) {
            (Kind::File, Some(file)) => FileIdentity::of(file, bytes).map(Self::File),
            (Kind::Block, Some(file)) => BlockIdentity::of(file, bytes).map(Self::Block),
            (kind, _) => Ok(Self::Volatile(VolatileIdentity {
                bytes,
                memory: kind == Kind::Memory,
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

    /// `Ok` if `now` is the same backing as `self`, the saved one, and holds the same data, as far as can be seen.
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
        Ok(Self {
            bytes,
            inode: found.ino(),
            file_system: sys::file::file_system_uuid(file).unwrap_or_default(),
            modified: Stamp {
                seconds: found.mtime(),
                nanoseconds: found.mtime_nsec(),
            },
            changed: Stamp {
                seconds: found.ctime(),
                nanoseconds: found.ctime_nsec(),
            },
        })
    }

    fn unchanged(&self, now: &Self) -> Result<(), Difference> {
        if self.modified != now.modified {
            return Err(Difference::Changed(
                "the file was modified later, or is an older copy",
            ));
        }
        // Whoever sets the modification time back cannot set this one.
        if self.changed != now.changed {
            return Err(Difference::Changed("its status-change time is another"));
        }
        Ok(())
    }
}

impl BlockIdentity {
    fn of(file: &File, bytes: u64) -> io::Result<Self> {
        let sysfs = BlockSysfs::find(file.metadata()?.rdev()).ok_or(io::ErrorKind::NotFound)?;
        let (sectors_written, sectors_discarded) = counters(&sysfs);
        Ok(Self {
            bytes,
            name: name(&sysfs),
            boot: boot(),
            sectors_written,
            sectors_discarded,
            samples: samples(file, bytes)?,
        })
    }

    fn unchanged(&self, now: &Self) -> Result<(), Difference> {
        let counted = |of: &Self| (of.sectors_written, of.sectors_discarded);
        if self.boot != [0; 16] && self.boot == now.boot && counted(self) != counted(now) {
            return Err(Difference::Changed(
                "the device was written to, or taken out and put back",
            ));
        }
        if self.samples != now.samples {
            return Err(Difference::Changed("samples of its content are different"));
        }
        Ok(())
    }
}

/// Where the kernel keeps a name of a disk that stays with it, the best first, and what it is.
const NAMES: [(&str, &str); 8] = [
    ("wwid", "WWID"),
    ("device/wwid", "WWID"),
    ("dm/uuid", "device-mapper UUID"),
    ("md/uuid", "md UUID"),
    ("serial", "serial number"),
    ("device/serial", "serial number"),
    ("dm/name", "device-mapper name"),
    ("loop/backing_file", "loop device on"),
];

fn name(sysfs: &BlockSysfs) -> Name {
    let disk = NAMES
        .iter()
        .find_map(|(file, what)| Some(format!("{what} {}", sysfs.disk_text(file)?)));
    let part = sysfs.device_text("partition").map(|number| {
        let start = sysfs.device("start").unwrap_or(0);
        format!("partition {number} at sector {start}")
    });
    let parts: Vec<String> = part.into_iter().chain(disk).collect();
    Name::new(&parts.join(", "))
}

/// Sectors written and sectors discarded through the device since it was attached
/// (Documentation/block/stat.rst: the 7th and the 14th number).
fn counters(sysfs: &BlockSysfs) -> (u64, u64) {
    let stat = sysfs.device_text("stat").unwrap_or_default();
    let number = |at| {
        let word: Option<&str> = stat.split_whitespace().nth(at);
        word.and_then(|word| word.parse().ok()).unwrap_or(0)
    };
    (number(6), number(13))
}

fn boot() -> [u8; 16] {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    u128::from_str_radix(&text.trim().replace('-', ""), 16)
        .unwrap_or(0)
        .to_be_bytes()
}

/// What is read at either end.
const END: u64 = 64 << 10;
/// How much a sample between the ends has.
const SAMPLE: u64 = 4096;
/// How many there are.
const SAMPLES: u64 = 64;

/// The CRC-32C of both ends and of the samples between them. `bytes` is whole logical blocks.
fn samples(file: &File, bytes: u64) -> io::Result<u32> {
    let mut crc = 0;
    let mut buffer = Aligned::new(64 << 10);
    for (at, len) in sampled_ranges(bytes) {
        let into = &mut buffer[..len];
        file.read_exact_at(into, at)?;
        crc = crc32c::crc32c_append(crc, into);
    }
    Ok(crc)
}

/// Offsets and lengths of what is sampled: aligned to a logical block of at most 4 KiB if `bytes` is.
fn sampled_ranges(bytes: u64) -> Vec<(u64, usize)> {
    let len = |len: u64| usize::try_from(len).unwrap_or(usize::MAX);
    if bytes <= 2 * END {
        // All of it.
        let first = bytes.min(END);
        return vec![(0, len(first)), (first, len(bytes - first))];
    }
    // One in each of equal parts of what is between the ends, at a place that looks random and is always the same.
    let part = (bytes - 2 * END) / SAMPLES / SAMPLE;
    let between = (0..SAMPLES).filter(|_| part > 0).map(|at| {
        let inside = scatter(at) % part;
        (END + (at * part + inside) * SAMPLE, len(SAMPLE))
    });
    let ends = [(0, len(END)), (bytes - END, len(END))];
    ends.into_iter().chain(between).collect()
}

/// A number that looks random, of a number (the SplitMix64 finaliser).
pub(crate) const fn scatter(of: u64) -> u64 {
    let x = of.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Name {
    /// Room for a name on the disk.
    const LEN: usize = 96;

    /// The text, made printable; of one that is too long the beginning and a checksum of all.
    fn new(text: &str) -> Self {
        let text: String = text
            .chars()
            .map(|c| if c.is_control() { '?' } else { c })
            .collect();
        if text.len() <= Self::LEN {
            return Self(text);
        }
        let sum = format!("~{:08x}", crc32c::crc32c(text.as_bytes()));
        let cut = text.floor_char_boundary(Self::LEN - sum.len());
        Self(format!("{}{sum}", &text[..cut]))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        (!text.chars().any(char::is_control)).then(|| Self(text.to_owned()))
    }
}

/// 128 bits, written as a UUID.
pub(crate) struct Uuid(pub(crate) [u8; 16]);

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = format!("{:032x}", u128::from_be_bytes(self.0));
        let (a, b, c, d, e) = (&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
        write!(f, "{a}-{b}-{c}-{d}-{e}")
    }
}
