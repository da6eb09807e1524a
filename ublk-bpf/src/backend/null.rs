//! The null backend: nothing is kept.

use ublk_bpf_abi::SECTOR_SIZE;

use super::facts::{Facts, MAX_RANGE_BYTES, WriteZeroes};

/// Everything succeeds, and there is nothing to make durable. Discards are not offered: there is no space
/// to give back.
pub(super) fn facts(bytes: u64, read_only: bool) -> Facts {
    Facts {
        sectors: bytes / SECTOR_SIZE,
        read_only,
        logical_block: 512,
        physical_block: 4096,
        io_min: 0,
        io_opt: 0,
        memory_align: 4,
        rotational: false,
        throttle: Some(0),
        stable_writes: false,
        volatile_cache: false,
        discard: None,
        write_zeroes: (!read_only).then_some(WriteZeroes {
            max_bytes: MAX_RANGE_BYTES,
            zero_range: false,
        }),
    }
}
