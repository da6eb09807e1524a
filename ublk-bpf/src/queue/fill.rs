//! The fills that a queue has in progress, and the tags that wait for one.

use std::collections::VecDeque;

use ublk_bpf_abi::{Extent, Priority};

use super::event::{FillBuffer, FillIo, Tier};
use super::verdict::{Advice, Advised};
use crate::cache::{Cache, Fill};
use crate::errno::Errno;

/// How often in a row an operation of a fill is issued again, after an interruption or for the rest of a short one.
const MAX_RETRIES: u8 = 16;

/// No tag.
const NONE: u16 = u16::MAX;

/// What a fill's buffer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing.
    Free,
    /// The backing device is being read.
    Loading,
    /// It has the data, which is being stored in the slot.
    Storing,
    /// It has the data, and is kept for reads that have not copied it yet.
    Loaded,
    /// It has none: its readers start again without it.
    Failed,
}

/// What follows an operation of a fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FillNext {
    /// The rest of the operation.
    Issue,
    /// The operation is whole.
    Done,
    Failed(Errno),
}

/// A fill in progress.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filling {
    pub(super) stage: Stage,
    /// What it fills; `None` if the buffer is free.
    pub(super) of: Option<Fill>,
    /// Bytes that the present operation has moved.
    moved: u32,
    retries: u8,
    /// The file that its operation is on was truncated below its range: the result means nothing.
    is_cut: bool,
    /// Reads that have yet to copy from the buffer.
    readers: u16,
    /// Of these, the ones that wait for the data: first and last of a list.
    first: u16,
    last: u16,
}

impl Filling {
    const IDLE: Self = Self {
        stage: Stage::Free,
        of: None,
        moved: 0,
        retries: 0,
        is_cut: false,
        readers: 0,
        first: NONE,
        last: NONE,
    };

    /// Whether an operation of it is in flight, so that its regions are claimed.
    pub(super) const fn is_busy(&self) -> bool {
        matches!(self.stage, Stage::Loading | Stage::Storing)
    }

    /// The operation to issue. `in_block` is the position in the buffer of a byte of the backing device.
    pub(super) fn io(&self, in_block: impl Fn(u64) -> u32) -> Option<FillIo> {
        let fill = self.of?;
        let skip = in_block(fill.offset) + self.moved;
        let len = fill.length - self.moved;
        let moved = u64::from(self.moved);
        match self.stage {
            Stage::Loading => Some(FillIo::Load {
                offset: fill.offset + moved,
                skip,
                len,
            }),
            Stage::Storing => Some(FillIo::Store {
                offset: fill.slot_offset + moved,
                skip,
                len,
            }),
            Stage::Free | Stage::Loaded | Stage::Failed => None,
        }
    }

    /// Takes in the result of the operation that was issued. Direct I/O goes on at a multiple of `block_mask` plus one.
    pub(super) fn advance(&mut self, result: i32, block_mask: u32) -> FillNext {
        let Some(fill) = self.of.filter(|_| !self.is_cut) else {
            return FillNext::Failed(Errno::EIO);
        };
        let asked = fill.length - self.moved;
        let bytes = result.unsigned_abs();
        match Errno::of_result(result) {
            None if bytes == asked => {
                (self.moved, self.retries) = (0, 0);
                return FillNext::Done;
            }
            Some(Errno::EAGAIN | Errno::EINTR) if self.retries < MAX_RETRIES => self.retries += 1,
            None if (1..asked).contains(&bytes) && self.retries < MAX_RETRIES => {
                self.retries += 1;
                self.moved += bytes & !block_mask;
            }
            errno => return FillNext::Failed(errno.unwrap_or(Errno::EIO)),
        }
        FillNext::Issue
    }
}

/// A fixed number of buffers of a cache block each, the fills that have one, and the tags that wait.
///
/// A tag waits at most once: for the data of one fill, in its list, or *parked*, for the end of a claim that gives it
/// nothing: of another queue, of the mover, or of several fills.
#[derive(Debug)]
pub(super) struct Fills {
    fills: Box<[Filling]>,
    /// Buffers that no fill has, one bit each.
    free: u64,
    /// Fills with an operation in flight, one bit each.
    busy: u64,
    /// For each tag that waits for a fill: the next that does.
    next: Box<[u16]>,
    parked: VecDeque<u16>,
}

impl Fills {
    /// `buffers` free ones, at most 64, and room for every tag to wait.
    pub(super) fn new(buffers: u16, depth: u16) -> Self {
        Self {
            fills: vec![Filling::IDLE; usize::from(buffers)].into_boxed_slice(),
            free: (0..buffers).fold(0, |free, number| free | 1 << number),
            busy: 0,
            next: vec![NONE; usize::from(depth)].into_boxed_slice(),
            parked: VecDeque::with_capacity(usize::from(depth)),
        }
    }

    pub(super) fn get(&mut self, fill: FillBuffer) -> &mut Filling {
        &mut self.fills[usize::from(fill.0)]
    }

    /// Whether a fill may begin.
    pub(super) const fn has_room(&self) -> bool {
        self.free != 0
    }

    /// Whether no operation of a fill is in flight.
    pub(super) const fn is_idle(&self) -> bool {
        self.busy == 0
    }

    /// A fill begins, in a buffer that is free: see [`has_room`](Self::has_room).
    pub(super) fn begin(&mut self, of: Fill) -> FillBuffer {
        let fill = lowest(self.free);
        self.free &= self.free - 1;
        self.busy |= 1 << fill.0;
        *self.get(fill) = Filling {
            stage: Stage::Loading,
            of: Some(of),
            ..Filling::IDLE
        };
        fill
    }

