//! Brings blocks into the cache, behind the requests that missed them.

use std::time::Duration;

use ublk_bpf_abi::{BlockState, CacheCounters, Priority};

use super::evict::{Algorithm, Evict, Slots, Standing};
use super::shared::{Cache, Failure};
use crate::queue::Errno;

/// Promotions under way at once: so many bytes of them, but at least one and not more than that many.
const BYTES_IN_FLIGHT: u32 = 8 << 20;
const MOST_IN_FLIGHT: u32 = 64;

/// Heat is halved once for so many requests a slot. Measured with a Zipfian load: from 5 to 20 makes no difference.
const REQUESTS_A_HALVING: u64 = 10;
/// Words of heat that are halved at a time: half a MiB of map.
const HALVING_STEP: usize = 1 << 16;

/// Victims that are tried for one promotion.
const MOST_VICTIMS: u32 = 8;

/// Direct I/O goes on at a multiple of this only: the largest logical block of a backing.
const ALIGNMENT: u32 = 4096;

/// How often one step is issued again, after an interruption or for the rest of what came short.
const MAX_RETRIES: u8 = 16;

/// What promotions may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes a second; `None`: as fast as they come.
    pub rate: Option<u64>,
}

/// Something for the driver to do. Offsets and lengths are in bytes, and no length is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// From the backing device to a staging buffer; its result goes to [`Promoter::done`].
    Load {
        /// The staging buffer, below [`Promoter::jobs`].
        job: u16,
        /// Where on the backing device.
        offset: u64,
        /// Where in the buffer.
        skip: u32,
        /// How many.
        len: u32,
    },
    /// From a staging buffer to the cache device; as above.
    Store {
        /// The staging buffer.
        job: u16,
        /// Where on the cache device.
        offset: u64,
        /// Where in the buffer.
        skip: u32,
        /// How many.
        len: u32,
    },
}

/// When there is something to do again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// When an operation completes or the promoter is woken.
    UntilWoken,
    /// The same, or at this time.
    Until(Duration),
}

/// One promotion.
#[derive(Clone, Copy, Debug)]
struct Job {
    block: u32,
    slot: u32,
    priority: Priority,
    step: Step,
    /// Bytes that the step has moved.
    moved: u32,
    len: u32,
    retries: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Idle,
    Load,
    Store,
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
    jobs: Box<[Job]>,
    budget: Budget,
    /// Slots that nobody has had yet start here.
    fresh: u32,
    /// Slots that nobody has.
    free: Vec<u32>,
    /// Slots that nobody has any more, but that are still read or written.
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
    pub fn new(cache: &'c Cache<'m>, algorithm: Algorithm, limits: Limits, counters: CacheCounters) -> Self {
        let slots = cache.slots.count();
        let jobs = (BYTES_IN_FLIGHT >> cache.shape().shift).clamp(1, MOST_IN_FLIGHT) as usize;
        let idle = Job {
            block: 0,
            slot: 0,
            priority: Priority::Normal,
            step: Step::Idle,
            moved: 0,
            len: 0,
            retries: 0,
        };
        Self {
            cache,
            evict: algorithm.build(slots),
            residents: Residents::new(cache, slots),
            jobs: vec![idle; jobs].into_boxed_slice(),
            budget: Budget::new(limits.rate, 1 << cache.shape().shift),
            fresh: 0,
            free: Vec::new(),
            draining: Vec::new(),
            halving: None,
            requests: 0,
            is_stopping: false,
            was_emptied: false,
            counters: CacheCounters { used: 0, ..counters },
        }
    }

