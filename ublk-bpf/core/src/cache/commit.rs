//! Commits: what makes dirty data durable.
//!
//! A commit flushes the slots, and then has the log on the cache device say which regions of them are dirty. One thread at
//! a time leads one, for all that wait: a queue with a FLUSH, or the mover.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::log::{Checkpoint, Log, LogEntry, Placed};
use super::pages::Pages;
use super::seam::{self, Rule};
use super::shared::Cache;
use crate::errno::Errno;

/// Changed slots that a durable write looks at, before it commits everything.
const MAX_CHANGED: u32 = 64;

/// What commits share.
#[derive(Debug)]
pub(super) struct Commits {
    state: Mutex<State>,
    /// Queues that wait for the end of a commit, or of a checkpoint.
    waiting: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    log: Option<Log>,
    /// The leader's record is encoded here, and written from here.
    buffer: Pages,
    /// How many commits have begun, and the number of the last one that has succeeded.
    begun: u64,
    succeeded: u64,
    /// The commit in progress.
    running: Option<Commit>,
    /// A record that could not be written. The log goes on behind it, so it comes first.
    failed: Option<Record>,
    /// A flush of the cache device does nothing: what it has completed is durable.
    is_durable: bool,
    is_full: bool,
}

/// A record of the log that is being written.
#[derive(Clone, Debug)]
struct Record {
    placed: Placed,
    entries: Vec<LogEntry>,
}

#[derive(Debug, Default)]
struct Commit {
    number: u64,
    /// It makes everything durable that was written when it began.
    is_whole: bool,
    /// The cache device is to be flushed first.
    must_flush: bool,
    /// What the log has to say, and how much of that it does.
    entries: Vec<LogEntry>,
    at: usize,
    record: Option<Record>,
}

/// What a commit makes durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every write to a slot that has ended.
    All,
    /// The write of this range, within one block, which has ended and is durable in its slot.
    Write {
        /// First byte on the backing device.
        offset: u64,
        /// Bytes.
        length: u64,
    },
}

/// What waits for a commit that begins after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitTicket(u64);

/// An operation of a commit on the cache device, which its leader carries out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitIo {
    /// Flush it.
    Flush,
    /// Write so many bytes of [`Cache::record`] at this offset, with FUA.
    Record {
        /// Where on the cache device, in bytes.
        offset: u64,
        /// Bytes.
        length: u32,
    },
}

/// What to do for a [`CommitTicket`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a commit that has begun must be carried out"]
pub enum CommitNext {
    /// It is durable.
    Done,
    /// Lead the commit: carry this out, and pass the result to [`Cache::commit_done`].
    Lead(CommitIo),
    /// Another thread leads one, or the log needs a checkpoint: ask again when woken.
    Wait,
}

