//! Writes that end in the slot, as requests see them.
//!
//! What is dirty has one copy, in its slot, and one way out: the mover writes it to the backing device. So a write of dirty
//! regions goes to the slot, whatever it asked for; and what cannot, because it covers regions in part that are not valid or
//! is a discard or write-zeroes, waits until the mover has cleaned its blocks.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use crossbeam_queue::ArrayQueue;
use ublk_bpf_abi::{CacheState, Priority};

use super::back::{Back, BackAttempt, BackEnd, Covered};
use super::drain::UNLIMITED;
use super::free::Report;
use super::seam::{self, Rule};
use super::shared::{Cache, Change, Mode, SlotPin};
use super::times::ServiceTimes;

/// Ranges that the mover is asked to clean first, at most. If there are more, it cleans everything.
const MAX_URGENT: usize = 1024;

/// How often a write starts again because its block has changed since it looked.
const MAX_ATTEMPTS: u32 = 4;

/// The part of the shared state that only write-back uses.
#[derive(Debug)]
pub(super) struct Writeback {
    /// What a write does if its policy says nothing: a [`Mode`] as a number.
    pub(super) mode: AtomicU8,
    /// Slots that may be dirty. At the limit, a write that would make another one dirty ends on the backing device.
    pub(super) limit: AtomicU32,
    /// Slots that may be dirty without being cleaned, and the bytes a second that are cleaned at most.
    pub(super) low: AtomicU32,
    pub(super) rate: AtomicU64,
    /// The [mode](Mode) was write-back: what is dirty is cleaned once.
    pub(super) is_leaving: AtomicBool,
    /// How many drains have started, and the number of the last one that the mover found done.
    pub(super) drains: AtomicU32,
    pub(super) drained: AtomicU32,
    /// How long requests take.
    pub(super) times: ServiceTimes,
    /// How many blocks are stuck. The mover counts them.
    pub(super) stuck_blocks: AtomicU32,
    /// A slot was written, or is being written, since the cache device was last flushed.
    pub(super) is_unflushed: AtomicBool,
    /// Writes, discards and write-zeroes that the backing device has completed.
    passed: AtomicU64,
    /// How many of these had completed when its last flush was issued that has succeeded.
    flushed: AtomicU64,
    /// Blocks, first and last, that requests wait for.
    pub(super) urgent: ArrayQueue<(u32, u32)>,
    /// More than fit.
    pub(super) is_all_urgent: AtomicBool,
    /// The log needs a checkpoint before anything can be committed.
    pub(super) is_log_full: AtomicBool,
    /// The mover waits for the promotion limit, and is to be woken for nothing but what requests wait for.
    pub(super) mover_rests: AtomicBool,
}

impl Writeback {
    pub(super) fn new(mode: Mode) -> Self {
        Self {
            mode: AtomicU8::new(mode as u8),
            limit: AtomicU32::new(u32::MAX),
            low: AtomicU32::new(0),
            rate: AtomicU64::new(UNLIMITED),
            is_leaving: AtomicBool::new(false),
            times: ServiceTimes::none(),
            drains: AtomicU32::new(0),
            drained: AtomicU32::new(0),
            stuck_blocks: AtomicU32::new(0),
            is_unflushed: AtomicBool::new(false),
            passed: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
            urgent: ArrayQueue::new(MAX_URGENT),
            is_all_urgent: AtomicBool::new(false),
            is_log_full: AtomicBool::new(false),
            mover_rests: AtomicBool::new(false),
        }
    }
}

impl Writeback {
    /// So many more blocks are stuck, or fewer.
    pub(super) fn count_stuck(&self, more: i32) {
        let change = more.cast_unsigned();
        self.stuck_blocks.fetch_add(change, Ordering::Relaxed);
    }
}

/// A write to a slot. [`Cache::end_back`] ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "its regions stay claimed until it has ended"]
pub struct BackWrite(pub(super) Back);

impl BackWrite {
    /// The slot, for [`Cache::slot_delta`].
    pub const fn pin(self) -> SlotPin {
        SlotPin(self.0.slot)
    }

