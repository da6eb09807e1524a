//! Brings blocks into the cache, behind the requests that missed them, and verifies those of an earlier server.

mod budget;
mod effect;
mod residents;
mod verify;

use std::time::Duration;

use ublk_bpf_abi::{BlockState, CacheCounters, Priority};

use self::budget::Budget;
use self::residents::Residents;
use self::verify::Unverified;
use super::evict::{Algorithm, Evict, SlotState, SlotView};
use super::recover::Trust;
use super::shared::{Cache, CacheFailure};
use crate::errno::Errno;

pub use self::effect::{MoverIo, Rest};

/// Promotions under way at once: so many bytes of them, but at least one and not more than that many.
const BYTES_IN_FLIGHT: u32 = 8 << 20;
const MAX_IN_FLIGHT: u32 = 64;
/// Verifications under way at once, beside these: so few that clients hardly notice.
const MAX_VERIFIED_AT_ONCE: u16 = 4;

/// Heat is halved once for so many requests a slot. Measured with a Zipfian load: from 5 to 20 makes no difference.
const REQUESTS_A_HALVING: u64 = 10;
/// Words of heat that are halved at a time: half a MiB of map.
const HALVING_STEP: usize = 1 << 16;

/// Victims that are tried for one promotion.
const MAX_VICTIMS: u32 = 8;

/// Direct I/O goes on at a multiple of this only: the largest logical block of a backing.
const ALIGNMENT: u32 = 4096;

/// How often one step is issued again, after an interruption or for the rest of what came short.
const MAX_RETRIES: u8 = 16;

/// What promotions may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromoteLimits {
    /// Bytes a second; `None`: as fast as they come.
    pub rate: Option<u64>,
}

/// One promotion or verification.
#[derive(Clone, Copy, Debug)]
struct Job {
    block: u32,
    slot: u32,
    priority: Priority,
    step: JobStep,
    /// Bytes that the step has moved.
    moved: u32,
    len: u32,
    retries: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum JobStep {
    Idle,
    /// Of a verification, the first.
    LoadSlot,
    Load,
    /// Of a promotion, the last.
    Store,
    /// Of a verification, the last.
    Compare,
}

/// Fills the slots of one device's cache, and makes room.
///
/// The driver calls [`poll`](Self::poll) until it gives nothing, carries out what it gives, and tells each result by
/// [`done`](Self::done). Nobody else changes what is in the slots; queues empty blocks at any time.
#[derive(Debug)]
pub struct Promoter<'c, 'm> {
    cache: &'c Cache<'m>,
    evict: Box<dyn Evict>,
    residents: Residents<'c, 'm>,
    unverified: Unverified,
    /// Promotions, then verifications.
    jobs: Box<[Job]>,
    promotions: usize,
    budget: Budget,
    /// SlotView that nobody has had yet start here.
    fresh: u32,
    /// SlotView that nobody has.
    free: Vec<u32>,
    /// SlotView that nobody has any more, but that are still read or written.
    draining: Vec<u32>,
    halving: Option<usize>,
    requests: u64,
    is_stopping: bool,
    was_emptied: bool,
    counters: CacheCounters,
}

impl<'c, 'm> Promoter<'c, 'm> {
    /// For a cache that has no block yet. `counters` is what a promoter before this one counted.
    #[must_use]
    pub fn new(
        cache: &'c Cache<'m>,
        algorithm: Algorithm,
        limits: PromoteLimits,
        counters: CacheCounters,
    ) -> Self {
        let slots = cache.slots.count();
        let jobs = (BYTES_IN_FLIGHT >> cache.shape().shift).clamp(1, MAX_IN_FLIGHT) as usize;
        let idle = Job {
            block: 0,
            slot: 0,
            priority: Priority::Normal,
            step: JobStep::Idle,
            moved: 0,
            len: 0,
            retries: 0,
        };
        Self {
            cache,
            evict: algorithm.build(slots),
            residents: Residents::new(cache, slots),
            unverified: Unverified::none(slots),
            jobs: vec![idle; jobs].into_boxed_slice(),
            promotions: jobs,
            budget: Budget::new(limits.rate, 1 << cache.shape().shift),
            fresh: 0,
            free: Vec::new(),
            draining: Vec::new(),
            halving: None,
            requests: 0,
            is_stopping: false,
            was_emptied: false,
            counters: CacheCounters {
                used: 0,
                unverified: 0,
                ..counters
            },
        }
    }

