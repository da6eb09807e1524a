//! Write-back: writes that end in the slot, requests that wait until nothing of their range is dirty, and those that are
//! answered once a commit has made durable what they cover.

use super::{Action, BlockRequest, Errno, InFlight, Legs, Machine, Outcome, Owner, Route, Todo, result_of};
use crate::cache::{
    BackEnd, BackWrite, Cache, CacheFailure, ChangeStart, CommitNext, CommitTicket, Downgrade, Scope,
};
use crate::queue::event::Direct;

/// How often a change starts again because its blocks have changed, before it waits for the mover.
const MAX_STARTS: u32 = 8;

impl<'w> Machine<'w> {
    /// The cache, if writes end in it.
    #[inline(always)]
    pub(super) fn written_back(&self) -> Option<&'w Cache<'w>> {
        self.cache.filter(|cache| cache.has_writeback())
    }

    /// Whether the slot may have what the backing device lacks of a read.
    #[inline(always)]
    pub(super) fn may_be_dirty(&self, request: &BlockRequest) -> bool {
        may_be_dirty(self.written_back(), request)
    }

    /// Starts a plain write where writes end in the slot. `None`: it has started otherwise.
    #[inline(always)]
    pub(super) fn absorb(&mut self, cache: &Cache<'_>, tag: u16, request: &BlockRequest) -> Option<Direct> {
        self.counters.passthrough += 1;
        self.terms.written.mark(request.offset, request.length);
        let start = cache.start_write(request.offset, request.length, request.mode);
        let ChangeStart::Back(write) = start else {
            self.begin_change(cache, tag, request, Route::Direct, start);
            return None;
        };
        self.count_absorbed(request.length);
        let slot_delta = cache.slot_delta(write.pin(), request.offset);
        self.tags.slot(tag).in_flight = InFlight::back(request, write, slot_delta);
        Some(request.direct_on_slot(slot_delta))
    }

    #[inline(always)]
    pub(super) fn count_absorbed(&mut self, bytes: u64) {
        self.counters.absorbed += 1;
        self.counters.absorbed_bytes += bytes;
    }

    #[cold]
    pub(super) fn count_downgrade(&mut self, downgrade: Downgrade) {
        *match downgrade {
            Downgrade::NoSlot => &mut self.counters.back_no_slot,
            Downgrade::Partial => &mut self.counters.back_partial,
            Downgrade::Limit => &mut self.counters.back_limit,
            Downgrade::Failing => &mut self.counters.back_failing,
            Downgrade::Busy => &mut self.counters.back_busy,
        } += 1;
        if downgrade == Downgrade::NoSlot {
            // It frees some.
            self.wake.mover();
        }
    }

    /// A write to a slot has ended.
    #[inline]
    pub(super) fn end_back(&mut self, cache: &Cache<'_>, tag: u16, write: BackWrite, end: BackEnd) {
        let (offset, length) = self.tags.slot(tag).in_flight.range();
        if cache.end_back(offset, length, write, end) {
            self.wake.mover();
        }
        self.wake.queues();
    }

    /// Starts a change of the cache's blocks, or a read of the backing device alone while some of it may be dirty.
    pub(super) fn start_change(&mut self, tag: u16, request: &BlockRequest, route: Route) {
        let Some(cache) = self.cache else {
            return self.begin(tag, request, route, (Legs::Backing, 0));
        };
        let start = change(cache, request);
        self.begin_change(cache, tag, request, route, start);
    }

    /// Begins a change that starts like this.
    fn begin_change(
        &mut self,
        cache: &Cache<'_>,
        tag: u16,
        request: &BlockRequest,
        route: Route,
        mut start: ChangeStart,
    ) {
        for attempt in 0.. {
            if start == ChangeStart::Stuck {
                return self.refuse(tag, Errno::EIO);
            }
            if request.action == Action::Read && start != ChangeStart::Wait {
                return self.begin(tag, request, route, (Legs::Backing, 0));
            }
            if let Some(legs) = self.marked(cache, request, start) {
                return self.begin(tag, request, route, legs);
            }
            let is_waiting = cache.wait_to_change(request.offset, request.length, self.number);
            if is_waiting || attempt == MAX_STARTS {
                return self.wait_for_clean(tag, request, route);
            }
            start = change(cache, request);
        }
    }

    /// A request waits for the end of a claim, or until the mover has cleaned its blocks.
    #[cold]
    fn wait_for_clean(&mut self, tag: u16, request: &BlockRequest, route: Route) {
        self.counters.change_waits += 1;
        self.wake.mover();
        let in_flight = InFlight::new(request, route, self.volatile_cache, self.staging_bytes);
        self.tags.slot(tag).in_flight = in_flight;
        self.park_tag(tag);
    }

    fn park_tag(&mut self, tag: u16) {
        self.tags.shift(tag, Owner::InFlight, Owner::Waiting);
        self.fills.park(tag);
    }

    /// Starts a FLUSH: what is in slots becomes durable by a commit, and then the rest on the backing device.
    pub(super) fn start_flush(&mut self, cache: &Cache<'_>, tag: u16, request: &BlockRequest) {
        self.tags.slot(tag).in_flight =
            InFlight::new(request, Route::Device, self.volatile_cache, self.staging_bytes);
        self.commit_for(cache, tag, 0, Scope::All);
    }

