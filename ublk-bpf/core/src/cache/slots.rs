//! The owner of each slot, and its pins.

use std::sync::atomic::{AtomicU64, Ordering};

/// Pins are counted in the low half of a slot's word; the high half is its block plus one, or 0 for none.
const OWNER_SHIFT: u32 = 32;
const PINS: u64 = (1 << OWNER_SHIFT) - 1;

/// One word for each slot, in the server's own memory: a damaged index cannot make a read find the content of another
/// block.
#[derive(Debug)]
pub(super) struct SlotTable(Box<[AtomicU64]>);

impl SlotTable {
    pub(super) fn new(count: u32) -> Self {
        Self((0..count).map(|_| AtomicU64::new(0)).collect())
    }

    #[expect(clippy::cast_possible_truncation, reason = "`new` took a `u32`")]
    pub(super) fn count(&self) -> u32 {
        self.0.len() as u32
    }

    /// Pins `slot` if `block` owns it: it is given to no other block until [`unpin`](Self::unpin).
    #[inline]
    pub(super) fn pin(&self, slot: u32, block: u32) -> bool {
        let Some(word) = self.0.get(slot as usize) else {
            return false;
        };
        let before = word.fetch_add(1, Ordering::SeqCst);
        if before >> OWNER_SHIFT == u64::from(block) + 1 {
            return true;
        }
        word.fetch_sub(1, Ordering::SeqCst);
        false
    }

    /// Undoes one [`pin`](Self::pin).
    #[inline]
    pub(super) fn unpin(&self, slot: u32) {
        let before = self.0[slot as usize].fetch_sub(1, Ordering::SeqCst);
        debug_assert!(before & PINS > 0, "slot {slot} was not pinned");
    }

    /// The block that owns the slot.
    pub(super) fn owner(&self, slot: u32) -> Option<u32> {
        let owner = self.0[slot as usize].load(Ordering::Relaxed) >> OWNER_SHIFT;
        u32::try_from(owner.checked_sub(1)?).ok()
    }

    pub(super) fn is_pinned(&self, slot: u32) -> bool {
        self.0[slot as usize].load(Ordering::SeqCst) & PINS != 0
    }

    /// Gives a slot without an owner to `block`.
    pub(super) fn give(&self, slot: u32, block: u32) {
        // A reader that saw its previous owner may pin it for a moment, so only the owner's half may change.
        let before = self.0[slot as usize].fetch_add((u64::from(block) + 1) << OWNER_SHIFT, Ordering::SeqCst);
        debug_assert!(before >> OWNER_SHIFT == 0, "slot {slot} has a block");
    }

    /// Takes the slot from its block, unless it is pinned.
    pub(super) fn take(&self, slot: u32) -> bool {
        let word = &self.0[slot as usize];
        let found = word.load(Ordering::SeqCst);
        found & PINS == 0
            && word
                .compare_exchange(found, 0, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_slot_is_not_taken() {
        let slots = SlotTable::new(2);
        slots.give(1, 7);
        assert_eq!((slots.owner(0), slots.owner(1)), (None, Some(7)));
        assert!(slots.pin(1, 7) && slots.pin(1, 7) && slots.is_pinned(1));
        assert!(!slots.take(1));
        slots.unpin(1);
        assert!(!slots.take(1));
        slots.unpin(1);
        assert!(slots.take(1));
        assert_eq!(slots.owner(1), None);
    }

    #[test]
    fn only_its_own_block_pins_it() {
        let slots = SlotTable::new(1);
        assert!(!slots.pin(0, 0), "no owner");
        slots.give(0, 0);
        assert!(!slots.pin(0, 1) && !slots.pin(5, 0) && !slots.is_pinned(0));
        assert!(slots.pin(0, 0));
    }
}