    /// Puts back what an earlier server had, slot by slot: the slot's number, its block and how that shall stay. To be
    /// called once, before anything else; every slot that is not named is free. A block that is nowhere on the device, or
    /// that comes a second time, is left out. Returns how many were put back.
    pub fn restore(&mut self, saved: impl IntoIterator<Item = (u32, u32, Priority)>, trust: Trust) -> u32 {
        let slots = self.cache.slots.count();
        let mut restored = 0;
        for (slot, block, priority) in saved {
            let is_free = slot < slots && self.cache.slots.owner(slot).is_none();
            if !is_free || self.cache.length_of(block) == 0 || !self.cache.restore(block, slot, trust) {
                continue;
            }
            self.cache.slots.give(slot, block);
            restored += 1;
            match trust {
                Trust::Proven => self.settle(slot, priority),
                Trust::ToVerify => self.requeue(slot, priority),
            }
        }
        if restored > 0 {
            // Fresh slots have no gaps between them.
            self.fresh = slots;
            let unused = (0..slots)
                .rev()
                .filter(|&slot| self.cache.slots.owner(slot).is_none());
            self.free.extend(unused);
        }
        restored
    }

    /// Promotions and verifications that may be under way at once, once [`restore`](Self::restore) was called.
    #[must_use]
    pub fn jobs(&self) -> u16 {
        u16::try_from(self.jobs.len()).unwrap_or(u16::MAX)
    }

    /// Staging buffers of a block that the driver needs: one for each job, and another for each verification.
    #[must_use]
    pub fn buffers(&self) -> u16 {
        u16::try_from(2 * self.jobs.len() - self.promotions).unwrap_or(u16::MAX)
    }

    /// Neither a promotion nor a verification is begun from now on.
    pub fn stop(&mut self) {
        self.is_stopping = true;
    }

    /// Whether no operation is out.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.jobs.iter().all(|job| job.step == JobStep::Idle)
    }

    /// What was done so far.
    #[must_use]
    pub fn counters(&self) -> &CacheCounters {
        &self.counters
    }

