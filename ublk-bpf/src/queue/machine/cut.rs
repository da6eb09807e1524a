//! A file that another program truncates while it is served.
//!
//! Requests beyond the new end fail, also after the file has grown again: its old content is lost. An operation in flight
//! beyond that end may have run before the truncation, or after another write extended the file again, which leaves a
//! hole. So none of them may succeed, and a write is followed by a truncation to the new end.

use ublk_bpf_abi::SECTOR_SIZE;

use super::{Errno, Machine, Outcome, Todo};
use crate::cache::CacheFailure;
use crate::queue::event::Tier;

impl Machine<'_> {
    /// Checks where the files end now.
    #[inline]
    pub fn look_at_ends(&mut self) {
        let [backing, cache] = self.seen;
        if self.ends.backing() < backing || self.ends.cache() < cache {
            self.cut();
        }
    }

    #[cold]
    #[inline(never)]
    fn cut(&mut self) {
        let [backing, cache] = [self.ends.backing(), self.ends.cache()];
        let seen = std::mem::replace(&mut self.seen, [backing, cache]);
        if backing < seen[0] {
            self.limits.reach = self.limits.capacity.min(backing / SECTOR_SIZE);
            self.tags.cut(Tier::Backing, backing);
            self.fills.cut(Tier::Backing, backing);
        }
        if let Some(of) = self.cache
            && cache < seen[1]
            && cache < of.shape().end()
        {
            let failure = CacheFailure::Device {
                during: "being truncated by another program:",
                errno: Errno::EIO,
            };
            self.detach(of, failure);
            self.tags.cut(Tier::Cache, cache);
            self.fills.cut(Tier::Cache, cache);
        }
    }

    /// The operation of a request that was cut has ended.
    #[cold]
    pub(super) fn cut_done(&mut self, tag: u16, result: i32) {
        let end = self.seen[0];
        let in_flight = &mut self.tags.expect_in_flight(tag).in_flight;
        if in_flight.is_on_cache() {
            return self.advance(tag, Errno::EIO.result());
        }
        if in_flight.trim(result, end) {
            return self.todos.push(Todo::Io(tag));
        }
        self.counters.io_errors += 1;
        self.finish(tag, 0, Outcome::Failed(Errno::EIO));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::super::tests::{CONFIG, PASSTHROUGH, READ, SLOW, WRITE, arrive, committed, done, effects};
    use super::*;
    use crate::queue::{Effect, Ends, Event, Io, Written};

    /// A machine that serves, on a backing whose end is in this word.
    fn machine(end: &AtomicU64) -> Machine<'_> {
        static CACHE: AtomicU64 = AtomicU64::new(u64::MAX);
        let machine = Machine::new(&CONFIG, Written::untracked()).expect("a good config");
        let mut machine = machine.with_ends(Ends::new(end, &CACHE));
        effects(&mut machine);
        machine.handle(Event::Prepared(0));
        effects(&mut machine);
        machine
    }

    fn truncate(machine: &mut Machine<'_>, end: &AtomicU64, to: u64) {
        end.store(to, Ordering::Relaxed);
        machine.look_at_ends();
    }

    #[test]
    fn beyond_the_new_end_requests_fail_without_an_operation() {
        let end = AtomicU64::new(u64::MAX);
        let mut machine = machine(&end);
        // Sectors 8 to 16 are asked for.
        truncate(&mut machine, &end, 8191);
        for (tag, op, verdict) in [(1, READ, PASSTHROUGH), (2, WRITE, PASSTHROUGH), (3, WRITE, SLOW)] {
            arrive(&mut machine, tag, op, 8, verdict);
            assert_eq!(effects(&mut machine), []);
            assert_eq!(committed(&mut machine), [(tag, -5)]);
        }
        // It stays so when the file grows again.
        truncate(&mut machine, &end, u64::MAX);
        arrive(&mut machine, 1, READ, 8, PASSTHROUGH);
        assert_eq!(committed(&mut machine), [(1, -5)]);
    }

    #[test]
    fn no_success_counts_that_may_have_come_after_the_truncation() {
        let end = AtomicU64::new(u64::MAX);
        let mut machine = machine(&end);
        arrive(&mut machine, 0, READ, 8, PASSTHROUGH);
        arrive(&mut machine, 1, WRITE, 8, PASSTHROUGH);
        effects(&mut machine);
        truncate(&mut machine, &end, 6144);
        // A read may have found the hole before a write that came later.
        assert_eq!(done(&mut machine, 0, 4096), []);
        // A write may have made the file longer: that is undone before it fails.
        let trim = Effect::Io {
            tag: 1,
            io: Io::Trim { end: 6144 },
        };
        assert_eq!(done(&mut machine, 1, 4096), [trim]);
        assert_eq!(done(&mut machine, 1, 0), []);
        assert_eq!(committed(&mut machine), [(0, -5), (1, -5)]);
        assert_eq!(machine.counters().io_errors, 2);
    }

    #[test]
    fn what_is_before_the_end_goes_on() {
        let end = AtomicU64::new(u64::MAX);
        let mut machine = machine(&end);
        arrive(&mut machine, 0, WRITE, 8, PASSTHROUGH);
        effects(&mut machine);
        truncate(&mut machine, &end, 8192);
        assert_eq!(done(&mut machine, 0, 4096), []);
        assert_eq!(committed(&mut machine), [(0, 4096)]);
    }
}
