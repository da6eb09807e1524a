//! The maps of a cache in plain memory.

use std::sync::atomic::AtomicU64;

/// An index and the heat of a device's blocks, and what is dirty, all zero, for a [`Cache`](super::Cache) that no classifier looks into.
#[derive(Debug)]
pub struct Maps {
    /// One word per block.
    pub index: Vec<AtomicU64>,
    /// One byte per block, eight to a word.
    pub heat: Vec<AtomicU64>,
    /// One word per slot, with write-back; else empty.
    pub dirty: Vec<AtomicU64>,
}

/// The maps and the shape of a cache with write-back, for tests.
#[cfg(test)]
pub(super) struct Room(Maps, super::Shape);

#[cfg(test)]
impl Room {
    pub(super) const SLOTS: u32 = 8;

    /// [`SLOTS`](Self::SLOTS) slots for 16 blocks of 4 KiB.
    pub(super) fn new() -> Self {
        Self::of(12, 16, Self::SLOTS)
    }

    /// So many slots for so many blocks of `1 << shift` bytes.
    pub(super) fn of(shift: u32, blocks: u64, slots: u32) -> Self {
        let shape = super::Shape {
            shift,
            capacity: (blocks << shift) / ublk_bpf_abi::SECTOR_SIZE,
            slots,
            data_offset: 0,
            mode: super::Mode::WriteBack,
        };
        Self(Maps::of(blocks).with_writeback(slots), shape)
    }

    pub(super) fn cache(&self) -> super::Cache<'_> {
        super::Cache::new(self.1, &self.0.index, &self.0.heat).with_writeback(&self.0.dirty)
    }

    /// The same with a log: slots that were dirty are free once that says that they are clean.
    pub(super) fn logged_cache(&self) -> super::Cache<'_> {
        use super::log::{Log, LogLayout, LogSeal};
        let cache = self.cache();
        let seal = LogSeal {
            cache_id: [7; 16],
            log_id: 1,
        };
        let super::Shape { shift, slots, .. } = self.1;
        let layout = LogLayout::new(u64::from(slots) << shift, slots, 64);
        cache.set_log(Log::new(layout, seal), false);
        cache
    }
}

impl Maps {
    /// For this number of blocks.
    #[must_use]
    pub fn of(blocks: u64) -> Self {
        Self {
            index: zeroes(blocks),
            heat: zeroes(blocks.div_ceil(8)),
            dirty: Vec::new(),
        }
    }

    /// The same with write-back, for this number of slots.
    #[must_use]
    pub fn with_writeback(self, slots: u32) -> Self {
        Self {
            dirty: zeroes(slots.into()),
            ..self
        }
    }
}

fn zeroes(words: u64) -> Vec<AtomicU64> {
    (0..words).map(|_| AtomicU64::new(0)).collect()
}
