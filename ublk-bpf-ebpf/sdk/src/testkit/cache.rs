//! A model of the cache.

use std::collections::HashMap;

use crate::Priority;

/// Reads per slot between two halvings of all heat.
const READS_PER_SLOT: usize = 10;
/// Maximum number of times that the clock hand spares a block.
const CHANCES: u8 = 3;

/// Slots with their blocks, the hand of the CLOCK that evicts them, and the heat of all blocks.
pub(super) struct CacheModel {
    slots: Vec<ModelSlot>,
    size: usize,
    index: HashMap<u64, usize>,
    hand: usize,
    heat: HashMap<u64, u8>,
    reads: usize,
    /// Blocks evicted to make room.
    pub(super) evicted: u64,
}

struct ModelSlot {
    block: Option<u64>,
    priority: Priority,
    chances: u8,
}

impl CacheModel {
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
        if self.reads >= READS_PER_SLOT * self.size.max(1) {
            self.reads = 0;
            self.heat.values_mut().for_each(|heat| *heat /= 2);
            self.heat.retain(|_, heat| *heat > 0);
        }
    }

    /// Marks a cached block as used.
    pub(super) fn reference(&mut self, block: u64) {
        if let Some(&slot) = self.index.get(&block) {
            let slot = &mut self.slots[slot];
            slot.chances = (slot.chances + 1).min(CHANCES);
        }
    }

    /// Invalidates a block.
    pub(super) fn invalidate(&mut self, block: u64) {
        if let Some(slot) = self.index.remove(&block) {
            self.slots[slot].block = None;
        }
    }

    /// Promotes a block, or changes the priority of a cached one. Returns whether it was added.
    pub(super) fn promote(&mut self, block: u64, wanted: Priority) -> bool {
        let priority = self.granted(block, wanted);
        if let Some(&slot) = self.index.get(&block) {
            self.slots[slot].priority = priority;
            return false;
        }
        let Some(slot) = self.room() else {
            return false;
        };
        self.slots[slot] = ModelSlot {
            block: Some(block),
            priority,
            chances: 0,
        };
        self.index.insert(block, slot);
        true
    }

    /// The priority that a block gets: at most three quarters of the cache are pinned.
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

    /// An empty slot, evicting a block if necessary.
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
            self.slots.push(ModelSlot {
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

    /// The slot to evict: one of low priority if there is any, otherwise the first from the hand on that has no chance
    /// left. High priority is evicted only after a full round found nothing else.
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

    fn full(priorities: &[Priority]) -> CacheModel {
        let mut cache = CacheModel::new(priorities.len());
        for (block, &priority) in (0..).zip(priorities) {
            assert!(cache.promote(block, priority));
        }
        cache
    }

    #[test]
    fn low_is_evicted_first_and_high_last() {
        let mut cache = full(&[Priority::High, Priority::Normal, Priority::Low]);
        cache.reference(1);
        assert!(cache.promote(10, Priority::High));
        assert_eq!(cache.priority(2), None, "low");
        assert!(cache.promote(11, Priority::High));
        assert_eq!(cache.priority(1), None, "normal, although it was used");
        assert!(cache.promote(12, Priority::Normal));
        assert_eq!(cache.evicted, 3);
    }

    #[test]
    fn at_most_three_quarters_are_pinned() {
        let mut cache = full(&[Priority::Pinned; 4]);
        let pinned = |cache: &CacheModel| {
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
    fn heat_is_halved_periodically() {
        let mut cache = CacheModel::new(2);
        for _ in 0..2 * READS_PER_SLOT - 1 {
            cache.warm(1);
        }
        assert_eq!(cache.heat(1), 19);
        cache.warm(2);
        assert_eq!((cache.heat(1), cache.heat(2)), (9, 0));
    }

    #[test]
    fn an_empty_cache_accepts_nothing() {
        assert!(!CacheModel::new(0).promote(1, Priority::Pinned));
    }
}
