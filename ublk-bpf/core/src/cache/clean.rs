//! Cleaning: dirty regions are copied to the backing device, and are clean once that has them durably.
//!
//! A copy is one run of adjacent dirty regions of a block. It is read from the slot, and written to the backing device if no
//! write of the slot has begun meanwhile. One flush of the backing device ends all copies that were written before it was
//! issued; a region that was written again since its copy began stays dirty.

use std::collections::HashMap;
use std::time::Duration;

use super::blocks::first_run;
use super::fills::Fill;
use super::shared::Cache;
use crate::errno::Errno;

/// Copies in flight at once.
pub(super) const MAX_COPIES: usize = 16;
/// Copies that wait for a flush, at most.
const MAX_WRITTEN: usize = 64;
/// How often an operation is issued again, after an interruption or a short transfer.
const MAX_RETRIES: u8 = 16;

/// A block that could not be cleaned is tried again after so long, then after twice as long each time, up to 64 times.
const RETRY: Duration = Duration::from_secs(1);
const MAX_DOUBLINGS: u32 = 6;

/// What there is to clean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// Only what requests wait for.
    Urgent,
    /// All that is dirty, in the order of its addresses.
    All,
}

/// An operation of a copy, or the flush for all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CleanIo {
    /// From the cache device to the buffer of a copy.
    Load { copy: usize, offset: u64, len: u32 },
    /// From there to the backing device.
    Store { copy: usize, offset: u64, len: u32 },
    /// Flush the backing device.
    Flush,
}

#[derive(Clone, Copy, Debug)]
struct Copy {
    span: Fill,
    generation: u32,
    is_loaded: bool,
    retries: u8,
}

/// A block that cannot be cleaned.
#[derive(Clone, Copy, Debug, Default)]
struct Failing {
    tries: u32,
    until: Duration,
}

/// The copies of one device's mover.
#[derive(Debug)]
pub(super) struct Cleaner<'c, 'm> {
    cache: &'c Cache<'m>,
    copies: [Option<Copy>; MAX_COPIES],
    /// Copies that the backing device has, in the order of their completion.
    written: Vec<Copy>,
    /// How many of these the flush in flight is for.
    flushing: usize,
    /// Ranges that requests wait for.
    urgent: Vec<(u32, u32)>,
    /// Where the next copy is looked for.
    hand: u32,
    failing: HashMap<u32, Failing>,
    now: Duration,
    /// The last look for something to clean found nothing that may begin.
    is_through: bool,
}

