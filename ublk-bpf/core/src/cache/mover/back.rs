//! The mover's part of write-back: cleaning, commits that nothing waits for, and checkpoints of the log.

use std::time::Duration;

use super::{Mover, MoverIo};
use crate::cache::Cache;
use crate::cache::clean::{CleanIo, Cleaner, MAX_COPIES, Want};
use crate::cache::commit::{CommitIo, CommitNext};
use crate::cache::log::{Checkpoint, LOG_BUFFER};
use crate::cache::pages::Pages;
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
pub(super) const BACK_JOBS: usize = CHECKPOINT + 1;

/// When dirty blocks are cleaned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CleanLimits {
    /// Dirty slots below which nothing is cleaned, unless no request has arrived for a second or one waits for it.
    pub low: u32,
    /// Dirty slots that there may be: writes that would make more of them dirty end on the backing device.
    pub high: u32,
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
    limits: CleanLimits,
    cleaner: Cleaner<'c, 'm>,
    /// The operations in flight, by number.
    cleaning: [Option<CleanIo>; MAX_COPIES + 1],
    commit: Option<CommitIo>,
    commit_at: Duration,
    checkpoint: Option<(Checkpoint, CheckpointStep, u32)>,
    checkpoint_at: Duration,
    pages: Pages,
    /// Requests that had arrived when the clock was last looked at for a second without any.
    idle_since: (Duration, u64),
    pub(super) is_draining: bool,
    now: Duration,
}

impl<'c, 'm> BackJobs<'c, 'm> {
    pub(super) fn new(cache: &'c Cache<'m>, limits: CleanLimits) -> Self {
        cache.set_dirty_limit(limits.high);
        Self {
            cache,
            limits,
            cleaner: Cleaner::new(cache),
            cleaning: [None; MAX_COPIES + 1],
            commit: None,
            commit_at: Duration::ZERO,
            checkpoint: None,
            checkpoint_at: Duration::ZERO,
            pages: Pages::new(LOG_BUFFER),
            idle_since: (Duration::ZERO, 0),
            is_draining: false,
            now: Duration::ZERO,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.cleaner.is_idle() && self.commit.is_none() && self.checkpoint.is_none()
    }

    /// The next operation, with the number of its job.
    fn poll(&mut self, now: Duration, requests: u64, is_stopping: bool) -> Option<(usize, BackIo)> {
        let may_begin = !is_stopping || self.is_draining;
        if may_begin && let Some(io) = self.begin_commit(now).or_else(|| self.begin_checkpoint(now)) {
            return Some(io);
        }
        let want = self.want(now, requests);
        let io = if may_begin {
            self.cleaner.next(want)
        } else {
            self.cleaner.finish()
        };
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

    /// What is to be cleaned now.
    fn want(&mut self, now: Duration, requests: u64) -> Want {
        let dirty = self.cache.dirty_slots();
        if requests != self.idle_since.1 {
            self.idle_since = (now, requests);
        }
        let is_idle = now.saturating_sub(self.idle_since.0) >= IDLE_AFTER;
        if self.is_draining || is_idle || dirty > self.limits.low {
            Want::All
        } else {
            Want::Urgent
        }
    }

    fn begin_commit(&mut self, now: Duration) -> Option<(usize, BackIo)> {
        if self.commit.is_some() || now < self.commit_at {
            return None;
        }
        self.commit_at = now + COMMIT_EVERY;
        self.commit = self.cache.autocommit();
        self.commit.map(|io| (COMMIT, BackIo::Commit(io)))
    }

    fn begin_checkpoint(&mut self, now: Duration) -> Option<(usize, BackIo)> {
        if self.checkpoint.is_some() || now < self.checkpoint_at || !self.cache.wants_checkpoint() {
            return None;
        }
        let checkpoint = self.cache.begin_checkpoint()?;
        self.checkpoint = Some((checkpoint, CheckpointStep::Pages, 0));
        self.next_checkpoint()
    }

    /// The next operation of the checkpoint.
    fn next_checkpoint(&mut self) -> Option<(usize, BackIo)> {
        let (checkpoint, step, from) = self.checkpoint.as_mut()?;
        let io = match *step {
            CheckpointStep::Pages => {
                let mut last = *from;
                let entries = self.cache.checkpoint_entries(*from);
                let mut entries = entries.inspect(|entry| last = entry.slot + 1);
                match checkpoint.append(&mut entries, self.pages.bytes_mut()) {
                    Some(placed) => {
                        drop(entries);
                        *from = last;
                        BackIo::Pages(placed.offset, placed.length, false)
                    }
                    None => {
                        *step = CheckpointStep::Flush;
                        BackIo::Commit(CommitIo::Flush)
                    }
                }
            }
            CheckpointStep::Flush | CheckpointStep::Head => {
                *step = CheckpointStep::Head;
                let placed = checkpoint.head(self.pages.bytes_mut());
                BackIo::Pages(placed.offset, placed.length, true)
            }
        };
        Some((CHECKPOINT, io))
    }

    fn checkpoint_done(&mut self, result: Result<(), Errno>, now: Duration) -> Option<(usize, BackIo)> {
        let step = self.checkpoint.as_ref().map(|(_, step, _)| *step);
        if result.is_err() {
            self.checkpoint = None;
            self.checkpoint_at = now + RETRY_AFTER;
            return None;
        }
        if step == Some(CheckpointStep::Head)
            && let Some((checkpoint, ..)) = self.checkpoint.take()
        {
            self.cache.end_checkpoint(&checkpoint);
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
        let result = Errno::of_result(result).map_or(Ok(()), Err);
        if number == CHECKPOINT {
            return self.checkpoint_done(result, now);
        }
        let io = self.commit.take()?;
        match self.cache.commit_done(io, result) {
            Ok(CommitNext::Lead(next)) => {
                self.commit = Some(next);
                Some((COMMIT, BackIo::Commit(next)))
            }
            Ok(CommitNext::Done | CommitNext::Wait) | Err(_) => None,
        }
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
        let (number, io) = back.poll(now, self.requests_seen, self.is_stopping)?;
        Some(self.back_io(number, &io))
    }

    /// Whether requests have begun to wait for something to be cleaned since the last poll.
    pub(super) fn has_urgent(&self) -> bool {
        self.back.is_some() && self.cache.has_urgent()
    }

    /// An operation of write-back has ended, of the job that is so far behind the fills and verifications.
    pub(super) fn back_done(&mut self, number: usize, result: i32) -> Option<MoverIo> {
        let back = self.back.as_mut()?;
        let (number, io) = back.done(number, result, back.now)?;
        Some(self.back_io(number, &io))
    }

    fn back_io(&self, number: usize, io: &BackIo) -> MoverIo {
        let small = |number: usize| u16::try_from(number).unwrap_or(u16::MAX);
        let job = small(self.jobs.len() + number);
        let buffer = small(2 * self.jobs.len() - self.fills + number);
        match *io {
            BackIo::Clean(CleanIo::Load { offset, len, .. }) => MoverIo::LoadSlot {
                job,
                buffer,
                offset,
                skip: 0,
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

    /// Cleans everything from now on, and does not stop before nothing is dirty.
    pub fn drain(&mut self) {
        if let Some(back) = self.back.as_mut() {
            back.is_draining = true;
        }
    }
}
