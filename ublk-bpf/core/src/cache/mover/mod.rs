//! The mover: fills slots behind the requests that missed, evicts to make room, and verifies the blocks of an earlier
//! server.
//!
//! [`Mover`] has the contract. Each kind of job has a file: `fill.rs`, `verify.rs`. `job.rs` has what they share,
//! `room.rs` where slots come from.

mod age;
mod back;
mod budget;
mod drained;
mod fill;
mod io;
mod job;
mod pace;
mod rate;
mod residents;
mod room;
mod verify;

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ublk_bpf_abi::{BlockState, CacheCounters, IndexEntry, Priority};

use self::back::{BACK_JOBS, BackJobs, copy_buffers};
use self::budget::Budget;
use self::job::{AfterStep, Job, Kind, Step};
use self::residents::Residents;
use self::room::SlotStock;
use self::verify::Unverified;
use super::drain::CleanLimits;
use super::evict::{Algorithm, Evict};
use super::hints::Hints;
use super::recover::{DirtyBlock, Resident, Trust};
use super::shared::{Cache, CacheFailure};
use crate::errno::Errno;

pub use self::io::{MoverIo, Rest};

/// Fills in flight: as many as move this many bytes, but at least one and at most the number below.
const BYTES_IN_FLIGHT: u32 = 8 << 20;
const MAX_FILLS: u32 = 64;
/// Verifications in flight, beside the fills: few, so that they do not slow clients down.
const MAX_VERIFICATIONS: u16 = 4;

/// Heat is halved once in this many requests per slot. Measured with traces: 5 to 15 make next to no difference.
const REQUESTS_A_HALVING: u64 = 8;
/// Words of heat that are halved at a time: half a MiB of map.
const HALVING_STEP: usize = 1 << 16;

/// Limits of promotion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromoteLimits {
    /// Bytes a second; `None`: no limit.
    pub rate: Option<u64>,
}

/// Moves the blocks of one device's cache between its two devices, as a state machine that does no I/O.
///
/// # Contract
///
/// One thread, the driver, owns the mover. Queues share the [`Cache`] with it and never call it. The driver:
///
/// 1. calls [`new`](Self::new) with an index that has no entry, then [`restore`](Self::restore) at most once;
/// 2. provides [`buffers`](Self::buffers) staging buffers of a cache block each, one behind the other in memory: an operation
///    may go on from one to the next. Job `n` owns buffer `n`, a verification a second one as well, a copy that cleans several;
/// 3. calls [`poll`](Self::poll) until it answers [`Rest`]. It executes each [`MoverIo`] that it gets, in any order and
///    at the same time as others, each exactly once;
/// 4. passes the result of each read and write to [`done`](Self::done), and of each comparison to
///    [`compared`](Self::compared). Both may return the job's next operation, which is executed likewise. A job has at most
///    one operation in flight;
/// 5. calls `poll` again after results, when [`Cache::must_wake`] says so on a queue's thread, when the time of
///    [`Rest::Until`] comes, and about once a second for the decay of heat;
/// 6. calls [`stop`](Self::stop) to end: `poll` starts no job from then on, and the driver waits until
///    [`is_idle`](Self::is_idle). [`residents`](Self::residents) is what a clean stop saves.
///
/// After each of these calls, claims may have ended: the driver wakes the queues in [`Cache::take_woken`].
///
/// If the cache device failed ([`Cache::failure`]), the next `poll` removes every block from the index. Results of
/// operations in flight are passed on as before. A driver that cannot continue detaches the cache and calls `poll` once.
///
/// The mover guarantees:
///
/// - Only the mover frees slots and evicts. It fills as queues do, by claims; queues invalidate blocks at any time.
/// - A slot that is pinned or claimed is given to no other block.
/// - Once a queue has asked for a free slot, some are kept free, and what became of those is taken in at each poll.
/// - Regions are published only if the slot holds what the backing device held while no write of them was in flight.
/// - No job is started beyond the rate limit; one may overdraw it by a block, which delays the next. Fills of queues are
///   counted as well.
/// - Of the hints, the newest are served first. If verifications wait too, the two take turns.
///
/// # How to add a kind of job
///
/// Add a `Kind`, and a file that has its steps, a `begin_…` that returns a `Job`, and its end. Add its begin to
/// `next_job`, and its end to `end`.
#[derive(Debug)]
pub struct Mover<'c, 'm> {
    cache: &'c Cache<'m>,
    evict: Box<dyn Evict>,
    residents: Residents<'c, 'm>,
    unverified: Unverified,
    /// Fills, then verifications. `None`: idle.
    jobs: Box<[Option<Job>]>,
    /// How many of `jobs` are fills.
    fills: usize,
    budget: Budget<'c>,
    hints: Hints,
    free: SlotStock,
    halving: Option<usize>,
    requests: u64,
    /// All requests so far.
    requests_seen: u64,
    /// With write-back.
    back: Option<Box<BackJobs<'c, 'm>>>,
    is_stopping: bool,
    was_emptied: bool,
    counters: CacheCounters,
}

