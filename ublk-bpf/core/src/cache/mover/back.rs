//! The mover's part of write-back: cleaning, commits that nothing waits for, and checkpoints of the log.

use std::sync::atomic::Ordering;
use std::time::Duration;

use ublk_bpf_abi::CacheCounters;

use super::age::AgeScan;
use super::drained::DrainWatch;
use super::pace::Pace;
use super::rate::{CleanRate, Sight};
use super::{Mover, MoverIo, Rest};
use crate::cache::clean::{CleanFailure, CleanIo, Cleaner, MAX_COPIES, Want, longest};
use crate::cache::commit::{CommitIo, CommitNext};
use crate::cache::log::{Checkpoint, LOG_BUFFER, Placed};
use crate::cache::pages::Pages;
use crate::cache::{Cache, CleanLimits};
use crate::errno::Errno;

/// How long what was written to slots may stay without a commit if no flush asks for one.
const COMMIT_EVERY: Duration = Duration::from_secs(1);
/// How long no request must have arrived until everything is cleaned.
const IDLE_AFTER: Duration = Duration::from_secs(1);
/// How long after an error a checkpoint is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Numbers of jobs behind those of fills and verifications: the copies, and then these.
const FLUSH: usize = MAX_COPIES;
const COMMIT: usize = FLUSH + 1;
const CHECKPOINT: usize = COMMIT + 1;
/// How long a copy is at most that is held to a rate: as many bytes as that allows in one part of so many of a second.
const COPIES_A_SECOND: u64 = 16;
pub(super) const BACK_JOBS: usize = CHECKPOINT + 1;

/// A checkpoint in progress.
#[derive(Debug)]
struct Checkpointing {
    checkpoint: Checkpoint,
    step: CheckpointStep,
    /// Slots below are in it.
    from: u32,
    /// So are all others that were dirty when it came to the last one. What has become so since would not fit into its area;
    /// the log has it.
    is_complete: bool,
    /// Bytes that the operation in flight writes.
    length: usize,
}

/// A checkpoint's operation in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CheckpointStep {
    Pages,
    Flush,
    Head,
}

/// What of write-back is in progress.
#[derive(Debug)]
pub(super) struct BackJobs<'c, 'm> {
    cache: &'c Cache<'m>,
    cleaner: Cleaner<'c, 'm>,
    /// The operations in flight, by number.
    cleaning: [Option<CleanIo>; MAX_COPIES + 1],
    commit: Option<CommitIo>,
    commit_at: Duration,
    checkpoint: Option<Checkpointing>,
    checkpoint_at: Duration,
    pages: Pages,
    /// Requests that had arrived when the clock was last looked at for a second without any.
    idle_since: (Duration, u64),
    pub(super) is_draining: bool,
    drain: DrainWatch,
    age: AgeScan,
    rate: CleanRate,
    pace: Pace,
    /// Bytes a second that may be cleaned now; 0: any.
    allowed: u64,
    /// When to poll again, whatever happens.
    rest: Option<Duration>,
    now: Duration,
}

