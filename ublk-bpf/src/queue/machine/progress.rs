//! What follows an operation that does not complete its request.

use super::{Machine, Next, Noted, Outcome, Phase, Todo};

impl Machine<'_> {
    /// An operation ended that is not the last one, or not whole.
    #[cold]
    pub(super) fn advance(&mut self, tag: u16, result: i32) {
        let grain = self.grain;
        let in_flight = &mut self.tags.expect_in_flight(tag).in_flight;
        let is_on_cache = in_flight.is_on_cache();
        let (next, noted) = in_flight.advance(result, grain);
        self.note(noted);
        let next = match next {
            Next::Failed(errno) if is_on_cache => self.cache_failed(tag, errno),
            next => next,
        };
        self.go_on(tag, next);
    }

    /// Does what follows an operation.
    pub(super) fn go_on(&mut self, tag: u16, next: Next) {
        let in_flight = &self.tags.expect_in_flight(tag).in_flight;
        let (data, served) = (in_flight.data(), in_flight.served());
        match next {
            Next::Done => self.finish(tag, data, Outcome::Moved(served)),
            Next::Failed(errno) => self.finish(tag, data, Outcome::Failed(errno)),
            Next::Issue if self.phase >= Phase::Abandoning => self.abandon_request(tag),
            Next::Issue if in_flight.legs.is_split() => self.issue_piece(tag),
            Next::Issue => self.todos.push(Todo::Io(tag)),
        }
    }

    pub(super) fn note(&mut self, noted: Noted) {
        self.counters.short_io += u64::from(noted.short);
        self.counters.io_errors += u64::from(noted.error);
        self.counters.user_copy_bytes += u64::from(noted.copied);
    }
}