    /// Whether the backing device may get the data instead, if the slot fails: it lacks nothing else of these regions.
    #[must_use]
    pub const fn may_go_around(self) -> bool {
        self.0.was_dirty == 0
    }
}

/// Why a write that was to end in the slot ends on the backing device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Downgrade {
    /// There is no free slot for its block.
    NoSlot,
    /// It covers regions in part that are not valid.
    Partial,
    /// As many slots are dirty as may be. During a drain none may become so.
    Limit,
    /// The cache device has failed.
    Failing,
    /// Its block is being written or filled, or is yet to be verified.
    Busy,
}

/// How a write or discard starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "what has begun must be ended"]
pub enum ChangeStart {
    /// In the slot alone.
    Back(BackWrite),
    /// On the backing device, and in the slot if the claim [stores](super::WriteClaim::stores). [`Cache::end_change`] ends it.
    /// If it was to end in the slot: why it does not.
    Marked(Change, Option<Downgrade>),
    /// Not yet: [wait](Cache::wait_to_change). The mover should be woken.
    Wait,
    /// It fails: it would have to wait for dirty data that cannot be written back.
    Stuck,
}

impl Cache<'_> {
    /// Whether writes may end in slots.
    #[inline]
    #[must_use]
    pub const fn has_writeback(&self) -> bool {
        self.blocks.dirty.is_used()
    }

    /// What writes do if their policy says nothing.
    #[inline]
    #[must_use]
    pub fn mode(&self) -> Mode {
        match self.writeback.mode.load(Ordering::Relaxed) {
            mode if mode == Mode::WriteBack as u8 => Mode::WriteBack,
            mode if mode == Mode::WriteAround as u8 => Mode::WriteAround,
            _ => Mode::WriteThrough,
        }
    }

    /// Changes how many slots may be dirty.
    pub fn set_dirty_limit(&self, slots: u32) {
        self.writeback.limit.store(slots, Ordering::Relaxed);
    }

    /// How many slots are dirty.
    #[must_use]
    pub fn dirty_slots(&self) -> u32 {
        self.blocks.dirty.count.load(Ordering::Relaxed)
    }

    /// What policies are told of it.
    #[must_use]
    pub fn state(&self) -> CacheState {
        let dirty = u64::from(self.dirty_slots()) * 1000;
        let per_mille = dirty.div_ceil(self.shape().slots.into());
        let writes_back = self.has_writeback() && self.is_attached() && self.mode() == Mode::WriteBack;
        CacheState {
            dirty_per_mille: u32::try_from(per_mille).unwrap_or(u32::MAX).min(1000),
            writes_back: writes_back.into(),
        }
    }

    /// Whether some of this range (`length` is not 0, and within one block) is dirty.
    #[must_use]
    pub fn is_dirty(&self, offset: u64, length: u64) -> bool {
        let regions = self.regions(offset, length);
        self.one_block(offset, length)
            .is_some_and(|block| self.blocks.dirty_regions(block) & regions != 0)
    }

    /// Starts a write of `length` bytes (not 0) at `offset`. Call it before the write is issued to either device. `mode` is
    /// what its policy says.
    #[inline]
    pub fn start_write(&self, offset: u64, length: u64, mode: Option<Mode>) -> ChangeStart {
        let mode = mode.unwrap_or_else(|| self.mode());
        let Some(block) = self.one_block(offset, length).filter(|_| self.has_writeback()) else {
            let mode = if mode == Mode::WriteBack {
                Mode::WriteThrough
            } else {
                mode
            };
            return self
                .mark_write(offset, length, mode)
                .map_or(ChangeStart::Wait, |change| ChangeStart::Marked(change, None));
        };
        let covered = Covered {
            touched: self.regions(offset, length),
            whole: self.whole_regions(offset, length),
            all: self.regions_of(block),
        };
        match self.back(block, covered, mode) {
            Ok(back) => ChangeStart::Back(BackWrite(back)),
            Err(downgrade) => self.start_beside(offset, length, mode, downgrade),
        }
    }

    /// Begins a write in the slot if that is asked for, or some of it is dirty.
    fn back(&self, block: u32, covered: Covered, mode: Mode) -> Result<Back, Option<Downgrade>> {
        let is_asked = mode == Mode::WriteBack;
        let refusal = if is_asked { self.why_not(block) } else { None };
        let is_dirty = self.blocks.dirty_regions(block) & covered.touched != 0;
        let is_sticky = is_dirty && !seam::is_left_out(Rule::StickyDirty);
        if (!is_asked || refusal.is_some()) && !is_sticky {
            return Err(refusal);
        }
        let mut why = Downgrade::Busy;
        for _ in 0..MAX_ATTEMPTS {
            why = match self.blocks.begin_back(block, covered, || self.free.pop()) {
                BackAttempt::Begun(back) => {
                    self.writeback.is_unflushed.store(true, Ordering::SeqCst);
                    return Ok(back);
                }
                BackAttempt::Lost(slot) => {
                    self.free.report(Report {
                        slot,
                        priority: Priority::Normal,
                    });
                    continue;
                }
                BackAttempt::Partial => Downgrade::Partial,
                BackAttempt::NoRoom => Downgrade::NoSlot,
                BackAttempt::Busy | BackAttempt::Refused => Downgrade::Busy,
            };
            break;
        }
        Err(is_asked.then_some(why))
    }

    /// Why a write of the block must not make it dirty.
    fn why_not(&self, block: u32) -> Option<Downgrade> {
        if !self.is_attached() {
            return Some(Downgrade::Failing);
        }
        if self.is_draining() {
            return Some(Downgrade::Limit);
        }
        let is_full = self.dirty_slots() >= self.writeback.limit.load(Ordering::Relaxed);
        (is_full && !self.blocks.entry(block).is_dirty()).then_some(Downgrade::Limit)
    }

    /// Starts a write that does not end in the slot.
    fn start_beside(
        &self,
        offset: u64,
        length: u64,
        mode: Mode,
        downgrade: Option<Downgrade>,
    ) -> ChangeStart {
        match self.mark_write(offset, length, mode) {
            Some(change) => ChangeStart::Marked(change, downgrade),
            None => self.wait_or_fail(offset, length),
        }
    }

    /// Starts a discard or write-zeroes of this range (`length` is not 0). Call it before the operation is issued.
    pub fn start_discard(&self, offset: u64, length: u64) -> ChangeStart {
        match self.mark_discard(offset, length) {
            Some(change) => ChangeStart::Marked(change, None),
            None if self.settle(offset, length) => self
                .mark_discard(offset, length)
                .map_or(ChangeStart::Wait, |change| ChangeStart::Marked(change, None)),
            None => self.wait_or_fail(offset, length),
        }
    }

    /// Starts an operation on the backing device alone that must find nothing of its range dirty.
    pub fn start_beside_dirty(&self, offset: u64, length: u64) -> ChangeStart {
        let nothing = Change {
            claim: None,
            invalidated: 0,
        };
        if self.may_be_dirty(offset, length) {
            return self.wait_or_fail(offset, length);
        }
        ChangeStart::Marked(nothing, None)
    }

    /// Whether some of this range (`length` is not 0) is dirty, or may become so with a write in flight.
    #[inline]
    #[must_use]
    pub fn may_be_dirty(&self, offset: u64, length: u64) -> bool {
        match self.one_block(offset, length) {
            Some(block) if !self.blocks.entry(block).is_dirty() => false,
            Some(_) => self.is_dirty(offset, length),
            None => self.words(offset, length).iter().any(|word| {
                let word = word.load(Ordering::SeqCst);
                ublk_bpf_abi::IndexEntry(word).is_dirty()
            }),
        }
    }

    /// The blocks of a range, first and last.
    fn blocks_of(&self, offset: u64, length: u64) -> (u32, u32) {
        let block = |offset: u64| u32::try_from(offset >> self.shape().shift).unwrap_or(u32::MAX);
        (block(offset), block(offset + (length - 1)))
    }

    /// Whether no block of a range is dirty, after those that can be are made present.
    fn settle(&self, offset: u64, length: u64) -> bool {
        let (first, last) = self.blocks_of(offset, length);
        (first..=last).all(|block| self.blocks.settle(block, self.regions_of(block)))
    }

    /// A dirty block is in the way of a change. Asks the mover to clean what the change would otherwise wait for in vain.
    #[cold]
    fn wait_or_fail(&self, offset: u64, length: u64) -> ChangeStart {
        let (first, last) = self.blocks_of(offset, length);
        if self.is_stuck(first, last) {
            return ChangeStart::Stuck;
        }
        if self.writeback.urgent.push((first, last)).is_err() {
            self.writeback.is_all_urgent.store(true, Ordering::SeqCst);
        }
        ChangeStart::Wait
    }

    /// Whether one of these blocks is dirty, and cannot be cleaned.
    fn is_stuck(&self, first: u32, last: u32) -> bool {
        (first..=last)
            .any(|block| self.blocks.dirty.stuck.contains(block) && self.blocks.entry(block).is_dirty())
    }

    /// Whether requests wait for the mover: for blocks that it has yet to learn of, or for room in the log.
    pub(super) fn has_waiting(&self) -> bool {
        self.has_urgent() || self.writeback.is_log_full.load(Ordering::SeqCst)
    }

    /// Whether the mover has yet to learn of blocks to clean.
    pub(super) fn has_urgent(&self) -> bool {
        !self.writeback.urgent.is_empty() || self.writeback.is_all_urgent.load(Ordering::SeqCst)
    }

    /// Registers `queue` to be woken when the change may be able to start. `false`: start it again now. As with
    /// [`wait_for_fill`](Self::wait_for_fill), it may be woken for nothing.
    #[must_use]
    pub fn wait_to_change(&self, offset: u64, length: u64, queue: u16) -> bool {
        let (first, last) = self.blocks_of(offset, length);
        let dirty = (first..=last).find(|&block| self.blocks.entry(block).is_dirty());
        dirty.is_some_and(|block| {
            let slot = self.blocks.entry(block).slot();
            self.blocks.waiters.register(slot, queue);
            // The mover may have given up, and woken those who waited then.
            let is_waiting = self.blocks.entry(block).is_dirty() && !self.is_stuck(first, last);
            is_waiting && (self.blocks.dirty.of(slot) != 0 || self.blocks.slots.busy(slot) != 0)
        })
    }

    /// Ends a write of this range to its slot. Returns whether the mover should be woken.
    pub fn end_back(&self, offset: u64, length: u64, write: BackWrite, end: BackEnd) -> bool {
        let Some(block) = self.one_block(offset, length) else {
            debug_assert!(false, "a slot of two blocks");
            return false;
        };
        if !self.writeback.is_unflushed.load(Ordering::SeqCst) {
            self.writeback.is_unflushed.store(true, Ordering::SeqCst);
        }
        let BackWrite(back) = write;
        let regions = (self.regions(offset, length), self.regions_of(block));
        self.blocks.end_back(block, &back, regions, end);
        if end == BackEnd::WrittenAround {
            self.count_passed();
        }
        if back.is_new {
            self.free.report(Report {
                slot: back.slot,
                priority: Priority::Normal,
            });
        }
        back.is_new && self.free.want_mover()
    }

    /// The backing device has completed a write, discard or write-zeroes that a flush of it makes durable. Call it before the
    /// request is answered.
    #[inline]
    pub fn count_passed(&self) {
        if self.has_writeback() {
            self.writeback.passed.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A flush of the backing device may be owed to an earlier server's clients.
    pub fn assume_passed(&self) {
        self.count_passed();
    }

    /// What a flush of the backing device that is issued now makes durable, if anything: pass it to
    /// [`backing_flushed`](Self::backing_flushed) when that has succeeded.
    #[must_use]
    pub fn owed_to_backing(&self) -> Option<u64> {
        let passed = self.writeback.passed.load(Ordering::SeqCst);
        (self.writeback.flushed.load(Ordering::SeqCst) < passed).then_some(passed)
    }

    /// A flush of the backing device has succeeded that was issued when so much was [owed](Self::owed_to_backing).
    pub fn backing_flushed(&self, passed: u64) {
        self.writeback.flushed.fetch_max(passed, Ordering::SeqCst);
    }
}
