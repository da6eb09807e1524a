//! S3-FIFO with ghosts, a small queue whose length adapts, and frequency to break ties.
//!
//! A block comes into the *small* queue. One that was read enough there moves to the *main* queue; else it is evicted at
//! the end of the small one, so blocks that are read once leave the main queue alone. In the main queue, reads give a
//! block further turns. Four things are added to S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction",
//! SOSP 2023):
//!
//! - **Ghosts.** A block that comes back soon after it left goes straight to the main queue.
//! - **The small queue's length** follows what comes back. A block that left the small queue would have been hit had that
//!   been longer: it grows, the more so the shorter ago that was. A block that left the main queue makes it shrink.
//!   Recency wins with a long small queue, loops and frequency with a short one.
//! - **Duels.** At the small queue's end, a block that was read clearly more often than the one at the main queue's end
//!   takes its place. Heat counts from before the block came in, and decays.
//! - **A third queue for [`Priority::Low`]**, a hundredth of the slots: what a scan brings in passes through there.
//!
//! Until the cache is full, what does not fit the small queue goes to the main one: in a loop larger than the cache, these
//! blocks stay and are hit.

use std::collections::VecDeque;

use ublk_bpf_abi::Priority;
use zerocopy::FromZeros;

use super::ghosts::{Ghosts, Left};
use super::{Evict, MAX_LOOKS, SecondChoice, SlotState, SlotView};
use crate::cache::word::zeroed;

/// Reads in the small queue that move a block to the main one.
const PROVEN: u8 = 3;
/// Turns that reads give a block in the main queue, at most.
const MAX_TURNS: u8 = 3;
/// By how much more heat a block wins a duel: by more than halving at different times makes.
const MARGIN: u8 = 3;
/// Heat from which a visit halves it, so that further reads show before it saturates.
const HOT: u8 = 128;

/// How the slots are divided, and how long ghosts are remembered.
#[derive(Clone, Copy, Debug)]
struct Parts {
    slots: u64,
    /// Part of the small queue now, in units of [`FINE`] for each slot.
    small: u64,
    /// Slots in the low queue.
    low: usize,
    /// The age up to which a ghost counts.
    ghosts: u32,
}

/// Units of a slot in which the small queue grows and shrinks.
const FINE: u64 = 1 << 10;

impl Parts {
    fn of(slots: u32) -> Self {
        Self {
            slots: slots.into(),
            small: (u64::from(slots) * FINE / 10).max(FINE),
            low: slots as usize / 100,
            ghosts: (slots - slots / 10).max(1),
        }
    }

    /// Slots in the small queue.
    fn small(&self) -> usize {
        usize::try_from(self.small / FINE).unwrap_or(usize::MAX)
    }

    /// A block is back. The small queue grows or shrinks by a twentieth of the slots: by less, the more evictions past a
    /// hundredth of the slots it would have needed to be longer.
    fn adapt(&mut self, left: Left, age: u32) {
        let step = self.slots * FINE / 20;
        let near = (self.slots / 100).max(1);
        let small = match left {
            Left::Small => self.small + step * near / near.max(age.into()),
            Left::Main => self.small.saturating_sub(step),
        };
        let least = (self.slots * FINE / 100).max(FINE);
        self.small = small.clamp(least, (self.slots * FINE / 10 * 9).max(least));
    }
}

/// What is known of a slot.
#[derive(Clone, Copy, Debug, Default, FromZeros)]
struct Seen {
    /// The heat of its block at the last visit.
    heat: u8,
    /// Turns left in the main queue.
    turns: u8,
}

/// The slots, each in one of the queues.
#[derive(Debug)]
pub struct Adaptive {
    low: VecDeque<u32>,
    small: VecDeque<u32>,
    main: VecDeque<u32>,
    seen: Box<[Seen]>,
    parts: Parts,
    ghosts: Ghosts,
    /// All slots are in use: something was evicted.
    is_full: bool,
}

/// A queue to evict from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Queue {
    Low,
    Small,
    Main,
}

impl Adaptive {
    /// For so many slots.
    #[must_use]
    pub fn new(slots: u32) -> Self {
        Self {
            low: VecDeque::new(),
            small: VecDeque::new(),
            main: VecDeque::with_capacity(slots as usize),
            seen: zeroed(slots as usize),
            parts: Parts::of(slots),
            ghosts: Ghosts::new(slots),
            is_full: false,
        }
    }

