//! The protocol of write-back: writes that end in the slot, and copies of it to the backing device.

use ublk_bpf_abi::{BlockState, IndexEntry};

use super::blocks::{Blocks, granules, is_in, update};
use super::seam::{self, Rule};
use super::word::Word;

/// Regions that a write covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Covered {
    /// Those that it touches; not 0.
    pub(super) touched: u16,
    /// Those of them that it covers as a whole.
    pub(super) whole: u16,
    /// All that the block has.
    pub(super) all: u16,
}

/// A write to a slot, which has claimed the regions that it touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Back {
    pub(super) slot: u32,
    /// Of the claimed regions, those that were dirty before.
    pub(super) was_dirty: u16,
    /// Of the claimed regions, those that were not valid before: they become valid, and dirty, with the end of the write.
    pub(super) invalid: u16,
    /// The block was absent, and has just got the slot.
    pub(super) is_new: bool,
}

/// What [`Blocks::begin_back`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BackAttempt {
    /// The write may be issued.
    Begun(Back),
    /// It covers a part of regions that are not valid: what is left of them would be missing.
    Partial,
    /// Another claim has one of its regions.
    Busy,
    /// The absent block is being changed, or the block is yet to be verified.
    Refused,
    /// The block is absent, and there is no slot for it.
    NoRoom,
    /// The block was absent, but changed. This free slot was not used.
    Lost(u32),
}

/// How a write to a slot has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackEnd {
    /// The slot has all of its data.
    Stored,
    /// It failed. The slot may have some of its data.
    Failed,
    /// The slot failed it, nothing of it was dirty before, and the backing device has all of its data instead.
    WrittenAround,
}

