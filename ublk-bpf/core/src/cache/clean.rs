//! Cleaning: dirty regions are copied to the backing device, and are clean once that has them durably.
//!
//! A copy is one [run](run::Run) of adjacent dirty regions, of one block or of several. It is read from the slots, and written to the
//! backing device as far as no write of the slots has begun meanwhile. One flush of the backing device ends all copies that were
//! written before it was issued; a region whose slot was written again since its copy began stays dirty.

mod failing;
mod run;

use std::collections::HashMap;
use std::time::Duration;

use self::failing::Failures;
use self::run::{Piece, Run};
use super::blocks::first_run;
use super::seam::{self, Rule};
use super::shared::Cache;
use crate::errno::Errno;

pub use self::failing::CleanFailure;
pub(super) use self::run::longest;

/// Copies in flight at once.
pub(super) const MAX_COPIES: usize = 16;
/// Pieces of copies that wait for a flush, at most. At half of them, one is due.
const MAX_WRITTEN: usize = 1024;
/// How long a copy waits for others to share its flush.
const FLUSH_AFTER: Duration = Duration::from_secs(1);
/// How often an operation is issued again, after an interruption or a short transfer.
const MAX_RETRIES: u8 = 16;

/// What there is to clean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// Only what requests wait for. What was copied is flushed.
    Urgent,
    /// The same, but more will follow: what was copied may wait.
    Pause,
    /// All that is dirty, in the order of its addresses; a copy has so many bytes at most, but is at least one block's.
    Some(u32),
    /// All that is dirty, as fast as the devices can.
    All,
}

/// An operation of a copy, or the flush for all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CleanIo {
    /// From the cache device to the buffer of a copy, `skip` bytes behind its start.
    Load {
        copy: usize,
        offset: u64,
        skip: u32,
        len: u32,
    },
    /// From the start of the buffer to the backing device.
    Store { copy: usize, offset: u64, len: u32 },
    /// Flush the backing device.
    Flush,
}

/// What the cleaner has done since it was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CleanCounts {
    /// Bytes of copies that have begun.
    pub(super) begun: u64,
    /// Bytes that have become clean.
    pub(super) cleaned: u64,
    /// Writes to the backing device.
    pub(super) writes: u64,
    /// Flushes of it.
    pub(super) flushes: u64,
    /// Operations that failed, and are done again later.
    pub(super) errors: u64,
}

/// The copies of one device's mover.
#[derive(Debug)]
pub(super) struct Cleaner<'c, 'm> {
    cache: &'c Cache<'m>,
    copies: [Option<Run>; MAX_COPIES],
    /// Pieces that the backing device has, in the order of their completion.
    written: Vec<Piece>,
    /// When the first of these was.
    written_at: Duration,
    /// How many of these the flush in flight is for.
    flushing: usize,
    /// Requests wait for something that is written.
    is_flush_due: bool,
    /// The regions of blocks that are in `copies` or `written`: two copies of a region at once could be written in the wrong
    /// order.
    copied: HashMap<u32, u16>,
    /// Ranges that requests wait for.
    urgent: Vec<(u32, u32)>,
    /// Where the next copy is looked for.
    hand: u32,
    failures: Failures,
    counts: CleanCounts,
    now: Duration,
    /// The last look for something to clean found nothing that may begin.
    is_through: bool,
}

