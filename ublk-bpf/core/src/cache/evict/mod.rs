//! Eviction algorithms, one a file.
//!
//! An algorithm keeps the slots that hold a block in an order of its own, and reads a block's heat when it visits it.
//! Heat serves as the usual reference bit or counter. The classifier counts reads there, so a hit costs an algorithm
//! nothing.

mod adaptive;
mod clock;
mod ghosts;

use ublk_bpf_abi::Priority;

pub use adaptive::Adaptive;
pub use clock::Clock;

/// The state of a slot when an algorithm visits it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// Its block was invalidated by a write or discard.
    Empty,
    /// It is in use: its block is being read or written, or reads of an invalidated block have not completed.
    Busy,
    /// Its block can be evicted.
    Resident {
        /// Reads since it was inserted or its heat last decayed.
        heat: u8,
        /// How strongly the policy wants to keep it.
        priority: Priority,
    },
}

/// The slots, as an algorithm sees them.
pub trait SlotView {
    /// The state of a slot.
    fn slot_state(&self, slot: u32) -> SlotState;
    /// The block in a slot; `None` if it left.
    fn block(&self, slot: u32) -> Option<u32>;
    /// The heat of the block in a slot.
    fn heat(&self, slot: u32) -> u8;
    /// Sets the heat of the block in a slot.
    fn set_heat(&mut self, slot: u32, heat: u8);
}

/// An eviction algorithm. Each slot that gets a block is inserted, and a victim is removed.
pub trait Evict: std::fmt::Debug + Send {
    /// Inserts a slot that has got a block. The block's heat counts reads from before it came in, the one that missed it
    /// included; an algorithm that wants to know later reads only clears it. Returns whether it remembers the block as one
    /// that left not long ago.
    fn inserted(&mut self, slot: u32, priority: Priority, slots: &mut dyn SlotView) -> bool;

    /// Removes and returns the slot to evict; `None` if all slots that it visited are in use. Visits at most
    /// [`MAX_LOOKS`] slots.
    fn victim(&mut self, slots: &mut dyn SlotView) -> Option<u32>;

    /// Inserts a victim again that could not be evicted.
    fn put_back(&mut self, slot: u32);

    /// The heat of all blocks was halved.
    fn halved(&mut self) {}

    /// All slots, in about the order in which they would be evicted, for another algorithm to take over.
    fn order(&self) -> Vec<u32>;
}

/// Slots that one search visits at most: the coldest of so many is cold enough.
pub const MAX_LOOKS: u32 = 1024;

/// The algorithms, by the names of `--cache-eviction`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// A hand goes round; a block that was read since its last visit stays.
    Clock,
    /// Two queues: a block that is not read again while in the small one is evicted soon, so a scan does not displace the
    /// rest. What comes back after it left sets the length of the small one.
    #[default]
    #[serde(alias = "s3fifo")]
    Adaptive,
}

impl Algorithm {
    /// Each of them.
    pub const ALL: [Self; 2] = [Self::Clock, Self::Adaptive];

    /// Its name, as users write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Clock => "clock",
            Self::Adaptive => "adaptive",
        }
    }

    /// An algorithm of this kind for this number of slots.
    #[must_use]
    pub fn build(self, slots: u32) -> Box<dyn Evict> {
        match self {
            Self::Clock => Box::new(Clock::new(slots)),
            Self::Adaptive => Box::new(Adaptive::new(slots)),
        }
    }
}

/// The best of the slots that a search kept, in case it finds none to evict.
#[derive(Clone, Copy, Debug, Default)]
struct SecondChoice(Option<(Rank, u32)>);

/// The order of eviction: by priority, then by heat.
type Rank = (Priority, u8);

impl SecondChoice {
    fn consider(&mut self, slot: u32, heat: u8, priority: Priority) {
        let rank = (priority, heat);
        if self.0.is_none_or(|(best, _)| rank < best) {
            self.0 = Some((rank, slot));
        }
    }

