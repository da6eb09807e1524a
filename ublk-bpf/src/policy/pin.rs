//! The pins of a device's programs, links and maps. Pinned objects outlive the process that made them.
//!
//! ```text
//! /sys/fs/bpf/ublk-bpf/ublkbN/
//!     classifier  link                  the program and its attachment to the tracepoint
//!     policy      policy_link           the policy that replaces the default one, if any
//!     verdicts  decisions  server  written  config  memory
//!     index  heat  dirty  cache  codes  the classifier's maps (`ublk_bpf_abi::map`)
//!     ublk_cache                        the one of them that policies may have as well
//!     maps/                             the policy's own maps
//!     latencies  sizes                  histograms, if they are wanted
//!     histogram_*                       the programs that count them, and their attachments
//!     shadow/                           the shadow policy, if any ([`ShadowPins`])
//! ```
//!
//! Only root may enter, write to or replace a directory: a user who can create a pin there can run a program for the
//! device's requests. Directories that other users can write are refused ([`PinDir::open`]).
//!
//! A directory exists as long as its device. When a server is killed, it stays: the device's next server reopens it
//! ([`super::Classifier::reopen`]), or it is removed after the device.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use aya::maps::{MapData, MapError};
use rustix::mount::MountFlags;

use super::causes::chain;
use super::error::PolicyError;
use crate::sys::bpf::load::pin;
use crate::sys::trust::{self, OpenError};

/// The conventional mount point of bpffs.
const BPFFS: &str = "/sys/fs/bpf";
/// The directory of all pins of this program.
const ROOT: &str = "/sys/fs/bpf/ublk-bpf";
/// `BPF_FS_MAGIC` of `include/uapi/linux/magic.h`.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
/// The mode of every directory below it. The kernel gives pins the mode 0600.
const DIRECTORY_MODE: u32 = 0o700;

/// A disk, by the name that the classifier compares and that its pin directory has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Disk(String);

impl Disk {
    /// The disk of ublk device `id`: `ublkbN`.
    #[must_use]
    pub fn ublk(id: u32) -> Self {
        Self(format!("ublkb{id}"))
    }

    /// Another block device that is driven by requests, for tests of the classifier alone. The name is that of
    /// `/sys/block`, at most 15 bytes.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }

    /// The ublk device's id, if it is one.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.0.strip_prefix("ublkb")?.parse().ok()
    }

    /// The name as the classifier compares it: two words, zero padded.
    pub(super) fn name_words(&self) -> [u64; 2] {
        let mut bytes = [0; 16];
        for (byte, of_name) in bytes.iter_mut().zip(self.0.bytes().take(15)) {
            *byte = of_name;
        }
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        [word(0), word(8)]
    }
}

/// The pin directory of one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinDir {
    path: PathBuf,
}

impl PinDir {
    /// The pin directory of a disk, which need not exist.
    #[must_use]
    pub fn of(disk: &Disk) -> Self {
        Self {
            path: Path::new(ROOT).join(disk.name()),
        }
    }