    fn queue(&mut self, of: Queue) -> &mut VecDeque<u32> {
        match of {
            Queue::Low => &mut self.low,
            Queue::Small => &mut self.small,
            Queue::Main => &mut self.main,
        }
    }

    /// The queue that a block of this priority comes into, and whether it is remembered.
    fn entrance(&mut self, priority: Priority, block: Option<u32>) -> (Queue, bool) {
        match priority {
            Priority::High | Priority::Pinned => return (Queue::Main, false),
            Priority::Low => return (Queue::Low, false),
            Priority::Normal if self.is_full => {}
            Priority::Normal if self.small.len() < self.parts.small() => return (Queue::Small, false),
            Priority::Normal => return (Queue::Main, false),
        }
        let ghost = block.and_then(|block| self.ghosts.take(block));
        match ghost.filter(|ghost| ghost.age <= self.parts.ghosts) {
            Some(ghost) => {
                self.parts.adapt(ghost.left, ghost.age);
                (Queue::Main, true)
            }
            None => (Queue::Small, false),
        }
    }

    /// The queue whose turn it is, when the search has visited the main one so many times.
    fn next(&self, main_visits: usize) -> Queue {
        let is_main_over = main_visits >= (usize::from(MAX_TURNS) + 1) * self.main.len();
        let is_small_over = self.small.len() >= self.parts.small();
        if self.low.len() > self.parts.low {
            Queue::Low
        } else if !self.small.is_empty() && (is_small_over || is_main_over) {
            Queue::Small
        } else if !self.low.is_empty() && is_main_over {
            Queue::Low
        } else {
            Queue::Main
        }
    }

    /// Reads of the slot's block since it came in or was last passed.
    fn reads(&self, slot: u32, heat: u8) -> u8 {
        heat.saturating_sub(self.seen[slot as usize].heat)
    }

    /// The block of a slot stays for now: only later reads count from here on.
    fn pass(&mut self, slot: u32, heat: u8, slots: &mut dyn SlotView) {
        let halved = if heat >= HOT { heat / 2 } else { heat };
        if halved != heat {
            slots.set_heat(slot, halved);
        }
        self.seen[slot as usize].heat = halved;
    }

    /// The block goes to the main queue, with a turn in advance.
    fn enter_main(&mut self, slot: u32) {
        self.seen[slot as usize].turns = 1;
        self.main.push_back(slot);
    }

    /// Evicts a block, of a slot that is in no queue any longer.
    fn evict(&mut self, slot: u32, left: Left, slots: &dyn SlotView) -> Visit {
        if let Some(block) = slots.block(slot) {
            self.ghosts.add(block, left);
        }
        Visit::Evict(slot)
    }

    /// Visits the end of a queue.
    fn visit(&mut self, of: Queue, passed: &mut SecondChoice, slots: &mut dyn SlotView) -> Option<Visit> {
        let slot = *self.queue(of).front()?;
        let (heat, priority) = match slots.slot_state(slot) {
            SlotState::Resident { heat, priority } => (heat, priority),
            state => {
                self.queue(of).pop_front();
                if state == SlotState::Empty {
                    return Some(Visit::Evict(slot));
                }
                self.main.push_back(slot);
                return Some(Visit::Stays);
            }
        };
        if priority == Priority::Low {
            self.queue(of).pop_front();
            return Some(Visit::Evict(slot));
        }
        passed.consider(slot, heat, priority);
        if priority != Priority::Normal || of == Queue::Low {
            self.queue(of).pop_front();
            self.enter_main(slot);
            return Some(Visit::Stays);
        }
        Some(match of {
            Queue::Main => self.leave_main(slot, heat, slots),
            Queue::Small | Queue::Low => self.leave_small(slot, heat, slots),
        })
    }

    /// The block at the main queue's end has a further turn or is evicted.
    fn leave_main(&mut self, slot: u32, heat: u8, slots: &mut dyn SlotView) -> Visit {
        self.main.pop_front();
        if self.has_turn(slot, heat, slots) {
            self.main.push_back(slot);
            return Visit::Stays;
        }
        self.evict(slot, Left::Main, slots)
    }

