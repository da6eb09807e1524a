//! Facts about files that the standard library does not provide.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::fs::{
    AtFlags, FallocateFlags, IFlags, MemfdFlags, OFlags, SeekFrom, StatxFlags, fcntl_getfl, fcntl_setfl,
    fstatfs, ioctl_getflags, memfd_create, seek, statx,
};
use rustix::io::Errno;
use rustix::ioctl::{Getter, ioctl};

/// The alignment that direct I/O on a file requires, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DirectIo {
    /// Alignment of memory addresses. Zero: the file does not support direct I/O.
    pub(crate) memory_align: u32,
    /// Alignment of offsets and lengths. Zero: the file does not support direct I/O.
    pub(crate) offset_align: u32,
}

/// Asks `statx(STATX_DIOALIGN)` (Linux 6.1); `None` if the file system does not report it.
pub(crate) fn direct_io(file: &File) -> io::Result<Option<DirectIo>> {
    let found = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)?;
    let is_known = StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::DIOALIGN);
    Ok(is_known.then_some(DirectIo {
        memory_align: found.stx_dio_mem_align,
        offset_align: found.stx_dio_offset_align,
    }))
}

/// The magic number of the file system that holds the file (`statfs(2)`).
pub(crate) fn file_system_magic(file: &File) -> io::Result<i64> {
    Ok(fstatfs(file)?.f_type)
}

/// The UUID of the file system that holds the file (`FS_IOC_GETFSUUID`, Linux 6.9); `None` if it has none or does not
/// report it.
pub(crate) fn file_system_uuid(file: &File) -> Option<[u8; 16]> {
    /// `struct fsuuid2` of `include/uapi/linux/fs.h`.
    #[repr(C)]
    struct FsUuid {
        len: u8,
        uuid: [u8; 16],
    }
    /// `_IOR(0x15, 0, struct fsuuid2)`.
    const FS_IOC_GETFSUUID: rustix::ioctl::Opcode = 0x8011_1500;
    // SAFETY: this call writes a whole `struct fsuuid2`, which `FsUuid` is laid out as.
    let call = unsafe { Getter::<FS_IOC_GETFSUUID, FsUuid>::new() };
    // SAFETY: it only writes to `call`; a file system that does not know it answers ENOTTY.
    let found = unsafe { ioctl(file, call) }.ok()?;
    (found.len == 16).then_some(found.uuid)
}

/// Whether `chattr` has made a file immutable or append-only (`FS_IOC_GETFLAGS`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// `FS_IMMUTABLE_FL`: it cannot be changed.
    pub(crate) immutable: bool,
    /// `FS_APPEND_FL`: it can only be appended to.
    pub(crate) append_only: bool,
}

/// Reads the attributes of a file.
pub(crate) fn attributes(file: &File) -> io::Result<Attributes> {
    let flags = ioctl_getflags(file)?;
    Ok(Attributes {
        immutable: flags.contains(IFlags::IMMUTABLE),
        append_only: flags.contains(IFlags::APPEND),
    })
}

/// `fallocate(2)`. Offset and length are in bytes.
pub(crate) fn fallocate(fd: BorrowedFd<'_>, mode: i32, offset: i64, len: i64) -> io::Result<()> {
    let mode = FallocateFlags::from_bits_retain(mode.cast_unsigned());
    let [offset, len] = [offset, len].map(i64::cast_unsigned);
    Ok(rustix::fs::fallocate(fd, mode, offset, len)?)
}

/// The first range of data that ends after `from`, by `SEEK_DATA` and `SEEK_HOLE`; `None` if there is none.
pub(crate) fn next_data(file: &File, from: u64) -> io::Result<Option<Range<u64>>> {
    let Some(start) = seek_to(file, SeekFrom::Data(from))? else {
        return Ok(None);
    };
    Ok(seek_to(file, SeekFrom::Hole(start))?.map(|end| start..end))
}

fn seek_to(file: &File, position: SeekFrom) -> io::Result<Option<u64>> {
    match seek(file, position) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Makes reads through this open file description leave the file's access time unchanged (`O_NOATIME`).
///
/// # Errors
/// `EPERM` unless the process owns the file or has CAP_FOWNER.
pub(crate) fn keep_access_time(file: &File) -> io::Result<()> {
    let flags = fcntl_getfl(file)?;
    Ok(fcntl_setfl(file, flags | OFlags::NOATIME)?)
}

/// An unnamed file in memory. `name` shows in `/proc/PID/maps` and `fd/`.
pub(crate) fn memory_file(name: &str) -> io::Result<File> {
    Ok(memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL)?.into())
}