    /// The same, for a caller that uses the pins: checks that only root can write the directories that exist.
    ///
    /// # Errors
    /// [`PolicyError::Distrusted`] if another user could have created a pin.
    pub fn open(disk: &Disk) -> Result<Self, PolicyError> {
        check_root()?;
        let pins = Self::of(disk);
        let shadow = pins.shadow();
        for path in [
            pins.path.clone(),
            pins.policy_maps(),
            shadow.path.clone(),
            shadow.policy_maps(),
        ] {
            trust::check_directory("pin directory", &path).map_err(|error| distrusted(&path, error))?;
        }
        Ok(pins)
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The classifier.
    #[must_use]
    pub fn classifier(&self) -> PathBuf {
        self.path.join("classifier")
    }

    /// The classifier's attachment to the tracepoint.
    #[must_use]
    pub fn link(&self) -> PathBuf {
        self.path.join("link")
    }

    /// The policy that replaces the default one.
    #[must_use]
    pub fn policy(&self) -> PathBuf {
        self.path.join("policy")
    }

    /// The policy's attachment to the classifier.
    #[must_use]
    pub fn policy_link(&self) -> PathBuf {
        self.path.join("policy_link")
    }

    /// A map of the classifier.
    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// One of the programs that count the histograms, or its attachment: `issue`, `complete`, or one of them with `_link`.
    #[must_use]
    pub fn histogram(&self, name: &str) -> PathBuf {
        self.path.join(format!("histogram_{name}"))
    }

    /// The directory of the policy's own maps.
    #[must_use]
    pub fn policy_maps(&self) -> PathBuf {
        self.path.join("maps")
    }

    /// The pins of the shadow policy.
    #[must_use]
    pub(crate) fn shadow(&self) -> ShadowPins {
        ShadowPins {
            path: self.path.join("shadow"),
        }
    }

    /// Creates an empty directory. Removes the pins of an earlier device of the same name.
    pub(super) fn create(&self) -> Result<(), PolicyError> {
        ensure_bpffs()?;
        self.remove()?;
        make_directory(&self.policy_maps())?;
        check_root()
    }

    /// Removes the directory with all pins, which detaches the classifier and the policy. It need not exist.
    pub fn remove(&self) -> Result<(), PolicyError> {
        check_root()?;
        // The classifier's link first: it must not run while some of its pins are missing.
        for path in [self.shadow().link(), self.link(), self.policy_link()] {
            unlink(&path)?;
        }
        remove_directory(&self.path)
    }
}

/// The pins of a device's shadow policy.
///
/// ```text
/// shadow/
///     program  link            the program that calls it, and its attachment to the tracepoint
///     policy   policy_link     the policy, and its attachment to that program
///     compared  shadow_codes  about
///     maps/                    the policy's own maps
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ShadowPins {
    path: PathBuf,
}

impl ShadowPins {
    /// The program that calls the policy.
    pub(super) fn program(&self) -> PathBuf {
        self.path.join("program")
    }

    /// Its attachment to the tracepoint.
    pub(crate) fn link(&self) -> PathBuf {
        self.path.join("link")
    }

    /// The policy.
    pub(crate) fn policy(&self) -> PathBuf {
        self.path.join("policy")
    }

    /// The policy's attachment to the program.
    pub(super) fn policy_link(&self) -> PathBuf {
        self.path.join("policy_link")
    }

    /// A map of the program.
    pub(crate) fn map(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The directory of the policy's own maps.
    pub(super) fn policy_maps(&self) -> PathBuf {
        self.path.join("maps")
    }

    /// Makes the directories.
    pub(super) fn create(&self) -> Result<(), PolicyError> {
        make_directory(&self.policy_maps())
    }

    /// Removes the directory with all pins, which detaches the program. It need not exist.
    pub(super) fn remove(&self) -> Result<(), PolicyError> {
        unlink(&self.link())?;
        remove_directory(&self.path)
    }
}

/// Makes a directory, and those above it, for root only.
fn make_directory(path: &Path) -> Result<(), PolicyError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(DIRECTORY_MODE);
    builder
        .create(path)
        .map_err(|e| pin_error("making", path.to_owned(), e))
}

/// Removes a directory with all that is in it. It need not exist.
fn remove_directory(path: &Path) -> Result<(), PolicyError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(pin_error("removing", path.to_owned(), error))
        }
        _ => Ok(()),
    }
}

/// Removes a pin, which need not exist.
pub(super) fn unlink(path: &Path) -> Result<(), PolicyError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(pin_error("removing", path.to_owned(), error))
        }
        _ => Ok(()),
    }
}

/// Every disk that has a pin directory, with or without a server.
pub fn pinned_disks() -> Result<Vec<Disk>, PolicyError> {
    check_root()?;
    let entries = match fs::read_dir(ROOT) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(pin_error("reading", ROOT.into(), error)),
    };
    let mut disks = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| pin_error("reading", ROOT.into(), e))?;
        if let Some(name) = entry.file_name().to_str() {
            disks.push(Disk::named(name));
        }
    }
    disks.sort();
    Ok(disks)
}

