//! The owner of each slot, its pins and its claims.

use super::word::{AtomicU64, Word};

/// The high half of a slot's word is its block plus one, or 0 for none.
const OWNER_SHIFT: u32 = 32;
/// Then come its claimed regions.
const BUSY_SHIFT: u32 = 16;
/// Pins are counted in the lowest bits.
const PINS: u64 = (1 << BUSY_SHIFT) - 1;

/// Tags of a device, in all queues, at most: a tag pins a slot once. The rest of what a slot's word can count is for the
/// claims, at most one a region, and for what a thread pins for a moment: there are at most 4096 queues and the mover.
pub const MAX_TAGS: u32 = 56 << 10;

const _: () = assert!(MAX_TAGS as u64 + 16 + 4097 <= PINS);

/// One word for each slot, in the server's own memory: a damaged index cannot make a read find the content of another
/// block.
///
/// A *pin* keeps a slot from being given to another block. A *claim* is a pin that has regions to itself: no other claim
/// has any of them. A change of what a slot holds, or of which regions of it are hidden, needs a claim on these regions.
#[derive(Debug)]
pub(super) struct SlotTable<W = AtomicU64>(Box<[W]>);

const fn owned(block: u32) -> u64 {
    (block as u64 + 1) << OWNER_SHIFT
}

const fn claimed(regions: u16) -> u64 {
    (regions as u64) << BUSY_SHIFT | 1
}

impl<W: Word> SlotTable<W> {
    pub(super) fn new(count: u32) -> Self {
        Self(W::zeroes(count as usize))
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
        let before = word.fetch_add(1);
        if before >> OWNER_SHIFT == u64::from(block) + 1 {
            return true;
        }
        word.fetch_sub(1);
        false
    }

    /// Undoes one [`pin`](Self::pin).
    #[inline]
    pub(super) fn unpin(&self, slot: u32) {
        let before = self.0[slot as usize].fetch_sub(1);
        debug_assert!(before & PINS > 0, "slot {slot} was not pinned");
    }

    /// Claims regions of `slot`, if `block` owns it and no other claim has one of them.
    pub(super) fn claim(&self, slot: u32, block: u32, regions: u16) -> bool {
        let Some(word) = self.0.get(slot as usize) else {
            return false;
        };
        let mut found = word.load();
        loop {
            let is_owned = found >> OWNER_SHIFT == u64::from(block) + 1;
            if !is_owned || found & claimed(regions) & !1 != 0 || found & PINS == PINS {
                return false;
            }
            match word.compare_exchange(found, found + claimed(regions)) {
                Ok(()) => return true,
                Err(now) => found = now,
            }
        }
    }

    /// Undoes a [`claim`](Self::claim) or [`give_claimed`](Self::give_claimed) of these regions.
    pub(super) fn release(&self, slot: u32, regions: u16) {
        let before = self.0[slot as usize].fetch_sub(claimed(regions));
        debug_assert!(
            before >> BUSY_SHIFT & u64::from(regions) == u64::from(regions) && before & PINS > 0,
            "regions {regions:#x} of slot {slot} were not claimed"
        );
    }

    /// The claimed regions of a slot.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "it is the sixteen bits that are meant"
    )]
    pub(super) fn busy(&self, slot: u32) -> u16 {
        (self.0[slot as usize].load() >> BUSY_SHIFT) as u16
    }

    /// Whether there is such a slot, and `block` owns it.
    pub(super) fn is_of(&self, slot: u32, block: u32) -> bool {
        let word = self.0.get(slot as usize);
        word.is_some_and(|word| word.load() >> OWNER_SHIFT == u64::from(block) + 1)
    }

    /// The block that owns the slot.
    pub(super) fn owner(&self, slot: u32) -> Option<u32> {
        let owner = self.0[slot as usize].load() >> OWNER_SHIFT;
        u32::try_from(owner.checked_sub(1)?).ok()
    }

    /// Whether it is in use: a claim is a pin as well.
    pub(super) fn is_pinned(&self, slot: u32) -> bool {
        self.0[slot as usize].load() & PINS != 0
    }

    /// Gives a slot without an owner to `block`.
    pub(super) fn give(&self, slot: u32, block: u32) {
        // A reader that saw its previous owner may pin it for a moment, so only the owner's half may change.
        let before = self.0[slot as usize].fetch_add(owned(block));
        debug_assert!(before >> OWNER_SHIFT == 0, "slot {slot} has a block");
    }

    /// Gives a slot without an owner to `block`, with these regions claimed.
    pub(super) fn give_claimed(&self, slot: u32, block: u32, regions: u16) {
        let before = self.0[slot as usize].fetch_add(owned(block) + claimed(regions));
        debug_assert!(before >> BUSY_SHIFT == 0, "slot {slot} has a block");
    }

    /// Takes the slot from its block, unless it is pinned.
    pub(super) fn take(&self, slot: u32) -> bool {
        let word = &self.0[slot as usize];
        let found = word.load();
        found & PINS == 0 && word.compare_exchange(found, 0).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(count: u32) -> SlotTable {
        SlotTable::new(count)
    }

    #[test]
    fn a_pinned_slot_is_not_taken() {
        let slots = table(2);
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
        let slots = table(1);
        assert!(!slots.pin(0, 0), "no owner");
        slots.give(0, 0);
        assert!(!slots.pin(0, 1) && !slots.pin(5, 0) && !slots.is_pinned(0));
        assert!(slots.pin(0, 0));
    }

    #[test]
    fn a_region_has_one_claim() {
        let slots = table(1);
        assert!(!slots.claim(0, 3, 1) && !slots.claim(1, 3, 1), "not its slot");
        slots.give(0, 3);
        assert!(slots.claim(0, 3, 0b0110) && slots.claim(0, 3, 0x8000));
        assert!(!slots.claim(0, 3, 0b1100) && !slots.claim(0, 2, 1));
        assert_eq!(slots.busy(0), 0x8006);
        assert!(slots.is_of(0, 3) && !slots.is_of(0, 2) && !slots.is_of(1, 3));
        assert!(slots.pin(0, 3) && slots.is_pinned(0));
        slots.release(0, 0b0110);
        assert_eq!(slots.busy(0), 0x8000);
        assert!(slots.claim(0, 3, 0b1100));
    }

    #[test]
    fn a_claimed_slot_is_not_taken() {
        let slots = table(1);
        slots.give_claimed(0, u32::MAX - 1, u16::MAX);
        assert_eq!(slots.owner(0), Some(u32::MAX - 1));
        assert!(!slots.take(0));
        slots.release(0, u16::MAX);
        assert!(slots.take(0) && slots.owner(0).is_none());
    }
}
