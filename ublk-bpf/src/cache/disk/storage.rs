//! What the format is kept on.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use super::DiskError;

/// A device, or in tests a model of one that loses power. Offsets and lengths are multiples of 4 KiB, and so are
/// addresses: direct I/O takes them.
pub(super) trait Storage {
    /// Fills `into` from offset `at`.
    fn read(&self, into: &mut [u8], at: u64) -> io::Result<()>;
    /// Writes all of `from` at offset `at`.
    fn write(&self, from: &[u8], at: u64) -> io::Result<()>;
    /// Returns when everything that was written is durable.
    fn sync(&self) -> io::Result<()>;
    /// The size in bytes.
    fn bytes(&self) -> io::Result<u64>;
}

impl Storage for File {
    fn read(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        self.read_exact_at(into, at)
    }

    fn write(&self, from: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(from, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn bytes(&self) -> io::Result<u64> {
        // A block device's metadata has no length. The position is not used.
        let mut file = self;
        file.seek(SeekFrom::End(0))
    }
}

/// Makes an error of the system one that says what was tried.
pub(super) fn failed(what: &'static str) -> impl Fn(io::Error) -> DiskError {
    move |source| DiskError::System { what, source }
}
