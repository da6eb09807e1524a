//! Which storage a backend's bytes are on, as far down as the kernel tells, so that none serves twice, whatever paths,
//! links or stacked devices lead to it.
//!
//! | what | what is below it | as the kernel says by |
//! |---|---|---|
//! | a file | somewhere on its file system's device | `st_dev`; not for those without one (btrfs, network file systems, tmpfs) |
//! | a partition | its sectors of the whole disk | `start` |
//! | a loop device | its range of a file or block device | `LOOP_GET_STATUS64`: device and inode, not a path |
//! | device mapper, md, bcache | somewhere on each of their devices | `slaves/` |
//!
//! Two backends that are *somewhere* on the same disk (files of one file system, logical volumes of one volume group) are
//! taken for different: what divides the disk between them keeps them apart. So two device-mapper devices that were
//! mapped by hand to the same sectors are not recognised; neither is one disk behind two paths or two networks.

use std::fs::Metadata;
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use serde::{Deserialize, Serialize};
use ublk_bpf_abi::SECTOR_SIZE;

use super::sysfs::{self, BlockSysfs};

/// More layers and legs than any machine stacks: a bound for what is read in sysfs.
const MAX_EXTENTS: usize = 4096;

/// The storage of one backend, from the backend itself down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StorageStack {
    /// Whether it is only read.
    read_only: bool,
    /// The first one is the backend itself.
    extents: Vec<StorageExtent>,
}

/// A range of a file or of a block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StorageExtent {
    /// Of what: [`file_name`] or [`block_name`].
    on: String,
    /// Bytes.
    from: u64,
    to: u64,
    /// All of the range is the backend's. If not, the backend is somewhere in it.
    whole: bool,
    /// Tells a disk from the one that had its number before; `None` for what is on something else that tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sequence: Option<u64>,
}

/// What the kernel calls a file, until the next boot.
pub(super) fn file_name(device: u64, inode: u64) -> String {
    format!("file {inode} on device {}", numbers(device))
}

/// What the kernel calls a block device, as long as it is there.
pub(super) fn block_name(device: u64) -> String {
    format!("block device {}", numbers(device))
}

fn numbers(device: u64) -> String {
    format!("{}:{}", libc::major(device), libc::minor(device))
}

impl StorageStack {
    /// The storage of what has this metadata; `None` if that is neither a regular file nor a block device.
    #[must_use]
    pub fn of(found: &Metadata, read_only: bool) -> Option<Self> {
        let kind = found.file_type();
        let mut extents = Descent(Vec::new());
        if kind.is_file() {
            extents.add_file(found.dev(), found.ino(), 0..u64::MAX, true);
        } else if kind.is_block_device() {
            extents.add_device(found.rdev());
        } else {
            return None;
        }
        Some(Self {
            read_only,
            extents: extents.0,
        })
    }

    /// The storage that is known by its name alone, see [`Backend::identity`](super::Backend::identity).
    #[must_use]
    pub fn named(identity: &str, read_only: bool) -> Self {
        Self {
            read_only,
            extents: vec![StorageExtent {
                on: identity.to_owned(),
                from: 0,
                to: u64::MAX,
                whole: true,
                sequence: None,
            }],
        }
    }

    /// Whether to use both would be to use some bytes twice, one of the two for writing.
    #[must_use]
    pub fn conflicts_with(&self, other: &Self) -> bool {
        let overlaps = |one: &StorageExtent| other.extents.iter().any(|two| one.overlaps(two));
        !(self.read_only && other.read_only) && self.extents.iter().any(overlaps)
    }

