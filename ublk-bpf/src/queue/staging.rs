//! The staging buffers of the slow path, and the tags that wait for one.

use std::collections::VecDeque;

use super::event::Staging;

/// A fixed number of buffers and a queue of tags, first come, first served.
///
/// A request has at most one buffer, keeps it until it ends, and waits for nothing while it has it: there is no
/// cycle to wait in, so every waiter gets one.
#[derive(Debug)]
pub(super) struct StagingPool {
    free: Vec<Staging>,
    waiters: VecDeque<u16>,
}

impl StagingPool {
    /// `buffers` free ones, and room for every tag to wait: each waits at most once.
    pub(super) fn new(buffers: u16, depth: u16) -> Self {
        Self {
            free: (0..buffers).rev().map(Staging).collect(),
            waiters: VecDeque::with_capacity(usize::from(depth)),
        }
    }

    /// A buffer for `tag`, or `None` if it has to wait. Tags are served in order: while one waits, no buffer is free.
    pub(super) fn take(&mut self, tag: u16) -> Option<Staging> {
        let staging = self.free.pop();
        if staging.is_none() {
            debug_assert!(
                self.waiters.len() < self.waiters.capacity(),
                "a tag waits at most once"
            );
            self.waiters.push_back(tag);
        }
        staging
    }

    /// Returns a buffer. If a tag waits, it has the buffer now.
    pub(super) fn give_back(&mut self, staging: Staging) -> Option<u16> {
        debug_assert!(!self.free.contains(&staging), "{staging:?} was free already");
        let next = self.waiters.pop_front();
        if next.is_none() {
            self.free.push(staging);
        }
        next
    }

    /// The next waiter, who stops waiting.
    pub(super) fn evict_waiter(&mut self) -> Option<u16> {
        self.waiters.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_go_to_waiters_in_order() {
        let mut pool = StagingPool::new(2, 8);
        assert_eq!(pool.take(1), Some(Staging(0)));
        assert_eq!(pool.take(2), Some(Staging(1)));
        assert_eq!((pool.take(3), pool.take(4)), (None, None));
        assert_eq!(pool.give_back(Staging(1)), Some(3));
        assert_eq!(pool.give_back(Staging(0)), Some(4));
        assert_eq!(pool.give_back(Staging(1)), None);
        assert_eq!(pool.take(5), Some(Staging(1)));
    }

    #[test]
    fn waiters_can_be_sent_away() {
        let mut pool = StagingPool::new(1, 8);
        assert!(pool.take(0).is_some());
        assert!(pool.take(6).is_none());
        assert_eq!((pool.evict_waiter(), pool.evict_waiter()), (Some(6), None));
    }
}