/// Removes the pins of disks for which `is_alive` returns false, as after a server was killed, and returns these disks.
pub fn remove_stale(is_alive: impl Fn(&Disk) -> bool) -> Result<Vec<Disk>, PolicyError> {
    let stale: Vec<Disk> = pinned_disks()?
        .into_iter()
        .filter(|disk| !is_alive(disk))
        .collect();
    for disk in &stale {
        PinDir::of(disk).remove()?;
    }
    Ok(stale)
}

/// Mounts a BPF file system unless one is mounted.
///
/// A server calls this before it enters its own mount namespace: other processes would not see a bpffs mounted there.
pub fn ensure_bpffs() -> Result<(), PolicyError> {
    let path = Path::new(BPFFS);
    let failed = |source| PolicyError::NoBpffs {
        path: path.to_owned(),
        source,
    };
    if is_bpffs(path).map_err(failed)? {
        return check_root();
    }
    rustix::mount::mount("bpf", path, "bpf", MountFlags::empty(), c"mode=0700")
        .map_err(|error| failed(error.into()))?;
    check_root()
}

/// Checks that only root can create or replace pins of this program. bpffs as the kernel mounts it is writable by all
/// users, and sticky.
fn check_root() -> Result<(), PolicyError> {
    let (mount, root) = (Path::new(BPFFS), Path::new(ROOT));
    trust::check_parent("BPF file system", mount).map_err(|error| distrusted(mount, error))?;
    trust::check_directory("pin directory", root).map_err(|error| distrusted(root, error))?;
    Ok(())
}

fn distrusted(path: &Path, error: OpenError) -> PolicyError {
    match error {
        OpenError::Distrusted(why) => why.into(),
        OpenError::System(source) => pin_error("opening", path.to_owned(), source),
    }
}

/// Whether there is a bpffs that only root can write to; `Ok(false)`: a server will mount one.
///
/// # Errors
/// If there is no place for it, or other users could replace pins.
pub fn check_bpffs() -> Result<bool, PolicyError> {
    let path = Path::new(BPFFS);
    let is_mounted = is_bpffs(path).map_err(|source| PolicyError::NoBpffs {
        path: path.to_owned(),
        source,
    })?;
    if is_mounted {
        check_root()?;
    }
    Ok(is_mounted)
}

fn is_bpffs(path: &Path) -> io::Result<bool> {
    Ok(rustix::fs::statfs(path)?.f_type == BPF_FS_MAGIC)
}

pub(crate) fn pin_error(action: &'static str, path: PathBuf, source: io::Error) -> PolicyError {
    PolicyError::Pin { action, path, source }
}

/// Pins a program or link.
pub(super) fn pin_at(object: BorrowedFd<'_>, path: &Path) -> Result<(), PolicyError> {
    pin(object, path).map_err(|e| pin_error("pinning to", path.to_owned(), e))
}

/// Opens a pinned map and checks its shape.
pub(super) fn open_map(path: &Path, value_size: usize, entries: u32) -> Result<MapData, PolicyError> {
    let failed = |e: MapError| pin_error("opening", path.to_owned(), io::Error::other(chain(&e)));
    let map = MapData::from_pin(path).map_err(failed)?;
    let info = map.info().map_err(failed)?;
    let properties = [
        (
            "the size of its values",
            u64::from(info.value_size()),
            value_size as u64,
        ),
        ("its number of entries", info.max_entries().into(), entries.into()),
    ];
    for (what, found, wanted) in properties {
        if found != wanted {
            return Err(PolicyError::Foreign {
                path: path.to_owned(),
                what,
                found,
                wanted,
            });
        }
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_two_words() {
        let [first, second] = Disk::ublk(123).name_words();
        assert_eq!(&first.to_le_bytes(), b"ublkb123");
        assert_eq!(second, 0);
        let [_, second] = Disk::ublk(12345).name_words();
        assert_eq!(&second.to_le_bytes(), b"45\0\0\0\0\0\0");
    }

    #[test]
    fn ids_come_back_from_names() {
        assert_eq!(Disk::ublk(7).id(), Some(7));
        assert_eq!(Disk::named("nullb0").id(), None);
    }
}