    /// What makes `now`, which has the same name, other storage than this, in words that follow the name; `None` if it is
    /// the same file or device, attached to or cut out of the same.
    #[must_use]
    pub fn difference(&self, now: &Self) -> Option<&'static str> {
        // What is somewhere on a disk may be moved or grown without its users noticing.
        let whole = |of: &'_ Self| -> Vec<StorageExtent> {
            let whole = of.extents.iter().filter(|extent| extent.whole);
            whole.cloned().collect()
        };
        let (before, now) = (whole(self), whole(now));
        let mut pairs = before.iter().zip(&now);
        if before.len() != now.len()
            || pairs
                .clone()
                .any(|(was, is)| (&was.on, was.from) != (&is.on, is.from))
        {
            return Some("is attached to different storage than before");
        }
        let is_new = |was: &StorageExtent, is: &StorageExtent| {
            was.sequence.zip(is.sequence).is_some_and(|(was, is)| was != is)
        };
        pairs
            .any(|(was, is)| is_new(was, is))
            .then_some("is another disk than before: it was made or inserted anew")
    }

    /// Whether both are the same file or device, see [`difference`](Self::difference).
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.difference(other).is_none()
    }

    /// A loop device that writes to the same bytes from above, or beside this storage.
    pub(super) fn loop_device_above(&self) -> Option<String> {
        let below: Vec<&str> = self.extents.iter().map(|extent| extent.on.as_str()).collect();
        sysfs::attached_loop_devices().find_map(|(name, device)| {
            let mut extents = Descent(Vec::new());
            extents.add_device(device);
            let other = Self {
                read_only: false,
                extents: extents.0,
            };
            let is_below = below.contains(&block_name(device).as_str());
            (!is_below && self.conflicts_with(&other)).then_some(name)
        })
    }
}

impl StorageExtent {
    fn new(on: String, range: &Range<u64>, whole: bool) -> Self {
        Self {
            on,
            from: range.start,
            to: range.end,
            whole,
            sequence: None,
        }
    }

    /// Whether some bytes are certainly or probably in both.
    fn overlaps(&self, other: &Self) -> bool {
        self.on == other.on
            && self.from < other.to
            && other.from < self.to
            // Where neither has all of its range, something divides the range between them.
            && (self.whole || other.whole)
    }
}

/// A walk from a backend down.
struct Descent(Vec<StorageExtent>);

impl Descent {
    /// Adds an extent; `false` if it is there already, which ends the walk.
    fn add(&mut self, extent: StorageExtent) -> bool {
        let is_new = self.0.len() < MAX_EXTENTS && !self.0.contains(&extent);
        if is_new {
            self.0.push(extent);
        }
        is_new
    }

    fn add_file(&mut self, device: u64, inode: u64, range: Range<u64>, whole: bool) {
        let extent = StorageExtent::new(file_name(device, inode), &range, whole);
        if self.add(extent)
            && let Some(bytes) = size_of_device(device)
        {
            self.add_block(device, 0..bytes, false);
        }
    }

    fn add_device(&mut self, device: u64) {
        self.add_block(device, 0..size_of_device(device).unwrap_or(u64::MAX), true);
    }

    fn add_block(&mut self, device: u64, range: Range<u64>, whole: bool) {
        let mut extent = StorageExtent::new(block_name(device), &range, whole);
        let Some(sysfs) = BlockSysfs::find(device) else {
            self.add(extent);
            return;
        };
        let (disk, attached) = (sysfs.whole_disk(), sysfs.attached());
        // A loop device may be attached anew to the same file.
        if whole && disk.is_none() && attached.is_none() {
            extent.sequence = sysfs.disk_sequence();
        }
        if !self.add(extent) {
            return;
        }
        if let Some((disk, start)) = disk {
            self.add_block(disk, shifted(&range, start.saturating_mul(SECTOR_SIZE)), whole);
        } else if let Some(attached) = attached {
            let range = shifted(&range, attached.offset);
            match attached.block_device {
                0 => self.add_file(attached.device, attached.inode, range, whole),
                device => self.add_block(device, range, whole),
            }
        }
        for below in sysfs.slaves() {
            self.add_block(below, 0..size_of_device(below).unwrap_or(u64::MAX), false);
        }
    }
}

fn shifted(range: &Range<u64>, by: u64) -> Range<u64> {
    range.start.saturating_add(by)..range.end.saturating_add(by)
}

