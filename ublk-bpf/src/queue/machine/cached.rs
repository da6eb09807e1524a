//! The machine's use of the cache.

use ublk_bpf_abi::Priority;

use super::{Action, BlockRequest, Errno, InFlight, Legs, Machine, Next, SECTOR_SIZE};
use crate::cache::{BackEnd, Cache, CacheFailure, ChangeStart, Hinted};
use crate::queue::event::Direct;
use crate::queue::fill::Wish;
use crate::queue::legs::Fallback;

impl<'w> Machine<'w> {
    /// Starts a read with a hit verdict. The server checks the index itself: the block may have been evicted.
    #[inline(always)]
    pub(super) fn hit(&mut self, tag: u16, request: &BlockRequest) -> Option<Direct> {
        let pinned = self.cache.and_then(|cache| {
            let pin = cache.begin_read(request.offset, request.length)?;
            Some((pin, cache.slot_delta(pin, request.offset)))
        });
        let Some((pin, slot_delta)) = pinned else {
            self.lost_hit(tag, *request);
            return None;
        };
        self.counters.hits += 1;
        self.counters.hit_bytes += request.length;
        self.tags.slot(tag).in_flight = InFlight::hit(request, pin, slot_delta);
        Some(request.direct_on_slot(slot_delta))
    }

    #[cold]
    #[inline(never)]
    fn lost_hit(&mut self, tag: u16, request: BlockRequest) {
        self.read_cached(tag, &request, Wish::HIT);
    }

    /// Takes in how the change of a request starts. Returns its legs, and how far behind a position on the backing device that
    /// in the slot is, if a leg goes there. `None`: it has to wait, or fails.
    pub(super) fn marked(
        &mut self,
        cache: &Cache<'_>,
        request: &BlockRequest,
        start: ChangeStart,
    ) -> Option<(Legs, u64)> {
        let (offset, length) = (request.offset, request.length);
        // A claim may have been tried in vain, while others waited for its end.
        self.wake.queues();
        match start {
            ChangeStart::Back(write) => {
                self.count_absorbed(length);
                cache.account_write(&write, request.tenant);
                Some((Legs::Back(write), cache.slot_delta(write.pin(), offset)))
            }
            ChangeStart::Marked(change, downgrade) => {
                self.counters.invalidated += u64::from(change.invalidated);
                if let Some(downgrade) = downgrade {
                    self.count_downgrade(downgrade);
                }
                let Some(claim) = change.claim else {
                    return Some((Legs::Marked, 0));
                };
                if claim.stores() {
                    self.counters.cache_writes += 1;
                    self.counters.cache_write_bytes += length;
                }
                Some((Legs::of_write(claim), cache.slot_delta(claim.pin(), offset)))
            }
            ChangeStart::Wait | ChangeStart::Stuck => None,
        }
    }

    /// A dropped discard changes neither device, but its blocks are not worth caching.
    pub(super) fn forget_dropped(&mut self, request: &BlockRequest) {
        if let Some(cache) = self.cache
            && request.action == Action::Discard
        {
            // What is dirty may stay as well.
            if let ChangeStart::Marked(change, _) = cache.start_discard(request.offset, request.length) {
                self.counters.invalidated += u64::from(change.invalidated);
                cache.end_change(request.offset, request.length, None, true);
            }
        }
    }

    /// The policy asked to promote the request's block.
    #[inline]
    pub(super) fn note_promotion(&mut self, tag: u16, promote: Option<Priority>) {
        if promote.is_some() && self.tags.is_here(tag) {
            self.tags.slot(tag).in_flight.promote = promote;
        }
    }

