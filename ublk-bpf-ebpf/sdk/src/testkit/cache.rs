//! The model of the cache.

use std::collections::HashMap;

use crate::Priority;

/// How many reads of each slot lie between two halvings of all heat.
const READS_A_SLOT: usize = 10;
/// What the hand takes from a block before it takes the block.
const CHANCES: u8 = 3;

/// Blocks in slots, the hand of a CLOCK that finds which has to go, and the heat of all blocks.
pub(super) struct Cache {
    slots: Vec<Slot>,
    size: usize,
    index: HashMap<u64, usize>,
    hand: usize,
    heat: HashMap<u64, u8>,
    reads: usize,
    /// Blocks that had to make room.
    pub(super) evicted: u64,
}

struct Slot {
    block: Option<u64>,
    priority: Priority,
    chances: u8,
}

impl Cache {
    pub(super) fn new(size: usize) -> Self {
        Self {
            slots: Vec::new(),
            size,
            index: HashMap::new(),
            hand: 0,
            heat: HashMap::new(),
            reads: 0,
            evicted: 0,
        }
    }

    pub(super) fn priority(&self, block: u64) -> Option<Priority> {
        self.index.get(&block).map(|&slot| self.slots[slot].priority)
    }

    pub(super) fn heat(&self, block: u64) -> u32 {
        self.heat.get(&block).map_or(0, |&heat| heat.into())
    }

    /// Counts a read of the block.
    pub(super) fn warm(&mut self, block: u64) {
        let heat = self.heat.entry(block).or_default();
        *heat = heat.saturating_add(1);
        self.reads += 1;
        if self.reads >= READS_A_SLOT * self.size.max(1) {
            self.reads = 0;
            self.heat.values_mut().for_each(|heat| *heat /= 2);
            self.heat.retain(|_, heat| *heat > 0);
        }
    }

    /// Notes that a block was of use.
    pub(super) fn reference(&mut self, block: u64) {
        if let Some(&slot) = self.index.get(&block) {
            let slot = &mut self.slots[slot];
            slot.chances = (slot.chances + 1).min(CHANCES);
        }
    }

    /// Takes a block out.
    pub(super) fn forget(&mut self, block: u64) {
        if let Some(slot) = self.index.remove(&block) {
            self.slots[slot].block = None;
        }
    }

    /// Brings a block in, or gives one that is there another priority. Says whether it came in.
    pub(super) fn promote(&mut self, block: u64, wanted: Priority) -> bool {
        let priority = self.granted(block, wanted);
        if let Some(&slot) = self.index.get(&block) {
            self.slots[slot].priority = priority;
            return false;
        }
        let Some(slot) = self.room() else {
            return false;
        };
        self.slots[slot] = Slot {
            block: Some(block),
            priority,
            chances: 0,
        };
        self.index.insert(block, slot);
        true
    }

    /// What a block gets that asks for this: no more than three quarters are pinned.
    fn granted(&self, block: u64, wanted: Priority) -> Priority {
        let others = self
            .slots
            .iter()
            .filter(|slot| slot.priority == Priority::Pinned && slot.block.is_some_and(|held| held != block));
        if wanted == Priority::Pinned && others.count() >= self.size * 3 / 4 {
            return Priority::High;
        }
        wanted
    }

    /// An empty slot, if one can be had.
    fn room(&mut self) -> Option<usize> {
        if let Some(free) = self.free() {
            return Some(free);
        }
        let slot = self.victim()?;
        if let Some(block) = self.slots[slot].block.take() {
            self.index.remove(&block);
            self.evicted += 1;
        }
        Some(slot)
    }

    fn free(&mut self) -> Option<usize> {
        if self.slots.len() < self.size {
            self.slots.push(Slot {
                block: None,
                priority: Priority::Normal,
                chances: 0,
            });
            return Some(self.slots.len() - 1);
        }
        if self.index.len() == self.slots.len() {
            return None;
        }
        self.slots.iter().position(|slot| slot.block.is_none())
    }

    /// The block that has to go: of a low priority if there is one, else the first one without a chance left from the hand
    /// on, of a high priority only after a whole round in vain.
    fn victim(&mut self) -> Option<usize> {
        if let Some(low) = self.slots.iter().position(|slot| slot.priority == Priority::Low) {
            return Some(low);
        }
        let rounds = usize::from(CHANCES) + 1;
        for step in 0..(rounds + 1) * self.size {
            let at = self.hand;
            self.hand = (at + 1) % self.size;
            let slot = &mut self.slots[at];
            match slot.priority {
                Priority::Pinned => {}
                _ if slot.chances > 0 => slot.chances -= 1,
                Priority::High if step < rounds * self.size => {}
                _ => return Some(at),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(priorities: &[Priority]) -> Cache {
        let mut cache = Cache::new(priorities.len());
        for (block, &priority) in (0..).zip(priorities) {
            assert!(cache.promote(block, priority));
        }
        cache
    }

    #[test]
    fn low_goes_first_and_high_last() {
        let mut cache = full(&[Priority::High, Priority::Normal, Priority::Low]);
        cache.reference(1);
        assert!(cache.promote(10, Priority::High));
        assert_eq!(cache.priority(2), None, "low");
        assert!(cache.promote(11, Priority::High));
        assert_eq!(cache.priority(1), None, "normal, though it was used");
        assert!(cache.promote(12, Priority::Normal));
        assert_eq!(cache.evicted, 3);
    }

    #[test]
    fn three_quarters_are_pinned_at_most() {
        let mut cache = full(&[Priority::Pinned; 4]);
        let pinned = |cache: &Cache| {
            (0..4)
                .filter(|&b| cache.priority(b) == Some(Priority::Pinned))
                .count()
        };
        assert_eq!(pinned(&cache), 3);
        for block in 10..20 {
            assert!(cache.promote(block, Priority::Normal));
        }
        assert_eq!(pinned(&cache), 3);
    }

    #[test]
    fn heat_is_halved_from_time_to_time() {
        let mut cache = Cache::new(2);
        for _ in 0..2 * READS_A_SLOT - 1 {
            cache.warm(1);
        }
        assert_eq!(cache.heat(1), 19);
        cache.warm(2);
        assert_eq!((cache.heat(1), cache.heat(2)), (9, 0));
    }

    #[test]
    fn no_cache_takes_nothing() {
        assert!(!Cache::new(0).promote(1, Priority::Pinned));
    }
}
