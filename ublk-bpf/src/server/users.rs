//! Who uses a block device: what a server says when it is asked to stop one that is in use.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::mounts;
use crate::control::DeviceId;

/// No more are named; the message stays a line.
const MAX_NAMED: usize = 3;

/// Who uses the block device, in words such as `a mount on /mnt` or `mkfs.ext4 (process 77)`. Empty if nobody was
/// found, which does not mean that there is nobody: other containers' processes cannot be seen.
#[must_use]
pub fn of(id: DeviceId) -> Vec<String> {
    let Some(device) = fs::metadata(id.block_path())
        .ok()
        .filter(|meta| meta.file_type().is_block_device())
    else {
        return Vec::new();
    };
    let number = device.rdev();
    let mut users = mounted(number);
    users.extend(stacked(id));
    users.extend(swap(id));
    users.extend(processes(number));
    users
}

/// [`of`] as a phrase: `a mount on /mnt`, or `some process` where nobody was found.
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

/// Mounts of file systems on the device, in any process's mount namespace, each path once.
fn mounted(number: u64) -> Vec<String> {
    let device = format!("{}:{}", libc::major(number), libc::minor(number));
    let mut users = Vec::new();
    for process in process_ids() {
        for mount in mounts::of(&process.to_string()).unwrap_or_default() {
            let user = format!("a mount on {}", mount.path.display());
            if mount.device == device && !users.contains(&user) {
                users.push(user);
            }
        }
    }
    users
}

/// Block devices on top of it: device mapper, md, bcache.
fn stacked(id: DeviceId) -> Vec<String> {
    let holders = format!("/sys/block/{}/holders", id.disk_name());
    let names = fs::read_dir(holders).into_iter().flatten().flatten();
    names
        .map(|entry| format!("block device {}", entry.file_name().display()))
        .collect()
}

fn swap(id: DeviceId) -> Option<String> {
    let path = id.block_path();
    let swaps = fs::read_to_string("/proc/swaps").ok()?;
    let used = swaps
        .lines()
        .any(|line| line.split_whitespace().next().map(Path::new) == Some(path.as_path()));
    used.then(|| "swap".to_owned())
}

/// Processes that have it open.
fn processes(number: u64) -> Vec<String> {
    process_ids()
        .filter(|process| has_open(*process, number))
        .map(|process| {
            let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
            format!("{} (process {process})", name.trim())
        })
        .collect()
}

fn has_open(process: u32, number: u64) -> bool {
    let files = fs::read_dir(format!("/proc/{process}/fd"))
        .into_iter()
        .flatten()
        .flatten();
    files
        .filter_map(|file| fs::metadata(file.path()).ok())
        .any(|meta| meta.file_type().is_block_device() && meta.rdev() == number)
}

/// The ids of all processes that can be seen.
pub(super) fn process_ids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}