impl<'c, 'm> Mover<'c, 'm> {
    /// For a cache without a block. `counters` are those of the mover before this one.
    #[must_use]
    pub fn new(
        cache: &'c Cache<'m>,
        algorithm: Algorithm,
        limits: PromoteLimits,
        counters: CacheCounters,
    ) -> Self {
        let slots = cache.blocks.slots.count();
        let fills = (BYTES_IN_FLIGHT >> cache.shape().shift).clamp(1, MAX_FILLS) as usize;
        Self {
            cache,
            evict: algorithm.build(slots),
            residents: Residents::new(cache, slots),
            unverified: Unverified::none(slots),
            jobs: vec![None; fills].into_boxed_slice(),
            fills,
            budget: Budget::new(limits.rate, 1 << cache.shape().shift, &cache.free),
            hints: Hints::new(),
            free: SlotStock::default(),
            halving: None,
            requests: 0,
            requests_seen: 0,
            back: None,
            is_stopping: false,
            was_emptied: false,
            counters: CacheCounters {
                used: 0,
                unverified: 0,
                ..counters
            },
        }
    }

    /// The same, with write-back.
    #[must_use]
    pub fn with_writeback(mut self, limits: CleanLimits) -> Self {
        self.back = Some(Box::new(BackJobs::new(self.cache, limits)));
        self
    }

    /// Restores the blocks of an earlier server. Every other slot is free. Skips a block that is beyond the end of the device,
    /// was restored already, or has no whole granule valid. Returns the number of blocks restored.
    pub fn restore(&mut self, saved: impl IntoIterator<Item = Resident>, trust: Trust) -> u32 {
        let cache = self.cache;
        let slots = cache.blocks.slots.count();
        let (mut restored, mut used) = (0, 0);
        for Resident {
            slot,
            block,
            priority,
            heat,
            valid,
        } in saved
        {
            let is_free = slot < slots && cache.blocks.slots.owner(slot).is_none();
            let hidden = cache.regions_of(block) & !cache.granules_within(block, valid);
            let is_valid = hidden != cache.regions_of(block);
            if !is_free || !is_valid || !cache.blocks.restore(block, slot, trust.state(), hidden) {
                continue;
            }
            cache.blocks.slots.give(slot, block);
            used = used.max(slot + 1);
            cache.remember_heat(block, heat);
            restored += 1;
            match trust {
                Trust::Proven => self.settle(slot, priority),
                Trust::ToVerify => self.add_unverified(slot, priority),
            }
        }
        self.use_slots_below(used);
        restored
    }

    /// Restores the dirty blocks of an earlier server, before anything else is. A slot that is not dirty but that the log calls so
    /// is kept from use until the log is written.
    pub fn restore_dirty(&mut self, saved: impl IntoIterator<Item = DirtyBlock>) {
        let cache = self.cache;
        cache.blocks.dirty.forget_holds();
        let mut used = 0;
        for DirtyBlock {
            slot,
            block,
            dirty,
            logged,
        } in saved
        {
            let blocks = &cache.blocks;
            blocks.slots.give(slot, block);
            used = used.max(slot + 1);
            blocks.dirty.restore(&blocks.slots, slot, block, (dirty, logged));
            if dirty == 0 {
                self.free.draining.push(slot);
                continue;
            }
            let entry =
                IndexEntry::new(BlockState::Dirty, slot).with_writers(0, cache.regions_of(block) & !dirty);
            blocks.index[block as usize].store(entry.0, Ordering::SeqCst);
            self.settle(slot, Priority::Normal);
        }
        self.use_slots_below(used);
    }

