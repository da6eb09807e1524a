//! Waking others: the mover, and the queues whose reads wait for the end of a claim.

use super::{Machine, Todo};
use crate::cache::Cache;
use crate::queue::todo::Wake;

impl Machine<'_> {
    /// Reports the number of requests to the cache, and wakes the mover and other queues if they have work.
    #[inline]
    pub(super) fn flush_hints(&mut self, cache: &Cache<'_>) {
        let arrived = self.counters.arrived;
        if arrived != self.reported {
            cache.count_requests(arrived - self.reported);
            self.reported = arrived;
        }
        if self.wake != Wake::NONE {
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
