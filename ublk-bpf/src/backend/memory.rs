//! Memory that serves as a device: a file without a name.

use std::fs::File;
use std::io;

use ublk_bpf_abi::SECTOR_SIZE;

use super::error::BackendError;
use super::facts::{DiscardBy, DiscardFacts, Facts, MAX_RANGE_BYTES, WriteZeroes};
use super::spec::Size;
use crate::sys;

/// The page, which holes are punched in.
const PAGE: u32 = 4096;

/// Makes memory of `bytes` (a multiple of 512), all zeroes. A page is taken when it is first written.
pub(super) fn open(bytes: u64, read_only: bool) -> Result<(Facts, File), BackendError> {
    let failed = |what| {
        move |source| BackendError::System {
            name: format!("mem:{}", Size(bytes)),
            what,
            source,
        }
    };
    let file = sys::file::memory_file("ublk-bpf").map_err(failed("get memory"))?;
    file.set_len(bytes).map_err(failed("get memory"))?;
    file.metadata()
        .and_then(|found| {
            if found.len() == bytes {
                Ok(())
            } else {
                Err(io::ErrorKind::FileTooLarge.into())
            }
        })
        .map_err(failed("get memory"))?;
    Ok((facts(bytes, read_only), file))
}

fn facts(bytes: u64, read_only: bool) -> Facts {
    Facts {
        sectors: bytes / SECTOR_SIZE,
        read_only,
        logical_block: 512,
        physical_block: PAGE,
        io_min: PAGE,
        io_opt: 0,
        memory_align: 4,
        rotational: false,
        throttle: Some(0),
        stable_writes: false,
        // Memory loses everything with power whatever one flushes; within its life a completed write stays.
        volatile_cache: false,
        discard: (!read_only).then_some(DiscardFacts {
            granularity: PAGE,
            alignment: 0,
            max_bytes: MAX_RANGE_BYTES,
            how: DiscardBy::PunchHole,
        }),
        write_zeroes: (!read_only).then_some(WriteZeroes {
            max_bytes: MAX_RANGE_BYTES,
            zero_range: false,
        }),
    }
}
