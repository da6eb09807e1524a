//! How a queue ends: abandoned, failed, or cancelled by the kernel.

use super::{Machine, Owner, Phase, QueueFailure, Todo};

impl Machine<'_> {
    /// [`Event::Abandon`](crate::queue::Event::Abandon).
    pub fn abandon(&mut self) {
        self.phase = self.phase.max(Phase::Abandoning);
        while let Some(tag) = self.next_waiter() {
            self.tags.shift(tag, Owner::Waiting, Owner::InFlight);
            self.abandon_request(tag);
        }
    }

    /// A tag that waits for something, which it waits for no longer.
    fn next_waiter(&mut self) -> Option<u16> {
        let staging = self.staging.evict_waiter();
        staging
            .or_else(|| self.fills.evict_waiter())
            .or_else(|| self.fills.unpark())
    }

    /// Returns a request that was in flight to the kernel, uncommitted.
    #[cold]
    pub(super) fn abandon_request(&mut self, tag: u16) {
        self.tags.shift(tag, Owner::InFlight, Owner::Abandoned);
        self.in_service -= 1;
        self.release_cache(tag, false);
        self.release_buffer(tag);
    }

    /// The queue has failed.
    #[cold]
    pub(super) fn fail(&mut self, failure: QueueFailure) {
        if self.failure.is_none() {
            self.failure = Some(failure);
            self.todos.push(Todo::Failed);
        }
        self.abandon();
    }

    /// Ends the queue if it waits for nothing.
    #[cold]
    pub(super) fn finish_queue(&mut self) {
        let nothing_ready = self.commit_dead || self.batches.is_empty();
        let nothing_in_flight = self.in_service == 0 && self.fills.is_idle() && !self.batches.is_out();
        if self.phase != Phase::Finished && nothing_in_flight && nothing_ready {
            self.phase = Phase::Finished;
            self.todos.push(Todo::Finished);
        }
    }
}
