//! The kernel's lists of mounts (`/proc/PID/mountinfo`).

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

/// One mount of a mount namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// `MAJOR:MINOR` of the file system's device.
    pub device: String,
    /// Where it is mounted.
    pub path: PathBuf,
    /// What was mounted: for most file systems the block device's path, in the namespace of who mounted it.
    pub source: PathBuf,
}

impl Mount {
    /// Whether the file system is on the block device of this number. A file system that spans devices (btrfs) has a
    /// number of its own, and only its source tells.
    #[must_use]
    pub fn is_of(&self, device: u64) -> bool {
        match device_number(&self.device) {
            Some(number) if libc::major(number) != 0 => number == device,
            _ => std::fs::metadata(&self.source)
                .is_ok_and(|found| found.file_type().is_block_device() && found.rdev() == device),
        }
    }
}

/// The number that `MAJOR:MINOR` writes.
pub(crate) fn device_number(text: &str) -> Option<u64> {
    let (major, minor) = text.split_once(':')?;
    Some(libc::makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// The mounts in the namespace of a process; `process` is its id, or `self`.
///
/// # Errors
/// If the process is gone, or is another user's.
pub fn of(process: &str) -> io::Result<Vec<Mount>> {
    list(&mut table(process)?)
}

/// Whether the calling process is in the mount namespace of process 1. No two namespaces have a mount in common, so no two
/// lists are the same.
pub(crate) fn are_those_of_process_1() -> bool {
    let text = |process| std::fs::read(format!("/proc/{process}/mountinfo"));
    // A mount may come between the two.
    (0..3).any(|_| text("self").is_ok_and(|own| text("1").is_ok_and(|first| own == first)))
}

/// The list of mounts of a process, to be read again and again, even when `/proc` is mounted no longer.
pub(crate) fn table(process: &str) -> io::Result<File> {
    File::open(format!("/proc/{process}/mountinfo"))
}

/// The mounts that there are now, each after the one that it is on.
pub(crate) fn list(table: &mut File) -> io::Result<Vec<Mount>> {
    table.rewind()?;
    let mut text = Vec::new();
    table.read_to_end(&mut text)?;
    Ok(text.split(|&byte| byte == b'\n').filter_map(parse).collect())
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root ...`: the third and fifth fields, and the second behind
/// the dash. A path has octal escapes.
fn parse(line: &[u8]) -> Option<Mount> {
    let path = |field| PathBuf::from(OsString::from_vec(unescape(field)));
    let mut fields = line.split(|&byte| byte == b' ');
    let device = String::from_utf8(fields.nth(2)?.to_vec()).ok()?;
    let at = path(fields.nth(1)?);
    fields.find(|&field| field == b"-")?;
    Some(Mount {
        device,
        path: at,
        source: path(fields.nth(1)?),
    })
}

/// The bytes of a field of the kernel's, which writes some of them as a backslash and three octal digits.
pub(crate) fn unescape(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', behind @ ..]) => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = behind;
            }
            _ => bytes.push(*first),
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_line_has_its_device_and_its_path() {
        let line = br"36 35 259:3 / /mnt/a\040b\134c rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        let expected = Mount {
            device: "259:3".into(),
            path: r"/mnt/a b\c".into(),
            source: "/dev/root".into(),
        };
        assert_eq!(parse(line), Some(expected));
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"1 2 3"), None);
    }

    #[test]
    fn this_process_has_a_root() {
        assert!(
            of("self")
                .unwrap()
                .iter()
                .any(|mount| mount.path == Path::new("/"))
        );
    }
}
