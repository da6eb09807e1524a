//! The blocks that left the cache last.

use zerocopy::FromZeros;

use crate::cache::word::zeroed;

/// Ghosts in a set: a block has so many places.
const WAYS: usize = 8;

/// The queue that a block left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// The small queue.
    Small,
    /// The main queue.
    Main,
}

/// A block that left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ghost {
    /// From where.
    pub(super) left: Left,
    /// Evictions since.
    pub(super) age: u32,
}

#[derive(Clone, Copy, Debug, FromZeros)]
struct GhostEntry {
    block: u32,
    /// Twice the number of the eviction, plus one if the block left the main queue. 0: the place is empty.
    stamp: u64,
}

/// A table of ghosts: about the last that left, as many as the cache has slots. 16 to 32 bytes a slot.
#[derive(Debug)]
pub(super) struct Ghosts {
    sets: Box<[[GhostEntry; WAYS]]>,
    evictions: u64,
}

impl Ghosts {
    /// For so many slots.
    pub(super) fn new(slots: u32) -> Self {
        let sets = (slots as usize).div_ceil(WAYS).next_power_of_two();
        Self {
            sets: zeroed(sets),
            evictions: 0,
        }
    }

    /// A block leaves. The oldest ghost of its set makes room.
    pub(super) fn add(&mut self, block: u32, left: Left) {
        self.evictions += 1;
        let stamp = self.evictions << 1 | u64::from(left == Left::Main);
        let set = self.set(block);
        let place = set
            .iter()
            .position(|place| place.stamp > 0 && place.block == block);
        let place = place.or_else(|| (0..WAYS).min_by_key(|&way| set[way].stamp));
        if let Some(place) = place {
            set[place] = GhostEntry { block, stamp };
        }
    }

    /// A block comes in: its ghost, which is gone from now on.
    pub(super) fn take(&mut self, block: u32) -> Option<Ghost> {
        let evictions = self.evictions;
        let place = self.set(block).iter_mut();
        let place = place
            .filter(|place| place.stamp > 0)
            .find(|place| place.block == block)?;
        let stamp = std::mem::take(&mut place.stamp);
        Some(Ghost {
            left: if stamp & 1 == 0 { Left::Small } else { Left::Main },
            age: u32::try_from(evictions - (stamp >> 1)).unwrap_or(u32::MAX),
        })
    }

    fn set(&mut self, block: u32) -> &mut [GhostEntry; WAYS] {
        let hash = (u64::from(block).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize;
        let at = hash & (self.sets.len() - 1);
        &mut self.sets[at]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ghost_knows_what_it_left_and_when_and_is_met_once() {
        let mut ghosts = Ghosts::new(100);
        ghosts.add(7, Left::Small);
        ghosts.add(8, Left::Main);
        ghosts.add(9, Left::Small);
        let ghost = |left, age| Some(Ghost { left, age });
        assert_eq!(ghosts.take(7), ghost(Left::Small, 2));
        assert_eq!(ghosts.take(8), ghost(Left::Main, 1));
        assert_eq!(ghosts.take(8), None);
        assert_eq!(ghosts.take(0), None, "the block of an empty place");
    }

    #[test]
    fn a_block_that_left_twice_is_one_ghost() {
        let mut ghosts = Ghosts::new(1);
        ghosts.add(7, Left::Small);
        ghosts.add(7, Left::Main);
        let left = Left::Main;
        assert_eq!(ghosts.take(7), Some(Ghost { left, age: 0 }));
        assert_eq!(ghosts.take(7), None);
    }

    #[test]
    fn nearly_all_that_left_last_are_known() {
        for slots in [1, 70, 1000, 1024] {
            let mut ghosts = Ghosts::new(slots);
            (0..10 * slots).for_each(|block| ghosts.add(block, Left::Small));
            let last = 10 * slots - slots / 2..10 * slots;
            let known = last.clone().filter(|&block| ghosts.take(block).is_some());
            let known = known.count();
            assert!(known * 100 >= last.len() * 95, "{known} of {slots}");
            assert!((0..slots).all(|block| ghosts.take(block).is_none()));
        }
    }
}
