//! Fills: a block that was missed is copied from the backing device to a slot. This is what users know as a promotion.
//!
//! The block is `Filling` in the index from before the first read of the backing device until the slot holds all of it.
//! A write in between makes it `Absent`, so the compare-and-swap that publishes the slot fails.

use ublk_bpf_abi::{BlockState, Priority};

use super::Mover;
use super::job::{Job, Kind, Step};

pub(super) const STEPS: [Step; 2] = [Step::Load, Step::Store];

impl Mover<'_, '_> {
    /// A job that fills the block, unless it is cached, being written or has no slot to go to.
    pub(super) fn begin_fill(&mut self, block: u32, priority: Priority) -> Option<Job> {
        let entry = self.cache.entry(block);
        match entry.state() {
            BlockState::Absent => {}
            BlockState::Filling => return None,
            BlockState::Present => {
                self.residents.set_priority(entry.slot(), priority);
                return None;
            }
            BlockState::Unverified => {
                self.verify_soon(entry.slot(), priority);
                return None;
            }
        }
        let len = self.cache.length_of(block);
        if entry.writers() > 0 || len == 0 {
            return None;
        }
        let Some(slot) = self.free_slot() else {
            self.counters.no_room += 1;
            return None;
        };
        self.cache.blocks.slots.give(slot, block);
        if self.cache.begin_filling(block, slot) {
            return Some(Job::new(Kind::Fill, block, slot, priority, len));
        }
        self.release(slot);
        self.counters.overtaken += 1;
        None
    }

    /// The slot holds the block.
    pub(super) fn end_fill(&mut self, job: &Job) {
        self.counters.staged_bytes += u64::from(job.len);
        if self.cache.end_filling(job.block, job.slot) {
            self.settle(job.slot, job.priority);
            self.counters.promoted += 1;
        } else {
            self.release(job.slot);
            self.counters.overtaken += 1;
        }
    }
}