impl<W: Word> Blocks<'_, W> {
    /// Begins a write of these regions that ends in the slot. `free` provides a slot if the block is absent.
    ///
    /// Regions that are valid stay readable, and are dirty from here on: the first byte that changes in the slot makes it
    /// differ from the backing device.
    #[inline]
    pub(super) fn begin_back(
        &self,
        block: u32,
        covered: Covered,
        free: impl FnOnce() -> Option<u32>,
    ) -> BackAttempt {
        let Some(word) = self.index.get(block as usize) else {
            return BackAttempt::Refused;
        };
        let entry = IndexEntry(word.load());
        match entry.state() {
            BlockState::Present | BlockState::Dirty => self.begin_back_present(word, entry, block, covered),
            BlockState::Absent if entry.writers() == 0 => self.begin_back_absent(word, block, covered, free),
            BlockState::Absent | BlockState::Unverified => BackAttempt::Refused,
        }
    }

    fn begin_back_present(&self, word: &W, found: IndexEntry, block: u32, covered: Covered) -> BackAttempt {
        let (slot, touched) = (found.slot(), covered.touched);
        if self.leaves_a_gap(found.hidden(), covered) {
            return BackAttempt::Partial;
        }
        if !self.slots.claim(slot, block, touched) {
            return BackAttempt::Busy;
        }
        let mut entry = IndexEntry(word.load());
        while self.dirty.is_open(block)
            && is_in(entry, slot)
            && !self.leaves_a_gap(entry.hidden(), covered)
            && entry.writers() < IndexEntry::MAX_WRITERS
        {
            let marked = entry
                .with_writers(entry.writers() + 1, entry.hidden())
                .in_state(BlockState::Dirty);
            match word.compare_exchange(entry.0, marked.0) {
                Ok(()) => {
                    let invalid = entry.hidden() & touched;
                    let dirty = dirty_first(touched, invalid);
                    let before = self.dirty.begin(&self.slots, slot, block, dirty);
                    return BackAttempt::Begun(Back {
                        slot,
                        was_dirty: before.dirty() & touched,
                        invalid,
                        is_new: false,
                    });
                }
                Err(now) => entry = IndexEntry(now),
            }
        }
        self.release(slot, touched);
        BackAttempt::Busy
    }

    /// Whether a granule would have valid and missing regions after the write. A fill could not make up for it: it stores whole
    /// granules, and nothing where the slot may be read.
    fn leaves_a_gap(&self, hidden: u16, covered: Covered) -> bool {
        let left = hidden & !covered.whole & covered.all;
        hidden & covered.touched != 0
            && granules(self.granule(), |granule| {
                granule & hidden & covered.touched != 0 && granule & left != 0
            }) != 0
    }

    fn begin_back_absent(
        &self,
        word: &W,
        block: u32,
        covered: Covered,
        free: impl FnOnce() -> Option<u32>,
    ) -> BackAttempt {
        if self.leaves_a_gap(covered.all, covered) {
            return BackAttempt::Partial;
        }
        let Some(slot) = free() else {
            return BackAttempt::NoRoom;
        };
        let touched = covered.touched;
        self.slots.give_claimed(slot, block, touched);
        let writing = IndexEntry::new(BlockState::Dirty, slot).with_writers(1, covered.all);
        if !self.dirty.is_open(block) || word.compare_exchange(IndexEntry::ABSENT.0, writing.0).is_err() {
            self.slots.release(slot, touched);
            return BackAttempt::Lost(slot);
        }
        self.dirty
            .begin(&self.slots, slot, block, dirty_first(touched, touched));
        BackAttempt::Begun(Back {
            slot,
            was_dirty: 0,
            invalid: touched,
            is_new: true,
        })
    }

    /// The write of these claimed regions has ended.
    #[inline]
    pub(super) fn end_back(&self, block: u32, back: &Back, (touched, all): (u16, u16), end: BackEnd) {
        let slot = back.slot;
        let valid = match end {
            BackEnd::Stored => {
                self.dirty.add(&self.slots, slot, block, touched);
                touched
            }
            // What was valid is old or new data now, and dirty either way.
            BackEnd::Failed => touched & !back.invalid,
            BackEnd::WrittenAround => {
                debug_assert!(back.was_dirty == 0, "the backing device lacks what was dirty");
                0
            }
        };
        if let Some(word) = self.index.get(block as usize) {
            if end == BackEnd::WrittenAround {
                // First hidden, then clean: until then, a successor reads the slot, and with it data that was valid.
                update(word, |entry| {
                    entry.with_writers(entry.writers(), entry.hidden() | touched)
                });
                self.dirty.remove(slot, touched, None);
            }
            update(word, |entry| {
                let after = self.ended(entry, slot, (touched, valid), all);
                after.with_writers(entry.writers().saturating_sub(1), after.hidden())
            });
        }
        self.release(slot, touched);
        if end != BackEnd::Stored {
            // Nothing may be dirty of it.
            self.settle(block, all);
        }
    }

    /// Makes a dirty block present if nothing of its slot is dirty and no change of it is in flight. Returns whether it is not
    /// dirty now.
    pub(super) fn settle(&self, block: u32, all: u16) -> bool {
        let entry = self.entry(block);
        if !entry.is_dirty() {
            return true;
        }
        let slot = entry.slot();
        if self.dirty.of(slot) != 0 || !self.slots.claim(slot, block, all) {
            return false;
        }
        // With all regions claimed, no write can begin.
        let is_clean = entry.writers() == 0
            && self.dirty.of(slot) == 0
            && self.swap(block, entry, entry.in_state(BlockState::Present));
        if is_clean && seam::is_left_out(Rule::HeldByLog) {
            self.dirty.release(&self.slots, slot);
        }
        self.release(slot, all);
        is_clean
    }

    /// The dirty regions of a block, in its slot.
    pub(super) fn dirty_regions(&self, block: u32) -> u16 {
        let entry = self.entry(block);
        if entry.is_dirty() {
            self.dirty.of(entry.slot())
        } else {
            0
        }
    }

    /// Begins a copy of a block's dirty regions to the backing device. Returns the slot, these regions and their generation.
    /// Those that a write has claimed are left out. The slot is held meanwhile.
    pub(super) fn begin_clean(&self, block: u32) -> Option<(u32, u16, u32)> {
        let entry = self.entry(block);
        if !entry.is_dirty() {
            return None;
        }
        let slot = entry.slot();
        // A write that begins after this changes the generation; one that began before it has its claim still, or has ended.
        let now = self.dirty.get(slot);
        let regions = now.dirty() & !self.slots.busy(slot);
        (regions != 0 && self.slots.is_of(slot, block)).then_some((slot, regions, now.generation()))
    }

    /// Whether no write of the slot has begun since that.
    pub(super) fn is_same(&self, slot: u32, generation: u32) -> bool {
        self.dirty.get(slot).generation() == generation
    }

    /// These regions are durable on the backing device, as they were in that generation: they are clean, unless a write of the
    /// slot has begun since. [`settle`](Self::settle) follows.
    pub(super) fn end_clean(&self, slot: u32, (regions, generation): (u16, u32)) {
        let generation = (!seam::is_left_out(Rule::SameGeneration)).then_some(generation);
        self.dirty.remove(slot, regions, generation);
    }
}

/// The regions that are dirty as soon as a write begins. What is valid differs from the backing device with the first byte that
/// changes. What is not has nothing that is worth keeping before the last one.
fn dirty_first(touched: u16, invalid: u16) -> u16 {
    if seam::is_left_out(Rule::DirtyFirst) {
        return 0;
    }
    if seam::is_left_out(Rule::DirtyWhenWritten) {
        return touched;
    }
    touched & !invalid
}
