//! Memory of the server that a request moves its data through.

use super::{Buffer, Machine, Owner, Staging, Todo};

impl Machine<'_> {
    /// Gives a request a staging buffer, or queues it for one.
    #[cold]
    pub(super) fn stage(&mut self, tag: u16) {
        match self.staging.take(tag) {
            Some(staging) => self.staged(tag, staging),
            None => self.tags.shift(tag, Owner::InFlight, Owner::Waiting),
        }
    }

    fn staged(&mut self, tag: u16, staging: Staging) {
        self.tags.expect_in_flight(tag).in_flight.buffer = Some(Buffer::Staging(staging));
        self.todos.push(Todo::Io(tag));
    }

    /// Leaves a request's buffer: its staging buffer goes to the next tag that waits for one.
    #[cold]
    pub(super) fn release_buffer(&mut self, tag: u16) {
        match self.tags.slot(tag).in_flight.buffer.take() {
            Some(Buffer::Staging(staging)) => {
                if let Some(next) = self.staging.give_back(staging) {
                    self.tags.shift(next, Owner::Waiting, Owner::InFlight);
                    self.staged(next, staging);
                }
            }
            Some(Buffer::Fill(fill)) => self.fills.remove_reader(fill),
            None => {}
        }
    }
}
