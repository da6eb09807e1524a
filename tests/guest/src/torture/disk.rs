//! Access to the disk under torture.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::content::SECTOR;

/// A disk. Offsets and lengths are in bytes, and multiples of its unit.
pub trait Disk: Sync {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// Alignment of reads and writes, a multiple of 512 bytes.
    fn unit(&self) -> u64 {
        SECTOR as u64
    }

    /// Alignment of zeroing.
    fn zeroing_unit(&self) -> u64 {
        self.unit()
    }

    /// Whether it supports discard, which leaves the content undefined.
    fn has_discard(&self) -> bool {
        true
    }

    /// Reads the whole buffer.
    ///
    /// # Errors
    ///
    /// The error of the disk, which no torture expects; likewise below.
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes the whole buffer; if `forced`, to stable media.
    ///
    /// # Errors
    ///
    /// The error of the disk.
    fn write(&self, buffer: &[u8], offset: u64, forced: bool) -> io::Result<()>;

    /// Zeroes a range: by punching a hole if `punch` is set, otherwise in place.
    ///
    /// # Errors
    ///
    /// The error of the disk.
    fn zero(&self, offset: u64, length: u64, punch: bool) -> io::Result<()>;

    /// Discards a range: its content stays or becomes zeroes.
    ///
    /// # Errors
    ///
    /// The error of the disk.
    fn discard(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Flushes writes to stable media.
    ///
    /// # Errors
    ///
    /// The error of the disk.
    fn flush(&self) -> io::Result<()>;
}

/// A block device or file, accessed with direct I/O.
#[derive(Debug)]
pub(crate) struct Direct {
    plain: File,
    forced: File,
    size: u64,
    unit: u64,
    is_file: bool,
}

impl Direct {
    /// Opens it read-write or read-only.
    pub(crate) fn open(path: &Path, writable: bool) -> io::Result<Self> {
        let open = |flags| {
            OpenOptions::new()
                .read(true)
                .write(writable)
                .custom_flags(flags)
                .open(path)
        };
        let mut plain = open(libc::O_DIRECT)?;
        let is_file = !plain.metadata()?.file_type().is_block_device();
        Ok(Self {
            size: plain.seek(SeekFrom::End(0))?,
            unit: if is_file {
                SECTOR as u64
            } else {
                logical_block(&plain)?
            },
            forced: open(libc::O_DIRECT | libc::O_DSYNC)?,
            plain,
            is_file,
        })
    }

    fn fallocate(&self, mode: i32, offset: u64, length: u64) -> io::Result<()> {
        let (offset, length) = (offset.cast_signed(), length.cast_signed());
        // SAFETY: the call takes no pointers.
        let result = unsafe { libc::fallocate(self.plain.as_raw_fd(), mode, offset, length) };
        said(result)
    }

    fn range_ioctl(&self, request: u64, offset: u64, length: u64) -> io::Result<()> {
        let range = [offset, length];
        // SAFETY: both of the requests below read two u64, which `range` is.
        let result = unsafe { libc::ioctl(self.plain.as_raw_fd(), request, range.as_ptr()) };
        said(result)
    }
}

/// `_IO(0x12, 119)` and `_IO(0x12, 127)` of `linux/fs.h`.
const BLKDISCARD: u64 = 0x1277;
const BLKZEROOUT: u64 = 0x127f;

impl Disk for Direct {
    fn size(&self) -> u64 {
        self.size
    }

    fn unit(&self) -> u64 {
        self.unit
    }

    fn zeroing_unit(&self) -> u64 {
        // A file system zeroes parts of its blocks through the page cache, where it makes no promises to direct I/O.
        if self.is_file { 4096 } else { self.unit }
    }

    fn has_discard(&self) -> bool {
        !self.is_file
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.plain.read_exact_at(buffer, offset)
    }

    fn write(&self, buffer: &[u8], offset: u64, forced: bool) -> io::Result<()> {
        let file = if forced { &self.forced } else { &self.plain };
        file.write_all_at(buffer, offset)
    }

    fn zero(&self, offset: u64, length: u64, punch: bool) -> io::Result<()> {
        let result = match (punch, self.is_file) {
            (true, _) => self.fallocate(
                libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                offset,
                length,
            ),
            (false, true) => self.fallocate(
                libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
                offset,
                length,
            ),
            (false, false) => self.range_ioctl(BLKZEROOUT, offset, length),
        };
        match result {
            // A device that cannot do it by itself is written to, but only by this way.
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) && !self.is_file => {
                self.range_ioctl(BLKZEROOUT, offset, length)
            }
            other => other,
        }
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        match self.range_ioctl(BLKDISCARD, offset, length) {
            // Then everything stays, which is allowed.
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            other => other,
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.plain.sync_data()
    }
}

/// Size of a device's logical block, in bytes.
fn logical_block(device: &File) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: BLKSSZGET writes one int, which `bytes` is.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::BLKSSZGET, &raw mut bytes) };
    said(result)?;
    u64::try_from(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

fn said(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