impl<'c, 'm> BackJobs<'c, 'm> {
    pub(super) fn new(cache: &'c Cache<'m>, limits: CleanLimits) -> Self {
        cache.limit_cleaning(limits);
        Self {
            cache,
            cleaner: Cleaner::new(cache),
            cleaning: [None; MAX_COPIES + 1],
            commit: None,
            commit_at: Duration::ZERO,
            checkpoint: None,
            checkpoint_at: Duration::ZERO,
            pages: Pages::default(),
            idle_since: (Duration::ZERO, 0),
            is_draining: false,
            drain: DrainWatch::default(),
            age: AgeScan::default(),
            rate: CleanRate::new(),
            pace: Pace::default(),
            allowed: 0,
            rest: None,
            now: Duration::ZERO,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.cleaner.is_idle() && self.commit.is_none() && self.checkpoint.is_none()
    }

    /// Whether a drain, if there is one, is over: nothing is dirty, or for a mover that stops, nothing that can be cleaned.
    pub(super) fn is_drained(&self, is_stopping: bool) -> bool {
        !self.is_draining || self.cache.dirty_slots() == 0 || (is_stopping && self.cleaner.is_through())
    }

    /// The mover stops: what has failed is tried again, the last time.
    pub(super) fn stop(&mut self) {
        self.cleaner.retry();
    }

    /// The next operation, with the number of its job.
    fn poll(&mut self, now: Duration, requests: u64, is_stopping: bool) -> Option<(usize, BackIo)> {
        let may_begin = !is_stopping || self.is_draining;
        self.rest = None;
        if self.drain.has_begun(self.cache) {
            self.cleaner.retry();
        }
        if may_begin && let Some(io) = self.begin_commit(now).or_else(|| self.begin_checkpoint(now)) {
            return Some(io);
        }
        if !may_begin {
            return self.cleaner.finish().map(|io| self.clean(io));
        }
        let (want, exhausted) = self.want(now, requests);
        let io = self.cleaner.next(want, now);
        let drain = self.drain.look(self.cache, now);
        self.rest = [exhausted, drain, self.cleaner.flush_at()]
            .into_iter()
            .flatten()
            .min();
        io.map(|io| self.clean(io))
    }

    fn clean(&mut self, io: CleanIo) -> (usize, BackIo) {
        let number = match io {
            CleanIo::Load { copy, .. } | CleanIo::Store { copy, .. } => copy,
            CleanIo::Flush => FLUSH,
        };
        self.cleaning[number] = Some(io);
        (number, BackIo::Clean(io))
    }

    /// What is to be cleaned now, and until when nothing but what requests wait for.
    fn want(&mut self, now: Duration, requests: u64) -> (Want, Option<Duration>) {
        let limits = self.cache.clean_limits();
        if requests != self.idle_since.1 {
            self.idle_since = (now, requests);
        }
        let is_idle = now.saturating_sub(self.idle_since.0) >= IDLE_AFTER;
        if is_idle || self.is_draining || self.cache.must_clean_all() {
            self.rate.ignore();
            return self.paced(limits.rate, now);
        }
        let dirty = self.cache.dirty_slots();
        let sight = Sight {
            now,
            times: &self.cache.writeback.times,
            dirty,
            limits,
            is_wanted: dirty > limits.low,
            is_at_rest: self.cleaner.is_idle(),
        };
        match self.rate.look(&sight) {
            Some(rate) => self.paced(Some(rate.min(limits.rate.unwrap_or(u64::MAX))), now),
            None => {
                let then = Some(self.rate.ends_at()).filter(|&then| sight.is_wanted && then > now);
                (Want::Urgent, then)
            }
        }
    }

    /// The same, held to a rate.
    fn paced(&mut self, rate: Option<u64>, now: Duration) -> (Want, Option<Duration>) {
        let Some(rate) = rate.filter(|&rate| rate < u64::MAX) else {
            self.allowed = 0;
            self.pace.forget(now);
            return (Want::All, None);
        };
        self.allowed = rate;
        let exhausted = self.pace.exhausted_until(rate, now);
        let most = u32::try_from(rate / COPIES_A_SECOND).unwrap_or(u32::MAX);
        let want = if exhausted.is_some() {
            Want::Pause
        } else {
            Want::Some(most)
        };
        (want, exhausted)
    }

    /// Takes in what the cleaner has done.
    fn count(&mut self, counters: &mut CacheCounters) {
        let done = self.cleaner.take_counts();
        self.pace.spend(done.begun);
        self.rate.count(done.begun);
        counters.clean_rate = self.allowed;
        counters.clean_held_back += self.rate.take_held_back();
        counters.cleaned_bytes += done.cleaned;
        counters.clean_writes += done.writes;
        counters.clean_batches += done.flushes;
        counters.clean_errors += done.errors;
    }

    fn begin_commit(&mut self, now: Duration) -> Option<(usize, BackIo)> {
        if self.commit.is_some() || now < self.commit_at {
            return None;
        }
        self.commit_at = now + COMMIT_EVERY;
        self.commit = self.cache.autocommit();
        self.commit.map(|io| (COMMIT, BackIo::Commit(io)))
    }

    fn may_checkpoint(&self, now: Duration) -> bool {
        self.checkpoint.is_none() && now >= self.checkpoint_at
    }

    fn begin_checkpoint(&mut self, now: Duration) -> Option<(usize, BackIo)> {
        if !self.may_checkpoint(now) || !self.cache.wants_checkpoint() {
            return None;
        }
        let checkpoint = self.cache.begin_checkpoint()?;
        if self.pages.is_empty() {
            self.pages = Pages::new(LOG_BUFFER);
        }
        self.checkpoint = Some(Checkpointing {
            checkpoint,
            step: CheckpointStep::Pages,
            from: 0,
            is_complete: false,
            length: 0,
        });
        self.next_checkpoint()
    }

    /// The next operation of the checkpoint.
    fn next_checkpoint(&mut self) -> Option<(usize, BackIo)> {
        let of = self.checkpoint.as_mut()?;
        if of.step == CheckpointStep::Pages
            && let Some(placed) = of.append(self.cache, self.pages.bytes_mut())
        {
            return Some((CHECKPOINT, BackIo::Pages(placed.offset, placed.length, false)));
        }
        if of.step == CheckpointStep::Pages {
            (of.step, of.length) = (CheckpointStep::Flush, 0);
            return Some((CHECKPOINT, BackIo::Commit(CommitIo::Flush)));
        }
        let placed = of.checkpoint.head(self.pages.bytes_mut());
        (of.step, of.length) = (CheckpointStep::Head, placed.length);
        Some((CHECKPOINT, BackIo::Pages(placed.offset, placed.length, true)))
    }

    fn checkpoint_done(&mut self, result: Result<(), Errno>, now: Duration) -> Option<(usize, BackIo)> {
        let step = self.checkpoint.as_ref().map(|of| of.step);
        if result.is_err() {
            self.checkpoint = None;
            self.checkpoint_at = now + RETRY_AFTER;
            return None;
        }
        if step == Some(CheckpointStep::Head)
            && let Some(of) = self.checkpoint.take()
        {
            self.cache.end_checkpoint(&of.checkpoint);
            return None;
        }
        self.next_checkpoint()
    }

    /// The operation of a job has ended. Returns its next one.
    fn done(&mut self, number: usize, result: i32, now: Duration) -> Option<(usize, BackIo)> {
        if number <= FLUSH {
            let io = self.cleaning[number].take()?;
            let next = self.cleaner.done(io, result)?;
            return Some(self.clean(next));
        }
        if number == CHECKPOINT {
            let length = self.checkpoint.as_ref().map_or(0, |of| of.length);
            return self.checkpoint_done(whole(result, length), now);
        }
        let io = self.commit.take()?;
        let length = match io {
            CommitIo::Flush => 0,
            CommitIo::Record { length, .. } => length as usize,
        };
        let result = whole(result, length);
        match self.cache.commit_done(io, result) {
            Ok(CommitNext::Lead(next)) => {
                self.commit = Some(next);
                Some((COMMIT, BackIo::Commit(next)))
            }
            Ok(CommitNext::Done | CommitNext::Wait) | Err(_) => None,
        }
    }
}

impl Checkpointing {
    /// Encodes the next entries, if there are more.
    fn append(&mut self, cache: &Cache<'_>, into: &mut [u8]) -> Option<Placed> {
        if self.is_complete {
            return None;
        }
        let mut found = cache.checkpoint_entries(self.from).peekable();
        let mut entries = std::iter::from_fn(|| {
            let entry = found.next()?;
            self.from = entry.slot + 1;
            Some(entry)
        });
        let placed = self.checkpoint.append(&mut entries, into)?;
        self.is_complete = found.peek().is_none();
        self.length = placed.length;
        Some(placed)
    }
}

/// Staging buffers of a copy, one behind the other.
fn buffers_a_copy(cache: &Cache<'_>) -> usize {
    let shift = cache.shape().shift;
    longest(shift) as usize >> shift
}

/// Staging buffers of all copies.
pub(super) fn copy_buffers(cache: &Cache<'_>) -> usize {
    MAX_COPIES * buffers_a_copy(cache)
}

/// An operation that was to move so many bytes has ended. In part is not enough: it is all done again.
fn whole(result: i32, length: usize) -> Result<(), Errno> {
    match Errno::of_result(result) {
        Some(errno) => Err(errno),
        None if result.unsigned_abs() as usize == length => Ok(()),
        None => Err(Errno::EIO),
    }
}

/// An operation of write-back.
enum BackIo {
    Clean(CleanIo),
    Commit(CommitIo),
    /// Pages of the checkpoint: where, how many bytes, and whether with FUA.
    Pages(u64, usize, bool),
}

impl Mover<'_, '_> {
    /// The next operation of write-back.
    pub(super) fn poll_back(&mut self, now: Duration) -> Option<MoverIo> {
        let back = self.back.as_mut()?;
        back.now = now;
        let next = back.poll(now, self.requests_seen, self.is_stopping);
        back.count(&mut self.counters);
        self.counters.dirty = self.cache.dirty_slots().into();
        self.counters.dirty_seconds = back.age.look(self.cache, now);
        let (number, io) = next?;
        Some(self.back_io(number, &io))
    }