    /// Whether reads have given the block in the main queue a turn, which it takes.
    fn has_turn(&mut self, slot: u32, heat: u8, slots: &mut dyn SlotView) -> bool {
        let turns = self.seen[slot as usize]
            .turns
            .saturating_add(self.reads(slot, heat));
        self.seen[slot as usize].turns = turns.min(MAX_TURNS).saturating_sub(1);
        self.pass(slot, heat, slots);
        turns > 0
    }

    /// The block at the small queue's end goes to the main queue, takes the place of a block there, or is evicted.
    fn leave_small(&mut self, slot: u32, heat: u8, slots: &mut dyn SlotView) -> Visit {
        if self.reads(slot, heat) >= PROVEN {
            self.small.pop_front();
            self.pass(slot, heat, slots);
            self.enter_main(slot);
            return Visit::Stays;
        }
        let opponent = self.main.front().copied();
        let state = opponent.map(|opponent| (opponent, slots.slot_state(opponent)));
        let Some((
            opponent,
            SlotState::Resident {
                heat: its,
                priority: Priority::Normal,
            },
        )) = state
        else {
            self.small.pop_front();
            return self.evict(slot, Left::Small, slots);
        };
        self.main.pop_front();
        if self.has_turn(opponent, its, slots) {
            // The next one is the opponent.
            self.main.push_back(opponent);
            return Visit::Stays;
        }
        self.small.pop_front();
        if heat < its.saturating_add(MARGIN) {
            self.main.push_front(opponent);
            return self.evict(slot, Left::Small, slots);
        }
        self.pass(slot, heat, slots);
        self.enter_main(slot);
        self.evict(opponent, Left::Main, slots)
    }

    /// Takes out the best of the slots that were passed over: wherever it is, it is not far from an end.
    fn take(&mut self, slot: u32) {
        for of in [Queue::Main, Queue::Small, Queue::Low] {
            let queue = self.queue(of);
            if let Some(at) = queue.iter().rposition(|&known| known == slot) {
                queue.remove(at);
                return;
            }
        }
    }
}

/// What came of a visit.
enum Visit {
    /// This slot is to be evicted, and in no queue any longer.
    Evict(u32),
    /// The slot stays in a queue.
    Stays,
}

impl Evict for Adaptive {
    fn inserted(&mut self, slot: u32, priority: Priority, slots: &mut dyn SlotView) -> bool {
        self.seen[slot as usize] = Seen {
            heat: slots.heat(slot),
            turns: 0,
        };
        let (of, is_ghost) = self.entrance(priority, slots.block(slot));
        self.queue(of).push_back(slot);
        is_ghost
    }

    fn victim(&mut self, slots: &mut dyn SlotView) -> Option<u32> {
        self.is_full = true;
        let mut passed = SecondChoice::default();
        let all = self.low.len() + self.small.len() + self.main.len();
        let most = (usize::from(MAX_TURNS) + 2) * all;
        let mut main_visits = 0;
        for _ in 0..MAX_LOOKS.min(u32::try_from(most).unwrap_or(u32::MAX)) {
            let of = self.next(main_visits);
            main_visits += usize::from(of == Queue::Main);
            if let Visit::Evict(slot) = self.visit(of, &mut passed, slots)? {
                return Some(slot);
            }
        }
        let slot = passed.slot()?;
        self.take(slot);
        Some(slot)
    }

    fn put_back(&mut self, slot: u32) {
        self.main.push_back(slot);
    }

    fn halved(&mut self) {
        for seen in &mut self.seen {
            seen.heat /= 2;
        }
    }

