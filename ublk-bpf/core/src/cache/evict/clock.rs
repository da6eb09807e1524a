//! CLOCK, with a counter in place of the reference bit: the hand halves a block's heat as it passes, and a block
//! without any goes.

use std::collections::VecDeque;

use ublk_bpf_abi::Priority;

use super::{Evict, MAX_LOOKS, SecondChoice, SlotState, SlotView};

/// What the hand does with a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Evict its block.
    Evict,
    /// Keep it: it is in use.
    Stays,
    /// Keep it for now, with less heat.
    Cools { heat: u8, priority: Priority },
}

impl Fate {
    fn of(state: SlotState) -> Self {
        match state {
            SlotState::Busy => Self::Stays,
            SlotState::Empty
            | SlotState::Resident {
                priority: Priority::Low,
                ..
            }
            | SlotState::Resident {
                heat: 0,
                priority: Priority::Normal,
            } => Self::Evict,
            SlotState::Resident { heat, priority } => Self::Cools { heat, priority },
        }
    }
}

/// The slots in the order in which the hand comes to them.
#[derive(Debug)]
pub struct Clock {
    ring: VecDeque<u32>,
}

impl Clock {
    /// For so many slots.
    #[must_use]
    pub fn new(slots: u32) -> Self {
        Self {
            ring: VecDeque::with_capacity(slots as usize),
        }
    }

    /// Takes out the best of the slots that were passed over just now: they are at the end.
    fn take(&mut self, slot: u32) {
        if let Some(at) = self.ring.iter().rposition(|&known| known == slot) {
            self.ring.remove(at);
        }
    }
}

impl Evict for Clock {
    fn inserted(&mut self, slot: u32, _: Priority, slots: &mut dyn SlotView) -> bool {
        slots.set_heat(slot, 0);
        self.ring.push_back(slot);
        false
    }

    fn victim(&mut self, slots: &mut dyn SlotView) -> Option<u32> {
        let mut passed = SecondChoice::default();
        // Twice round, for what is cooled the first time may go the second.
        let looks = MAX_LOOKS.min(u32::try_from(2 * self.ring.len()).unwrap_or(u32::MAX));
        for _ in 0..looks {
            let slot = self.ring.pop_front()?;
            match Fate::of(slots.slot_state(slot)) {
                Fate::Evict => return Some(slot),
                Fate::Stays => {}
                Fate::Cools { heat, priority } => {
                    slots.set_heat(slot, heat / 2);
                    passed.consider(slot, heat / 2, priority);
                }
            }
            self.ring.push_back(slot);
        }
        let slot = passed.slot()?;
        self.take(slot);
        Some(slot)
    }

    fn put_back(&mut self, slot: u32) {
        self.ring.push_back(slot);
    }

    fn order(&self) -> Vec<u32> {
        self.ring.iter().copied().collect()
    }
}
