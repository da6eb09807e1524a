//! The protocol of the index and the slots: who may change what, and in which order.
//!
//! It knows words and regions only, so that a model checker can run it (`loom.rs`). `shared.rs` has the operations that
//! requests see.

use ublk_bpf_abi::{BlockState, IndexEntry, REGIONS};

use super::dirty::DirtyMap;
use super::seam::{self, Rule};
use super::slots::SlotTable;
use super::waiters::Waiters;
use super::word::{AtomicU64, Word};

/// The index of the blocks, and their slots.
#[derive(Debug)]
pub(super) struct Blocks<'m, W = AtomicU64> {
    pub(super) index: &'m [W],
    pub(super) slots: SlotTable<W>,
    pub(super) waiters: Waiters<W>,
    pub(super) dirty: DirtyMap<'m, W>,
    /// Regions are hidden, and filled, in multiples of so many: a power of two.
    granule: u32,
}

/// Which regions of a block to fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WantedRegions {
    /// Those that are asked for; not 0.
    pub(super) needed: u16,
    /// Those that may be filled with them, `needed` included: whole granules.
    pub(super) wanted: u16,
    /// All that the block has.
    pub(super) all: u16,
}

/// What [`Blocks::begin_fill`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FillAttempt {
    /// These regions are claimed and are to be filled. `is_new`: the block was absent, and has just got the slot.
    Begun { slot: u32, regions: u16, is_new: bool },
    /// Some of what is needed is being filled.
    Busy,
    /// All of what is needed can be read.
    Readable,
    /// Some of it, or the absent block, is being written.
    Written,
    /// There are valid regions between those that are needed: no single fill can have them.
    Scattered,
    /// It is yet to be verified.
    Unverified,
    /// The block is absent, and there is no slot for it.
    NoRoom,
    /// The block was absent, but changed. This free slot was not used.
    Lost(u32),
}

impl<'m, W: Word> Blocks<'m, W> {
    pub(super) fn new(index: &'m [W], slots: u32, granule: u32) -> Self {
        Self {
            granule,
            index,
            slots: SlotTable::new(slots),
            waiters: Waiters::new(slots),
            dirty: DirtyMap::none(),
        }
    }

    /// The same with write-back: `words` says of each slot what is dirty.
    pub(super) fn with_dirty(self, words: &'m [W]) -> Self {
        let dirty = DirtyMap::new(words, self.slots.count(), self.index.len());
        Self { dirty, ..self }
    }

    pub(super) const fn granule(&self) -> u32 {
        self.granule
    }

    pub(super) fn entry(&self, block: u32) -> IndexEntry {
        IndexEntry(self.index.get(block as usize).map_or(0, W::load))
    }

    /// Whether the block is in this slot.
    pub(super) fn is_in(&self, block: u32, slot: u32) -> bool {
        is_in(self.entry(block), slot)
    }

    /// Pins the block's slot for a read of these regions, if it can serve all of them.
    #[inline(always)]
    pub(super) fn begin_read(&self, block: u32, regions: impl Fn() -> u16) -> Option<u32> {
        let word = self.index.get(block as usize)?;
        // Most blocks are valid as a whole.
        let serves =
            |entry: IndexEntry| entry.is_present() && (entry.hidden() == 0 || entry.serves(regions()));
        let entry = IndexEntry(word.load());
        if !serves(entry) || !self.slots.pin(entry.slot(), block) {
            return None;
        }
        // A change before the pin is seen by this second load; a later one finds the pin.
        let now = IndexEntry(word.load());
        if now == entry || (now.slot() == entry.slot() && serves(now)) {
            return Some(entry.slot());
        }
        self.slots.unpin(entry.slot());
        None
    }

    /// The same if it can serve some of them. Returns these too.
    pub(super) fn begin_split_read(&self, block: u32, regions: u16) -> Option<(u32, u16)> {
        let word = self.index.get(block as usize)?;
        let readable = |entry: IndexEntry| {
            if entry.is_present() {
                regions & !entry.hidden()
            } else {
                0
            }
        };
        let entry = IndexEntry(word.load());
        if readable(entry) == 0 || !self.slots.pin(entry.slot(), block) {
            return None;
        }
        let now = IndexEntry(word.load());
        if now.slot() == entry.slot() && readable(now) != 0 {
            return Some((entry.slot(), readable(now)));
        }
        self.slots.unpin(entry.slot());
        None
    }