    /// Puts back what an earlier server had, slot by slot: the slot's number, its block and how that shall stay. To be
    /// called once, before anything else; every slot that is not named is free. A block that is nowhere on the device, or
    /// that comes a second time, is left out. Returns how many are in the cache.
    pub fn restore(&mut self, saved: impl IntoIterator<Item = (u32, u32, Priority)>) -> u32 {
        let slots = self.cache.slots.count();
        for (slot, block, priority) in saved {
            let is_free = slot < slots && self.cache.slots.owner(slot).is_none();
            if is_free && self.cache.length_of(block) > 0 && self.cache.restore(block, slot) {
                self.cache.slots.give(slot, block);
                self.settle(slot, priority);
            }
        }
        let restored = u32::try_from(self.counters.used).unwrap_or(slots);
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

    /// Promotions that may be under way at once: as many staging buffers of a block the driver has.
    #[must_use]
    pub fn jobs(&self) -> u16 {
        u16::try_from(self.jobs.len()).unwrap_or(u16::MAX)
    }

    /// No promotion is begun any more.
    pub fn stop(&mut self) {
        self.is_stopping = true;
    }

    /// Whether no operation is out.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.jobs.iter().all(|job| job.step == Step::Idle)
    }

    /// What was done so far.
    #[must_use]
    pub fn counters(&self) -> &CacheCounters {
        &self.counters
    }

