//! A regular file as a backend.

use std::alloc::{self, Layout};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use ublk_bpf_abi::SECTOR_SIZE;

use super::error::BackendError;
use super::facts::{DiscardBy, DiscardFacts, Facts, MAX_RANGE_BYTES, WriteZeroes};
use super::sysfs::BlockSysfs;
use crate::path_text::ShowPath as _;
use crate::sys;

/// File system block sizes that ublk can have as logical blocks.
const MAX_BLOCK: u32 = 4096;

/// Whether the path names a block device.
///
/// # Errors
/// If there is nothing, or something that is neither that nor a regular file.
pub(super) fn is_block_device(path: &Path) -> Result<bool, BackendError> {
    let found = fs::metadata(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => BackendError::Missing(path.to_owned()),
        io::ErrorKind::PermissionDenied => BackendError::Denied(path.to_owned()),
        _ => BackendError::System {
            name: path.shown().to_string(),
            what: "look at it",
            source,
        },
    })?;
    let kind = found.file_type();
    let what = if kind.is_file() {
        return Ok(false);
    } else if kind.is_block_device() {
        return Ok(true);
    } else if kind.is_dir() {
        "directory"
    } else if kind.is_char_device() {
        "character device"
    } else if kind.is_fifo() {
        "pipe"
    } else {
        "socket"
    };
    Err(BackendError::WrongKind {
        path: path.to_owned(),
        what,
    })
}

/// Opens and locks the file: alone for writing, shared for reading.
pub(super) fn open(path: &Path, read_only: bool) -> Result<(Facts, File), BackendError> {
    let failed = |what| {
        move |source| BackendError::System {
            name: path.shown().to_string(),
            what,
            source,
        }
    };
    let (file, read_only) = open_direct(path, read_only)?;
    lock(path, &file, read_only)?;
    let found = file.metadata().map_err(failed("look at it"))?;
    if found.len() == 0 {
        return Err(BackendError::Empty(path.to_owned()));
    }
    let (logical_block, memory_align) = alignment(path, &file)?;
    if !found.len().is_multiple_of(u64::from(logical_block)) {
        return Err(BackendError::Unaligned {
            path: path.to_owned(),
            bytes: found.len(),
            block: logical_block,
        });
    }
    let file_system_block = u32::try_from(found.blksize()).unwrap_or(MAX_BLOCK).min(MAX_BLOCK);
    let holes = !read_only && punches_holes(path, &file, &found)?;
    let zero_range = !read_only && zeroes_ranges(path, found.dev());
    let max_bytes = MAX_RANGE_BYTES - MAX_RANGE_BYTES % u64::from(logical_block);
    let disk = BlockSysfs::find(found.dev());
    let facts = Facts {
        sectors: found.len() / SECTOR_SIZE,
        read_only,
        logical_block,
        physical_block: file_system_block.max(logical_block),
        io_min: file_system_block.max(logical_block),
        io_opt: 0,
        memory_align: memory_align.clamp(4, MAX_BLOCK),
        rotational: disk.as_ref().and_then(|disk| disk.queue("rotational")) == Some(1),
        throttle: disk.as_ref().and_then(BlockSysfs::throttle),
        // The file system does that for its own disk.
        stable_writes: false,
        // Even where the disk has no cache, the file's extents become durable only by fsync.
        volatile_cache: true,
        discard: holes.then_some(DiscardFacts {
            granularity: file_system_block.max(logical_block),
            alignment: 0,
            max_bytes,
            how: DiscardBy::PunchHole,
        }),
        write_zeroes: holes.then_some(WriteZeroes {
            max_bytes,
            zero_range,
        }),
    };
    Ok((facts, file))
}

/// Calls `mark` with each range of data before `bytes`.
pub(super) fn for_each_data_range(
    file: &File,
    bytes: u64,
    mut mark: impl FnMut(Range<u64>),
) -> io::Result<()> {
    let mut from = 0;
    while from < bytes {
        let Some(data) = sys::file::next_data(file, from)? else {
            break;
        };
        mark(data.start.min(bytes)..data.end.min(bytes));
        from = data.end;
    }
    Ok(())
}

/// The file for direct I/O, and whether it can only be read: a file system mounted so, or a mode without a
/// write bit: root could override that, but it was set for a reason.
fn open_direct(path: &Path, read_only: bool) -> Result<(File, bool), BackendError> {
    let open = |write: bool| {
        OpenOptions::new()
            .read(true)
            .write(write)
            .custom_flags(libc::O_DIRECT | libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open(path)
    };
    let protected = fs::metadata(path).is_ok_and(|found| found.mode() & 0o222 == 0);
    let read_only = read_only || protected;
    let opened = match open(!read_only) {
        Err(error) if !read_only && error.raw_os_error() == Some(libc::EROFS) => {
            open(false).map(|file| (file, true))
        }
        other => other.map(|file| (file, read_only)),
    };
    opened.map_err(|source| match source.raw_os_error() {
        Some(libc::EINVAL) => BackendError::NoDirectIo(path.to_owned()),
        Some(libc::EPERM) => protection(path).unwrap_or_else(|| BackendError::Denied(path.to_owned())),
        Some(libc::EACCES) => BackendError::Denied(path.to_owned()),
        Some(libc::ETXTBSY) => BackendError::InUse {
            path: path.to_owned(),
            by: "(running, or swap space)".into(),
        },
        _ => BackendError::System {
            name: path.shown().to_string(),
            what: "open it",
            source,
        },
    })
}

/// The attribute that forbids even root to write the file, if it has one.
fn protection(path: &Path) -> Option<BackendError> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .ok()?;
    let attributes = sys::file::attributes(&file).ok()?;
    let (attribute, letter) = if attributes.immutable {
        ("immutable", 'i')
    } else if attributes.append_only {
        ("append-only", 'a')
    } else {
        return None;
    };
    Some(BackendError::Protected {
        path: path.to_owned(),
        attribute,
        letter,
    })
}