    /// Marks a write of these regions of a present block: claims them, and hides them. Returns the slot, and which of them
    /// were hidden before. `None`: the block is absent, another claim has one of them, or one of them is dirty.
    pub(super) fn begin_write(&self, block: u32, regions: u16) -> Option<(u32, u16)> {
        let word = self.index.get(block as usize)?;
        let mut entry = IndexEntry(word.load());
        let slot = entry.slot();
        if !entry.is_present() || !self.slots.claim(slot, block, regions) {
            return None;
        }
        // Only the holder of a claim makes its regions dirty.
        let is_clean = self.dirty.of(slot) & regions == 0 || seam::is_left_out(Rule::StickyDirty);
        while is_clean && is_in(entry, slot) && entry.writers() < IndexEntry::MAX_WRITERS {
            let marked = entry.with_writers(entry.writers() + 1, entry.hidden() | regions);
            match word.compare_exchange(entry.0, marked.0) {
                Ok(()) => return Some((slot, entry.hidden() & regions)),
                Err(now) => entry = IndexEntry(now),
            }
        }
        self.release(slot, regions);
        None
    }

    /// The write of these claimed regions has ended, and the slot holds what the backing device does in `valid` of them.
    pub(super) fn end_write(&self, block: u32, slot: u32, (regions, valid): (u16, u16), all: u16) {
        if let Some(word) = self.index.get(block as usize) {
            update(word, |entry| {
                let after = self.ended(entry, slot, (regions, valid), all);
                after.with_writers(entry.writers().saturating_sub(1), after.hidden())
            });
        }
        self.release(slot, regions);
    }

    /// Marks a change of the block that the cache does not follow. Returns whether the block was present, or `None` if it is
    /// dirty: then nothing was done.
    pub(super) fn begin_discard(word: &W) -> Option<bool> {
        let keeps = |entry: IndexEntry| entry.is_dirty() && !seam::is_left_out(Rule::DiscardsWait);
        let before = update(word, |entry| {
            debug_assert!(entry.writers() < IndexEntry::MAX_WRITERS);
            if keeps(entry) {
                return entry;
            }
            entry.invalidated().with_writers(entry.writers() + 1, 0)
        });
        (!keeps(before)).then(|| before.is_present())
    }

    /// Ends it.
    pub(super) fn end_discard(word: &W) {
        update(word, |entry| {
            entry.with_writers(entry.writers().saturating_sub(1), entry.hidden())
        });
    }

    /// Begins to fill regions of the block. `free` provides a slot if the block is absent.
    pub(super) fn begin_fill(
        &self,
        block: u32,
        wish: &WantedRegions,
        free: impl FnOnce() -> Option<u32>,
    ) -> FillAttempt {
        let Some(word) = self.index.get(block as usize) else {
            return FillAttempt::NoRoom;
        };
        loop {
            let entry = IndexEntry(word.load());
            match entry.state() {
                BlockState::Absent if entry.writers() > 0 => return FillAttempt::Written,
                BlockState::Absent => return self.begin_fill_of_absent(word, block, wish, free),
                BlockState::Unverified => return FillAttempt::Unverified,
                BlockState::Present | BlockState::Dirty => {
                    if let Some(start) = self.begin_fill_of_present(word, entry, block, wish) {
                        return start;
                    }
                }
            }
        }
    }

    fn begin_fill_of_absent(
        &self,
        word: &W,
        block: u32,
        wish: &WantedRegions,
        free: impl FnOnce() -> Option<u32>,
    ) -> FillAttempt {
        let Some(slot) = free() else {
            return FillAttempt::NoRoom;
        };
        let regions = wish.wanted;
        self.slots.give_claimed(slot, block, regions);
        let filling = IndexEntry::new(BlockState::Present, slot).with_writers(0, wish.all);
        if word.compare_exchange(IndexEntry::ABSENT.0, filling.0).is_err() {
            self.slots.release(slot, regions);
            return FillAttempt::Lost(slot);
        }
        let is_new = true;
        FillAttempt::Begun {
            slot,
            regions,
            is_new,
        }
    }