    /// What is in the cache: slot, block, priority and heat of each.
    pub fn residents(&self) -> impl Iterator<Item = (u32, u32, Priority, u8)> + '_ {
        (0..self.cache.slots.count()).filter_map(|slot| match self.residents.standing(slot) {
            Standing::Resident { heat, priority } => {
                Some((slot, self.cache.slots.owner(slot)?, priority, heat))
            }
            Standing::Empty | Standing::Busy => None,
        })
    }

    /// The next thing to do at `now`, which never goes back. `Err`: nothing until then.
    ///
    /// # Errors
    /// That is the ordinary answer when everything is under way.
    pub fn poll(&mut self, now: Duration) -> Result<Effect, Rest> {
        if self.cache.failure().is_some() {
            self.leave_cache();
            return Err(Rest::UntilWoken);
        }
        self.cool();
        while !self.is_stopping {
            let Some(job) = self.jobs.iter().position(|job| job.step == Step::Idle) else {
                return Err(Rest::UntilWoken);
            };
            if let Some(then) = self.budget.exhausted_until(now) {
                return Err(Rest::Until(then));
            }
            let Some((block, priority)) = self.cache.next_hint() else {
                if self.cache.sleep() {
                    break;
                }
                continue;
            };
            if let Some(effect) = self.begin(job, block, priority) {
                self.budget.spend(self.jobs[job].len);
                return Ok(effect);
            }
        }
        Err(Rest::UntilWoken)
    }

    /// The operation of a job has completed: bytes moved, or a negative errno. Returns what is next for it.
    ///
    /// # Panics
    /// If the job has no operation out.
    pub fn done(&mut self, job: u16, result: i32) -> Option<Effect> {
        let index = usize::from(job);
        let of = &mut self.jobs[index];
        assert!(
            of.step != Step::Idle,
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
            if of.step == Step::Store {
                self.counters.staged_bytes += u64::from(of.len);
                self.publish(index);
                return None;
            }
            of.step = Step::Store;
        }
        Some(self.effect(index))
    }

    /// Begins to promote a block, if that makes sense.
    fn begin(&mut self, job: usize, block: u32, priority: Priority) -> Option<Effect> {
        let entry = self.cache.entry(block);
        if entry.is_present() {
            self.residents.set_priority(entry.slot(), priority);
            return None;
        }
        let len = self.cache.length_of(block);
        if entry.state() != Some(BlockState::Absent) || entry.writers() > 0 || len == 0 {
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
            step: Step::Load,
            moved: 0,
            len,
            retries: 0,
        };
        Some(self.effect(job))
    }

    fn effect(&self, job: usize) -> Effect {
        let of = &self.jobs[job];
        let (skip, len) = (of.moved, of.len - of.moved);
        #[expect(clippy::cast_possible_truncation, reason = "at most `MOST_IN_FLIGHT`")]
        let job = job as u16;
        match of.step {
            Step::Store => Effect::Store {
                job,
                offset: self.cache.slot_offset(of.slot) + u64::from(skip),
                skip,
                len,
            },
            Step::Load | Step::Idle => Effect::Load {
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
        self.jobs[job].step = Step::Idle;
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
        self.jobs[job].step = Step::Idle;
        self.cache.give_up_fill(block, slot);
        self.release(slot);
        self.counters.errors += 1;
        if step == Step::Store {
            self.cache.detach(Failure {
                during: "filling",
                errno,
            });
        }
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
        (0..MOST_VICTIMS).find_map(|_| self.make_room())
    }

    /// Takes a block out of its slot.
    fn make_room(&mut self) -> Option<u32> {
        let slot = self.evict.victim(&mut self.residents)?;
        if let Some(block) = self.cache.slots.owner(slot) {
            if self.cache.evict(block, slot) {
                self.counters.evicted += 1;
            } else if self.residents.standing(slot) != Standing::Empty {
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
    fn cool(&mut self) {
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
            self.counters.used = 0;
            self.was_emptied = true;
        }
    }
}

/// What is in the slots, and how it shall stay.
#[derive(Debug)]
struct Residents<'c, 'm> {
    cache: &'c Cache<'m>,
    priorities: Box<[Priority]>,
    pinned: u32,
}

impl<'c, 'm> Residents<'c, 'm> {
    fn new(cache: &'c Cache<'m>, slots: u32) -> Self {
        Self {
            cache,
            priorities: vec![Priority::Normal; slots as usize].into_boxed_slice(),
            pinned: 0,
        }
    }

    fn priority(&self, slot: u32) -> Priority {
        self.priorities[slot as usize]
    }

    /// At most three quarters of the slots are pinned; what is beyond is high.
    fn set_priority(&mut self, slot: u32, priority: Priority) {
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

impl Slots for Residents<'_, '_> {
    fn standing(&self, slot: u32) -> Standing {
        let Some(block) = self.cache.slots.owner(slot) else {
            return Standing::Empty;
        };
        let entry = self.cache.entry(block);
        let is_here = entry.is_present() && entry.slot() == slot;
        if self.cache.slots.is_pinned(slot) || (is_here && entry.writers() > 0) {
            return Standing::Busy;
        }
        if !is_here {
            return Standing::Empty;
        }
        Standing::Resident {
            heat: self.cache.heat(block),
            priority: self.priority(slot),
        }
    }

    fn set_heat(&mut self, slot: u32, heat: u8) {
        if let Some(block) = self.cache.slots.owner(slot) {
            self.cache.set_heat(block, heat);
        }
    }
}

/// Bytes that may be promoted: a bucket that fills at the rate, and holds what comes in a second or one block.
#[derive(Debug)]
struct Budget {
    rate: Option<u64>,
    most: i64,
    /// Below zero: what was spent ahead.
    left: i64,
    /// When `left` was right.
    at: Duration,
}

impl Budget {
    fn new(rate: Option<u64>, block: u64) -> Self {
        let most = i64::try_from(rate.unwrap_or(0).max(block)).unwrap_or(i64::MAX);
        Self {
            rate,
            most,
            left: most,
            at: Duration::ZERO,
        }
    }

    /// When something may be spent again; `None`: now.
    fn exhausted_until(&mut self, now: Duration) -> Option<Duration> {
        let rate = self.rate?.max(1);
        let earned = now.saturating_sub(self.at).as_nanos() * u128::from(rate) / NANOS;
        if earned > 0 {
            let earned = i64::try_from(earned).unwrap_or(i64::MAX);
            self.left = self.left.saturating_add(earned).min(self.most);
            self.at = now;
        }
        if self.left > 0 {
            return None;
        }
        let wait = u128::from(self.left.unsigned_abs() + 1) * NANOS / u128::from(rate);
        Some(now + Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX)))
    }

    /// A block may take more than is left: the next waits the longer.
    fn spend(&mut self, bytes: u32) {
        if self.rate.is_some() {
            self.left = self.left.saturating_sub(bytes.into());
        }
    }
}

const NANOS: u128 = 1_000_000_000;

#[cfg(test)]
mod tests;