    /// What is in the cache: slot, block, priority and heat of each.
    pub fn residents(&self) -> impl Iterator<Item = (u32, u32, Priority, u8)> + '_ {
        (0..self.cache.slots.count()).filter_map(|slot| match self.residents.slot_state(slot) {
            SlotState::Resident { heat, priority } => {
                Some((slot, self.cache.slots.owner(slot)?, priority, heat))
            }
            SlotState::Empty | SlotState::Busy => None,
        })
    }

    /// The next thing to do at `now`, which never goes back. `Err`: nothing until then.
    ///
    /// # Errors
    /// That is the ordinary answer when everything is under way.
    pub fn poll(&mut self, now: Duration) -> Result<MoverIo, Rest> {
        if self.cache.failure().is_some() {
            self.leave_cache();
            return Err(Rest::UntilWoken);
        }
        self.decay_heat();
        while !self.is_stopping {
            if let Some(then) = self.budget.exhausted_until(now) {
                return Err(Rest::Until(then));
            }
            let promotion = self.idle_job(0..self.promotions);
            let verification = self.idle_job(self.promotions..self.jobs.len());
            let verification = verification.filter(|_| !self.unverified.is_empty());
            let is_hinted = promotion.is_some() && self.cache.is_hinted();
            let begun = match (promotion, verification) {
                (_, Some(job)) if !is_hinted || self.unverified.take_turn() => self.begin_verification(job),
                (Some(job), _) => match self.cache.next_hint() {
                    Some((block, priority)) => self.begin(job, block, priority),
                    None if self.cache.sleep() => break,
                    None => continue,
                },
                (None, _) => break,
            };
            if let Some((job, effect)) = begun {
                self.budget.spend(self.jobs[job].len);
                return Ok(effect);
            }
        }
        Err(Rest::UntilWoken)
    }

    fn idle_job(&self, mut among: std::ops::Range<usize>) -> Option<usize> {
        among.find(|&job| self.jobs[job].step == JobStep::Idle)
    }

    /// The operation of a job has completed: bytes moved, or a negative errno. Returns what is next for it.
    ///
    /// # Panics
    /// If the job has no operation out.
    pub fn done(&mut self, job: u16, result: i32) -> Option<MoverIo> {
        let index = usize::from(job);
        let of = &mut self.jobs[index];
        assert!(
            !matches!(of.step, JobStep::Idle | JobStep::Compare),
            "an operation of promotion {job} completed, but it has none"
        );
        let asked = of.len - of.moved;
        match Errno::of_result(result) {
            Some(Errno::EAGAIN | Errno::EINTR) if of.retries < MAX_RETRIES => of.retries += 1,
            None if result.unsigned_abs() == asked => of.moved = of.len,
            None if (1..asked).contains(&result.unsigned_abs()) && of.retries < MAX_RETRIES => {
                of.retries += 1;
                of.moved += result.unsigned_abs() / ALIGNMENT * ALIGNMENT;
            }
            errno => {
                self.failed(index, errno.unwrap_or(Errno::EIO));
                return None;
            }
        }
        let of = &mut self.jobs[index];
        if of.moved == of.len {
            (of.moved, of.retries) = (0, 0);
            of.step = match of.step {
                JobStep::LoadSlot => JobStep::Load,
                JobStep::Load if index < self.promotions => JobStep::Store,
                JobStep::Load => JobStep::Compare,
                JobStep::Store | JobStep::Compare | JobStep::Idle => {
                    self.counters.staged_bytes += u64::from(of.len);
                    self.publish(index);
                    return None;
                }
            };
        }
        Some(self.effect(index))
    }

    /// Begins to promote a block, if that makes sense.
    fn begin(&mut self, job: usize, block: u32, priority: Priority) -> Option<(usize, MoverIo)> {
        let entry = self.cache.entry(block);
        match entry.state() {
            BlockState::Absent => {}
            BlockState::Filling => return None,
            BlockState::Present => {
                self.residents.set_priority(entry.slot(), priority);
                return None;
            }
            BlockState::Unverified => {
                self.hasten(entry.slot(), priority);
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
        self.cache.slots.give(slot, block);
        if !self.cache.begin_fill(block, slot) {
            self.release(slot);
            self.counters.overtaken += 1;
            return None;
        }
        self.jobs[job] = Job {
            block,
            slot,
            priority,
            step: JobStep::Load,
            moved: 0,
            len,
            retries: 0,
        };
        Some((job, self.effect(job)))
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "at most `MAX_IN_FLIGHT` and twice `MAX_VERIFIED_AT_ONCE`"
    )]
    fn effect(&self, job: usize) -> MoverIo {
        let of = &self.jobs[job];
        let (skip, len) = (of.moved, of.len - of.moved);
        // Behind the buffers of all jobs.
        let buffer = (job + self.jobs.len() - self.promotions) as u16;
        let job = job as u16;
        match of.step {
            JobStep::LoadSlot => MoverIo::LoadSlot {
                job,
                buffer,
                offset: self.cache.slot_offset(of.slot) + u64::from(skip),
                skip,
                len,
            },
            JobStep::Compare => MoverIo::Compare { job, buffer, len },
            JobStep::Store => MoverIo::Store {
                job,
                offset: self.cache.slot_offset(of.slot) + u64::from(skip),
                skip,
                len,
            },
            JobStep::Load | JobStep::Idle => MoverIo::Load {
                job,
                offset: self.cache.block_offset(of.block) + u64::from(skip),
                skip,
                len,
            },
        }
    }

    /// The slot holds the block.
    fn publish(&mut self, job: usize) {
        let Job {
            block,
            slot,
            priority,
            ..
        } = self.jobs[job];
        self.jobs[job].step = JobStep::Idle;
        // Before it can be hit: what was counted until now led to this, and says nothing about what comes.
        self.cache.set_heat(block, 0);
        if self.cache.end_fill(block, slot) {
            self.settle(slot, priority);
            self.counters.promoted += 1;
        } else {
            self.release(slot);
            self.counters.overtaken += 1;
        }
    }

    fn failed(&mut self, job: usize, errno: Errno) {
        let Job {
            block, slot, step, ..
        } = self.jobs[job];
        self.jobs[job].step = JobStep::Idle;
        self.cache.give_up_fill(block, slot);
        self.release(slot);
        self.counters.errors += 1;
        if job >= self.promotions {
            self.count_out();
        }
        let during = match step {
            JobStep::Store => "filling",
            JobStep::LoadSlot => "reading",
            JobStep::Load | JobStep::Compare | JobStep::Idle => return,
        };
        self.cache.detach(CacheFailure { during, errno });
    }

    fn settle(&mut self, slot: u32, priority: Priority) {
        self.residents.set_priority(slot, priority);
        self.evict.inserted(slot, self.residents.priority(slot));
        self.counters.used += 1;
    }

    /// A slot that nobody has or uses.
    fn free_slot(&mut self) -> Option<u32> {
        if let Some(at) = self.draining.iter().position(|&slot| self.cache.slots.take(slot)) {
            return Some(self.draining.swap_remove(at));
        }
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        if self.fresh < self.cache.slots.count() {
            self.fresh += 1;
            return Some(self.fresh - 1);
        }
        (0..MAX_VICTIMS)
            .find_map(|_| self.make_room())
            .or_else(|| self.give_up_unverified())
    }

    /// Takes a block out of its slot.
    fn make_room(&mut self) -> Option<u32> {
        let slot = self.evict.victim(&mut self.residents)?;
        if let Some(block) = self.cache.slots.owner(slot) {
            if self.cache.evict(block, slot) {
                self.counters.evicted += 1;
            } else if self.residents.slot_state(slot) != SlotState::Empty {
                // Somebody began to write it just now.
                self.evict.put_back(slot);
                return None;
            }
        }
        self.residents.set_priority(slot, Priority::Normal);
        self.counters.used = self.counters.used.saturating_sub(1);
        if self.cache.slots.take(slot) {
            return Some(slot);
        }
        self.draining.push(slot);
        None
    }

    /// A slot of a promotion that came to nothing.
    fn release(&mut self, slot: u32) {
        if self.cache.slots.take(slot) {
            self.free.push(slot);
        } else {
            self.draining.push(slot);
        }
    }

    /// Halves the heat of all blocks now and then, some at a time.
    fn decay_heat(&mut self) {
        self.requests += self.cache.take_requests();
        let period = REQUESTS_A_HALVING * u64::from(self.cache.slots.count());
        if self.halving.is_none() && self.requests >= period {
            self.requests = 0;
            self.halving = Some(0);
        }
        if let Some(from) = self.halving {
            let to = from + HALVING_STEP;
            self.halving = (!self.cache.halve_heat(from, to)).then_some(to);
        }
    }

    /// The cache device has failed: no block is there any more.
    fn leave_cache(&mut self) {
        while self.cache.next_hint().is_some() {}
        if !self.was_emptied {
            self.cache.empty();
            self.unverified.clear();
            self.counters.used = 0;
            self.counters.unverified = 0;
            self.was_emptied = true;
        }
    }
}

#[cfg(test)]
mod tests;