    /// `None`: the block has changed meanwhile.
    fn begin_fill_of_present(
        &self,
        word: &W,
        entry: IndexEntry,
        block: u32,
        wish: &WantedRegions,
    ) -> Option<FillAttempt> {
        let slot = entry.slot();
        let needed = entry.hidden() & wish.needed;
        if needed == 0 {
            return Some(FillAttempt::Readable);
        }
        if !self.slots.is_of(slot, block) {
            // It has left the slot, or the index is damaged.
            return (word.load() == entry.0).then_some(FillAttempt::NoRoom);
        }
        let busy = self.slots.busy(slot);
        let open = entry.hidden() & wish.wanted & !busy | !wish.all;
        let regions = run(needed, open, self.granule) & wish.all;
        if busy & regions != 0 {
            // A claim is a fill's for sure only without a writer.
            return Some(if entry.writers() == 0 {
                FillAttempt::Busy
            } else {
                FillAttempt::Written
            });
        }
        if regions & !entry.hidden() != 0 {
            // Nothing is stored where the slot may be read.
            return Some(FillAttempt::Scattered);
        }
        if !self.slots.claim(slot, block, regions) {
            return None;
        }
        // What is hidden of the claimed regions changes no more, unless the block leaves the slot.
        let now = IndexEntry(word.load());
        if is_in(now, slot) && now.hidden() & regions == regions {
            let is_new = false;
            return Some(FillAttempt::Begun {
                slot,
                regions,
                is_new,
            });
        }
        self.release(slot, regions);
        None
    }

    /// A fill has ended. `valid`: which of its `regions` the slot holds. Returns whether the block is still in the slot,
    /// so that they are published.
    pub(super) fn end_fill(&self, block: u32, slot: u32, (regions, valid): (u16, u16), all: u16) -> bool {
        let was_in = self.index.get(block as usize).is_some_and(|word| {
            let before = update(word, |entry| self.ended(entry, slot, (regions, valid), all));
            is_in(before, slot)
        });
        self.release(slot, regions);
        was_in && valid != 0
    }

    /// The entry when the claim of these regions ends. A block without a valid granule leaves the cache, unless another
    /// claim is about to make one valid.
    pub(super) fn ended(
        &self,
        entry: IndexEntry,
        slot: u32,
        (regions, valid): (u16, u16),
        all: u16,
    ) -> IndexEntry {
        if !is_in(entry, slot) {
            return entry;
        }
        // What others have claimed is for their ends to judge.
        let others = self.slots.busy(slot) & !regions;
        let left = entry.hidden() & !valid;
        // The regions beside a hidden one are hidden with it, though the slot has them: it is not written where it may be
        // read, and a fill writes whole granules.
        let beside = if left == 0 {
            0
        } else {
            granules(self.granule, |granule| granule & left & !others != 0)
        };
        let hidden = (left | beside) & all;
        // Only the slot has what is dirty.
        let hidden = hidden & !self.dirty.of(slot);
        if hidden == all && others == 0 {
            return entry.invalidated();
        }
        entry.with_writers(entry.writers(), hidden)
    }

    /// Restores a block of an earlier server in `slot`, which it owns, present or unverified.
    pub(super) fn restore(&self, block: u32, slot: u32, state: BlockState, hidden: u16) -> bool {
        let restored = IndexEntry::new(state, slot).with_writers(0, hidden);
        self.swap(block, IndexEntry::ABSENT, restored)
    }

    /// Begins to verify an unverified block: claims each run of its valid regions, and returns them. From here on it is a
    /// block that is being filled, each run by itself. `None`: it has left the slot.
    pub(super) fn begin_verify(&self, block: u32, slot: u32, all: u16) -> Option<u16> {
        let entry = self.entry(block);
        let valid = all & !entry.hidden();
        if entry.state() != BlockState::Unverified || entry.slot() != slot || valid == 0 {
            return None;
        }
        let mut claimed = 0;
        while claimed != valid && self.slots.claim(slot, block, first_run(valid & !claimed)) {
            claimed |= first_run(valid & !claimed);
        }
        let hidden = IndexEntry::new(BlockState::Present, slot).with_writers(0, all);
        if claimed == valid && self.swap(block, entry, hidden) {
            return Some(valid);
        }
        while claimed != 0 {
            self.release(slot, first_run(claimed));
            claimed &= !first_run(claimed);
        }
        None
    }

    /// Removes an unverified block, unless it has left the slot.
    pub(super) fn give_up_unverified(&self, block: u32, slot: u32) {
        let entry = self.entry(block);
        if entry.state() == BlockState::Unverified && entry.slot() == slot {
            self.swap(block, entry, IndexEntry::ABSENT);
        }
    }

