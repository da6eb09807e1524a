//! How a queue ends: abandoned, failed, or cancelled by the kernel.

use super::{Machine, Owner, Phase, QueueFailure, Todo};

impl Machine<'_> {
    /// [`Event::Abandon`](crate::queue::Event::Abandon).
    pub fn abandon(&mut self) {
        self.phase = self.phase.max(Phase::Abandoning);
        while let Some(tag) = self.staging.evict_waiter() {
            self.tags.shift(tag, Owner::Waiting, Owner::Abandoned);
            self.in_service -= 1;
            self.release_cache(tag, false);
        }
    }

    /// Returns a request that was in flight to the kernel, uncommitted.
    #[cold]
    pub(super) fn abandon_request(&mut self, tag: u16) {
        self.tags.shift(tag, Owner::InFlight, Owner::Abandoned);
        self.in_service -= 1;
        self.release_cache(tag, false);
        self.unstage(tag);
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
        if self.phase != Phase::Finished && self.in_service == 0 && nothing_ready && !self.batches.is_out() {
            self.phase = Phase::Finished;
            self.todos.push(Todo::Finished);
        }
    }
}
