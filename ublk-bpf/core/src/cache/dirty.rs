//! What is dirty: data in slots that the backing device lacks.

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};

use ublk_bpf_abi::DirtyEntry;

use super::bits::Bits;
use super::seam::{self, Rule};
use super::slots::SlotTable;
use super::word::{AtomicU64, Word, zeroed};

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
    /// How many regions are dirty.
    pub(super) regions: AtomicU64,
    /// When each slot became dirty, in seconds of the mover's clock, and what that said last.
    since: Box<[AtomicU32]>,
    pub(super) clock: AtomicU32,
    /// Blocks that cannot be cleaned: one of the devices fails. The owner is the mover.
    pub(super) stuck: Bits,
    /// Those of them whose slot cannot be read.
    pub(super) unreadable: Bits,
    /// Nothing may become dirty, but in blocks that cannot be cleaned.
    pub(super) is_closed: AtomicBool,
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
            logged: zeroed(slots as usize),
            count: AtomicU32::new(0),
            regions: AtomicU64::new(0),
            since: zeroed(slots as usize),
            clock: AtomicU32::new(0),
            stuck: Bits::new(blocks),
            unreadable: Bits::new(blocks),
            is_closed: AtomicBool::new(false),
        }
    }

    pub(super) const fn is_used(&self) -> bool {
        !self.words.is_empty()
    }

    /// Whether nothing may become dirty.
    #[inline]
    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::SeqCst)
    }

    /// Whether something of a block may become dirty. The caller has a claim, and asks after it has got it: who closes the map
    /// finds the claim, or the caller finds it closed.
    #[inline]
    pub(super) fn is_open(&self, block: u32) -> bool {
        !self.is_closed() || self.stuck.contains(block)
    }

    pub(super) fn get(&self, slot: u32) -> DirtyEntry {
        DirtyEntry(self.words.get(slot as usize).map_or(0, W::load))
    }

    /// When a slot that is dirty became so.
    pub(super) fn since(&self, slot: u32) -> u32 {
        let since = self.since.get(slot as usize);
        since.map_or(0, |since| since.load(Ordering::Relaxed))
    }

    /// Nothing is dirty, nor was.
    pub(super) fn clear(&self) {
        for word in self.words {
            word.swap(0);
        }
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
            let removed = before.dirty().count_ones() - now.dirty().count_ones();
            self.regions.fetch_sub(removed.into(), Ordering::Relaxed);
            if now.dirty() == 0 {
                self.count.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Ends the hold of a slot that neither is dirty nor was when the log was last written. Returns whether it has just ended.
    pub(super) fn release(&self, slots: &SlotTable<W>, slot: u32) -> bool {
        if self.logged(slot) != 0 && !seam::is_left_out(Rule::HeldByLog) {
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
        if seam::is_left_out(Rule::HoldsAreForgotten) {
            return;
        }
        for word in self.words {
            let before = word.load();
            if before != 0 && DirtyEntry(before).dirty() == 0 {
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
            self.regions
                .fetch_add(dirty.count_ones().into(), Ordering::Relaxed);
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
            if let Some(since) = self.since.get(slot as usize) {
                since.store(self.clock.load(Ordering::Relaxed), Ordering::Relaxed);
            }
        }
        let added = now.dirty().count_ones() - before.dirty().count_ones();
        self.regions.fetch_add(added.into(), Ordering::Relaxed);
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
