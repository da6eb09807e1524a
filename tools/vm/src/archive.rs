//! Writes cpio archives in the `newc` format, which the kernel unpacks as its first file system: see its
//! `Documentation/driver-api/early-userspace/buffer-format.rst`. The kernel takes several archives one after the other.

use std::collections::BTreeSet;
use std::io::{self, Write};

use cpio::newc::{Builder, trailer};

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

/// An archive being written. Entries belong to root and have no times, so that the same contents give the same bytes.
pub(crate) struct Writer<W> {
    out: W,
    directories: BTreeSet<String>,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(out: W) -> Self {
        Self {
            out,
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
    pub(crate) fn finish(self) -> io::Result<W> {
        let mut out = trailer(self.out)?;
        out.flush()?;
        Ok(out)
    }

    fn parent(&mut self, path: &str) -> io::Result<()> {
        match path.rsplit_once('/') {
            Some((parent, _)) => self.directory(parent),
            None => Ok(()),
        }
    }

    fn entry(&mut self, name: &str, mode: u32, contents: &[u8]) -> io::Result<()> {
        let size = u32::try_from(contents.len()).map_err(|_| {
            let what = format!("{name}: too large for a cpio archive");
            io::Error::new(io::ErrorKind::InvalidInput, what)
        })?;
        let mut entry = Builder::new(name).mode(mode).write(&mut self.out, size);
        entry.write_all(contents)?;
        entry.finish().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use cpio::newc::Reader;

    use super::*;

    /// What a reader of the format finds: name, mode, contents.
    fn read(archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        let mut rest = archive;
        loop {
            let mut reader = Reader::new(rest).expect("an entry");
            if reader.entry().is_trailer() {
                return entries;
            }
            let mut contents = Vec::new();
            reader.read_to_end(&mut contents).expect("read");
            entries.push((reader.entry().name().to_owned(), reader.entry().mode(), contents));
            rest = reader.finish().expect("its end");
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
