//! The parameters of a device on a backend.

use ublk_bpf_abi::SECTOR_SIZE;

use super::facts::Facts;
use crate::control::{Discard, Params};

impl Facts {
    /// The parameters of a device on this backend that takes requests of up to `max_io_bytes`.
    #[must_use]
    pub fn params(&self, max_io_bytes: u32) -> Params {
        Params {
            logical_block: self.logical_block,
            physical_block: self.physical_block,
            io_min: hint(self.io_min),
            io_opt: hint(self.io_opt),
            max_io_bytes,
            read_only: self.read_only,
            rotational: self.rotational,
            volatile_cache: self.volatile_cache,
            fua: self.volatile_cache,
            discard: self.discard.map(|discard| Discard {
                granularity: discard.granularity.next_multiple_of(self.logical_block),
                max_sectors: whole_sectors(discard.max_bytes),
            }),
            max_write_zeroes_sectors: self
                .write_zeroes
                .map_or(0, |zeroes| whole_sectors(zeroes.max_bytes)),
            dma_alignment: self.memory_align,
            ..Params::new(self.sectors)
        }
    }
}

/// ublk can only express powers of two; a hint of any other length is omitted.
const fn hint(bytes: u32) -> u32 {
    if bytes.is_power_of_two() { bytes } else { 0 }
}

fn whole_sectors(bytes: u64) -> u32 {
    u32::try_from(bytes / SECTOR_SIZE).unwrap_or(u32::MAX)
}
