//! Fills by the miss: a read that missed brings its block, or regions of it, into the cache with the data that it reads
//! anyway.

use std::sync::atomic::Ordering;

use ublk_bpf_abi::{Extent, Priority};

use super::blocks::{FillAttempt, WantedRegions, granule, granules};
use super::free::Report;
use super::shared::Cache;

/// Bytes of a queue's fill buffers, but at least one buffer and at most [`MAX_FILL_BUFFERS`].
const FILL_BYTES: u32 = 8 << 20;
/// Fill buffers of a queue at most.
pub const MAX_FILL_BUFFERS: u16 = 64;

/// Fill buffers of a queue, each of a cache block of `1 << shift` bytes.
#[must_use]
pub fn fill_buffers(shift: u32) -> u16 {
    let buffers = u16::try_from(FILL_BYTES >> shift).unwrap_or(u16::MAX);
    buffers.clamp(1, MAX_FILL_BUFFERS)
}

/// How often a fill is begun again because its absent block changed.
const MAX_ATTEMPTS: u32 = 4;

/// A fill in progress: a claim of `regions` of its block. [`Cache::end_fill`] ends it.
///
/// Read `length` bytes at `offset` of the backing device into a buffer, and then store all of them at `slot_offset` of the
/// cache device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "its regions stay claimed until it has ended"]
pub struct Fill {
    /// First byte on the backing device.
    pub offset: u64,
    /// Bytes: whole regions, or to the end of the device.
    pub length: u32,
    /// First byte on the cache device.
    pub slot_offset: u64,
    pub(super) block: u32,
    pub(super) slot: u32,
    pub(super) regions: u16,
    /// If it brings the block in: how to report that.
    pub(super) report: Option<Report>,
}

/// What [`Cache::begin_fill`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a fill that has begun must be ended"]
pub enum FillStart {
    /// Read this from the backing device. It covers all of the request that could not be read from the cache.
    Begun(Fill),
    /// Some of the range is being filled. Wait for the end of that fill: see [`Cache::wait_for_fill`].
    Busy,
    /// All of the range can be read from the cache.
    Readable,
    /// There is no free slot, the block is yet to be verified, or some of what is missing is apart from the rest. Read from
    /// the backing device, and wake the mover. If all of the block is wanted, [hint](Cache::hint) it: the mover would fill
    /// all of it.
    Later,
    /// It is being written, the promotion limit leaves nothing for it, or the cache is detached. Read from the backing device.
    Refused,
}

/// What the end of a fill did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FillEnd {
    /// Whether the regions can be read from the slot. Not if the fill failed, or a write overtook it.
    pub is_published: bool,
    /// The mover should be woken, if [`Cache::must_wake`] says so: free slots have become few.
    pub wants_mover: bool,
}

