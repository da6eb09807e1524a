//! The machine's use of the cache.

use ublk_bpf_abi::Priority;

use super::{Action, Advice, Errno, InFlight, Machine, Next, Request, Todo, plan};
use crate::cache::{Cache, CacheFailure, WriteClaim};
use crate::queue::event::Direct;
use crate::queue::in_flight::{Hold, Marked};

impl<'w> Machine<'w> {
    /// Starts a read with a hit verdict. The server checks the index itself: the block may have been evicted.
    #[inline(always)]
    pub(super) fn hit(&mut self, tag: u16, request: &Request) -> Option<Direct> {
        let pinned = self.cache.and_then(|cache| {
            let pin = cache.begin_read(request.offset, request.length)?;
            Some((pin, cache.slot_delta(pin, request.offset)))
        });
        let Some((pin, slot_delta)) = pinned else {
            self.lost_hit(tag, *request);
            return None;
        };
        self.counters.hits += 1;
        self.tags.slot(tag).in_flight = InFlight::hit(request, pin, slot_delta);
        Some(request.direct_hit(slot_delta))
    }

    #[cold]
    #[inline(never)]
    fn lost_hit(&mut self, tag: u16, request: Request) {
        self.counters.hits_lost += 1;
        let plan = plan(&request, Advice::Passthrough, &self.terms);
        self.start(tag, &request, &plan);
    }

    /// Marks the blocks that a request is about to change. `None`: it changes nothing.
    #[inline]
    pub(super) fn mark(&mut self, cache: &Cache<'_>, request: &Request) -> Option<Marked> {
        let (offset, length) = (request.offset, request.length);
        let change = match request.action {
            Action::Read | Action::Flush => return None,
            Action::Write => cache.begin_write(offset, length),
            Action::Discard | Action::WriteZeroes => cache.begin_discard(offset, length),
        };
        self.counters.invalidated += u64::from(change.invalidated);
        let stored = change.claim.filter(|claim| claim.stores());
        self.counters.cache_writes += u64::from(stored.is_some());
        Some(Marked {
            claim: change.claim,
            slot_delta: stored.map(|claim| cache.slot_delta(claim.pin(), offset)),
        })
    }

    /// A dropped discard changes neither device, but its blocks are not worth caching.
    pub(super) fn forget_dropped(&mut self, request: &Request) {
        if let Some(cache) = self.cache
            && request.action == Action::Discard
        {
            let change = cache.begin_discard(request.offset, request.length);
            self.counters.invalidated += u64::from(change.invalidated);
            cache.end_change(request.offset, request.length, None, true);
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
        match std::mem::replace(&mut in_flight.hold, Hold::Nothing) {
            Hold::Nothing => {}
            Hold::Read(pin) => cache.end_read(pin),
            Hold::Change(claim) => end_change(cache, in_flight, claim, is_good),
        }
        if let Some(priority) = in_flight.promote.take()
            && is_good
        {
            let (offset, _) = in_flight.range();
            self.promote(cache, offset, priority);
        }
    }

    #[inline(never)]
    fn promote(&mut self, cache: &Cache<'_>, offset: u64, priority: Priority) {
        if cache.hint(offset, priority) {
            self.counters.hinted += 1;
            self.wake = true;
        } else {
            self.counters.hints_dropped += 1;
        }
    }

    /// An operation on the cache device failed: detaches the cache, and the request continues without it.
    #[cold]
    pub(super) fn cache_failed(&mut self, tag: u16, errno: Errno) -> Next {
        let Some(cache) = self.cache else {
            return Next::Failed(errno);
        };
        let in_flight = self.tags.expect_in_flight(tag).in_flight;
        let is_read = matches!(in_flight.hold, Hold::Read(_));
        let during = if is_read { "reading" } else { "writing" };
        cache.detach(CacheFailure { during, errno });
        self.wake = true;
        if is_read {
            self.counters.hits_failed += 1;
            self.release_cache(tag, false);
            self.tags.slot(tag).in_flight.fall_back();
            return Next::Issue;
        }
        self.tags.slot(tag).in_flight.go_on_without_cache()
    }

    /// Reports the number of requests to the cache, and wakes the mover if it has work.
    #[inline]
    pub(super) fn flush_hints(&mut self, cache: &Cache<'_>) {
        let arrived = self.counters.arrived;
        if arrived != self.reported {
            cache.count_requests(arrived - self.reported);
            self.reported = arrived;
        }
        if self.wake && !self.is_waking {
            self.wake = false;
            if cache.must_wake() {
                self.is_waking = true;
                self.todos.push(Todo::Wake);
            }
        }
    }
}

/// A request that changed blocks ends. What it stored is valid only if the slot received all of the data.
#[inline(never)]
fn end_change(cache: &Cache<'_>, in_flight: &InFlight, claim: Option<WriteClaim>, is_good: bool) {
    let (offset, length) = in_flight.range();
    let is_stored = claim.is_some_and(WriteClaim::stores);
    let is_good = is_good && (!is_stored || in_flight.is_in_cache());
    cache.end_change(offset, length, claim, is_good);
}

#[cfg(test)]
mod tests;
