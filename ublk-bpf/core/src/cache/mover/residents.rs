//! The slots as the eviction algorithms see them.

use ublk_bpf_abi::Priority;

use crate::cache::Cache;
use crate::cache::evict::{SlotState, SlotView};
use crate::cache::recover::Resident;

/// The state and priority of each slot.
#[derive(Debug)]
pub(super) struct Residents<'c, 'm> {
    cache: &'c Cache<'m>,
    priorities: Box<[Priority]>,
    pinned: u32,
}

impl<'c, 'm> Residents<'c, 'm> {
    pub(super) fn new(cache: &'c Cache<'m>, slots: u32) -> Self {
        Self {
            cache,
            priorities: vec![Priority::Normal; slots as usize].into_boxed_slice(),
            pinned: 0,
        }
    }

    /// The block of a slot as a clean stop saves it. A dirty one is held for the log, which is no use of it.
    pub(super) fn saved(&self, slot: u32) -> Option<Resident> {
        let block = self.block(slot)?;
        let dirty = self.cache.blocks.dirty.of(slot);
        let entry = self.cache.entry(block);
        let is_dirty = dirty != 0 && entry.is_dirty() && entry.slot() == slot;
        match self.slot_state(slot) {
            SlotState::Resident { .. } => {}
            SlotState::Busy if is_dirty => {}
            SlotState::Empty | SlotState::Busy => return None,
        }
        Some(Resident {
            slot,
            block,
            priority: self.priority(slot),
            heat: self.cache.heat(block),
            valid: !entry.hidden() | dirty,
        })
    }

    pub(super) fn priority(&self, slot: u32) -> Priority {
        self.priorities[slot as usize]
    }

    /// At most three quarters of the slots can be [`Priority::Pinned`]; others become [`Priority::High`].
    pub(super) fn set_priority(&mut self, slot: u32, priority: Priority) {
        let most = u32::try_from(self.priorities.len()).unwrap_or(u32::MAX) / 4 * 3;
        let Some(now) = self.priorities.get_mut(slot as usize) else {
            return;
        };
        self.pinned -= u32::from(*now == Priority::Pinned);
        *now = match priority {
            Priority::Pinned if self.pinned >= most => Priority::High,
            priority => priority,
        };
        self.pinned += u32::from(*now == Priority::Pinned);
    }
}

impl SlotView for Residents<'_, '_> {
    fn slot_state(&self, slot: u32) -> SlotState {
        let Some(block) = self.cache.blocks.slots.owner(slot) else {
            return SlotState::Empty;
        };
        let entry = self.cache.entry(block);
        let is_here = entry.is_present() && entry.slot() == slot;
        if self.cache.blocks.slots.is_pinned(slot) || (is_here && entry.writers() > 0) {
            return SlotState::Busy;
        }
        let all = self.cache.regions_of(block);
        if !is_here || entry.hidden() & all == all {
            return SlotState::Empty;
        }
        SlotState::Resident {
            heat: self.cache.heat(block),
            priority: self.priority(slot),
        }
    }

    fn block(&self, slot: u32) -> Option<u32> {
        self.cache.blocks.slots.owner(slot)
    }

    fn heat(&self, slot: u32) -> u8 {
        self.block(slot).map_or(0, |block| self.cache.heat(block))
    }

    fn set_heat(&mut self, slot: u32, heat: u8) {
        if let Some(block) = self.block(slot) {
            self.cache.set_heat(block, heat);
        }
    }
}
