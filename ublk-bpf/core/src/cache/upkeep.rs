//! Operations on the shared state that only the mover performs.

use std::sync::atomic::Ordering;

use ublk_bpf_abi::{BlockState, IndexEntry, Priority, SECTOR_SIZE};

use super::blocks::update;
use super::recover::Trust;
use super::shared::Cache;

impl Cache<'_> {
    /// Takes the oldest hint: a block and its priority.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "`hint` packed a block and a priority"
    )]
    pub(super) fn next_hint(&self) -> Option<(u32, Priority)> {
        let hint = self.hints.pop()?;
        let priority = Priority::parse(hint as u8 & 3).unwrap_or(Priority::Normal);
        Some(((hint >> 2) as u32, priority))
    }

    /// Whether a hint is queued.
    pub(super) fn is_hinted(&self) -> bool {
        !self.hints.is_empty()
    }

    /// Marks the mover asleep. `false`: a hint was queued meanwhile.
    pub(super) fn sleep(&self) -> bool {
        self.mover_sleeps.store(true, Ordering::SeqCst);
        self.hints.is_empty()
    }

    /// Requests that arrived since the last call.
    pub(super) fn take_requests(&self) -> u64 {
        self.requests.swap(0, Ordering::Relaxed)
    }

    pub(super) fn entry(&self, block: u32) -> IndexEntry {
        self.blocks.entry(block)
    }

    /// Begins to fill `slot`, which `block` owns, if the block is absent and has no write in flight.
    pub(super) fn begin_filling(&self, block: u32, slot: u32) -> bool {
        self.swap(
            block,
            IndexEntry::ABSENT,
            IndexEntry::new(BlockState::Filling, slot),
        )
    }

    /// Publishes the slot, unless the block was written since [`begin_fill`](Self::begin_filling).
    pub(super) fn end_filling(&self, block: u32, slot: u32) -> bool {
        self.swap(
            block,
            IndexEntry::new(BlockState::Filling, slot),
            IndexEntry::new(BlockState::Present, slot),
        )
    }

    /// Abandons a fill.
    pub(super) fn give_up_filling(&self, block: u32, slot: u32) {
        self.swap(
            block,
            IndexEntry::new(BlockState::Filling, slot),
            IndexEntry::ABSENT,
        );
    }

    /// Evicts a block from `slot`, unless it has a write in flight or is not there.
    pub(super) fn evict(&self, block: u32, slot: u32) -> bool {
        self.swap(
            block,
            IndexEntry::new(BlockState::Present, slot),
            IndexEntry::ABSENT,
        )
    }

    /// Restores a block of an earlier server in `slot`, present or unverified.
    pub(super) fn restore(&self, block: u32, slot: u32, trust: Trust) -> bool {
        let state = match trust {
            Trust::Proven => BlockState::Present,
            Trust::ToVerify => BlockState::Unverified,
        };
        self.swap(block, IndexEntry::ABSENT, IndexEntry::new(state, slot))
    }

    /// Begins to verify the block of an earlier server in `slot`, unless it was written since. Ends as a fill does.
    pub(super) fn begin_verify(&self, block: u32, slot: u32) -> bool {
        self.swap(
            block,
            IndexEntry::new(BlockState::Unverified, slot),
            IndexEntry::new(BlockState::Filling, slot),
        )
    }

    /// Evicts an unverified block, unless a write has invalidated it.
    pub(super) fn give_up_unverified(&self, block: u32, slot: u32) {
        self.swap(
            block,
            IndexEntry::new(BlockState::Unverified, slot),
            IndexEntry::ABSENT,
        );
    }

    /// Removes every block from the index.
    pub(super) fn empty(&self) {
        for word in self.blocks.index {
            update(word, IndexEntry::invalidated);
        }
    }

    fn swap(&self, block: u32, from: IndexEntry, to: IndexEntry) -> bool {
        let word = self.blocks.index.get(block as usize);
        word.is_some_and(|word| {
            word.compare_exchange(from.0, to.0, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
        })
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
