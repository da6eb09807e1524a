//! Where a slot for the next fill comes from, and where slots go back to.

use ublk_bpf_abi::Priority;

use super::Mover;
use crate::cache::evict::{SlotState, SlotView as _};

/// Victims that are tried for one fill.
const MAX_VICTIMS: u32 = 8;

/// Slots without a block.
#[derive(Debug, Default)]
pub(super) struct FreeSlots {
    /// Slots from here on were never used.
    pub(super) fresh: u32,
    pub(super) free: Vec<u32>,
    /// Slots whose block has been evicted, but that are still being read or written.
    pub(super) draining: Vec<u32>,
}

impl Mover<'_, '_> {
    /// The slot holds its block, which may be hit from now on.
    pub(super) fn settle(&mut self, slot: u32, priority: Priority) {
        self.residents.set_priority(slot, priority);
        let priority = self.residents.priority(slot);
        self.evict.inserted(slot, priority, &mut self.residents);
        self.counters.used += 1;
    }

    /// A slot that is not in use, by eviction if there is none.
    pub(super) fn free_slot(&mut self) -> Option<u32> {
        let of = &mut self.free;
        if let Some(at) = of
            .draining
            .iter()
            .position(|&slot| self.cache.blocks.slots.take(slot))
        {
            return Some(of.draining.swap_remove(at));
        }
        if let Some(slot) = of.free.pop() {
            return Some(slot);
        }
        if of.fresh < self.cache.blocks.slots.count() {
            of.fresh += 1;
            return Some(of.fresh - 1);
        }
        (0..MAX_VICTIMS)
            .find_map(|_| self.evict_one())
            .or_else(|| self.give_up_unverified())
    }

    /// Evicts a block, and takes its slot unless that is still in use.
    fn evict_one(&mut self) -> Option<u32> {
        let slot = self.evict.victim(&mut self.residents)?;
        if let Some(block) = self.cache.blocks.slots.owner(slot) {
            if self.cache.evict(block, slot) {
                // So that it is known when it comes again.
                self.cache.set_heat(block, self.cache.heat(block).max(1));
                self.counters.evicted += 1;
            } else if self.residents.slot_state(slot) != SlotState::Empty {
                // A write of the block has just begun.
                self.evict.put_back(slot);
                return None;
            }
        }
        self.counters.used = self.counters.used.saturating_sub(1);
        self.vacate(slot)
    }

    /// Takes the slot from its block, which was evicted. `None`: it is still in use.
    pub(super) fn vacate(&mut self, slot: u32) -> Option<u32> {
        self.residents.set_priority(slot, Priority::Normal);
        if self.cache.blocks.slots.take(slot) {
            return Some(slot);
        }
        self.free.draining.push(slot);
        None
    }

    /// Frees the slot of a job that published nothing.
    pub(super) fn release(&mut self, slot: u32) {
        if self.cache.blocks.slots.take(slot) {
            self.free.free.push(slot);
        } else {
            self.free.draining.push(slot);
        }
    }
}
