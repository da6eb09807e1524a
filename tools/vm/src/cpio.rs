//! Writes cpio archives in the `newc` format, which the kernel unpacks as its first file system.
//!
//! The format is in the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`: for each entry a header of
//! the magic `070701` and thirteen numbers of eight hexadecimal digits, the name with its zero byte, and the
//! contents, the last two padded to four bytes. The kernel takes several archives one after the other.

use std::collections::BTreeSet;
use std::io::{self, Write};

const MAGIC: &str = "070701";
/// Bytes of a header: the magic and thirteen numbers of eight digits.
const HEADER_SIZE: usize = 6 + 13 * 8;
const TRAILER: &str = "TRAILER!!!";

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

/// An archive being written. Entries belong to root and have no times, so that the same contents give the same bytes.
pub(crate) struct Writer<W> {
    out: W,
    entries: u32,
    directories: BTreeSet<String>,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(out: W) -> Self {
        Self {
            out,
            entries: 0,
            directories: BTreeSet::new(),
        }
    }

    /// Adds a directory and its parents, each once.
    pub(crate) fn directory(&mut self, path: &str) -> io::Result<()> {
        let path = path.trim_matches('/');
        if path.is_empty() || !self.directories.insert(path.to_owned()) {
            return Ok(());
        }
        self.parent(path)?;
        self.entry(path, S_IFDIR | 0o755, b"")
    }

    /// Adds a regular file with the permission bits `mode`, and its folder.
    pub(crate) fn file(&mut self, path: &str, mode: u32, contents: &[u8]) -> io::Result<()> {
        let path = path.trim_start_matches('/');
        self.parent(path)?;
        self.entry(path, S_IFREG | (mode & 0o7777), contents)
    }

    /// Adds a symbolic link, and its folder.
    pub(crate) fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        let path = path.trim_start_matches('/');
        self.parent(path)?;
        self.entry(path, S_IFLNK | 0o777, target.as_bytes())
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.entry(TRAILER, 0, b"")?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn parent(&mut self, path: &str) -> io::Result<()> {
        match path.rsplit_once('/') {
            Some((parent, _)) => self.directory(parent),
            None => Ok(()),
        }
    }

    fn entry(&mut self, name: &str, mode: u32, contents: &[u8]) -> io::Result<()> {
        let too_large = || {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{name}: too large for a cpio archive"),
            )
        };
        let size = u32::try_from(contents.len()).map_err(|_| too_large())?;
        let name_size = u32::try_from(name.len() + 1).map_err(|_| too_large())?;
        self.entries += 1;
        let links = if mode & S_IFDIR == S_IFDIR { 2 } else { 1 };
        // Inode, mode, owner, group, links, time, size, device and special device (major, minor), name, checksum.
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        write!(self.out, "{MAGIC}")?;
        for field in fields {
            write!(self.out, "{field:08X}")?;
        }
        self.out.write_all(name.as_bytes())?;
        self.out.write_all(b"\0")?;
        self.pad(HEADER_SIZE + name.len() + 1)?;
        self.out.write_all(contents)?;
        self.pad(contents.len())
    }

    fn pad(&mut self, written: usize) -> io::Result<()> {
        self.out
            .write_all(&[0; 3][..written.next_multiple_of(4) - written])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a reader of the format finds: name, mode, contents.
    fn read(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            assert_eq!(&bytes[..6], MAGIC.as_bytes());
            let field = |n: usize| {
                let digits = std::str::from_utf8(&bytes[6 + 8 * n..][..8]).expect("digits");
                u32::from_str_radix(digits, 16).expect("hexadecimal")
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(bytes[HEADER_SIZE..][..name_size - 1].to_vec()).expect("a name");
            assert_eq!(bytes[HEADER_SIZE + name_size - 1], 0);
            let start = (HEADER_SIZE + name_size).next_multiple_of(4);
            let end = (start + size).next_multiple_of(4);
            if name == TRAILER {
                assert_eq!(bytes.len(), end);
                return entries;
            }
            entries.push((name, mode, bytes[start..][..size].to_vec()));
            bytes = &bytes[end..];
        }
    }

    #[test]
    fn entries_are_read_back() {
        let mut writer = Writer::new(Vec::new());
        writer.file("/usr/bin/a", 0o755, b"12345").expect("written");
        writer.file("usr/bin/bcd", 0o644, b"").expect("written");
        writer.symlink("/bin", "usr/bin").expect("written");
        let entries = read(&writer.finish().expect("finished"));
        let expected: [(&str, u32, &[u8]); 5] = [
            ("usr", 0o040_755, b""),
            ("usr/bin", 0o040_755, b""),
            ("usr/bin/a", 0o100_755, b"12345"),
            ("usr/bin/bcd", 0o100_644, b""),
            ("bin", 0o120_777, b"usr/bin"),
        ];
        assert_eq!(
            entries,
            expected.map(|(name, mode, data)| (name.to_owned(), mode, data.to_vec()))
        );
    }

    #[test]
    fn every_length_of_name_and_contents_is_padded() {
        for length in 0..9 {
            let mut writer = Writer::new(Vec::new());
            writer
                .file(&"n".repeat(length + 1), 0o600, &vec![7; length])
                .expect("written");
            let archive = writer.finish().expect("finished");
            assert_eq!(archive.len() % 4, 0);
            assert_eq!(
                read(&archive),
                [("n".repeat(length + 1), 0o100_600, vec![7; length])]
            );
        }
    }
}