impl Cache<'_> {
    /// Begins to fill what a read of `length` bytes (not 0) at `offset` could not find in the cache, and as much around it as
    /// `extent` says. The backing device is to be read after this call.
    pub fn begin_fill(&self, offset: u64, length: u64, extent: Extent, priority: Priority) -> FillStart {
        let Some(block) = self.one_block(offset, length).filter(|_| self.is_attached()) else {
            return FillStart::Refused;
        };
        let touched = self.regions(offset, length);
        if self.free.are_too_dear(self.heat(block)) && !self.blocks.is_being_filled(block, touched) {
            // Not a hint: the next miss fills with the one read that it is, a promotion reads a second time.
            return FillStart::Refused;
        }
        let wish = self.wish(block, touched, extent);
        for _ in 0..MAX_ATTEMPTS {
            let (slot, regions, is_new) = match self.blocks.begin_fill(block, &wish, || self.free.pop()) {
                FillAttempt::Begun {
                    slot,
                    regions,
                    is_new,
                } => (slot, regions, is_new),
                FillAttempt::Busy => return FillStart::Busy,
                FillAttempt::Readable => return FillStart::Readable,
                FillAttempt::NoRoom | FillAttempt::Unverified | FillAttempt::Scattered => {
                    return FillStart::Later;
                }
                FillAttempt::Written => return FillStart::Refused,
                FillAttempt::Lost(slot) => {
                    self.free.report(Report { slot, priority });
                    continue;
                }
            };
            return FillStart::Begun(self.fill(block, slot, regions, is_new.then_some(priority)));
        }
        FillStart::Refused
    }

    /// A fill that has begun. `new`: it brings its block in.
    pub(super) fn fill(&self, block: u32, slot: u32, regions: u16, new: Option<Priority>) -> Fill {
        let mut fill = self.span(block, slot, regions);
        self.free.spend(fill.length);
        fill.report = new.map(|priority| Report { slot, priority });
        fill
    }

    /// Where claimed regions are, which adjoin.
    pub(super) fn span(&self, block: u32, slot: u32, regions: u16) -> Fill {
        let first = u64::from(regions.trailing_zeros()) * self.region_bytes();
        let end = u64::from(u16::BITS - regions.leading_zeros()) * self.region_bytes();
        let end = end.min(self.length_of(block).into());
        Fill {
            offset: self.block_offset(block) + first,
            length: u32::try_from(end - first).unwrap_or(u32::MAX),
            slot_offset: self.slot_offset(slot) + first,
            block,
            slot,
            regions,
            report: None,
        }
    }

    /// Whether free slots have become few, and the mover can add some. Ask after a fill has begun.
    #[must_use]
    pub fn is_short_of_slots(&self) -> bool {
        self.free.are_few() && self.free.out.load(Ordering::Relaxed) < self.free.most()
    }

    /// Whether the fill's buffer has what a read should find that arrives now: whether no write has overtaken the fill. A read
    /// that arrived while it was so may be served from the buffer at any later time.
    #[must_use]
    pub fn is_current(&self, fill: &Fill) -> bool {
        self.blocks.is_in(fill.block, fill.slot)
    }

    /// Ends a fill. `is_stored`: all of its data was read and is in the slot. Call it as well if it was abandoned.
    pub fn end_fill(&self, fill: &Fill, is_stored: bool) -> FillEnd {
        let is_published = self.publish(fill, is_stored);
        if let Some(report) = fill.report {
            self.free.report(report);
        }
        FillEnd {
            is_published,
            wants_mover: fill.report.is_some() && self.free.want_mover(),
        }
    }

    /// Ends the claim of a fill. Returns whether it is published.
    pub(super) fn publish(&self, fill: &Fill, is_stored: bool) -> bool {
        let valid = if is_stored { fill.regions } else { 0 };
        let all = self.regions_of(fill.block);
        self.blocks
            .end_fill(fill.block, fill.slot, (fill.regions, valid), all)
    }

    /// Registers `queue` to be woken when a fill of this range ends: once, by the thread that finds it in
    /// [`take_woken`](Cache::take_woken). `false`: look again now, with [`begin_read`](Cache::begin_read) first.
    ///
    /// A queue may be woken for nothing. It then looks again, and may wait again. When its device is ending, or the cache is
    /// detached, it must not wait.
    #[must_use]
    pub fn wait_for_fill(&self, offset: u64, length: u64, queue: u16) -> bool {
        let Some(block) = self.one_block(offset, length) else {
            return false;
        };
        let regions = self.regions(offset, length);
        self.blocks.wait_for_fill(block, regions, queue) && self.is_attached()
    }

    /// A wish for these regions of a block, and what `extent` covers around them.
    pub(super) fn wish(&self, block: u32, needed: u16, extent: Extent) -> WantedRegions {
        let all = self.regions_of(block);
        let wanted = granules(granule(self.shape().shift), |granule| granule & needed != 0);
        WantedRegions {
            needed,
            wanted: extent.cover(wanted) & all,
            all,
        }
    }

    /// The granules of a block all of which is `valid`.
    pub(super) fn granules_within(&self, block: u32, valid: u16) -> u16 {
        let all = self.regions_of(block);
        all & granules(granule(self.shape().shift), |granule| granule & all & !valid == 0)
    }
}

#[cfg(test)]
mod tests;
