//! Blocks of an earlier server that may not be what the backing device has: each is compared with it before it is hit.
//!
//! Until then such a block is [`Unverified`](ublk_bpf_abi::BlockState::Unverified) in the index, so no read finds it, and
//! whatever writes it empties it. A verification goes as a fill does, but for its end: both devices are read, and the
//! block is published by the compare-and-swap that succeeds only if nothing was written meanwhile. The blocks that are
//! missed come first, then all others in the order of their slots. Where promotions wait as well, the two take turns.

use std::collections::VecDeque;

use ublk_bpf_abi::Priority;

use super::{Job, JobStep, MAX_VERIFIED_AT_ONCE, MoverIo, Promoter};

/// Missed blocks that may wait to be verified before their turn. Others keep their place.
const MAX_HASTENED: usize = 64;

/// The slots that are yet to be verified.
#[derive(Debug)]
pub(super) struct Unverified {
    /// A bit for each slot; none while there is nothing to verify.
    bits: Vec<u64>,
    slots: u32,
    left: u32,
    /// No slot below is left, but for one that is verified now.
    next: u32,
    /// No slot from here on is left.
    end: u32,
    hastened: VecDeque<u32>,
    /// Of a verification and a promotion that could begin, the verification does.
    is_their_turn: bool,
}

impl Unverified {
    /// None of so many slots.
    pub(super) const fn none(slots: u32) -> Self {
        Self {
            bits: Vec::new(),
            slots,
            left: 0,
            next: 0,
            end: slots,
            hastened: VecDeque::new(),
            is_their_turn: true,
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.left == 0
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
        self.left += 1;
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
        self.left -= 1;
        Some(slot)
    }

    /// The one that is to be verified next.
    fn take_next(&mut self) -> Option<u32> {
        while let Some(slot) = self.hastened.pop_front() {
            if let Some(slot) = self.take(slot) {
                return Some(slot);
            }
        }
        while self.left > 0 && self.next < self.end {
            self.next += 1;
            if let Some(slot) = self.take(self.next - 1) {
                return Some(slot);
            }
        }
        None
    }

    /// The one whose turn would come last.
    fn take_last(&mut self) -> Option<u32> {
        while self.left > 0 && self.next < self.end {
            self.end -= 1;
            if let Some(slot) = self.take(self.end) {
                return Some(slot);
            }
        }
        None
    }

    /// A promotion could begin too: whether the verification does. They take turns.
    pub(super) const fn take_turn(&mut self) -> bool {
        self.is_their_turn = !self.is_their_turn;
        !self.is_their_turn
    }
}

impl Promoter<'_, '_> {
    /// The block in a slot is yet to be verified.
    pub(super) fn requeue(&mut self, slot: u32, priority: Priority) {
        if self.unverified.is_empty() {
            let idle = self.jobs[0];
            let mut jobs = std::mem::take(&mut self.jobs).into_vec();
            jobs.resize(self.promotions + usize::from(MAX_VERIFIED_AT_ONCE), idle);
            self.jobs = jobs.into_boxed_slice();
        }
        self.unverified.insert(slot);
        self.residents.set_priority(slot, priority);
        self.counters.unverified += 1;
    }

    /// A block was missed because it is not verified yet.
    pub(super) fn hasten(&mut self, slot: u32, priority: Priority) {
        // An index that was scribbled on may name any slot.
        if self.unverified.contains(slot) && self.unverified.hastened.len() < MAX_HASTENED {
            self.residents.set_priority(slot, priority);
            self.unverified.hastened.push_back(slot);
        }
    }

    /// A block is no longer one that is yet to be verified.
    pub(super) const fn count_out(&mut self) {
        // A cache whose device failed counts none, though some may be under way.
        self.counters.unverified = self.counters.unverified.saturating_sub(1);
    }

    /// Begins to verify the next block that is still there.
    pub(super) fn begin_verification(&mut self, job: usize) -> Option<(usize, MoverIo)> {
        while let Some(slot) = self.unverified.take_next() {
            let block = self.cache.slots.owner(slot);
            let Some(block) = block.filter(|&block| self.cache.begin_verify(block, slot)) else {
                // Something written has emptied it.
                self.count_out();
                self.release(slot);
                continue;
            };
            self.jobs[job] = Job {
                block,
                slot,
                priority: self.residents.priority(slot),
                step: JobStep::LoadSlot,
                moved: 0,
                len: self.cache.length_of(block),
                retries: 0,
            };
            return Some((job, self.effect(job)));
        }
        None
    }

    /// Whether the two buffers of a verification hold the same.
    ///
    /// # Panics
    /// If the job was not to be compared.
    pub fn compared(&mut self, job: u16, is_same: bool) {
        let Job {
            block,
            slot,
            priority,
            step,
            ..
        } = self.jobs[usize::from(job)];
        assert!(
            step == JobStep::Compare,
            "verification {job} was compared, and is at {step:?}"
        );
        self.jobs[usize::from(job)].step = JobStep::Idle;
        self.count_out();
        if !is_same {
            self.cache.give_up_fill(block, slot);
            self.counters.differing += 1;
        } else if self.cache.end_fill(block, slot) {
            self.counters.verified += 1;
            return self.settle(slot, priority);
        } else {
            self.counters.overtaken += 1;
        }
        self.release(slot);
    }

    /// Room for a promotion where no verified block can go.
    pub(super) fn give_up_unverified(&mut self) -> Option<u32> {
        let slot = self.unverified.take_last()?;
        self.count_out();
        self.counters.evicted += 1;
        if let Some(block) = self.cache.slots.owner(slot) {
            self.cache.give_up_unverified(block, slot);
        }
        self.residents.set_priority(slot, Priority::Normal);
        if self.cache.slots.take(slot) {
            return Some(slot);
        }
        self.draining.push(slot);
        None
    }
}
