//! Waking others: the mover, and the queues whose reads wait for the end of a claim.

use super::{Machine, Todo};
use crate::cache::Cache;

/// Whom the machine may have to wake when it is next idle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wake(u8);

impl Wake {
    pub(super) const NOBODY: Self = Self(0);

    /// The mover: a hint or a failure is new, or free slots have become few.
    pub(super) fn mover(&mut self) {
        self.0 |= 1;
    }

    /// Queues, perhaps this one: a claim may have ended that reads wait for.
    pub(super) fn queues(&mut self) {
        self.0 |= 2;
    }

    pub(super) fn is_for_mover(self) -> bool {
        self.0 & 1 != 0
    }
}

impl Machine<'_> {
    /// Reports the number of requests to the cache, and wakes the mover and other queues if they have work.
    #[inline]
    pub(super) fn flush_hints(&mut self, cache: &Cache<'_>) {
        let arrived = self.counters.arrived;
        if arrived != self.reported {
            cache.count_requests(arrived - self.reported);
            self.reported = arrived;
        }
        if self.wake != Wake::NOBODY {
            self.wake_others(cache);
        }
    }

    #[inline(never)]
    fn wake_others(&mut self, cache: &Cache<'_>) {
        if std::mem::take(&mut self.wake).is_for_mover() {
            if self.is_waking {
                self.wake.mover();
            } else if cache.must_wake() {
                self.is_waking = true;
                self.todos.push(Todo::Wake);
            }
        }
        // Twice: to look again may end claims as well.
        self.wake_queues(cache);
        self.wake_queues(cache);
    }

    fn wake_queues(&mut self, cache: &Cache<'_>) {
        let woken = cache.take_woken();
        if woken.is_empty() {
            return;
        }
        if self.ring.is_empty() {
            self.todos.push(Todo::Ring);
        }
        self.ring = self.ring.union(woken);
        if woken.contains(self.number) {
            self.look_again();
        }
    }
}
