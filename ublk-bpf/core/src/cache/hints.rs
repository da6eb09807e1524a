//! The blocks that policies asked to promote, on their way to the mover.

use std::collections::VecDeque;

use crossbeam_queue::ArrayQueue;
use ublk_bpf_abi::Priority;

/// Hints that wait for the mover to look.
const MAX_ARRIVING: usize = 1024;

/// Hints that the mover keeps. Those that are older than so many others are no longer worth promoting: what is hot is
/// hinted again.
const MAX_KEPT: usize = 64;

/// What became of a hint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hinted {
    /// It is queued.
    Queued,
    /// It is queued, and the oldest one was dropped for it.
    Displaced,
    /// The cache is detached: it is dropped.
    Refused,
}

const fn packed(block: u64, priority: Priority, tenant: u8) -> u64 {
    block << 16 | (tenant as u64) << 8 | priority as u64
}

#[expect(clippy::cast_possible_truncation, reason = "it is the second byte")]
const fn tenant_of(hint: u64) -> u8 {
    (hint >> 8) as u8
}

/// Hints from the queues, all of which the mover takes at once.
#[derive(Debug)]
pub(super) struct Arriving(ArrayQueue<u64>);

impl Arriving {
    pub(super) fn new() -> Self {
        Self(ArrayQueue::new(MAX_ARRIVING))
    }

    /// Adds a hint. Returns the tenant of the one that was dropped for it, if one was.
    pub(super) fn push(&self, block: u64, priority: Priority, tenant: u8) -> Option<u8> {
        self.0.force_push(packed(block, priority, tenant)).map(tenant_of)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The newest hints, newest first: a mover that cannot promote all that is asked for promotes what is hot now.
#[derive(Debug)]
pub(super) struct Hints {
    kept: VecDeque<u64>,
}

impl Hints {
    pub(super) fn new() -> Self {
        Self {
            kept: VecDeque::with_capacity(MAX_KEPT),
        }
    }

    /// Takes what has arrived, and passes the tenant of each hint that was dropped for it to `dropped`. Returns their number.
    pub(super) fn take(&mut self, arriving: &Arriving, dropped: impl Fn(u8)) -> u64 {
        let mut count = 0;
        // Not more than there is room for: hints may arrive faster than they are taken.
        for _ in 0..MAX_ARRIVING {
            let Some(hint) = arriving.0.pop() else { break };
            if let Some(tenant) = self.keep(hint) {
                dropped(tenant);
                count += 1;
            }
        }
        count
    }

    /// Adds a hint of the mover's own. Returns the tenant of the one that was dropped for it, if one was.
    pub(super) fn push(&mut self, block: u32, priority: Priority) -> Option<u8> {
        self.keep(packed(block.into(), priority, 0))
    }

    /// Returns the tenant of another one that was dropped.
    fn keep(&mut self, hint: u64) -> Option<u8> {
        let is_full = self.kept.len() == MAX_KEPT;
        let dropped = if is_full { self.kept.pop_front() } else { None };
        self.kept.push_back(hint);
        dropped.map(tenant_of)
    }

    /// The newest: a block, its priority, and its tenant.
    #[expect(clippy::cast_possible_truncation, reason = "it was packed of these")]
    pub(super) fn pop(&mut self) -> Option<(u32, Priority, u8)> {
        let hint = self.kept.pop_back()?;
        let priority = Priority::parse(hint as u8).unwrap_or(Priority::Normal);
        Some(((hint >> 16) as u32, priority, tenant_of(hint)))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Drops all hints, and passes the tenant of each to `dropped`.
    pub(super) fn clear(&mut self, dropped: impl Fn(u8)) {
        self.kept.drain(..).map(tenant_of).for_each(dropped);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(hints: &mut Hints) -> Vec<u32> {
        std::iter::from_fn(|| hints.pop())
            .map(|(block, ..)| block)
            .collect()
    }

    #[test]
    fn the_newest_comes_first_with_its_priority() {
        let (arriving, mut hints) = (Arriving::new(), Hints::new());
        for (block, priority) in [(7, Priority::Normal), (9, Priority::Pinned), (8, Priority::Low)] {
            assert_eq!(arriving.push(block, priority, 0), None);
        }
        assert_eq!(hints.take(&arriving, |_| {}), 0);
        assert_eq!(hints.pop(), Some((8, Priority::Low, 0)));
        assert_eq!(hints.pop(), Some((9, Priority::Pinned, 0)));
        assert_eq!(arriving.push(3, Priority::High, 0), None);
        assert_eq!(hints.take(&arriving, |_| {}), 0);
        assert_eq!(all(&mut hints), [3, 7]);
    }

    #[test]
    fn the_oldest_are_dropped() {
        let (arriving, mut hints) = (Arriving::new(), Hints::new());
        let pushed: Vec<_> = (0..=MAX_ARRIVING as u64)
            .map(|block| arriving.push(block, Priority::Normal, 7))
            .collect();
        assert!(pushed[..MAX_ARRIVING].iter().all(Option::is_none));
        assert_eq!(pushed[MAX_ARRIVING], Some(7));
        let dropped = std::cell::Cell::new(0);
        let taken = hints.take(&arriving, |tenant| dropped.set(dropped.get() + u64::from(tenant)));
        assert_eq!(taken, (MAX_ARRIVING - MAX_KEPT) as u64);
        assert_eq!(dropped.get(), 7 * taken);
        let kept = all(&mut hints);
        assert_eq!((kept.len(), kept[0] as usize), (MAX_KEPT, MAX_ARRIVING));
    }
}