impl<'c, 'm> Cleaner<'c, 'm> {
    pub(super) fn new(cache: &'c Cache<'m>) -> Self {
        Self {
            cache,
            copies: [const { None }; MAX_COPIES],
            written: Vec::new(),
            written_at: Duration::ZERO,
            flushing: 0,
            is_flush_due: false,
            copied: HashMap::new(),
            urgent: Vec::new(),
            hand: 0,
            failures: Failures::default(),
            counts: CleanCounts::default(),
            now: Duration::ZERO,
            is_through: false,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.flushing == 0 && self.written.is_empty() && self.copies.iter().all(Option::is_none)
    }

    /// Whether all has been cleaned that can be now.
    pub(super) fn is_through(&self) -> bool {
        self.is_through && self.is_idle()
    }

    /// What has failed may be tried again at once.
    pub(super) fn retry(&mut self) {
        self.is_through = false;
        self.failures.retry();
    }

    pub(super) fn take_counts(&mut self) -> CleanCounts {
        std::mem::take(&mut self.counts)
    }

    /// When [`next`](Self::next) has a flush, though nothing else is wanted.
    pub(super) fn flush_at(&self) -> Option<Duration> {
        let is_waiting = self.flushing == 0 && !self.written.is_empty();
        is_waiting.then(|| self.written_at + FLUSH_AFTER)
    }

    /// The next operation to carry out; `None`: nothing is wanted, or all that may be is in flight.
    pub(super) fn next(&mut self, want: Want, now: Duration) -> Option<CleanIo> {
        self.now = now;
        self.is_through = false;
        self.take_urgent();
        let is_flush_due = self.is_flush_due
            || self.written.len() >= MAX_WRITTEN / 2
            || self.flush_at().is_some_and(|then| then <= now);
        if is_flush_due && let Some(flush) = self.flush() {
            return Some(flush);
        }
        let free = self.copies.iter().position(Option::is_none);
        if let Some(copy) = free.filter(|_| self.written.len() < MAX_WRITTEN)
            && let Some(begun) = self.begin(want)
        {
            self.counts.begun += u64::from(begun.length());
            return Some(self.copies[copy].insert(begun).io(copy));
        }
        if !self.urgent.is_empty() {
            // What they wait for is written, or is being copied.
            return self.flush();
        }
        self.is_through = want == Want::All;
        if matches!(want, Want::Pause | Want::Some(_)) {
            return None;
        }
        self.finish()
    }

    /// The flush that ends what was copied; no other copy begins.
    pub(super) fn finish(&mut self) -> Option<CleanIo> {
        // Many copies share a flush: all that can be begun have begun.
        let is_alone = self.copies.iter().all(Option::is_none);
        if is_alone { self.flush() } else { None }
    }

    fn flush(&mut self) -> Option<CleanIo> {
        if self.flushing > 0 || self.written.is_empty() {
            return None;
        }
        self.is_flush_due = false;
        self.flushing = self.written.len();
        self.counts.flushes += 1;
        Some(CleanIo::Flush)
    }

    fn take_urgent(&mut self) {
        let writeback = &self.cache.writeback;
        while let Some(range) = writeback.urgent.pop() {
            if !self.urgent.contains(&range) {
                self.urgent.push(range);
            }
        }
        if writeback
            .is_all_urgent
            .swap(false, std::sync::atomic::Ordering::SeqCst)
        {
            self.urgent = vec![(0, u32::MAX)];
        }
    }

    fn begin(&mut self, want: Want) -> Option<Run> {
        let mut urgent = std::mem::take(&mut self.urgent);
        // A range is done with when nothing of it is dirty; what is being copied is not.
        let mut found = None;
        urgent.retain(|&(first, last)| {
            found.is_some() || {
                let (piece, is_clean) = self.find(first, last);
                found = piece;
                !is_clean
            }
        });
        self.urgent = urgent;
        let longest = longest(self.cache.shape().shift);
        if let Some(piece) = found {
            return Some(self.join(piece, longest, true));
        }
        let most = match want {
            Want::Urgent | Want::Pause => return None,
            Want::Some(bytes) => bytes.min(longest),
            Want::All => longest,
        };
        let (ahead, _) = self.find(self.hand, u32::MAX);
        let piece = ahead.or_else(|| self.find(0, self.hand).0)?;
        let run = self.join(piece, most, false);
        self.hand = run.pieces.last().map_or(0, |piece| piece.span.block);
        Some(run)
    }

    /// A copy that can begin now among these blocks, and whether none of them is dirty.
    fn find(&mut self, first: u32, last: u32) -> (Option<Piece>, bool) {
        let dirty = &self.cache.blocks.dirty;
        let mut is_clean = true;
        let mut from = first;
        while let Some(block) = dirty.blocks.next(from).filter(|&block| block <= last) {
            from = block + 1;
            if self.failures.must_wait(block, self.now) {
                is_clean = false;
                continue;
            }
            if let Some(piece) = self.piece(block) {
                return (Some(piece), false);
            }
            is_clean &= !self.copied.contains_key(&block) && self.forget(block);
        }
        (None, is_clean)
    }

    /// The first run of the block's dirty regions that is neither being copied nor written.
    fn piece(&self, block: u32) -> Option<Piece> {
        let (slot, regions, generation) = self.cache.blocks.begin_clean(block)?;
        // Two copies of a region at once could be written in the wrong order.
        let is_free = seam::is_left_out(Rule::OneCopy);
        let copied = self.copied.get(&block).copied().filter(|_| !is_free);
        let free = regions & !copied.unwrap_or(0);
        (free != 0).then(|| Piece {
            span: self.cache.span(block, slot, first_run(free)),
            generation,
        })
    }

    /// A copy from this piece on, over what follows it on the backing device.
    fn join(&mut self, piece: Piece, most: u32, is_urgent: bool) -> Run {
        let mut run = Run::new(vec![piece], is_urgent);
        let is_alone = self.failures.contain(piece.span.block);
        let (mut last, mut length) = (piece, piece.span.length);
        while !is_alone
            && let Some(next) = self.follower(&last)
            && length + next.span.length <= most
        {
            (last, length) = (next, length + next.span.length);
            run.pieces.push(next);
        }
        for piece in &run.pieces {
            *self.copied.entry(piece.span.block).or_default() |= piece.span.regions;
        }
        run
    }

    /// What is dirty right behind a piece, in the next block.
    fn follower(&self, piece: &Piece) -> Option<Piece> {
        let reaches_end = piece.span.regions & 1 << 15 != 0;
        let block = piece.span.block.checked_add(1).filter(|_| reaches_end)?;
        if !self.cache.blocks.dirty.blocks.contains(block) || self.failures.contain(block) {
            return None;
        }
        self.piece(block).filter(|piece| piece.span.regions & 1 != 0)
    }

    /// A piece is copied no longer.
    fn drop_piece(&mut self, piece: &Piece) {
        if let Some(copied) = self.copied.get_mut(&piece.span.block) {
            *copied &= !piece.span.regions;
            if *copied == 0 {
                self.copied.remove(&piece.span.block);
            }
        }
    }

    /// Takes a block out of the dirty ones, if it is not. Returns whether it is not.
    fn forget(&mut self, block: u32) -> bool {
        let cache = self.cache;
        let blocks = &cache.blocks;
        if blocks.dirty_regions(block) != 0 {
            return false;
        }
        // First: a write that still finds it stuck has a claim, and the block is not settled.
        self.recover(block);
        if !blocks.settle(block, cache.regions_of(block)) {
            return false;
        }
        blocks.dirty.blocks.remove(block);
        // A write may have made it dirty since.
        let is_dirty = blocks.entry(block).is_dirty();
        if is_dirty {
            blocks.dirty.blocks.insert(block);
        }
        !is_dirty
    }

    /// An operation has ended. Returns the next one of its copy.
    pub(super) fn done(&mut self, io: CleanIo, result: i32) -> Option<CleanIo> {
        match io {
            CleanIo::Flush => {
                self.flushed(result);
                None
            }
            CleanIo::Load { copy, len, .. } | CleanIo::Store { copy, len, .. } => {
                self.moved(copy, len, result)
            }
        }
    }

    fn moved(&mut self, number: usize, len: u32, result: i32) -> Option<CleanIo> {
        let mut run = self.copies[number].take()?;
        let is_whole = result.cast_unsigned() == len;
        let errno = Errno::of_result(result);
        let may_retry = matches!(errno, None | Some(Errno::EAGAIN | Errno::EINTR));
        if !is_whole && may_retry && run.retries < MAX_RETRIES {
            run.retries += 1;
        } else if !is_whole {
            self.fail(&mut run, errno.unwrap_or(Errno::EIO));
        } else if run.is_loaded {
            self.written(run);
            return None;
        } else {
            run.loaded += 1;
            run.retries = 0;
        }
        if !run.is_loaded && run.loaded == run.pieces.len() {
            self.cut(&mut run);
            run.is_loaded = true;
        }
        if run.pieces.is_empty() {
            return None;
        }
        let io = run.io(number);
        self.counts.writes += u64::from(matches!(io, CleanIo::Store { .. }));
        self.copies[number] = Some(run);
        Some(io)
    }

    /// Leaves of a copy that was read only what comes before the first slot that has been written since: what was read of that
    /// may be half of a write.
    fn cut(&mut self, run: &mut Run) {
        let blocks = &self.cache.blocks;
        let is_same = |piece: &Piece| blocks.is_same(piece.span.slot, piece.generation);
        let same = run.pieces.iter().take_while(|piece| is_same(piece)).count();
        for piece in run.pieces.split_off(same) {
            self.drop_piece(&piece);
        }
    }

    fn written(&mut self, run: Run) {
        if self.written.len() == self.flushing {
            self.written_at = self.now;
        }
        self.is_flush_due |= run.is_urgent;
        self.written.extend(run.pieces);
    }

    fn flushed(&mut self, result: i32) {
        let pieces: Vec<Piece> = self.written.drain(..std::mem::take(&mut self.flushing)).collect();
        if let Some(errno) = Errno::of_result(result) {
            self.note_failure("flushing the backing device", errno, pieces.first());
        }
        for piece in pieces {
            self.drop_piece(&piece);
            if result < 0 {
                self.give_up(&piece, false);
                continue;
            }
            let span = piece.span;
            self.counts.cleaned += u64::from(span.length);
            let blocks = &self.cache.blocks;
            blocks.end_clean(span.slot, (span.regions, piece.generation));
            self.recover(span.block);
            if !self.forget(span.block) {
                // What waits for these regions only need not wait for the rest of the block.
                self.cache.blocks.waiters.wake(span.slot);
            }
        }
    }
}