    /// Whether requests have begun to wait for something since the last poll that may begin now.
    pub(super) fn has_waiting(&self) -> bool {
        self.back.as_ref().is_some_and(|back| {
            self.cache.has_urgent() || (back.may_checkpoint(back.now) && self.cache.wants_checkpoint())
        })
    }

    /// The promotion limit is reached. Whether the mover may wait for that: from here on it is woken for what requests wait for.
    pub(super) fn may_rest(&self) -> bool {
        if self.back.is_some() {
            self.cache.writeback.mover_rests.store(true, Ordering::SeqCst);
        }
        !self.has_waiting()
    }

    /// When write-back has something to do, as far as it knows.
    pub(super) fn rest(&self, other: Option<Duration>) -> Rest {
        let back = self.back.as_ref().and_then(|back| back.rest);
        let then = back.into_iter().chain(other).min();
        then.map_or(Rest::UntilWoken, Rest::Until)
    }

    /// Something could not be cleaned: the first failure since nothing failed, once. For the log.
    pub fn take_clean_failure(&mut self) -> Option<CleanFailure> {
        self.back.as_mut()?.cleaner.take_failure()
    }

    /// An operation of write-back has ended, of the job that is so far behind the fills and verifications.
    pub(super) fn back_done(&mut self, number: usize, result: i32) -> Option<MoverIo> {
        let back = self.back.as_mut()?;
        let next = back.done(number, result, back.now);
        // A flush of what was cleaned, or a commit of that, may have made slots free.
        if number >= FLUSH {
            self.free.retry_at = Duration::ZERO;
        }
        back.count(&mut self.counters);
        let (number, io) = next?;
        Some(self.back_io(number, &io))
    }