/// Bytes of a block device; `None` if there is none of this number, as for file systems without one.
fn size_of_device(device: u64) -> Option<u64> {
    let sectors = BlockSysfs::find(device)?.device("size")?;
    Some(sectors.saturating_mul(SECTOR_SIZE))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn storage(extents: &[(&str, Range<u64>, bool)]) -> StorageStack {
        let extent = |(on, range, whole): &(&str, Range<u64>, bool)| {
            StorageExtent::new((*on).to_owned(), range, *whole)
        };
        StorageStack {
            read_only: false,
            extents: extents.iter().map(extent).collect(),
        }
    }

    #[test]
    fn a_layer_and_what_it_is_on_are_the_same_storage() {
        let disk = storage(&[("sda", 0..100, true)]);
        let part = storage(&[("sda1", 0..40, true), ("sda", 10..50, true)]);
        let other_part = storage(&[("sda2", 0..50, true), ("sda", 50..100, true)]);
        let volume = storage(&[
            ("dm-0", 0..10, true),
            ("sda2", 0..50, false),
            ("sda", 50..100, false),
        ]);
        let file = storage(&[
            ("file", 0..u64::MAX, true),
            ("dm-0", 0..10, false),
            ("sda2", 0..50, false),
        ]);
        for (one, two, same) in [
            (&disk, &disk, true),
            (&disk, &part, true),
            (&part, &other_part, false),
            (&volume, &other_part, true),
            (&volume, &disk, true),
            (&volume, &part, false),
            (&file, &volume, true),
            (&file, &other_part, true),
            (&file, &part, false),
        ] {
            assert_eq!(one.conflicts_with(two), same, "{one:?} {two:?}");
            assert_eq!(two.conflicts_with(one), same, "{two:?} {one:?}");
        }
    }

    #[test]
    fn what_is_divided_is_not_shared() {
        let volume = |name, size| storage(&[(name, 0..size, true), ("sda", 0..100, false)]);
        assert!(!volume("dm-0", 10).conflicts_with(&volume("dm-1", 20)));
        let window = |name, range| storage(&[(name, 0..10, true), ("file", range, true)]);
        assert!(!window("loop0", 0..10).conflicts_with(&window("loop1", 10..20)));
        assert!(window("loop0", 0..10).conflicts_with(&window("loop1", 9..19)));
    }

    #[test]
    fn a_loop_device_on_another_file_is_another() {
        let on = |file, from| {
            storage(&[
                ("loop0", 0..10, true),
                (file, from..from + 10, true),
                ("sda", 0..99, false),
            ])
        };
        assert!(on("file", 0).is_same_as(&on("file", 0)));
        assert!(!on("file", 0).is_same_as(&on("other", 0)));
        assert!(!on("file", 0).is_same_as(&on("file", 10)));
        let moved = storage(&[("dm-0", 0..10, true), ("sda", 0..99, false)]);
        assert!(moved.is_same_as(&storage(&[("dm-0", 0..20, true), ("sdb", 0..99, false)])));
    }

    #[test]
    fn a_disk_that_was_made_anew_is_another() {
        let disk = |sequence| {
            let mut storage = storage(&[("ram0p1", 0..10, true), ("ram0", 5..15, true)]);
            storage.extents[1].sequence = sequence;
            storage
        };
        assert!(disk(Some(7)).is_same_as(&disk(Some(7))));
        assert!(!disk(Some(7)).is_same_as(&disk(Some(9))));
        // Records of older programs do not have it.
        assert!(disk(None).is_same_as(&disk(Some(9))));
        let text = serde_json::to_string(&disk(None)).unwrap();
        assert!(!text.contains("sequence"), "{text}");
        assert_eq!(serde_json::from_str::<StorageStack>(&text).unwrap(), disk(None));
    }

    #[test]
    fn readers_share() {
        let reader = StorageStack {
            read_only: true,
            ..StorageStack::named("file 1 on device 8:1", false)
        };
        let writer = StorageStack::named("file 1 on device 8:1", false);
        assert!(!reader.conflicts_with(&reader));
        assert!(reader.conflicts_with(&writer) && writer.conflicts_with(&reader));
        assert!(!writer.conflicts_with(&StorageStack::named("file 2 on device 8:1", false)));
    }

    #[test]
    fn a_file_is_itself_by_every_link_to_it() {
        let folder = tempfile::TempDir::new().unwrap();
        let of =
            |name: &str| StorageStack::of(&fs::metadata(folder.path().join(name)).unwrap(), false).unwrap();
        fs::write(folder.path().join("one"), "content").unwrap();
        fs::write(folder.path().join("other"), "content").unwrap();
        fs::hard_link(folder.path().join("one"), folder.path().join("two")).unwrap();
        assert!(of("one").conflicts_with(&of("two")) && of("one").is_same_as(&of("two")));
        assert!(!of("one").conflicts_with(&of("other")));
        assert!(StorageStack::of(&fs::metadata(folder.path()).unwrap(), false).is_none());
    }
}