impl Commits {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State::default()),
            waiting: AtomicU64::new(0),
        }
    }

    /// A thread that panicked has left the state between two steps, where it is whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cache<'_> {
    /// The log that commits write, whose first checkpoint has ended. `is_durable`: what the cache device has completed needs no
    /// flush.
    pub fn set_log(&self, log: Log, is_durable: bool) {
        let mut state = self.commits.lock();
        state.buffer = Pages::new(log.record_bytes());
        state.log = Some(log);
        state.is_durable = is_durable;
    }

    /// Takes the log away: nothing is committed from now on. For the end, when no other thread has the cache.
    #[must_use]
    pub fn take_log(&self) -> Option<Log> {
        self.commits.lock().log.take()
    }

    /// What the backing device lacks, in ascending order of slots.
    #[must_use]
    pub fn dirty_entries(&self) -> Vec<LogEntry> {
        self.entries(0, |slot| self.blocks.dirty.of(slot)).collect()
    }

    /// A FLUSH has arrived, or a write that must be durable has ended.
    #[must_use]
    pub fn begin_flush(&self) -> CommitTicket {
        CommitTicket(self.commits.lock().begun + 1)
    }

    /// What to do now for what waits since it got its ticket. `queue` is woken if it has to wait.
    pub fn commit(&self, ticket: CommitTicket, scope: Scope, queue: u16) -> CommitNext {
        let mut state = self.commits.lock();
        if state.succeeded >= ticket.0 {
            return CommitNext::Done;
        }
        let next = if state.running.is_some() || state.is_full {
            CommitNext::Wait
        } else {
            self.lead(&mut state, scope)
        };
        if next == CommitNext::Wait {
            // Under the lock, so that the end of the commit or of the checkpoint finds it.
            self.commits.waiting.fetch_or(1 << (queue % 64), Ordering::SeqCst);
        }
        next
    }

    /// Leads a commit of everything, if none is in progress and there is something to commit. As for
    /// [`commit`](Self::commit), but nothing waits for it.
    pub(super) fn autocommit(&self) -> Option<CommitIo> {
        let is_needed =
            self.writeback.is_unflushed.load(Ordering::SeqCst) || self.blocks.dirty.changed.next(0).is_some();
        let mut state = self.commits.lock();
        if !is_needed || state.running.is_some() || state.is_full || state.log.is_none() {
            return None;
        }
        match self.lead(&mut state, Scope::All) {
            CommitNext::Lead(io) => Some(io),
            CommitNext::Done | CommitNext::Wait => None,
        }
    }

    fn lead(&self, state: &mut State, scope: Scope) -> CommitNext {
        state.begun += 1;
        let mut commit = Commit {
            number: state.begun,
            ..Commit::default()
        };
        let judged = state.failed.as_ref();
        let judged = judged.filter(|_| !seam::is_left_out(Rule::FailedIsJudged));
        match self.own_entry(scope).filter(|_| judged.is_none()) {
            Some(entry) => commit.entries = entry.into_iter().collect(),
            // The snapshot is taken before the flush is issued: what it says is in the slots by then.
            None => {
                commit.is_whole = true;
                commit.must_flush = self.writeback.is_unflushed.swap(false, Ordering::SeqCst);
                commit.must_flush &= !state.is_durable;
                if !(commit.must_flush && seam::is_left_out(Rule::SnapshotFirst)) {
                    commit.entries = self.snapshot(judged);
                }
            }
        }
        state.running = Some(commit);
        self.next(state)
    }

    /// Every slot whose dirty regions are not those that the log has, or will have when the record is written that has failed.
    fn snapshot(&self, failed: Option<&Record>) -> Vec<LogEntry> {
        let dirty = &self.blocks.dirty;
        let logged = |slot| match failed.and_then(|record| record.of(slot)) {
            Some(entry) => entry.dirty,
            None => dirty.logged(slot),
        };
        let mut entries = Vec::new();
        let mut from = 0;
        while let Some(slot) = dirty.changed.next(from) {
            from = slot + 1;
            // First: a change after it is another commit's.
            dirty.changed.remove(slot);
            let now = dirty.of(slot);
            if now == 0 && seam::is_left_out(Rule::CleanIsRecorded) {
                continue;
            }
            if now == logged(slot) {
                self.release_slot(slot);
            } else if let Some(block) = self.blocks.slots.owner(slot) {
                entries.push(LogEntry {
                    slot,
                    block,
                    dirty: now,
                });
            }
        }
        // First what is clean: a block may have another slot by now, and the log has it in one at any time.
        if !seam::is_left_out(Rule::CleanComesFirst) {
            entries.sort_by_key(|entry| entry.dirty != 0);
        }
        entries
    }

    /// The entry that makes a write durable whose data is durable in its slot; inner `None`: the log has it. `None` at all:
    /// it takes a commit of everything, because of a region that the log will call dirty it has written only a part.
    fn own_entry(&self, scope: Scope) -> Option<Option<LogEntry>> {
        let Scope::Write { offset, length } = scope else {
            return None;
        };
        let block = self.one_block(offset, length)?;
        let slot = self.entry(block).slot();
        let touched = self.blocks.dirty_regions(block) & self.regions(offset, length);
        let logged = self.blocks.dirty.logged(slot);
        let new = touched & !logged;
        let is_part = new & !self.whole_regions(offset, length) != 0;
        if is_part && !seam::is_left_out(Rule::OwnRegionsAreWhole) {
            return None;
        }
        if new != 0 && self.may_be_logged_elsewhere() && !seam::is_left_out(Rule::OwnEntryIsLast) {
            return None;
        }
        Some((new != 0).then_some(LogEntry {
            slot,
            block,
            dirty: logged | touched,
        }))
    }

    /// Whether the log may say of a slot that it is dirty, with a block that has another slot by now.
    fn may_be_logged_elsewhere(&self) -> bool {
        let dirty = &self.blocks.dirty;
        let mut from = 0;
        for _ in 0..MAX_CHANGED {
            match dirty.changed.next(from) {
                Some(slot) if dirty.of(slot) != 0 => from = slot + 1,
                found => return found.is_some(),
            }
        }
        true
    }

    /// The next operation of the commit in progress.
    fn next(&self, state: &mut State) -> CommitNext {
        let State {
            log,
            buffer,
            running,
            failed,
            ..
        } = state;
        let Some(commit) = running.as_mut() else {
            return CommitNext::Done;
        };
        if commit.must_flush {
            return CommitNext::Lead(CommitIo::Flush);
        }
        if commit.record.is_none() {
            commit.record = failed.take();
        }
        if let Some(record) = &commit.record {
            return CommitNext::Lead(record.io());
        }
        let rest = &commit.entries[commit.at..];
        let Some(log) = log.as_mut().filter(|_| !rest.is_empty()) else {
            return self.succeed(state);
        };
        let most = log.max_entries().min(seam::most_entries());
        let entries = rest[..rest.len().min(most)].to_vec();
        let Ok(placed) = log.append(&entries, buffer.bytes_mut()) else {
            return self.wait_for_room(state);
        };
        for entry in &entries {
            // Until it is written, either may be true.
            let before = self.blocks.dirty.logged(entry.slot);
            self.blocks.dirty.set_logged(entry.slot, before | entry.dirty);
            if seam::is_left_out(Rule::HeldByRecord) {
                self.blocks.dirty.set_logged(entry.slot, entry.dirty);
                self.release_slot(entry.slot);
            }
        }
        let record = Record { placed, entries };
        let io = record.io();
        commit.record = Some(record);
        CommitNext::Lead(io)
    }

    /// An operation of the commit that the caller leads has ended.
    ///
    /// # Errors
    /// That of the operation, if it failed: then the commit has ended.
    pub fn commit_done(&self, io: CommitIo, result: Result<(), Errno>) -> Result<CommitNext, Errno> {
        let mut state = self.commits.lock();
        let Some(commit) = state.running.as_mut() else {
            debug_assert!(false, "{io:?} of no commit");
            return Ok(CommitNext::Done);
        };
        if let Err(errno) = result {
            self.fail(&mut state);
            return Err(errno);
        }
        match io {
            CommitIo::Flush => {
                commit.must_flush = false;
                if seam::is_left_out(Rule::SnapshotFirst) {
                    commit.entries = self.snapshot(None);
                }
            }
            CommitIo::Record { .. } => {
                let written = commit.record.take();
                self.recorded(commit, written);
            }
        }
        Ok(self.next(&mut state))
    }

    /// A record is durable.
    fn recorded(&self, commit: &mut Commit, record: Option<Record>) {
        for entry in record.into_iter().flat_map(|record| record.entries) {
            // A record that an earlier commit could not write has other entries than this one's.
            if commit.entries.get(commit.at) == Some(&entry) {
                commit.at += 1;
            }
            self.blocks.dirty.set_logged(entry.slot, entry.dirty);
            self.release_slot(entry.slot);
        }
    }

    fn release_slot(&self, slot: u32) {
        self.blocks.dirty.release(&self.blocks.slots, slot);
    }

    fn succeed(&self, state: &mut State) -> CommitNext {
        if let Some(commit) = state.running.take()
            && commit.is_whole
        {
            state.succeeded = commit.number;
        }
        self.wake_committers();
        CommitNext::Done
    }

    /// The commit ends without success. What it left out is another one's.
    #[cold]
    fn fail(&self, state: &mut State) {
        let Some(commit) = state.running.take() else {
            return;
        };
        if commit.must_flush {
            self.writeback.is_unflushed.store(true, Ordering::SeqCst);
        }
        // If it has not come to writing that of an earlier commit, that is still to be written.
        state.failed = commit.record.or_else(|| state.failed.take());
        let failed = state.failed.iter().flat_map(|record| &record.entries);
        for entry in commit.entries[commit.at..].iter().chain(failed) {
            self.blocks.dirty.changed.insert(entry.slot);
        }
        self.wake_committers();
    }

    /// The log is full. Whoever needs the commit waits until the mover has written a checkpoint.
    #[cold]
    fn wait_for_room(&self, state: &mut State) -> CommitNext {
        self.fail(state);
        state.is_full = true;
        self.writeback.is_log_full.store(true, Ordering::SeqCst);
        CommitNext::Wait
    }

    fn wake_committers(&self) {
        let waiting = self.commits.waiting.swap(0, Ordering::SeqCst);
        self.blocks.waiters.wake_queues(waiting);
    }

    /// The bytes of the record that [`CommitIo::Record`] writes. They stay as they are until [`commit_done`](Self::commit_done).
    #[must_use]
    pub fn record(&self) -> *const u8 {
        self.commits.lock().buffer.address()
    }

    /// The same as bytes.
    #[cfg(test)]
    pub(super) fn record_bytes(&self, length: usize) -> Vec<u8> {
        self.commits.lock().buffer.bytes()[..length].to_vec()
    }

    /// Whether the mover should write a checkpoint.
    pub(super) fn wants_checkpoint(&self) -> bool {
        let state = self.commits.lock();
        state.is_full || state.log.as_ref().is_some_and(Log::is_half_full)
    }

    /// Begins a checkpoint. The log says of every slot what [`checkpoint_entries`](Self::checkpoint_entries) gives after this.
    pub(super) fn begin_checkpoint(&self) -> Option<Checkpoint> {
        self.commits.lock().log.as_mut().map(Log::begin_checkpoint)
    }

    /// What the log says of the slots from `from` on, as far as they are dirty.
    pub(super) fn checkpoint_entries(&self, from: u32) -> impl Iterator<Item = LogEntry> + '_ {
        self.entries(from, |slot| self.blocks.dirty.logged(slot))
    }

    /// The slots from `from` on that are dirty by this.
    fn entries<'s>(
        &'s self,
        from: u32,
        dirty: impl Fn(u32) -> u16 + 's,
    ) -> impl Iterator<Item = LogEntry> + 's {
        (from..self.blocks.slots.count()).filter_map(move |slot| {
            let dirty = dirty(slot);
            let block = self.blocks.slots.owner(slot).filter(|_| dirty != 0)?;
            Some(LogEntry { slot, block, dirty })
        })
    }

    /// The checkpoint is durable: what was before it in the log is free.
    pub(super) fn end_checkpoint(&self, checkpoint: &Checkpoint) {
        let mut state = self.commits.lock();
        if let Some(log) = state.log.as_mut() {
            log.end_checkpoint(checkpoint);
        }
        state.is_full = false;
        self.writeback.is_log_full.store(false, Ordering::SeqCst);
        self.wake_committers();
    }
}

impl Record {
    /// Its entry of a slot.
    fn of(&self, slot: u32) -> Option<&LogEntry> {
        self.entries.iter().find(|entry| entry.slot == slot)
    }

    fn io(&self) -> CommitIo {
        CommitIo::Record {
            offset: self.placed.offset,
            length: u32::try_from(self.placed.length).unwrap_or(u32::MAX),
        }
    }
}

#[cfg(test)]
mod tests;