    fn back_io(&self, number: usize, io: &BackIo) -> MoverIo {
        let small = |number: usize| u16::try_from(number).unwrap_or(u16::MAX);
        let job = small(self.jobs.len() + number);
        let buffer = small(2 * self.jobs.len() - self.fills + number * buffers_a_copy(self.cache));
        match *io {
            BackIo::Clean(CleanIo::Load {
                offset, skip, len, ..
            }) => MoverIo::LoadSlot {
                job,
                buffer,
                offset,
                skip,
                len,
            },
            BackIo::Clean(CleanIo::Store { offset, len, .. }) => MoverIo::StoreBacking {
                job,
                buffer,
                offset,
                len,
            },
            BackIo::Clean(CleanIo::Flush) => MoverIo::FlushBacking { job },
            BackIo::Commit(CommitIo::Flush) => MoverIo::FlushCache { job },
            BackIo::Commit(CommitIo::Record { offset, length }) => MoverIo::StoreRecord {
                job,
                offset,
                len: length,
            },
            BackIo::Pages(offset, length, is_durable) => MoverIo::StorePages {
                job,
                offset,
                len: u32::try_from(length).unwrap_or(u32::MAX),
                is_durable,
            },
        }
    }

    /// The pages that [`MoverIo::StorePages`] writes, which stay as they are until it has ended.
    #[must_use]
    pub fn pages(&self) -> *const u8 {
        self.back
            .as_ref()
            .map_or(std::ptr::null(), |back| back.pages.address())
    }

    /// The same as bytes.
    #[cfg(test)]
    pub(in crate::cache) fn page_bytes(&self, length: usize) -> Vec<u8> {
        let back = self.back.as_ref();
        back.map_or(Vec::new(), |back| back.pages.bytes()[..length].to_vec())
    }

    /// Cleans everything from now on, and does not stop before nothing is dirty, but for what fails once more then.
    pub fn drain(&mut self) {
        if let Some(back) = self.back.as_mut() {
            back.is_draining = true;
        }
    }
}
