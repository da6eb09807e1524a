//! A block device as a backend.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use ublk_bpf_abi::SECTOR_SIZE;

use super::error::BackendError;
use super::facts::{DiscardBy, DiscardFacts, Facts, MAX_RANGE_BYTES, WriteZeroes};
use super::sysfs::BlockSysfs;
use crate::path_text::ShowPath as _;
use crate::sys;

/// Opens the device exclusively, so that it cannot be mounted while it serves.
pub(super) fn open(path: &Path, read_only: bool) -> Result<(Facts, File), BackendError> {
    let (file, opened_read_only) = open_exclusively(path, read_only)?;
    let failed = |what| {
        move |source| BackendError::System {
            name: path.shown().to_string(),
            what,
            source,
        }
    };
    let dev = file.metadata().map_err(failed("look at it"))?.rdev();
    let sysfs =
        BlockSysfs::find(dev).ok_or_else(|| failed("find it in /sys")(io::ErrorKind::NotFound.into()))?;
    let align = sys::file::direct_io(&file).map_err(failed("ask for its alignment"))?;
    let read_only = opened_read_only || sysfs.device("ro") == Some(1);
    let memory_align = align.map(|a| a.memory_align).filter(|&a| a != 0);
    let facts = facts(path, &sysfs, memory_align, read_only)?;
    Ok((facts, file))
}

fn open_exclusively(path: &Path, read_only: bool) -> Result<(File, bool), BackendError> {
    let open = |write: bool| {
        OpenOptions::new()
            .read(true)
            .write(write)
            .custom_flags(libc::O_DIRECT | libc::O_EXCL | libc::O_CLOEXEC)
            .open(path)
    };
    let opened = match open(!read_only) {
        Err(error) if !read_only && is_write_protected(&error) => open(false).map(|file| (file, true)),
        other => other.map(|file| (file, read_only)),
    };
    opened.map_err(|source| match source.raw_os_error() {
        Some(libc::EBUSY) => BackendError::InUse {
            path: path.to_owned(),
            by: holder_of(path),
        },
        Some(libc::EACCES | libc::EPERM) => BackendError::Denied(path.to_owned()),
        Some(libc::ENXIO | libc::ENOMEDIUM) => BackendError::Empty(path.to_owned()),
        _ => BackendError::System {
            name: path.shown().to_string(),
            what: "open it",
            source,
        },
    })
}

fn is_write_protected(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EROFS | libc::EACCES | libc::EPERM)
    )
}

/// The holder of the device, in words: where it is mounted, if that is known.
fn holder_of(path: &Path) -> String {
    let mounted_at = || {
        let device = fs::canonicalize(path).ok()?;
        let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
        mounts.lines().find_map(|line| {
            let mut words = line.split(' ');
            (Path::new(words.next()?) == device)
                .then(|| format!("(mounted at {})", words.next().unwrap_or("?")))
        })
    };
    mounted_at().unwrap_or_else(|| "(mounted, or held by another device or program)".to_owned())
}

fn facts(
    path: &Path,
    sysfs: &BlockSysfs,
    memory_align: Option<u32>,
    read_only: bool,
) -> Result<Facts, BackendError> {
    if let Some(model) = sysfs.queue_text("zoned").filter(|model| model != "none") {
        return Err(BackendError::Zoned {
            path: path.to_owned(),
            model,
        });
    }
    let sectors = sysfs.device("size").unwrap_or(0);
    if sectors == 0 {
        return Err(BackendError::Empty(path.to_owned()));
    }
    let logical_block = sysfs.queue_u32("logical_block_size").unwrap_or(512);
    if logical_block > 4096 {
        return Err(BackendError::BlockTooLarge {
            path: path.to_owned(),
            block: logical_block,
        });
    }
    let bytes = sectors.saturating_mul(SECTOR_SIZE);
    if !bytes.is_multiple_of(u64::from(logical_block)) {
        return Err(BackendError::Unaligned {
            path: path.to_owned(),
            bytes,
            block: logical_block,
        });
    }
    let memory_align = memory_align
        .or_else(|| sysfs.queue_u32("dma_alignment")?.checked_add(1))
        .filter(|align| align.is_power_of_two())
        .unwrap_or(512);
    Ok(Facts {
        sectors,
        read_only,
        logical_block,
        physical_block: sysfs
            .queue_u32("physical_block_size")
            .unwrap_or(512)
            .max(logical_block),
        io_min: sysfs.queue_u32("minimum_io_size").unwrap_or(0),
        io_opt: sysfs.queue_u32("optimal_io_size").unwrap_or(0),
        memory_align: memory_align.clamp(4, 4096),
        rotational: sysfs.queue("rotational") == Some(1),
        throttle: sysfs.throttle(),
        stable_writes: sysfs.queue("stable_writes") == Some(1),
        // If it cannot be read, assume a volatile cache: a superfluous flush does no harm.
        volatile_cache: sysfs
            .queue_text("write_cache")
            .is_none_or(|mode| mode != "write through"),
        discard: if read_only {
            None
        } else {
            discard(sysfs, logical_block)
        },
        write_zeroes: if read_only {
            None
        } else {
            write_zeroes(sysfs, logical_block)
        },
    })
}

fn discard(sysfs: &BlockSysfs, logical_block: u32) -> Option<DiscardFacts> {
    let most = sysfs
        .queue("discard_max_bytes")
        .filter(|&most| most >= u64::from(logical_block))?;
    let granularity = sysfs.queue_u32("discard_granularity").filter(|&unit| unit != 0);
    Some(DiscardFacts {
        granularity: granularity.unwrap_or(logical_block),
        alignment: sysfs
            .device("discard_alignment")
            .and_then(|at| at.try_into().ok())
            .unwrap_or(0),
        max_bytes: whole_blocks(most, logical_block),
        how: DiscardBy::BlockCommand,
    })
}

fn write_zeroes(sysfs: &BlockSysfs, logical_block: u32) -> Option<WriteZeroes> {
    let most = sysfs
        .queue("write_zeroes_max_bytes")
        .filter(|&most| most >= u64::from(logical_block))?;
    Some(WriteZeroes {
        max_bytes: whole_blocks(most, logical_block),
        zero_range: true,
    })
}

fn whole_blocks(bytes: u64, block: u32) -> u64 {
    let bytes = bytes.min(MAX_RANGE_BYTES);
    bytes - bytes % u64::from(block)
}