    /// A request ends: releases its pin or marks, and hints its block for promotion if the policy asked for it.
    #[inline]
    pub(super) fn release_cache(&mut self, tag: u16, is_good: bool) {
        let Some(cache) = self.cache else {
            return;
        };
        let in_flight = &mut self.tags.slot(tag).in_flight;
        match std::mem::replace(&mut in_flight.legs, Legs::Backing) {
            Legs::Backing | Legs::Filled { .. } => {}
            Legs::Commit(..) => {}
            Legs::Slot(pin) | Legs::Split { pin, .. } => cache.end_read(pin),
            Legs::Back(write) => {
                let end = if is_good { BackEnd::Stored } else { BackEnd::Failed };
                self.end_back(cache, tag, write, end);
            }
            Legs::BackAround(write) => {
                let end = if is_good {
                    BackEnd::WrittenAround
                } else {
                    BackEnd::Failed
                };
                self.end_back(cache, tag, write, end);
            }
            legs => {
                let range = in_flight.range();
                cache.count_passed();
                end_change(cache, range, legs, is_good);
                self.wake.queues();
            }
        }
        let in_flight = &mut self.tags.slot(tag).in_flight;
        if let Some(priority) = in_flight.promote.take()
            && is_good
        {
            let ((offset, _), tenant) = (in_flight.range(), in_flight.tenant);
            self.promote(cache, offset, priority, tenant);
        }
    }

    #[inline(never)]
    fn promote(&mut self, cache: &Cache<'_>, offset: u64, priority: Priority, tenant: u8) {
        let hinted = cache.hint_for(offset, priority, tenant);
        if hinted != Hinted::Refused {
            self.counters.hinted += 1;
            self.wake.mover();
        }
        self.counters.hints_dropped += u64::from(hinted != Hinted::Queued);
    }

    /// An operation on the cache device failed: detaches the cache, and the request continues without it.
    #[cold]
    pub(super) fn cache_failed(&mut self, tag: u16, errno: Errno) -> Next {
        let Some(cache) = self.cache else {
            return Next::Failed(errno);
        };
        let in_flight = self.tags.expect_in_flight(tag).in_flight;
        let is_read = in_flight.legs.fallback() == Fallback::Restart;
        let during = if is_read { "reading" } else { "writing" };
        self.detach(cache, CacheFailure::Device { during, errno });
        self.counters.hits_failed += u64::from(is_read);
        let (offset, length) = in_flight.range();
        // The backing device has nothing of what is dirty.
        if is_read && cache.is_dirty(offset, length) {
            return Next::Failed(errno);
        }
        self.fall_back(tag, errno)
    }

    /// The cache device has failed.
    #[cold]
    pub(super) fn detach(&mut self, cache: &Cache<'_>, failure: CacheFailure) {
        cache.detach(failure);
        self.wake.mover();
        self.wake.queues();
    }

    /// A request goes on without the slot or the fill of its present leg.
    #[cold]
    pub(super) fn fall_back(&mut self, tag: u16, errno: Errno) -> Next {
        let in_flight = &mut self.tags.slot(tag).in_flight;
        match in_flight.legs.fallback() {
            Fallback::None => return Next::Failed(errno),
            Fallback::GoOn(legs) => return in_flight.go_on_with(legs, self.grain),
            Fallback::Again(legs) => return in_flight.again_with(legs, self.staging_bytes),
            Fallback::Restart => {}
        }
        self.release_cache(tag, false);
        self.release_buffer(tag);
        let in_flight = &mut self.tags.slot(tag).in_flight;
        in_flight.restart();
        let (offset, length) = in_flight.range();
        // What another program has truncated meanwhile must not be read again.
        if offset + length > self.limits.reach * SECTOR_SIZE {
            return Next::Failed(Errno::EIO);
        }
        Next::Issue
    }
}

/// A request that changed blocks ends. What it stored is valid only if the slot received all of the data.
#[inline(never)]
fn end_change(cache: &Cache<'_>, (offset, length): (u64, u64), legs: Legs, is_good: bool) {
    let (claim, is_good) = match legs {
        Legs::Through(claim) | Legs::Around(claim) => (Some(claim), is_good),
        Legs::Detached(claim) => (Some(claim), false),
        _ => (None, is_good),
    };
    cache.end_change(offset, length, claim, is_good);
}

#[cfg(test)]
mod tests;
