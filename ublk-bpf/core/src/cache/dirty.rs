//! What is dirty: data in slots that the backing device lacks.

use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use ublk_bpf_abi::DirtyEntry;

use super::bits::Bits;
use super::slots::SlotTable;
use super::word::{AtomicU64, Word};

/// The dirty state of every slot. Without write-back there is none, and nothing is dirty.
///
/// A slot is *held*, which is a pin, from its first dirty region until neither the slot nor the log is dirty: nothing durable
/// names a slot that is given to another block.
#[derive(Debug)]
pub(super) struct DirtyMap<'m, W = AtomicU64> {
    words: &'m [W],
    /// Slots whose dirty regions are not those that the log has. The owner is the one that commits.
    pub(super) changed: Bits,
    /// Blocks with dirty regions. The owner is the mover.
    pub(super) blocks: Bits,
    /// What the log says of each slot, or will say once a record in flight is written.
    logged: Box<[AtomicU16]>,
    /// How many slots have dirty regions.
    pub(super) count: AtomicU32,
}

impl<'m, W: Word> DirtyMap<'m, W> {
    /// For a cache that is never written back.
    pub(super) fn none() -> Self {
        Self::new(&[], 0, 0)
    }

    /// Of `slots` slots, for which `words` has a word each, and so many blocks.
    pub(super) fn new(words: &'m [W], slots: u32, blocks: usize) -> Self {
        Self {
            words,
            changed: Bits::new(slots as usize),
            blocks: Bits::new(blocks),
            logged: (0..slots).map(|_| AtomicU16::new(0)).collect(),
            count: AtomicU32::new(0),
        }
    }

    pub(super) const fn is_used(&self) -> bool {
        !self.words.is_empty()
    }

    pub(super) fn get(&self, slot: u32) -> DirtyEntry {
        DirtyEntry(self.words.get(slot as usize).map_or(0, W::load))
    }

    /// The dirty regions of a slot.
    pub(super) fn of(&self, slot: u32) -> u16 {
        self.get(slot).dirty()
    }

    /// What the log may say of a slot.
    pub(super) fn logged(&self, slot: u32) -> u16 {
        let logged = self.logged.get(slot as usize);
        logged.map_or(0, |logged| logged.load(Ordering::SeqCst))
    }

    pub(super) fn set_logged(&self, slot: u32, dirty: u16) {
        if let Some(logged) = self.logged.get(slot as usize) {
            logged.store(dirty, Ordering::SeqCst);
        }
    }

    /// A write of the slot of `block`, which it has claimed, begins. `dirty`: the regions that it makes dirty now. Returns the
    /// entry before.
    pub(super) fn begin(&self, slots: &SlotTable<W>, slot: u32, block: u32, dirty: u16) -> DirtyEntry {
        let change = self.change(slot, |entry| {
            let dirty = entry.dirty() | dirty;
            Some(entry.next().with(dirty, dirty != 0 || entry.is_held()))
        });
        self.note(slots, slot, block, change);
        change.0
    }

    /// Regions of the slot of `block`, claimed by the caller, are dirty from now on.
    pub(super) fn add(&self, slots: &SlotTable<W>, slot: u32, block: u32, dirty: u16) {
        if dirty & !self.of(slot) == 0 {
            return;
        }
        let change = self.change(slot, |entry| Some(entry.with(entry.dirty() | dirty, true)));
        self.note(slots, slot, block, change);
    }

    /// Regions are dirty no longer. `generation`: only if that is still the slot's.
    pub(super) fn remove(&self, slot: u32, clean: u16, generation: Option<u32>) {
        let (before, now) = self.change(slot, |entry| {
            let is_known = generation.is_none_or(|known| known == entry.generation());
            is_known.then(|| entry.with(entry.dirty() & !clean, entry.is_held()))
        });
        if now.dirty() != before.dirty() {
            self.changed.insert(slot);
            if now.dirty() == 0 {
                self.count.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Ends the hold of a slot that neither is dirty nor was when the log was last written. Returns whether it has just ended.
    pub(super) fn release(&self, slots: &SlotTable<W>, slot: u32) -> bool {
        if self.logged(slot) != 0 {
            return false;
        }
        let (before, now) = self.change(slot, |entry| (entry.dirty() == 0).then(|| entry.with(0, false)));
        let has_ended = before.is_held() && !now.is_held();
        if has_ended {
            slots.unpin(slot);
        }
        has_ended
    }

    /// Forgets which slots an earlier server held: it has left no pins. What is dirty stays.
    pub(super) fn forget_holds(&self) {
        for word in self.words {
            if DirtyEntry(word.load()).dirty() == 0 {
                word.swap(0);
            }
        }
    }

    /// Restores the state of a slot of an earlier server: `dirty` by what that left, `logged` by the log.
    pub(super) fn restore(&self, slots: &SlotTable<W>, slot: u32, block: u32, (dirty, logged): (u16, u16)) {
        let Some(word) = self.words.get(slot as usize) else {
            return;
        };
        self.set_logged(slot, logged);
        word.swap(DirtyEntry::held_with(dirty).0);
        slots.pin(slot, block);
        if dirty != 0 {
            self.count.fetch_add(1, Ordering::Relaxed);
            self.blocks.insert(block);
        }
        if dirty != logged {
            self.changed.insert(slot);
        }
    }

    /// Takes in what a change that removed nothing has done.
    fn note(&self, slots: &SlotTable<W>, slot: u32, block: u32, (before, now): (DirtyEntry, DirtyEntry)) {
        if now.is_held() && !before.is_held() {
            // The caller's claim keeps the slot until it is pinned.
            let is_pinned = slots.pin(slot, block);
            debug_assert!(is_pinned, "slot {slot} is not of block {block}");
        }
        if now.dirty() == before.dirty() {
            return;
        }
        if before.dirty() == 0 {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        self.blocks.insert(block);
        self.changed.insert(slot);
    }

    /// Changes a slot's entry, unless `change` refuses. Returns the entry before and after.
    fn change(
        &self,
        slot: u32,
        mut change: impl FnMut(DirtyEntry) -> Option<DirtyEntry>,
    ) -> (DirtyEntry, DirtyEntry) {
        let Some(word) = self.words.get(slot as usize) else {
            return Default::default();
        };
        let mut found = DirtyEntry(word.load());
        loop {
            let Some(changed) = change(found) else {
                return (found, found);
            };
            match word.compare_exchange(found.0, changed.0) {
                Ok(()) => return (found, changed),
                Err(now) => found = DirtyEntry(now),
            }
        }
    }
}