fn lock(path: &Path, file: &File, read_only: bool) -> Result<(), BackendError> {
    let locked = if read_only {
        file.try_lock_shared()
    } else {
        file.try_lock()
    };
    locked.map_err(|error| match error {
        TryLockError::WouldBlock => BackendError::InUse {
            path: path.to_owned(),
            by: "(another ublk-bpf device or program has locked it)".to_owned(),
        },
        TryLockError::Error(source) => BackendError::System {
            name: path.shown().to_string(),
            what: "lock it",
            source,
        },
    })
}

/// The logical block and the memory alignment that direct I/O on the file demands.
fn alignment(path: &Path, file: &File) -> Result<(u32, u32), BackendError> {
    let failed = |what| {
        move |source| BackendError::System {
            name: path.shown().to_string(),
            what,
            source,
        }
    };
    let known = sys::file::direct_io(file).map_err(failed("ask for its alignment"))?;
    let (offset, memory) = match known {
        Some(align) if align.offset_align == 0 => return Err(BackendError::NoDirectIo(path.to_owned())),
        Some(align) => (align.offset_align, align.memory_align),
        None if sys::file::file_system_magic(file).map_err(failed("look at its file system"))?
            == libc::TMPFS_MAGIC =>
        {
            (512, 4)
        }
        None => {
            let block = probe_block(file).ok_or_else(|| BackendError::NoDirectIo(path.to_owned()))?;
            (block, block)
        }
    };
    let block = offset.max(512);
    if block > MAX_BLOCK {
        return Err(BackendError::BlockTooLarge {
            path: path.to_owned(),
            block,
        });
    }
    Ok((block, memory))
}

/// The smallest block, and multiple of it in memory, that a read of the file takes: for the file systems
/// that do not tell `statx` their alignment.
fn probe_block(file: &File) -> Option<u32> {
    let layout = Layout::from_size_align(8192, 4096).ok()?;
    // SAFETY: the layout's size is not zero.
    let memory = unsafe { alloc::alloc_zeroed(layout) };
    if memory.is_null() {
        return None;
    }
    // SAFETY: these are the 8192 initialised bytes just allocated, which nothing else refers to.
    let buffer = unsafe { std::slice::from_raw_parts_mut(memory, 8192) };
    let found = [512_u32, 1024, 2048, 4096].into_iter().find(|&block| {
        let unit = block as usize;
        // An address that is aligned to this block and to no larger one.
        file.read_at(&mut buffer[unit % 4096..][..unit], 0).is_ok()
    });
    // SAFETY: `memory` came from `alloc_zeroed` with this layout, and `buffer` is not used after this.
    unsafe { alloc::dealloc(memory, layout) };
    found
}

/// Tries the operation in a scratch file, or if there can be none beyond the end of the file itself, where it
/// changes no data; but it changes the file's time stamps, by which a cache knows that its backing is as it was.
fn punches_holes(path: &Path, file: &File, found: &fs::Metadata) -> Result<bool, BackendError> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // Beyond what any file can have: refused before the file system is asked, and first of all if it is swap space.
    match sys::file::fallocate(file.as_fd(), mode, i64::MAX, 4096) {
        Err(error) if error.raw_os_error() == Some(libc::ETXTBSY) => {
            return Err(BackendError::InUse {
                path: path.to_owned(),
                by: "(as swap space)".to_owned(),
            });
        }
        _ => {}
    }
    if let Some(scratch) = scratch_beside(path, found.dev()) {
        return Ok(sys::file::fallocate(scratch.as_fd(), mode, 0, 4096).is_ok());
    }
    let behind = i64::try_from(found.len().next_multiple_of(1 << 20)).unwrap_or(i64::MAX - (1 << 20));
    Ok(sys::file::fallocate(file.as_fd(), mode, behind, 4096).is_ok())
}

/// Tries the operation in a scratch file, because it would allocate space beyond the end of the file itself. What
/// cannot be tried counts as unsupported.
fn zeroes_ranges(path: &Path, dev: u64) -> bool {
    let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
    scratch_beside(path, dev)
        .is_some_and(|scratch| sys::file::fallocate(scratch.as_fd(), mode, 0, 4096).is_ok())
}

/// A file without a name in the same folder, if that is on the file system `dev` and can have one.
fn scratch_beside(path: &Path, dev: u64) -> Option<File> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let scratch = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open(folder)
        .ok()?;
    (scratch.metadata().ok()?.dev() == dev).then_some(scratch)
}
