//! The users of a block device, for the message of a stop that is refused.
//!
//! A disk is used directly, by way of its partitions, and by way of the block devices on top of any of these: device
//! mapper, md and bcache are in `holders/`, loop devices over it or over a file of a file system on it are asked.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::control::DeviceId;
use crate::path_text::{self, ShowPath};
use crate::sys::mounts::{self, Mount};
use crate::sys::{loop_device, process};

/// No more are named; the message stays a line.
const MAX_NAMED: usize = 3;

/// Who uses the block device, in words such as `a mount on /mnt`, `ublkb0p1 as swap`, `dm-0 (vg-root) mounted at /srv` or
/// `mkfs.ext4 (process 77)`. Empty if no user was found. There may still be one: processes of other
/// containers and users inside the kernel are not visible.
#[must_use]
pub fn of(id: DeviceId) -> Vec<String> {
    let mut walk = Walk {
        uses: Uses::gather(),
        seen: BTreeSet::new(),
        users: Vec::new(),
    };
    walk.visit(&id.disk_name(), &Relation::Disk);
    walk.users
}

/// [`of`] as a phrase: `a mount on /mnt`, or `some process` if no user was found.
#[must_use]
pub fn in_words(id: DeviceId) -> String {
    let users = of(id);
    match users.len() {
        0 => "some process".to_owned(),
        1..=MAX_NAMED => users.join(", "),
        more => format!(
            "{} and {} others",
            users[..MAX_NAMED].join(", "),
            more - MAX_NAMED
        ),
    }
}

/// What a block device is to the disk that is asked about.
enum Relation {
    /// The disk itself.
    Disk,
    /// A partition of it, which is not a user as such.
    Partition,
    /// On top of it, and a user even if nothing uses it in turn.
    Holder,
}

/// The way from the disk up through everything on it.
struct Walk {
    uses: Uses,
    /// Devices that were visited, by name: one may stand on several partitions.
    seen: BTreeSet<String>,
    users: Vec<String>,
}

impl Walk {
    /// Names the users of the device called `name`, and of all on top of it.
    fn visit(&mut self, name: &str, relation: &Relation) {
        let Some(number) = number_of(name).filter(|_| self.seen.insert(name.to_owned())) else {
            return;
        };
        let before = self.users.len();
        let label = label(name);
        let uses = self.uses.of(number).into_iter();
        self.users.extend(uses.map(|used| match relation {
            Relation::Disk => used.to_string(),
            Relation::Partition | Relation::Holder => format!("{label} {used:#}"),
        }));
        for partition in partitions(name) {
            self.visit(&partition, &Relation::Partition);
        }
        for holder in names(&sysfs(name).join("holders")) {
            self.visit(&holder, &Relation::Holder);
        }
        for over in self.uses.loops_over(number) {
            self.visit(&over, &Relation::Holder);
        }
        if matches!(relation, Relation::Holder) && self.users.len() == before {
            self.users.push(label);
        }
    }
}

/// One use of a device. Displayed as a user of the device that is asked about, or by `{:#}` as what follows the name of
/// another.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Use<'a> {
    Mount(&'a Path),
    Swap,
    Process(&'a str),
}

impl fmt::Display for Use<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, f.alternate()) {
            (Self::Mount(path), false) => write!(f, "a mount on {}", path.shown()),
            (Self::Mount(path), true) => write!(f, "mounted at {}", path.shown()),
            (Self::Swap, false) => f.write_str("swap"),
            (Self::Swap, true) => f.write_str("as swap"),
            (Self::Process(process), false) => f.write_str(process),
            (Self::Process(process), true) => write!(f, "open in {process}"),
        }
    }
}

/// Everything that may use some block device, gathered once.
struct Uses {
    /// In any process's mount namespace, each path once.
    mounts: Vec<Mount>,
    /// The numbers of the devices that are swapped to.
    swaps: Vec<u64>,
    /// Each process with a block device that it has open.
    processes: Vec<(u64, String)>,
    /// Loop devices by name, each with the number of the device that it is over: as such, or by a file on it.
    loops: Vec<(String, u64)>,
}

impl Uses {
    fn gather() -> Self {
        let mut uses = Self {
            mounts: Vec::new(),
            swaps: swaps(),
            processes: Vec::new(),
            loops: loop_devices(),
        };
        for process in process::ids() {
            for mount in mounts::of(&process.to_string()).unwrap_or_default() {
                if !uses.mounts.contains(&mount) {
                    uses.mounts.push(mount);
                }
            }
            let open = devices_open_in(process);
            if !open.is_empty() {
                let name = process_name(process);
                uses.processes
                    .extend(open.into_iter().map(|number| (number, name.clone())));
            }
        }
        uses
    }