    /// What a change that has succeeded must have made durable before it is answered.
    pub(super) fn scope_of(&self, tag: u16) -> Option<Scope> {
        let in_flight = self.tags.in_flight(tag);
        if !in_flight.is_durable() || self.written_back().is_none() {
            return None;
        }
        let (offset, length) = in_flight.range();
        match in_flight.legs {
            Legs::Back(_) => Some(Scope::Write { offset, length }),
            // The log may say of a slot that it is dirty, which would come back after a power failure.
            Legs::Marked | Legs::Around(_) | Legs::Through(_) | Legs::Detached(_) | Legs::BackAround(_) => {
                Some(Scope::All)
            }
            _ => None,
        }
    }

    /// A request that succeeds with `data` bytes is answered once this is durable.
    pub(super) fn commit_for(&mut self, cache: &Cache<'_>, tag: u16, data: u32, scope: Scope) {
        let ticket = cache.begin_flush();
        self.tags.slot(tag).in_flight.commit(data, ticket, scope);
        self.ask_for_commit(cache, tag, ticket, scope);
    }

    fn ask_for_commit(&mut self, cache: &Cache<'_>, tag: u16, ticket: CommitTicket, scope: Scope) {
        let next = cache.commit(ticket, scope, self.number);
        self.counters.log_commits += u64::from(matches!(next, CommitNext::Lead(_)));
        self.commit_next(cache, tag, next);
    }

    fn commit_next(&mut self, cache: &Cache<'_>, tag: u16, next: CommitNext) {
        // A commit has ended, or has released slots that are held.
        self.wake.queues();
        match next {
            CommitNext::Done => self.committed_for(cache, tag),
            CommitNext::Lead(io) if self.phase >= super::Phase::Abandoning => {
                // Its next leader does it all again.
                let _ = cache.commit_done(io, Err(Errno::EIO));
                self.abandon_request(tag);
            }
            CommitNext::Lead(io) => {
                self.tags.slot(tag).in_flight.lead(io);
                self.todos.push(Todo::Io(tag));
            }
            CommitNext::Wait if self.phase >= super::Phase::Abandoning => self.abandon_request(tag),
            CommitNext::Wait => {
                self.wake.mover();
                self.park_tag(tag);
            }
        }
    }

    /// A request that waits for a commit looks again.
    pub(super) fn commit_again(&mut self, tag: u16) {
        let committed = self.tags.in_flight(tag).committed();
        if let (Some(cache), Some((ticket, scope, _))) = (self.cache, committed) {
            self.ask_for_commit(cache, tag, ticket, scope);
        }
    }

    /// An operation of the commit that a request leads has ended.
    #[cold]
    pub(super) fn commit_io_done(&mut self, tag: u16, result: i32) {
        let Some(cache) = self.cache else { return };
        let in_flight = &mut self.tags.slot(tag).in_flight;
        let io = in_flight.led();
        let Some(result) = in_flight.led_result(result) else {
            return self.todos.push(Todo::Io(tag));
        };
        if let Err(errno) = result {
            self.counters.io_errors += 1;
            let during = "committing to";
            self.detach(cache, CacheFailure::Device { during, errno });
        }
        match cache.commit_done(io, result) {
            // The log is full: now it has to wait like all others.
            Ok(CommitNext::Wait) => self.commit_again(tag),
            Ok(next) => self.commit_next(cache, tag, next),
            Err(errno) => {
                self.wake.queues();
                self.finish(tag, 0, Outcome::Failed(errno));
            }
        }
    }

    /// What a request needed of the slots is durable.
    fn committed_for(&mut self, cache: &Cache<'_>, tag: u16) {
        let in_flight = &mut self.tags.slot(tag).in_flight;
        let (_, length) = in_flight.range();
        let data = in_flight.committed().map_or(0, |(.., data)| data);
        if length == 0
            && self.terms.backing.has_volatile_cache()
            && let Some(owed) = cache.owed_to_backing()
        {
            in_flight.flush_backing(owed);
            return self.todos.push(Todo::Io(tag));
        }
        in_flight.legs = Legs::Backing;
        self.answer(tag, result_of(data, Outcome::Moved(data)));
    }
}

/// Whether the slot may have what the backing device lacks of a read.
#[inline(always)]
pub(super) fn may_be_dirty(cache: Option<&Cache<'_>>, request: &BlockRequest) -> bool {
    cache.is_some_and(|cache| cache.may_be_dirty(request.offset, request.length))
}

/// How a request starts that changes blocks, or that reads the backing device while nothing of its range may be dirty.
fn change(cache: &Cache<'_>, request: &BlockRequest) -> ChangeStart {
    let (offset, length) = (request.offset, request.length);
    match request.action {
        Action::Write => cache.start_write(offset, length, request.mode),
        Action::Read => cache.start_beside_dirty(offset, length),
        _ => cache.start_discard(offset, length),
    }
}

#[cfg(test)]
mod tests;
