//! Operations on the shared state that only the mover performs.

use std::sync::atomic::Ordering;

use ublk_bpf_abi::{IndexEntry, SECTOR_SIZE};

use super::blocks::update;
use super::shared::Cache;

impl Cache<'_> {
    /// Marks the mover asleep. `false`: there is something to do meanwhile.
    pub(super) fn sleep(&self) -> bool {
        self.mover_sleeps.store(true, Ordering::SeqCst);
        self.hints.is_empty() && !self.free.want_mover()
    }

    /// Requests that arrived since the last call.
    pub(super) fn take_requests(&self) -> u64 {
        self.requests.swap(0, Ordering::Relaxed)
    }

    pub(super) fn entry(&self, block: u32) -> IndexEntry {
        self.blocks.entry(block)
    }

    /// Removes every block from the index that is not dirty. Of the others, only the dirty regions remain.
    pub(super) fn empty(&self) {
        for (word, block) in self.blocks.index.iter().zip(0..) {
            let all = self.regions_of(block);
            update(word, |entry| {
                if entry.is_dirty() {
                    let clean = all & !self.blocks.dirty.of(entry.slot());
                    return entry.with_writers(entry.writers(), entry.hidden() | clean);
                }
                entry.invalidated()
            });
        }
    }

    /// Reads of a block, decayed.
    pub(super) fn heat(&self, block: u32) -> u8 {
        let word = self.heat.get(block as usize / 8);
        word.map_or(0, |word| {
            word.load(Ordering::Relaxed).to_le_bytes()[block as usize % 8]
        })
    }

    /// May lose a read that the classifier counts at the same time in the word, which is harmless.
    pub(super) fn set_heat(&self, block: u32, heat: u8) {
        if let Some(word) = self.heat.get(block as usize / 8) {
            let mut bytes = word.load(Ordering::Relaxed).to_le_bytes();
            bytes[block as usize % 8] = heat;
            word.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
        }
    }

    /// Halves the heat of the blocks in words `from..to`. Returns whether these are the last.
    pub(super) fn halve_heat(&self, from: usize, to: usize) -> bool {
        const LOW_SEVEN_BITS: u64 = 0x7f7f_7f7f_7f7f_7f7f;
        let end = to.min(self.heat.len());
        for word in &self.heat[from.min(end)..end] {
            let heat = word.load(Ordering::Relaxed);
            if heat != 0 {
                word.store(heat >> 1 & LOW_SEVEN_BITS, Ordering::Relaxed);
            }
        }
        end == self.heat.len()
    }

    /// Bytes of a block within the device: fewer for a partial last block, 0 beyond the end.
    pub(super) fn length_of(&self, block: u32) -> u32 {
        let bytes = self.shape().capacity * SECTOR_SIZE;
        let left = bytes
            .saturating_sub(self.block_offset(block))
            .min(self.block_bytes());
        u32::try_from(left).unwrap_or(u32::MAX)
    }

    pub(super) const fn block_offset(&self, block: u32) -> u64 {
        (block as u64) << self.shape().shift
    }

    pub(super) const fn slot_offset(&self, slot: u32) -> u64 {
        self.shape().data_offset + ((slot as u64) << self.shape().shift)
    }
}