    /// The uses of the device of this number itself.
    fn of(&self, number: u64) -> Vec<Use<'_>> {
        let mounts = self.mounts.iter().filter(|mount| mount.is_of(number));
        let mut uses: Vec<_> = mounts.map(|mount| Use::Mount(&mount.path)).collect();
        // Two namespaces may have it at the same place.
        uses.sort_unstable();
        uses.dedup();
        uses.extend(self.swaps.contains(&number).then_some(Use::Swap));
        let processes = self.processes.iter().filter(|(open, _)| *open == number);
        uses.extend(processes.map(|(_, process)| Use::Process(process)));
        uses
    }

    /// Loop devices over the device of this number, or over a file of a file system on it.
    fn loops_over(&self, number: u64) -> Vec<String> {
        let over = self.loops.iter().filter(|(_, under)| *under == number);
        over.map(|(name, _)| name.clone()).collect()
    }
}

/// The folder of a block device, be it a disk or a partition.
fn sysfs(name: &str) -> PathBuf {
    Path::new("/sys/class/block").join(name)
}

/// The device's number; `None`: there is no such device.
fn number_of(name: &str) -> Option<u64> {
    let text = fs::read_to_string(sysfs(name).join("dev")).ok()?;
    mounts::device_number(text.trim())
}

/// The partitions of a disk.
fn partitions(name: &str) -> Vec<String> {
    let folder = sysfs(name);
    let mut partitions = names(&folder);
    partitions.retain(|entry| folder.join(entry).join("partition").is_file());
    partitions
}

/// What a device is called: `dm-0 (vg-root)`, `loop3 on /srv/file`, `md0`.
fn label(name: &str) -> String {
    let text = |file| fs::read(sysfs(name).join(file)).ok();
    let line = |mut text: Vec<u8>| {
        text.pop_if(|last| *last == b'\n');
        OsString::from_vec(text)
    };
    if let Some(mapped) = text("dm/name") {
        format!("{name} ({})", line(mapped).shown())
    } else if let Some(file) = text("loop/backing_file") {
        format!("{name} on {}", line(file).shown())
    } else {
        name.to_owned()
    }
}

fn loop_devices() -> Vec<(String, u64)> {
    let mut devices = names(Path::new("/sys/block"));
    devices.retain(|name| sysfs(name).join("loop/backing_file").is_file());
    let under = |name: String| {
        let file = File::open(Path::new("/dev").join(&name)).ok()?;
        let below = loop_device::attached(&file).ok()?;
        // A block device is over itself alone, not over the file system that its node is in.
        let number = match below.block_device {
            0 => below.device,
            device => device,
        };
        Some((name, number))
    };
    devices.into_iter().filter_map(under).collect()
}

/// The block devices in `/proc/swaps`, whose paths are escaped as those of mounts are. A swap file's file system is
/// mounted and shows by that.
fn swaps() -> Vec<u64> {
    let text = fs::read("/proc/swaps").unwrap_or_default();
    let lines = text.split(|&byte| byte == b'\n').skip(1);
    let paths = lines.filter_map(|line| line.split(|byte| b" \t".contains(byte)).next());
    paths
        .map(|path| PathBuf::from(OsString::from_vec(mounts::unescape(path))))
        .filter_map(|path| block_device(&path))
        .collect()
}

/// The number of the block device that a path leads to, if it leads to one.
fn block_device(path: &Path) -> Option<u64> {
    let found = fs::metadata(path).ok()?;
    found.file_type().is_block_device().then(|| found.rdev())
}

/// The block devices that a process has open.
fn devices_open_in(process: u32) -> BTreeSet<u64> {
    let files = fs::read_dir(format!("/proc/{process}/fd"))
        .into_iter()
        .flatten()
        .flatten();
    files.filter_map(|file| block_device(&file.path())).collect()
}

/// `mkfs.ext4 (process 77)`. A process gives itself its name.
fn process_name(process: u32) -> String {
    let comm = fs::read(format!("/proc/{process}/comm")).unwrap_or_default();
    let mut name = String::new();
    let comm = String::from_utf8_lossy(&comm);
    // Writing to a string does not fail.
    let _ = path_text::escape(comm.trim_end_matches('\n'), &mut name);
    format!("{name} (process {process})")
}

/// The names in a folder that are text, in order; none if it is not there.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    names
}