    /// Slots without a block below this one are free from now on. Those behind all that were restored were never used.
    fn use_slots_below(&mut self, used: u32) {
        let slots = &self.cache.blocks.slots;
        let is_unowned = |slot: &u32| slots.owner(*slot).is_none();
        self.free.fresh = self.free.fresh.max(used);
        self.free.free = (0..self.free.fresh).rev().filter(is_unowned).collect();
    }

    /// Jobs that may be in flight at once. [`restore`](Self::restore) may add to them.
    #[must_use]
    pub fn jobs(&self) -> u16 {
        let back = self.back.as_ref().map_or(0, |_| BACK_JOBS);
        u16::try_from(self.jobs.len() + back).unwrap_or(u16::MAX)
    }

    /// Staging buffers that the driver needs, one behind the other in memory: one for each fill, two for each verification, and
    /// several for each copy that cleans.
    #[must_use]
    pub fn buffers(&self) -> u16 {
        let back = self.back.as_ref().map_or(0, |_| copy_buffers(self.cache));
        u16::try_from(2 * self.jobs.len() - self.fills + back).unwrap_or(u16::MAX)
    }

    /// Starts no job from now on.
    pub fn stop(&mut self) {
        if !self.is_stopping
            && let Some(back) = self.back.as_mut()
        {
            back.stop();
        }
        self.is_stopping = true;
    }