    /// The operations of a fill have ended, and its claim. The buffer stays for its readers.
    pub(super) fn end(&mut self, fill: FillBuffer, stage: Stage) {
        self.busy &= !(1 << fill.0);
        self.get(fill).stage = stage;
        self.free_unread(fill);
    }

    /// The fill, with an operation in flight, that has all of these bytes, and that no write has overtaken.
    pub(super) fn find(&self, cache: &Cache<'_>, offset: u64, length: u64) -> Option<(FillBuffer, Fill)> {
        let mut left = self.busy;
        while left != 0 {
            let buffer = lowest(left);
            left &= left - 1;
            let Some(fill) = self.fills[usize::from(buffer.0)].of else {
                continue;
            };
            let end = fill.offset + u64::from(fill.length);
            if fill.offset <= offset && offset + length <= end && cache.is_current(&fill) {
                return Some((buffer, fill));
            }
        }
        None
    }

    /// A read is to copy from the buffer.
    pub(super) fn add_reader(&mut self, fill: FillBuffer) {
        self.get(fill).readers += 1;
    }

    /// A reader has copied what it needs, or needs nothing any longer.
    pub(super) fn remove_reader(&mut self, fill: FillBuffer) {
        self.get(fill).readers -= 1;
        self.free_unread(fill);
    }

    fn free_unread(&mut self, fill: FillBuffer) {
        let of = self.get(fill);
        if of.readers == 0 && !of.is_busy() && of.stage != Stage::Free {
            *of = Filling::IDLE;
            self.free |= 1 << fill.0;
        }
    }

    /// A reader waits for the data.
    pub(super) fn wait(&mut self, fill: FillBuffer, tag: u16) {
        self.next[usize::from(tag)] = NONE;
        let of = &mut self.fills[usize::from(fill.0)];
        if of.first == NONE {
            of.first = tag;
        } else {
            self.next[usize::from(of.last)] = tag;
        }
        of.last = tag;
    }

    /// The reader of a fill that has waited longest, who stops waiting.
    pub(super) fn next_waiter(&mut self, fill: FillBuffer) -> Option<u16> {
        let of = &mut self.fills[usize::from(fill.0)];
        let tag = of.first;
        if tag == NONE {
            return None;
        }
        of.first = self.next[usize::from(tag)];
        Some(tag)
    }

    /// Any reader that waits for the data of a fill, who stops waiting.
    pub(super) fn evict_waiter(&mut self) -> Option<u16> {
        let mut buffers = (0..).map(FillBuffer).zip(&self.fills);
        let (waited_for, _) = buffers.find(|(_, fill)| fill.first != NONE)?;
        self.next_waiter(waited_for)
    }

    /// A tag waits for the end of some claim.
    pub(super) fn park(&mut self, tag: u16) {
        self.parked.push_back(tag);
    }

    /// Parked tags.
    pub(super) fn parked(&self) -> usize {
        self.parked.len()
    }

    /// The tag that has been parked longest, which is not parked any longer.
    pub(super) fn unpark(&mut self) -> Option<u16> {
        self.parked.pop_front()
    }

    /// A device's file was truncated to `end`: marks the fills that this concerns.
    #[cold]
    pub(super) fn cut(&mut self, device: Tier, end: u64) {
        for filling in &mut self.fills {
            let Some(fill) = filling.of else { continue };
            filling.is_cut |= match device {
                Tier::Backing => {
                    filling.stage == Stage::Loading && fill.offset + u64::from(fill.length) > end
                }
                // Wherever it is: the cache was detached.
                Tier::Cache => filling.stage == Stage::Storing,
            };
        }
    }
}

/// The buffer of the lowest bit of `mask`, which is not 0.
#[expect(clippy::cast_possible_truncation, reason = "one of 64")]
const fn lowest(mask: u64) -> FillBuffer {
    FillBuffer(mask.trailing_zeros() as u16)
}

/// What the policy wants of the cache for a read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    /// Fill this much of the block, if it misses.
    pub(super) extent: Option<Extent>,
    /// Promote the block, if it misses and does not fill.
    pub(super) promote: Option<Priority>,
    /// The verdict was a hit.
    pub(super) is_hit: bool,
    /// How often it has waited for the end of a claim.
    pub(super) waits: u8,
}

impl Wish {
    pub(super) fn of(advised: &Advised) -> Self {
        Self {
            extent: advised.fill,
            promote: advised.promote,
            is_hit: advised.advice == Advice::Hit,
            waits: 0,
        }
    }

    /// Of a plain hit.
    pub(super) const HIT: Self = Self {
        extent: None,
        promote: None,
        is_hit: true,
        waits: 0,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiters_of_a_fill_leave_in_order() {
        let mut fills = Fills::new(64, 8);
        assert!(fills.has_room() && fills.is_idle());
        let fill = FillBuffer(3);
        for tag in [5, 0, 7] {
            fills.wait(fill, tag);
        }
        fills.wait(FillBuffer(63), 1);
        assert_eq!(fills.next_waiter(fill), Some(5));
        assert_eq!(fills.evict_waiter(), Some(0));
        fills.wait(fill, 5);
        assert_eq!(
            (fills.next_waiter(fill), fills.next_waiter(fill)),
            (Some(7), Some(5))
        );
        assert_eq!((fills.next_waiter(fill), fills.evict_waiter()), (None, Some(1)));
        assert_eq!(fills.evict_waiter(), None);
    }

    #[test]
    fn without_buffers_there_is_no_room() {
        assert!(!Fills::new(0, 8).has_room());
        assert!(Fills::new(1, 8).has_room());
    }
}