    fn order(&self) -> Vec<u32> {
        let queues = [&self.low, &self.small, &self.main];
        queues.into_iter().flatten().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::evict::Clock;

    /// A cache that fills with every miss, over blocks 0 to 999.
    struct Model {
        evict: Box<dyn Evict>,
        /// The block in each slot.
        slots: Vec<u32>,
        heat: Vec<u8>,
        count: usize,
    }

    impl SlotView for Model {
        fn slot_state(&self, slot: u32) -> SlotState {
            SlotState::Resident {
                heat: self.heat(slot),
                priority: Priority::Normal,
            }
        }

        fn block(&self, slot: u32) -> Option<u32> {
            Some(self.slots[slot as usize])
        }

        fn heat(&self, slot: u32) -> u8 {
            self.heat[self.slots[slot as usize] as usize]
        }

        fn set_heat(&mut self, slot: u32, heat: u8) {
            let block = self.slots[slot as usize];
            self.heat[block as usize] = heat;
        }
    }

    impl Model {
        fn new(evict: impl Evict + 'static, count: usize) -> Self {
            Self {
                evict: Box::new(evict),
                slots: Vec::new(),
                heat: vec![0; 1000],
                count,
            }
        }

        /// Reads a block. Returns whether it hit.
        fn read(&mut self, block: u32) -> bool {
            let heat = &mut self.heat[block as usize];
            *heat = heat.saturating_add(1);
            if self.slots.contains(&block) {
                return true;
            }
            let mut evict: Box<dyn Evict> = std::mem::replace(&mut self.evict, Box::new(Clock::new(1)));
            let slot = if self.slots.len() < self.count {
                self.slots.push(block);
                u32::try_from(self.slots.len() - 1).unwrap()
            } else {
                let slot = evict.victim(self).unwrap();
                self.slots[slot as usize] = block;
                slot
            };
            evict.inserted(slot, Priority::Normal, self);
            self.evict = evict;
            false
        }

        /// The hits of these reads, in percent.
        fn hits(&mut self, blocks: impl ExactSizeIterator<Item = u32>) -> usize {
            let all = blocks.len();
            blocks.filter(|&block| self.read(block)).count() * 100 / all
        }
    }

    #[test]
    fn part_of_a_loop_larger_than_the_cache_stays() {
        let blocks = || (0..3000).map(|n| n % 300);
        assert_eq!(Model::new(Clock::new(100), 100).hits(blocks()), 0);
        let hits = Model::new(Adaptive::new(100), 100).hits(blocks());
        assert!(hits >= 24, "{hits} % of at most 30");
    }

    #[test]
    fn what_was_read_last_stays_where_that_is_all_that_counts() {
        // Each block is read again once, 70 reads after it was read first: too late for a tenth of the cache.
        let blocks = (0..40_000_u32).map(|n| (n / 2 + 1000 - 35 * (n % 2)) % 1000);
        let hits = Model::new(Adaptive::new(100), 100).hits(blocks);
        assert!(hits >= 45, "{hits} % of at most 50");
    }

    #[test]
    fn what_comes_back_after_a_scan_is_kept_through_the_next() {
        let mut model = Model::new(Adaptive::new(100), 100);
        let hot = |n: u32| n * 7 % 60;
        for scan in 0..8 {
            model.hits((0..240).map(hot));
            model.hits((0..100).map(|n| 100 + scan * 100 + n));
        }
        let hits = model.hits((0..60).map(hot));
        assert!(hits >= 95, "{hits} %");
    }

    #[test]
    fn the_small_queue_stays_within_its_bounds() {
        let mut parts = Parts::of(1000);
        parts.adapt(Left::Small, 10);
        assert_eq!(parts.small(), 150);
        parts.adapt(Left::Small, 500);
        assert_eq!(parts.small(), 151, "it left long ago");
        (0..100).for_each(|_| parts.adapt(Left::Small, 0));
        assert_eq!(parts.small(), 900);
        (0..100).for_each(|_| parts.adapt(Left::Main, 700));
        assert_eq!(parts.small(), 10);
        for slots in 1..100 {
            let mut parts = Parts::of(slots);
            for left in [Left::Small, Left::Main] {
                (0..100).for_each(|_| parts.adapt(left, 0));
                assert!(parts.small() >= 1 && parts.small() <= slots as usize, "{parts:?}");
            }
        }
    }

    #[test]
    fn heat_that_has_saturated_shows_reads_again() {
        let mut model = Model::new(Adaptive::new(10), 10);
        model.hits((0..10).chain(10..20).collect::<Vec<_>>().into_iter());
        for _ in 0..5 {
            model.hits([3; 300].into_iter());
            model.hits((100..160).collect::<Vec<_>>().into_iter());
        }
        assert!(model.read(3), "it is read more than all others");
    }
}
