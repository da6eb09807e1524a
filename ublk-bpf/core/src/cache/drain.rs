//! Limits of cleaning, and drains: they clean everything, while nothing becomes dirty.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::shared::{Cache, Mode};

/// When dirty blocks are cleaned, and how many there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CleanLimits {
    /// Dirty slots below which nothing is cleaned, unless no request has arrived for a second or one waits for it.
    pub low: u32,
    /// Dirty slots that there may be: writes that would make more of them dirty end on the backing device.
    pub high: u32,
    /// Bytes a second that are cleaned at most, but for what requests wait for; `None`: no limit.
    pub rate: Option<u64>,
}

impl CleanLimits {
    /// Where this percentage of so many slots may be dirty: cleaning begins at half of that.
    #[must_use]
    pub fn of(slots: u32, percent: u8) -> Self {
        let high = u64::from(slots) * u64::from(percent) / 100;
        let high = u32::try_from(high).unwrap_or(u32::MAX).max(1);
        Self {
            low: high / 2,
            high,
            rate: None,
        }
    }
}

/// A rate that stands for none.
pub(super) const UNLIMITED: u64 = u64::MAX;

/// How far a drain has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DrainProgress {
    /// Dirty blocks.
    pub blocks: u32,
    /// Bytes of them that the backing device lacks, in whole regions.
    pub bytes: u64,
    /// Of these blocks, those that could not be cleaned: a device fails. They are tried again.
    pub stuck: u32,
    /// Nothing is dirty, nor will be before the drain is ended.
    pub is_done: bool,
}

/// A dirty range that cannot be written back: one of the devices fails. It is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailingRange {
    /// Its first byte, on the device.
    pub offset: u64,
    /// Its bytes, in whole regions.
    pub bytes: u64,
    /// The cache device cannot be read there, so that reads of it fail; otherwise the backing cannot be written.
    pub is_unreadable: bool,
}

impl Cache<'_> {
    /// The first so many dirty ranges that cannot be written back, in the order of their offsets. A range ends with its block.
    #[must_use]
    pub fn failing_ranges(&self, most: usize) -> Vec<FailingRange> {
        let stuck = |from| self.blocks.dirty.stuck.next(from);
        let blocks = std::iter::successors(stuck(0), |&last| stuck(last + 1));
        blocks
            .flat_map(|block| self.failing_in(block))
            .take(most)
            .collect()
    }

    /// The dirty ranges of a block.
    fn failing_in(&self, block: u32) -> Vec<FailingRange> {
        let (dirty, entry) = (&self.blocks.dirty, self.blocks.entry(block));
        let regions = if entry.is_dirty() {
            dirty.get(entry.slot()).dirty()
        } else {
            0
        };
        let is_unreadable = dirty.unreadable.contains(block);
        let mut ranges: Vec<FailingRange> = Vec::new();
        for region in (0..u64::from(u16::BITS)).filter(|region| regions >> region & 1 == 1) {
            let offset = u64::from(block) * self.block_bytes() + region * self.region_bytes();
            match ranges.last_mut() {
                Some(last) if last.offset + last.bytes == offset => last.bytes += self.region_bytes(),
                _ => ranges.push(FailingRange {
                    offset,
                    bytes: self.region_bytes(),
                    is_unreadable,
                }),
            }
        }
        ranges
    }

    /// Changes when dirty blocks are cleaned, and how many there may be. The mover follows at its next poll.
    pub fn limit_cleaning(&self, limits: CleanLimits) {
        self.set_dirty_limit(limits.high);
        let writeback = &self.writeback;
        writeback.low.store(limits.low, Ordering::Relaxed);
        let rate = limits.rate.unwrap_or(UNLIMITED);
        writeback.rate.store(rate, Ordering::Relaxed);
    }

    /// The limits in force.
    #[must_use]
    pub fn clean_limits(&self) -> CleanLimits {
        let writeback = &self.writeback;
        let rate = writeback.rate.load(Ordering::Relaxed);
        CleanLimits {
            low: writeback.low.load(Ordering::Relaxed),
            high: writeback.limit.load(Ordering::Relaxed),
            rate: (rate != UNLIMITED).then_some(rate),
        }
    }

    /// Has the mover clean everything, as fast as the limit allows, until [`end_drain`](Self::end_drain). Nothing becomes dirty
    /// meanwhile: writes that were to end in a slot end on the backing device, and one of dirty regions waits until they are
    /// clean, unless a device fails that. The mover follows at its next poll, at most a second later.
    pub fn start_drain(&self) {
        self.blocks.dirty.is_closed.store(true, Ordering::SeqCst);
        self.writeback.drains.fetch_add(1, Ordering::SeqCst);
    }

    /// Has the mover clean once what is dirty by now, as fast as the limit allows: nothing is to be dirty in this mode.
    pub fn write_all_back(&self) {
        self.writeback.is_leaving.store(true, Ordering::SeqCst);
    }

    /// Ends a drain, whether or not it is done: writes may end in slots again.
    pub fn end_drain(&self) {
        self.blocks.dirty.is_closed.store(false, Ordering::SeqCst);
    }

    /// Whether a drain has started and was not ended.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.blocks.dirty.is_closed()
    }

    /// How far a drain has come; without one, what it would have to clean.
    #[must_use]
    pub fn drain_progress(&self) -> DrainProgress {
        let dirty = &self.blocks.dirty;
        DrainProgress {
            blocks: dirty.count.load(Ordering::Relaxed),
            bytes: dirty.regions.load(Ordering::Relaxed) * self.region_bytes(),
            stuck: self.writeback.stuck_blocks.load(Ordering::Relaxed),
            is_done: self.is_draining() && self.is_drained(),
        }
    }

    /// Whether the mover cleans everything, whatever the limits say: for a drain, or once because the mode is no longer
    /// write-back.
    pub(super) fn must_clean_all(&self) -> bool {
        let is_leaving = self.writeback.is_leaving.load(Ordering::SeqCst);
        if is_leaving && self.dirty_slots() == 0 {
            self.writeback.is_leaving.store(false, Ordering::SeqCst);
        }
        is_leaving || self.is_draining()
    }

    fn is_drained(&self) -> bool {
        let writeback = &self.writeback;
        let started = writeback.drains.load(Ordering::SeqCst);
        writeback.drained.load(Ordering::SeqCst) == started
    }

    /// Changes what writes do from now on if their policy says nothing. If they ended in slots, the mover cleans what is dirty by
    /// now.
    pub fn set_mode(&self, mode: Mode) {
        let before = self.writeback.mode.swap(mode as u8, Ordering::SeqCst);
        if before == Mode::WriteBack as u8 && mode != Mode::WriteBack {
            self.write_all_back();
        }
    }
}