    fn slot(self) -> Option<u32> {
        self.0.map(|(_, slot)| slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SlotView whose blocks are what a test says.
    pub(super) struct Fake(pub(super) Vec<SlotState>);

    impl SlotView for Fake {
        fn slot_state(&self, slot: u32) -> SlotState {
            self.0[slot as usize]
        }

        fn block(&self, slot: u32) -> Option<u32> {
            (self.0[slot as usize] != SlotState::Empty).then_some(slot)
        }

        fn heat(&self, slot: u32) -> u8 {
            match self.0[slot as usize] {
                SlotState::Resident { heat, .. } => heat,
                SlotState::Empty | SlotState::Busy => 0,
            }
        }

        fn set_heat(&mut self, slot: u32, to: u8) {
            if let SlotState::Resident { heat, .. } = &mut self.0[slot as usize] {
                *heat = to;
            }
        }
    }

    pub(super) const fn resident(heat: u8) -> SlotState {
        SlotState::Resident {
            heat,
            priority: Priority::Normal,
        }
    }

    const fn with(priority: Priority, heat: u8) -> SlotState {
        SlotState::Resident { heat, priority }
    }

    fn full(algorithm: Algorithm, slots: &mut Fake) -> Box<dyn Evict> {
        let count = u32::try_from(slots.0.len()).unwrap();
        let mut evict = algorithm.build(count);
        for slot in 0..count {
            let state = slots.slot_state(slot);
            let priority = match state {
                SlotState::Resident { priority, .. } => priority,
                SlotState::Empty | SlotState::Busy => Priority::Normal,
            };
            slots.set_heat(slot, 0);
            evict.inserted(slot, priority, slots);
            slots.0[slot as usize] = state;
        }
        evict
    }

    #[test]
    fn each_slot_is_named_once_and_none_in_use() {
        for algorithm in Algorithm::ALL {
            let mut slots = Fake(vec![resident(0); 20]);
            slots.0[3] = SlotState::Busy;
            let mut evict = full(algorithm, &mut slots);
            let mut named: Vec<u32> = std::iter::from_fn(|| evict.victim(&mut slots)).collect();
            named.sort_unstable();
            assert_eq!(
                named,
                (0..20).filter(|&slot| slot != 3).collect::<Vec<_>>(),
                "{algorithm:?}"
            );
        }
    }

    #[test]
    fn an_order_has_each_slot_once() {
        for algorithm in Algorithm::ALL {
            let mut slots = Fake(vec![resident(0); 300]);
            slots.0[7] = with(Priority::Low, 0);
            let mut evict = full(algorithm, &mut slots);
            let victims: Vec<u32> = std::iter::from_fn(|| evict.victim(&mut slots)).take(20).collect();
            let mut all = [evict.order(), victims].concat();
            all.sort_unstable();
            assert_eq!(all, (0..300).collect::<Vec<_>>(), "{algorithm:?}");
        }
    }

    #[test]
    fn a_block_that_left_is_found_wherever_it_is() {
        for algorithm in Algorithm::ALL {
            let mut slots = Fake(vec![resident(200); 50]);
            slots.0[33] = SlotState::Empty;
            assert_eq!(
                full(algorithm, &mut slots).victim(&mut slots),
                Some(33),
                "{algorithm:?}"
            );
        }
    }

    #[test]
    fn low_goes_first_and_high_and_pinned_last() {
        for algorithm in Algorithm::ALL {
            let mut slots = Fake(vec![
                with(Priority::High, 0),
                with(Priority::Pinned, 0),
                with(Priority::Normal, 1),
                with(Priority::Low, 9),
            ]);
            let mut evict = full(algorithm, &mut slots);
            let order: Vec<u32> = std::iter::from_fn(|| evict.victim(&mut slots)).collect();
            assert_eq!(order, [3, 2, 0, 1], "{algorithm:?}");
        }
    }

    #[test]
    fn a_search_ends_however_hot_all_are() {
        for algorithm in Algorithm::ALL {
            let mut slots = Fake(vec![resident(255); 5000]);
            assert!(
                full(algorithm, &mut slots).victim(&mut slots).is_some(),
                "{algorithm:?}"
            );
            let mut slots = Fake(vec![SlotState::Busy; 5000]);
            assert_eq!(
                full(algorithm, &mut slots).victim(&mut slots),
                None,
                "{algorithm:?}"
            );
        }
    }

    #[test]
    fn what_is_read_again_outlives_a_scan() {
        // 100 slots, 60 of them read all the time; 1000 blocks come by once.
        let mut slots = Fake(vec![resident(1); 100]);
        let mut evict = full(Algorithm::Adaptive, &mut slots);
        for _ in 0..1000 {
            for slot in 0..60 {
                let heat = slots.heat(slot);
                slots.set_heat(slot, heat.saturating_add(3));
            }
            let slot = evict.victim(&mut slots).unwrap();
            assert!(slot >= 60, "slot {slot} is read all the time");
            slots.0[slot as usize] = resident(0);
            evict.inserted(slot, Priority::Normal, &mut slots);
        }
    }
}