    /// Whether no job is in flight.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let is_back_idle = self.back.as_ref().is_none_or(|back| back.is_idle());
        let is_drained = self
            .back
            .as_ref()
            .is_none_or(|back| back.is_drained(self.is_stopping));
        is_back_idle && is_drained && self.jobs.iter().all(Option::is_none)
    }

    /// What the mover did so far.
    #[must_use]
    pub fn counters(&self) -> &CacheCounters {
        &self.counters
    }

    /// The blocks in the cache, dirty ones among them: at the end, what no request has in use.
    pub fn residents(&self) -> impl Iterator<Item = Resident> + '_ {
        (0..self.cache.blocks.slots.count()).filter_map(|slot| self.residents.saved(slot))
    }

    /// The next operation to execute at `now`, a monotonic time.
    ///
    /// # Errors
    /// There is none until then: the ordinary answer when all jobs are in flight or nothing is hinted.
    pub fn poll(&mut self, now: Duration) -> Result<MoverIo, Rest> {
        if self.cache.failure().is_some() {
            self.abandon_cache();
            loop {
                if let Some(io) = self.poll_back(now) {
                    return Ok(io);
                }
                if self.is_stopping || self.may_rest() {
                    return Err(self.rest(None));
                }
            }
        }
        self.decay_heat();
        self.adopt_eviction();
        loop {
            self.serve_queues(now);
            self.counters.hints_expired += self.take_hints();
            if let Some(io) = self.poll_back(now) {
                return Ok(io);
            }
            if self.is_stopping {
                break;
            }
            if let Some(then) = self.budget.exhausted_until(now) {
                if self.may_rest() {
                    return Err(self.rest(Some(then)));
                }
                continue;
            }
            match self.next_job() {
                Next::Job(number, job) => {
                    self.jobs[number] = Some(job);
                    return Ok(self.io(number, &job));
                }
                Next::Skipped => {}
                Next::Nothing => break,
            }
        }
        Err(self.rest(None))
    }

    /// Begins the next job: a fill that is hinted or a verification. If there are both, they take turns.
    fn next_job(&mut self) -> Next {
        let fill = self.idle_job(0..self.fills);
        let verification = self.idle_job(self.fills..self.jobs.len());
        let verification = verification.filter(|_| !self.unverified.is_empty());
        let is_hinted = fill.is_some() && !self.hints.is_empty();
        let (number, job) = match (fill, verification) {
            (_, Some(number)) if !is_hinted || self.unverified.take_turn() => {
                (number, self.begin_verification())
            }
            (Some(number), _) => match self.hints.pop() {
                Some((block, priority, tenant)) => {
                    self.cache.tenants.unreserve(tenant);
                    (number, self.begin_fill(block, priority, tenant))
                }
                None if self.cache.sleep() && !self.has_waiting() => return Next::Nothing,
                None => return Next::Skipped,
            },
            (None, _) if self.may_rest() => return Next::Nothing,
            (None, _) => return Next::Skipped,
        };
        job.map_or(Next::Skipped, |job| Next::Job(number, job))
    }

    fn idle_job(&self, mut among: Range<usize>) -> Option<usize> {
        among.find(|&job| self.jobs[job].is_none())
    }

    /// The operation of a job has completed: bytes moved, or a negative errno. Returns the job's next operation.
    ///
    /// # Panics
    /// If the job has no read or write in flight.
    pub fn done(&mut self, job: u16, result: i32) -> Option<MoverIo> {
        let number = usize::from(job);
        if number >= self.jobs.len() {
            return self.back_done(number - self.jobs.len(), result);
        }
        let Some(job) = self.jobs[number]
            .as_mut()
            .filter(|job| job.step() != Step::Compare)
        else {
            panic!("an operation of job {job} completed, but it has none in flight");
        };
        let progress = job.advance(result);
        let job = *job;
        match progress {
            AfterStep::Continues => return Some(self.io(number, &job)),
            AfterStep::Done => self.end(number, &job),
            AfterStep::Failed(errno) => self.fail(number, &job, errno),
        }
        None
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "at most `MAX_FILLS` and twice `MAX_VERIFICATIONS`"
    )]
    fn io(&self, number: usize, job: &Job) -> MoverIo {
        // The second buffers of verifications are behind the buffers of all jobs.
        let second = number + self.jobs.len() - self.fills;
        job.io(number as u16, second as u16)
    }

    /// The last transfer of a job succeeded.
    fn end(&mut self, number: usize, job: &Job) {
        self.jobs[number] = None;
        match job.kind {
            Kind::Fill => self.end_fill(job, true),
            Kind::Verify => unreachable!("a verification ends with a comparison"),
        }
    }

    fn fail(&mut self, number: usize, job: &Job, errno: Errno) {
        self.jobs[number] = None;
        self.counters.errors += 1;
        match job.kind {
            Kind::Fill => self.end_fill(job, false),
            Kind::Verify => self.end_verification(job),
        }
        let during = match job.step() {
            Step::Store => "filling",
            Step::LoadSlot => "reading",
            // The backing device failed: the clients' own requests report that.
            Step::Load | Step::Compare => return,
        };
        self.cache.detach(CacheFailure::Device { during, errno });
    }

    /// Halves the heat of all blocks at times, some blocks at each call.
    /// Takes the hints of the queues. Returns how many were too old to keep.
    fn take_hints(&mut self) -> u64 {
        let cache = self.cache;
        self.hints
            .take(&cache.hints, |tenant| cache.tenants.unreserve(tenant))
    }

    fn decay_heat(&mut self) {
        let arrived = self.cache.take_requests();
        self.requests += arrived;
        self.requests_seen += arrived;
        let period = REQUESTS_A_HALVING * u64::from(self.cache.blocks.slots.count());
        if self.halving.is_none() && self.requests >= period {
            self.requests = 0;
            self.halving = Some(0);
        }
        if let Some(from) = self.halving {
            let to = from + HALVING_STEP;
            let is_last = self.cache.halve_heat(from, to);
            self.halving = (!is_last).then_some(to);
            if is_last {
                self.evict.halved();
            }
        }
    }

    /// The cache device has failed: removes every block from the index.
    fn abandon_cache(&mut self) {
        self.take_hints();
        self.hints.clear(|tenant| self.cache.tenants.unreserve(tenant));
        if !self.was_emptied {
            self.cache.empty();
            self.unverified.clear();
            self.counters.used = 0;
            self.counters.unverified = 0;
            self.was_emptied = true;
        }
    }
}

/// What [`Mover::poll`] found to begin.
enum Next {
    /// This job, with its number.
    Job(usize, Job),
    /// A hint or slot that needs none.
    Skipped,
    Nothing,
}

#[cfg(test)]
mod tests;
