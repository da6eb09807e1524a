//! The completions of the queue's own commands: PREP, FETCH and COMMIT.

use super::{Errno, Machine, Phase, QueueFailure, Todo};
use crate::queue::commit::Answer;
use crate::queue::event::FETCHES;

/// How many FETCH commands may end one after another without a tag between them. The kernel ends one for want
/// of room in its buffer or in the completion queue (`-ENOBUFS`), which passes; this bounds the work until then.
const MAX_FETCH_ENDS: u32 = 1024;

/// The same for an end with any other error (`-ENOMEM` passes, `-EINVAL` does not).
const MAX_FETCH_ERRORS: u32 = 16;

impl Machine<'_> {
    /// [`Event::Prepared`](crate::queue::Event::Prepared).
    ///
    /// # Panics
    /// If PREP was not out.
    pub fn prepared(&mut self, result: i32) {
        assert!(
            matches!(self.phase, Phase::Preparing | Phase::Abandoning),
            "PREP completed in {:?}",
            self.phase
        );
        self.batches.prepared();
        match Errno::of_result(result) {
            // The device was stopped before the queue was ready.
            Some(Errno::ENODEV) => self.phase = self.phase.max(Phase::Stopping),
            Some(errno) => self.fail(QueueFailure::Prepare(errno)),
            None if self.phase == Phase::Preparing => {
                self.phase = Phase::Serving;
                (0..FETCHES).for_each(|fetch| self.todos.push(Todo::Fetch(fetch)));
            }
            None => {}
        }
    }

    /// [`Event::FetchEnded`](crate::queue::Event::FetchEnded).
    pub fn fetch_ended(&mut self, fetch: u8, result: i32) {
        assert!(
            fetch < FETCHES && self.phase != Phase::Preparing,
            "FETCH {fetch} ended, but it is not out"
        );
        if self.phase >= Phase::Stopping {
            return;
        }
        self.fetch_ends += 1;
        match Errno::of_result(result) {
            Some(Errno::ENODEV) => {
                self.phase = Phase::Stopping;
                return;
            }
            // No room in the buffer, or a completion without MORE: the buffer goes back, and FETCH out again.
            None | Some(Errno::ENOBUFS) => {}
            Some(_) => self.fetch_errors += 1,
        }
        if self.fetch_ends > MAX_FETCH_ENDS || self.fetch_errors > MAX_FETCH_ERRORS {
            self.fail(QueueFailure::Fetch {
                fetch,
                times: self.fetch_ends,
                result,
            });
        } else {
            self.todos.push(Todo::Fetch(fetch));
        }
    }

    /// [`Event::Committed`](crate::queue::Event::Committed).
    pub fn committed(&mut self, batch: u8, result: i32) {
        let (answer, refused) = self.batches.completed(batch, result);
        if refused.is_some() {
            self.counters.commit_refused += 1;
        }
        match answer {
            Answer::Rest(_) => {
                self.counters.partial_commits += u64::from(refused.is_some());
                self.todos.push(Todo::Commit(batch));
            }
            Answer::Done => {
                self.batches.clear(batch);
                // Every tag may be ready, so no event would be followed by `Idle`.
                if self.batches.is_full() {
                    self.commit();
                }
            }
            Answer::Failed(failure) => {
                self.batches.give_up();
                self.commit_dead = true;
                self.fail(failure);
            }
        }
    }
}
