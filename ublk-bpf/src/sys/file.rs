//! Facts about files that the standard library does not tell.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd};

/// What direct I/O on a file demands, in bytes. `None` where the file system does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DirectIo {
    /// Alignment of memory addresses. Zero: the file does not take direct I/O.
    pub(crate) memory_align: u32,
    /// Alignment of offsets and lengths. Zero: the file does not take direct I/O.
    pub(crate) offset_align: u32,
}

/// Asks `statx(STATX_DIOALIGN)` (Linux 6.1).
pub(crate) fn direct_io(file: &File) -> io::Result<Option<DirectIo>> {
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is an empty C string, which AT_EMPTY_PATH makes mean the descriptor itself, and
    // `found` is writable memory of the size that statx fills.
    let result = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            found.as_mut_ptr(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: statx succeeded, and all-zero bytes were a valid value before.
    let found = unsafe { found.assume_init() };
    Ok((found.stx_mask & libc::STATX_DIOALIGN != 0).then_some(DirectIo {
        memory_align: found.stx_dio_mem_align,
        offset_align: found.stx_dio_offset_align,
    }))
}

/// The magic number of the file system that holds the file (`statfs(2)`).
pub(crate) fn file_system_magic(file: &File) -> io::Result<i64> {
    let mut found = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: `found` is writable memory of the size that fstatfs fills.
    if unsafe { libc::fstatfs(file.as_raw_fd(), found.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fstatfs succeeded, and all-zero bytes were a valid value before.
    Ok(unsafe { found.assume_init() }.f_type)
}

/// The UUID of the file system that holds the file (`FS_IOC_GETFSUUID`, Linux 6.9); `None` where it has none or
/// does not say.
pub(crate) fn file_system_uuid(file: &File) -> Option<[u8; 16]> {
    /// `struct fsuuid2` of `include/uapi/linux/fs.h`.
    #[repr(C)]
    struct Uuid {
        len: u8,
        uuid: [u8; 16],
    }
    /// `_IOR(0x15, 0, struct fsuuid2)`.
    const FS_IOC_GETFSUUID: libc::c_ulong = 0x8011_1500;
    let mut found = Uuid {
        len: 0,
        uuid: [0; 16],
    };
    // SAFETY: `found` is writable memory of the size that the number of the call carries.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_GETFSUUID, &raw mut found) };
    (result == 0 && found.len == 16).then_some(found.uuid)
}

/// A file that cannot be changed (`include/uapi/linux/fs.h`).
pub(crate) const FS_IMMUTABLE_FL: u32 = 0x10;
/// A file that can only be appended to.
pub(crate) const FS_APPEND_FL: u32 = 0x20;

/// The attributes that `chattr` changes (`FS_IOC_GETFLAGS`): `FS_*_FL`.
pub(crate) fn attributes(file: &File) -> io::Result<u32> {
    /// `_IOR('f', 1, long)`; what the kernel writes is an `int` all the same.
    const FS_IOC_GETFLAGS: libc::c_ulong = 0x8008_6601;
    let mut flags: u64 = 0;
    // SAFETY: `flags` is writable memory of the size that the number of the call carries.
    if unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_GETFLAGS, &raw mut flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // The low half, which is first on the little-endian machines that this is for.
    Ok(u32::try_from(flags & u64::from(u32::MAX)).unwrap_or(0))
}

/// `fallocate(2)` with these `FALLOC_FL_*` flags. Offsets are in bytes.
pub(crate) fn fallocate(fd: BorrowedFd<'_>, mode: i32, offset: i64, len: i64) -> io::Result<()> {
    // SAFETY: no memory is passed, and the descriptor is borrowed for the call.
    match unsafe { libc::fallocate(fd.as_raw_fd(), mode, offset, len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The first range of data at or behind `from`, by `SEEK_DATA` and `SEEK_HOLE`; `None` behind the last.
pub(crate) fn next_data(file: &File, from: u64) -> io::Result<Option<Range<u64>>> {
    let Some(start) = seek(file, from, libc::SEEK_DATA)? else {
        return Ok(None);
    };
    Ok(seek(file, start, libc::SEEK_HOLE)?.map(|end| start..end))
}

fn seek(file: &File, from: u64, whence: i32) -> io::Result<Option<u64>> {
    let from = i64::try_from(from).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
    // SAFETY: no memory is passed, and the descriptor is borrowed for the call.
    let found = unsafe { libc::lseek(file.as_raw_fd(), from, whence) };
    match u64::try_from(found) {
        Ok(found) => Ok(Some(found)),
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
    }
}

/// Reads through this description leave the file's access time alone (`O_NOATIME`). Only its owner and who has
/// CAP_FOWNER may ask for that: `EPERM` for others.
pub(crate) fn keep_access_time(file: &File) -> io::Result<()> {
    // SAFETY: no memory is passed, and the descriptor is borrowed for the call.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NOATIME) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A file without a name, in memory. `name` shows in `/proc/PID/maps` and `fd/`.
pub(crate) fn memory_file(name: &str) -> io::Result<File> {
    let name = CString::new(name)?;
    // SAFETY: `name` is a C string that lives over the call.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_NOEXEC_SEAL) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call returned a new descriptor that nothing else owns.
    Ok(unsafe { File::from_raw_fd(fd) })
}
