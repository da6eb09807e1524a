//! Verifications: a block of an earlier server, which may differ from the backing device, is compared with that before
//! its first hit.
//!
//! Until then it is [`Unverified`](ublk_bpf_abi::BlockState::Unverified) in the index: reads miss it, and a write
//! invalidates it. A verification claims its valid regions and then is a fill of each run of them: it reads the run from
//! both devices, and publishes it if they are the same and no write has overtaken it. Blocks that are missed come first,
//! then all others in the order of their slots.

use std::collections::VecDeque;

use ublk_bpf_abi::Priority;

use super::job::{Job, Kind, Step};
use super::{MAX_VERIFICATIONS, Mover, MoverIo};
use crate::cache::blocks::first_run;
use crate::cache::free::Report;

/// Missed blocks that are moved to the front. Others keep their place.
const MAX_HASTENED: usize = 64;

/// The slots to verify.
#[derive(Debug)]
pub(super) struct Unverified {
    /// A bit for each slot; none while there is nothing to verify.
    bits: Vec<u64>,
    slots: u32,
    count: u32,
    /// Every slot below is verified or in a job.
    next: u32,
    /// Every slot from here on is verified or evicted.
    end: u32,
    hastened: VecDeque<u32>,
    /// If a verification and a fill could begin, the verification does.
    is_their_turn: bool,
}

