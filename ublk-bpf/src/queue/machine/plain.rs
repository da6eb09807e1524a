//! The path of nearly every request: a read or write with a plain passthrough or hit verdict, which one operation serves
//! whole.
//!
//! It is a short cut and has no rules of its own: [`accept_slow`](Machine::accept_slow) and
//! [`advance`](Machine::advance) do the same after more checks, and serve every unusual request.

use super::back::may_be_dirty;
use super::{
    Action, Arrival, Backing, BlockRequest, InFlight, Machine, Outcome, Owner, Phase, Todo, result_of,
    verdict,
};
use crate::queue::event::Direct;

impl Machine<'_> {
    /// The same as [`arrived`](Self::arrived), and the answer is what would be the tag's
    /// [`Effect::Io`](crate::queue::Effect::Io), to be carried out before anything else. `None`: there may be something
    /// to poll. This spares nearly every request its turn among the effects.
    #[inline(always)]
    #[must_use]
    pub fn start_fast(&mut self, arrival: &Arrival) -> Option<Direct> {
        let direct = self.accept(arrival)?;
        self.counters.io_submitted += 1;
        Some(direct)
    }

    /// Takes a tag in. Returns the operation to issue if its request is a plain one that has an operation.
    #[inline(always)]
    pub(super) fn accept(&mut self, arrival: &Arrival) -> Option<Direct> {
        self.counters.arrived += 1;
        self.fetch_ends = 0;
        self.fetch_errors = 0;
        let filling = self.batches.filling();
        let written_back = self.written_back();
        let slot = self.tags.arrive(arrival.tag, filling);
        if self.phase >= Phase::Abandoning {
            slot.owner = Owner::Abandoned;
            return None;
        }
        if let Some(request) = BlockRequest::ordinary(arrival, &self.limits) {
            let is_read = request.action == Action::Read;
            if verdict::is_plain_passthrough(arrival.verdict, request.action.op(), arrival) {
                match self.terms.backing {
                    // The slot may have what the backing device lacks.
                    Backing::Storage(_) if is_read && may_be_dirty(written_back, &request) => {}
                    // A write marks its blocks in the cache.
                    Backing::Storage(_) if is_read || self.cache.is_none() => {
                        self.counters.passthrough += 1;
                        if !is_read {
                            self.terms.written.mark(request.offset, request.length);
                        }
                        slot.owner = Owner::InFlight;
                        slot.in_flight = InFlight::direct(&request);
                        self.in_service += 1;
                        return Some(request.direct());
                    }
                    Backing::Storage(_) if let Some(cache) = written_back => {
                        slot.owner = Owner::InFlight;
                        self.in_service += 1;
                        return self.absorb(cache, arrival.tag, &request);
                    }
                    Backing::Null { filled: false } => {
                        self.counters.passthrough += 1;
                        slot.owner = Owner::Answered(filling);
                        let data = request.data();
                        self.put(arrival.tag, result_of(data, Outcome::Moved(data)));
                        return None;
                    }
                    Backing::Storage(_) | Backing::Null { .. } => {}
                }
            } else if is_read && self.cache.is_some() && verdict::is_plain_hit(arrival.verdict, arrival) {
                slot.owner = Owner::InFlight;
                self.in_service += 1;
                return self.hit(arrival.tag, &request);
            } else if !is_read
                && let Some(cache) = written_back
                && let Some(mode) = verdict::plain_write(arrival.verdict, arrival)
            {
                slot.owner = Owner::InFlight;
                self.in_service += 1;
                let mode = Some(mode);
                return self.absorb(cache, arrival.tag, &BlockRequest { mode, ..request });
            }
        }
        slot.owner = Owner::InFlight;
        self.in_service += 1;
        // By value: a reference would force the arrival into memory, on the plain path too.
        self.accept_slow(*arrival);
        None
    }

    /// An operation from [`start_fast`](Self::start_fast) could not be issued yet: it becomes an effect of the tag.
    #[cold]
    pub fn requeue(&mut self, tag: u16) {
        self.counters.io_submitted -= 1;
        self.todos.push(Todo::Io(tag));
    }

    /// [`Event::IoDone`](crate::queue::Event::IoDone).
    #[inline(always)]
    pub fn io_done(&mut self, tag: u16, result: i32) {
        let filling = self.batches.filling();
        let slot = self.tags.expect_in_flight(tag);
        let bytes = result.cast_unsigned();
        if bytes != slot.in_flight.whole() {
            return self.complete_slow(tag, result);
        }
        let result = result_of(slot.in_flight.data(), Outcome::Moved(bytes));
        slot.owner = Owner::Answered(filling);
        if slot.in_flight.concerns_cache() {
            self.release_cache(tag, true);
        }
        self.in_service -= 1;
        self.put(tag, result);
    }

    /// A request that was in flight has its result.
    pub(super) fn answer(&mut self, tag: u16, result: i32) {
        self.tags.slot(tag).owner = Owner::Answered(self.batches.filling());
        self.in_service -= 1;
        self.put(tag, result);
    }

    /// Puts a tag's result into the filling batch.
    #[inline(always)]
    fn put(&mut self, tag: u16, result: i32) {
        if result < 0 {
            self.counters.failed += 1;
        } else {
            self.counters.completed += 1;
        }
        if self.batches.push(tag, result) {
            self.commit();
        }
    }
}