    /// Evicts a block from `slot`, unless it is not there or has a write in flight. Its claims remain until they end.
    pub(super) fn evict(&self, block: u32, slot: u32) -> bool {
        let entry = self.entry(block);
        let is_clean = is_in(entry, slot) && !entry.is_dirty();
        is_clean && entry.writers() == 0 && self.swap(block, entry, IndexEntry::ABSENT)
    }

    /// Removes a block from `slot`, if it is there and not dirty, whatever is in flight.
    pub(super) fn invalidate(&self, block: u32, slot: u32) {
        if let Some(word) = self.index.get(block as usize) {
            update(word, |entry| {
                if is_in(entry, slot) && !entry.is_dirty() {
                    entry.invalidated()
                } else {
                    entry
                }
            });
        }
    }

    pub(super) fn swap(&self, block: u32, from: IndexEntry, to: IndexEntry) -> bool {
        let word = self.index.get(block as usize);
        word.is_some_and(|word| word.compare_exchange(from.0, to.0).is_ok())
    }

    /// Whether one of these regions is being filled, so that their reader may wait for it.
    pub(super) fn is_being_filled(&self, block: u32, regions: u16) -> bool {
        let entry = self.entry(block);
        entry.is_present()
            && entry.writers() == 0
            && entry.hidden() & regions != 0
            && self.slots.is_of(entry.slot(), block)
            && self.slots.busy(entry.slot()) & regions != 0
    }

    /// Registers `queue` to be woken when a claim in the block's slot ends. Returns whether one of these regions is being
    /// filled still: if not, it has to look again.
    pub(super) fn wait_for_fill(&self, block: u32, regions: u16, queue: u16) -> bool {
        let slot = self.entry(block).slot();
        self.waiters.register(slot, queue);
        self.entry(block).slot() == slot && self.is_being_filled(block, regions)
    }

    /// Releases a claim, and wakes who waits for it.
    pub(super) fn release(&self, slot: u32, regions: u16) {
        self.slots.release(slot, regions);
        self.waiters.wake(slot);
    }
}

pub(super) const fn is_in(entry: IndexEntry, slot: u32) -> bool {
    entry.is_present() && entry.slot() == slot
}

/// Bytes of a granule, if regions are smaller: the largest logical block of a device, so that direct I/O can fill it.
const GRANULE: u32 = 4096;

/// Regions of a granule, in blocks of `1 << shift` bytes.
pub(super) const fn granule(shift: u32) -> u32 {
    match GRANULE >> (shift - 4) {
        0 => 1,
        regions => regions,
    }
}

/// From the first to the last of the `needed` regions (not 0), and on over `open` ones on either side, in whole granules.
const fn run(needed: u16, open: u16, granule: u32) -> u16 {
    let mut first = needed.trailing_zeros() / granule;
    let mut last = (15 - needed.leading_zeros()) / granule;
    while first > 0 && is_within(granule_of(first - 1, granule), open) {
        first -= 1;
    }
    while (last + 1) * granule < 16 && is_within(granule_of(last + 1, granule), open) {
        last += 1;
    }
    u16::MAX << (first * granule) & (u16::MAX >> (16 - (last + 1) * granule))
}

/// The regions of a granule.
const fn granule_of(number: u32, granule: u32) -> u16 {
    (u16::MAX >> (16 - granule)) << (number * granule)
}

/// The regions of those granules, of so many regions each, that are meant.
pub(super) fn granules(granule: u32, is_meant: impl Fn(u16) -> bool) -> u16 {
    (0..REGIONS / granule)
        .map(|number| granule_of(number, granule))
        .filter(|&regions| is_meant(regions))
        .fold(0, |found, regions| found | regions)
}

const fn is_within(regions: u16, others: u16) -> bool {
    regions & !others == 0
}

/// The lowest regions of `of` (not 0) that adjoin.
pub(super) const fn first_run(of: u16) -> u16 {
    let first = of.trailing_zeros();
    let length = (of >> first).trailing_ones();
    (u16::MAX >> (16 - length)) << first
}

/// Changes a word atomically, and returns its previous entry.
pub(super) fn update<W: Word>(word: &W, change: impl Fn(IndexEntry) -> IndexEntry) -> IndexEntry {
    let mut found = word.load();
    loop {
        let changed = change(IndexEntry(found)).0;
        match word.compare_exchange(found, changed) {
            Ok(()) => return IndexEntry(found),
            Err(now) => found = now,
        }
    }
}