impl Unverified {
    /// None of so many slots.
    pub(super) const fn none(slots: u32) -> Self {
        Self {
            bits: Vec::new(),
            slots,
            count: 0,
            next: 0,
            end: slots,
            hastened: VecDeque::new(),
            is_their_turn: true,
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn clear(&mut self) {
        *self = Self::none(self.slots);
    }

    fn insert(&mut self, slot: u32) {
        if self.bits.is_empty() {
            self.bits = vec![0; self.slots.div_ceil(64) as usize];
            self.hastened = VecDeque::with_capacity(MAX_HASTENED);
        }
        self.bits[slot as usize / 64] |= 1 << (slot % 64);
        self.count += 1;
    }

    fn contains(&self, slot: u32) -> bool {
        let word = self.bits.get(slot as usize / 64);
        word.is_some_and(|word| word >> (slot % 64) & 1 == 1)
    }

    /// Takes a slot out, if it is there.
    fn take(&mut self, slot: u32) -> Option<u32> {
        if !self.contains(slot) {
            return None;
        }
        self.bits[slot as usize / 64] &= !(1 << (slot % 64));
        self.count -= 1;
        Some(slot)
    }

    /// The next to verify.
    fn take_next(&mut self) -> Option<u32> {
        while let Some(slot) = self.hastened.pop_front() {
            if let Some(slot) = self.take(slot) {
                return Some(slot);
            }
        }
        while self.count > 0 && self.next < self.end {
            self.next += 1;
            if let Some(slot) = self.take(self.next - 1) {
                return Some(slot);
            }
        }
        None
    }

    /// The last in the order.
    fn take_last(&mut self) -> Option<u32> {
        while self.count > 0 && self.next < self.end {
            self.end -= 1;
            if let Some(slot) = self.take(self.end) {
                return Some(slot);
            }
        }
        None
    }

    /// A fill could begin too: whether the verification does. They take turns.
    pub(super) const fn take_turn(&mut self) -> bool {
        self.is_their_turn = !self.is_their_turn;
        !self.is_their_turn
    }
}

impl Mover<'_, '_> {
    /// Adds the block in a slot to those to verify.
    pub(super) fn add_unverified(&mut self, slot: u32, priority: Priority) {
        if self.unverified.is_empty() {
            let mut jobs = std::mem::take(&mut self.jobs).into_vec();
            jobs.resize(self.fills + usize::from(MAX_VERIFICATIONS), None);
            self.jobs = jobs.into_boxed_slice();
        }
        self.unverified.insert(slot);
        self.residents.set_priority(slot, priority);
        self.counters.unverified += 1;
    }

    /// A block was missed because it is not verified: it is verified next.
    pub(super) fn verify_soon(&mut self, slot: u32, priority: Priority) {
        // A damaged index may name any slot.
        if self.unverified.contains(slot) && self.unverified.hastened.len() < MAX_HASTENED {
            self.residents.set_priority(slot, priority);
            self.unverified.hastened.push_back(slot);
        }
    }

    /// One block less is unverified.
    pub(super) const fn count_out(&mut self) {
        // The count is 0 after the cache device failed, though verifications may be in flight.
        self.counters.unverified = self.counters.unverified.saturating_sub(1);
    }

    /// A job that verifies the next block that is still in its slot.
    pub(super) fn begin_verification(&mut self) -> Option<Job> {
        let cache = self.cache;
        while let Some(slot) = self.unverified.take_next() {
            let block = cache.blocks.slots.owner(slot);
            let begun = block.and_then(|block| {
                let all = cache.regions_of(block);
                Some((block, cache.blocks.begin_verify(block, slot, all)?))
            });
            let Some((block, valid)) = begun else {
                // A write has invalidated it.
                self.count_out();
                self.release(slot);
                continue;
            };
            return Some(self.verification(block, slot, valid));
        }
        None
    }

    /// A job that verifies the first run of these claimed regions, and then the rest.
    fn verification(&self, block: u32, slot: u32, valid: u16) -> Job {
        let run = first_run(valid);
        let fill = self.cache.span(block, slot, run);
        self.cache.free.spend(fill.length);
        let mut job = Job::new(Kind::Verify, fill, self.residents.priority(slot));
        job.rest = valid & !run;
        job
    }

    /// The comparison of a verification has completed: whether the two buffers are equal. Returns the job's next operation,
    /// as [`done`](Mover::done) does.
    ///
    /// # Panics
    /// If the job has no comparison in flight.
    pub fn compared(&mut self, job: u16, is_same: bool) -> Option<MoverIo> {
        let number = usize::from(job);
        let of = self.jobs[number].take_if(|of| of.step() == Step::Compare);
        let Some(of) = of else {
            panic!("job {job} was compared, but has no comparison in flight");
        };
        if !is_same {
            self.counters.differing += 1;
            self.end_verification(&of);
            return None;
        }
        if !self.cache.publish(&of.fill, true) {
            self.counters.overtaken += 1;
            self.abandon_runs(&of);
            return None;
        }
        if of.rest != 0 {
            let next = self.verification(of.fill.block, of.fill.slot, of.rest);
            self.jobs[number] = Some(next);
            return Some(self.io(number, &next));
        }
        self.count_out();
        self.counters.verified += 1;
        self.settle(of.fill.slot, of.priority);
        None
    }

    /// A block that differs, or cannot be compared, leaves the cache.
    pub(super) fn end_verification(&mut self, job: &Job) {
        self.cache.blocks.invalidate(job.fill.block, job.fill.slot);
        self.cache.publish(&job.fill, false);
        self.abandon_runs(job);
    }

    /// Ends the claims of the runs that a verification has not come to. The block has left the slot, unless other regions of it
    /// are dirty.
    fn abandon_runs(&mut self, job: &Job) {
        let mut rest = job.rest;
        while rest != 0 {
            let run = first_run(rest);
            let fill = self.cache.span(job.fill.block, job.fill.slot, run);
            self.cache.publish(&fill, false);
            rest &= !run;
        }
        self.count_out();
        let (slot, priority) = (job.fill.slot, job.priority);
        self.take_in(Report { slot, priority });
    }

    /// Evicts an unverified block, to make room for a fill where no verified block can be evicted.
    pub(super) fn give_up_unverified(&mut self) -> Option<u32> {
        let slot = self.unverified.take_last()?;
        self.count_out();
        self.counters.evicted += 1;
        if let Some(block) = self.cache.blocks.slots.owner(slot) {
            self.cache.blocks.give_up_unverified(block, slot);
        }
        self.vacate(slot)
    }
}