impl<'c, 'm> Cleaner<'c, 'm> {
    pub(super) fn new(cache: &'c Cache<'m>) -> Self {
        Self {
            cache,
            copies: [None; MAX_COPIES],
            written: Vec::with_capacity(MAX_WRITTEN + MAX_COPIES),
            flushing: 0,
            urgent: Vec::new(),
            hand: 0,
            failing: HashMap::new(),
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
        self.failing.values_mut().for_each(|of| of.until = Duration::ZERO);
    }

    /// The next operation to carry out; `None`: nothing is wanted, or all that may be is in flight.
    pub(super) fn next(&mut self, want: Want, now: Duration) -> Option<CleanIo> {
        self.now = now;
        self.is_through = false;
        self.take_urgent();
        let free = self.copies.iter().position(Option::is_none);
        if let Some(copy) = free.filter(|_| self.written.len() < MAX_WRITTEN)
            && let Some(begun) = self.begin(want)
        {
            self.copies[copy] = Some(begun);
            return Some(begun.io(copy));
        }
        self.is_through = want == Want::All;
        self.finish()
    }

    /// The flush that ends what was copied; no other copy begins.
    pub(super) fn finish(&mut self) -> Option<CleanIo> {
        // Many copies share a flush: all that can be begun have begun.
        let may_flush = self.flushing == 0 && self.copies.iter().all(Option::is_none);
        if !may_flush || self.written.is_empty() {
            return None;
        }
        self.flushing = self.written.len();
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

    fn begin(&mut self, want: Want) -> Option<Copy> {
        let mut urgent = std::mem::take(&mut self.urgent);
        // A range is done with when nothing of it is dirty; what is being copied is not.
        let mut found = None;
        urgent.retain(|&(first, last)| {
            found.is_some() || {
                let (copy, is_clean) = self.find(first, last);
                found = copy;
                !is_clean
            }
        });
        self.urgent = urgent;
        if found.is_some() || want == Want::Urgent {
            return found;
        }
        let (ahead, _) = self.find(self.hand, u32::MAX);
        let found = ahead.or_else(|| self.find(0, self.hand).0);
        self.hand = found.map_or(0, |copy| copy.span.block.saturating_add(1));
        found
    }

    /// A copy that can begin now among these blocks, and whether none of them is dirty.
    fn find(&mut self, first: u32, last: u32) -> (Option<Copy>, bool) {
        let cache = self.cache;
        let (blocks, dirty) = (&cache.blocks, &cache.blocks.dirty);
        let mut is_clean = true;
        let mut from = first;
        while let Some(block) = dirty.blocks.next(from).filter(|&block| block <= last) {
            from = block + 1;
            let failing = self.failing.get(&block);
            if self.is_copied(block) || failing.is_some_and(|of| of.until > self.now) {
                is_clean = false;
                continue;
            }
            if let Some((slot, regions, generation)) = blocks.begin_clean(block) {
                let span = self.cache.span(block, slot, first_run(regions));
                let copy = Copy {
                    span,
                    generation,
                    is_loaded: false,
                    retries: 0,
                };
                return (Some(copy), false);
            }
            is_clean &= self.forget(block);
        }
        (None, is_clean)
    }

    /// Two copies of a block at once could be written in the wrong order.
    fn is_copied(&self, block: u32) -> bool {
        let copies = self.copies.iter().flatten().chain(&self.written);
        copies.into_iter().any(|copy| copy.span.block == block)
    }

    /// Takes a block out of the dirty ones, if it is not. Returns whether it is not.
    fn forget(&mut self, block: u32) -> bool {
        let cache = self.cache;
        let blocks = &cache.blocks;
        if !blocks.settle(block, self.cache.regions_of(block)) {
            return false;
        }
        blocks.dirty.blocks.remove(block);
        cache.writeback.stuck.remove(block);
        self.failing.remove(&block);
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
        let mut copy = self.copies[number].take()?;
        let is_whole = result.cast_unsigned() == len;
        let may_retry = match Errno::of_result(result) {
            None => true,
            Some(errno) => matches!(errno, Errno::EAGAIN | Errno::EINTR),
        };
        if !is_whole && may_retry && copy.retries < MAX_RETRIES {
            copy.retries += 1;
        } else if !is_whole {
            self.give_up(&copy);
            return None;
        } else if copy.is_loaded {
            self.written.push(copy);
            return None;
        } else if self.cache.blocks.is_same(copy.span.slot, copy.generation) {
            copy.is_loaded = true;
            copy.retries = 0;
        } else {
            // What was read may be half of a write.
            return None;
        }
        self.copies[number] = Some(copy);
        Some(copy.io(number))
    }

    /// A device has failed a copy: what is dirty stays so, and requests that wait for the block fail.
    #[cold]
    fn give_up(&mut self, copy: &Copy) {
        let failing = self.failing.entry(copy.span.block).or_default();
        failing.until = self.now + RETRY * (1 << failing.tries.min(MAX_DOUBLINGS));
        failing.tries += 1;
        self.cache.writeback.stuck.insert(copy.span.block);
        self.cache.blocks.waiters.wake(copy.span.slot);
    }

    fn flushed(&mut self, result: i32) {
        let copies: Vec<Copy> = self.written.drain(..std::mem::take(&mut self.flushing)).collect();
        for copy in copies {
            if result < 0 {
                self.give_up(&copy);
                continue;
            }
            let Fill {
                block, slot, regions, ..
            } = copy.span;
            self.cache.blocks.end_clean(slot, (regions, copy.generation));
            self.forget(block);
        }
    }
}

impl Copy {
    const fn io(&self, copy: usize) -> CleanIo {
        let len = self.span.length;
        if self.is_loaded {
            let offset = self.span.offset;
            CleanIo::Store { copy, offset, len }
        } else {
            let offset = self.span.slot_offset;
            CleanIo::Load { copy, offset, len }
        }
    }
}
