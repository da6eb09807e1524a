//! S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023), without its ghost queue.
//!
//! A block comes into the small queue. One that was not read again when it gets to that queue's end goes; one that was
//! moves to the main queue, where reads give it further turns. So blocks that are read once, as a scan's are, pass
//! through a tenth of the cache and leave the rest alone. The ghost queue remembers what went too early; here the heat
//! of blocks that are not in the cache does that, for the policy to see.

use std::collections::VecDeque;

use ublk_bpf_abi::Priority;

use super::{Evict, Fallback, Fate, MAX_LOOKS, SlotView};

/// The small queue's part of the slots: one in so many.
const SMALL_PART: usize = 10;

/// Turns that reads give a block in the main queue, at most.
const MAX_TURNS: u8 = 3;

/// The slots, each in one of the queues.
#[derive(Debug)]
pub struct S3Fifo {
    small: VecDeque<u32>,
    main: VecDeque<u32>,
    small_slots: usize,
}

impl S3Fifo {
    /// For so many slots.
    #[must_use]
    pub fn new(slots: u32) -> Self {
        let slots = slots as usize;
        let small_slots = (slots / SMALL_PART).max(1);
        Self {
            // It outgrows its part only until the cache is full for the first time.
            small: VecDeque::with_capacity(small_slots + 1),
            main: VecDeque::with_capacity(slots),
            small_slots,
        }
    }

    /// The end of the queue whose turn it is, and whether that is the small one: where it has its part of the slots, or
    /// where the main one has been gone through.
    fn next(&mut self, gone_through: usize) -> Option<(u32, bool)> {
        let turns = self.main.len() * (usize::from(MAX_TURNS) + 1);
        if (self.small.len() >= self.small_slots || gone_through >= turns)
            && let Some(slot) = self.small.pop_front()
        {
            return Some((slot, true));
        }
        Some((self.main.pop_front()?, false))
    }

    /// Takes out the best of the slots that were passed over: wherever it is, it is not far from an end.
    fn take(&mut self, slot: u32) {
        for queue in [&mut self.main, &mut self.small] {
            if let Some(at) = queue.iter().rposition(|&known| known == slot) {
                queue.remove(at);
                return;
            }
        }
    }
}

impl Evict for S3Fifo {
    fn inserted(&mut self, slot: u32, priority: Priority, _: u8) {
        match priority {
            Priority::Normal | Priority::Low => self.small.push_back(slot),
            Priority::High | Priority::Pinned => self.main.push_back(slot),
        }
    }

    fn victim(&mut self, slots: &mut dyn SlotView) -> Option<u32> {
        let mut passed = Fallback::default();
        let mut gone_through = 0;
        let most = (MAX_TURNS as usize + 1) * (self.small.len() + self.main.len());
        for _ in 0..MAX_LOOKS.min(u32::try_from(most).unwrap_or(u32::MAX)) {
            let (slot, was_small) = self.next(gone_through)?;
            gone_through += usize::from(!was_small);
            match slots.slot_state(slot).fate() {
                Fate::Evict => return Some(slot),
                Fate::Stays => {}
                Fate::Cools { heat, priority } => {
                    let turns = heat.min(MAX_TURNS);
                    let left = if was_small { turns } else { turns.saturating_sub(1) };
                    slots.set_heat(slot, left);
                    passed.consider(slot, left, priority);
                }
            }
            self.main.push_back(slot);
        }
        let slot = passed.slot()?;
        self.take(slot);
        Some(slot)
    }

    fn put_back(&mut self, slot: u32) {
        self.main.push_back(slot);
    }
}
