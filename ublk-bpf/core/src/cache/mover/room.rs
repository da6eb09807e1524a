//! Where a slot for the next fill comes from, and where slots go back to.

use std::sync::atomic::Ordering;
use std::time::Duration;

use ublk_bpf_abi::Priority;

use super::Mover;
use crate::cache::evict::{SlotState, SlotView as _};
use crate::cache::free::Report;

/// After so long in which queues found free slots, and half of these were left, fewer are kept.
const SHRINK_AFTER: Duration = Duration::from_secs(10);
/// After none could be freed for a queue, none is looked for so long: everything is dirty, or in use.
const RETRY_AFTER: Duration = Duration::from_millis(5);

/// Victims that are tried for one fill.
const MAX_VICTIMS: u32 = 8;

/// Slots without a block.
#[derive(Debug, Default)]
pub(super) struct SlotStock {
    /// Slots from here on were never used.
    pub(super) fresh: u32,
    pub(super) free: Vec<u32>,
    /// Slots whose block has been evicted, but that are still being read or written.
    pub(super) draining: Vec<u32>,
    /// When fewer may be kept free for queues, and the fewest that were found free until now.
    shrink_at: Duration,
    fewest: usize,
    /// When a slot is looked for again.
    pub(super) retry_at: Duration,
}

impl Mover<'_, '_> {
    /// The slot holds its block, which may be hit from now on.
    pub(super) fn settle(&mut self, slot: u32, priority: Priority) {
        self.residents.set_priority(slot, priority);
        let priority = self.residents.priority(slot);
        let is_known = self.evict.inserted(slot, priority, &mut self.residents);
        self.counters.ghosts += u64::from(is_known);
        self.counters.used += 1;
    }

    /// Evicts by another algorithm if one is asked for. It begins with the order of the former one, and without what that
    /// remembers of blocks that left.
    pub(super) fn adopt_eviction(&mut self) {
        let Some(algorithm) = self.cache.take_eviction() else {
            return;
        };
        let slots = self.cache.blocks.slots.count();
        let former = std::mem::replace(&mut self.evict, algorithm.build(slots));
        for slot in former.order() {
            let heat = self.residents.heat(slot);
            let priority = self.residents.priority(slot);
            self.evict.inserted(slot, priority, &mut self.residents);
            self.residents.set_heat(slot, heat);
        }
    }

    /// Takes in what became of the slots that queues had, and provides them with others.
    pub(super) fn serve_queues(&mut self, now: Duration) {
        let free = &self.cache.free;
        // Reports come only from slots that are out.
        while let Some(report) = free.reports.pop() {
            free.out.fetch_sub(1, Ordering::Relaxed);
            self.take_in(report);
        }
        if self.is_stopping || !free.is_wanted.load(Ordering::Relaxed) {
            return;
        }
        if free.is_sized() {
            self.size_stock(now);
            if now < self.free.retry_at {
                return;
            }
        }
        while free.out.load(Ordering::Relaxed) < free.most() && free.slots.len() < free.idle() as usize {
            let Some(slot) = self.free_slot() else {
                self.free.retry_at = now + RETRY_AFTER;
                return;
            };
            free.out.fetch_add(1, Ordering::Relaxed);
            let kept = free.slots.push(slot);
            debug_assert!(kept.is_ok(), "more slots are out than there are");
        }
    }

    /// Changes how many slots are kept free, by whether they were enough.
    fn size_stock(&mut self, now: Duration) {
        let free = &self.cache.free;
        let of = &mut self.free;
        of.fewest = of.fewest.min(free.slots.len());
        let has_grown = free.grow();
        if has_grown || now >= of.shrink_at {
            if !has_grown && of.fewest >= free.idle() as usize / 2 {
                free.shrink();
            }
            (of.shrink_at, of.fewest) = (now + SHRINK_AFTER, usize::MAX);
        }
        // What is too many then is free for fills.
        while free.slots.len() > free.idle() as usize
            && let Some(slot) = free.slots.pop()
        {
            free.out.fetch_sub(1, Ordering::Relaxed);
            self.free.free.push(slot);
        }
    }

    /// A slot that was given to a block: it holds it now, unless its fill failed or was overtaken.
    pub(super) fn take_in(&mut self, report: Report) {
        let slot = report.slot;
        let owner = self.cache.blocks.slots.owner(slot);
        if owner.is_some_and(|block| self.cache.blocks.is_in(block, slot)) {
            self.settle(slot, report.priority);
        } else {
            self.release(slot);
        }
    }

    /// A slot that is not in use, by eviction if there is none.
    pub(super) fn free_slot(&mut self) -> Option<u32> {
        let of = &mut self.free;
        if let Some(at) = of.draining.iter().position(|&slot| self.cache.take_slot(slot)) {
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
            if self.cache.blocks.evict(block, slot) {
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
        if self.cache.take_slot(slot) {
            return Some(slot);
        }
        self.free.draining.push(slot);
        None
    }

    /// Frees the slot of a job that published nothing.
    pub(super) fn release(&mut self, slot: u32) {
        if self.cache.take_slot(slot) {
            self.free.free.push(slot);
        } else {
            self.free.draining.push(slot);
        }
    }
}
