//! The queues that wait for the end of a claim.

use super::word::{AtomicU64, Word};

/// Words of waiters, at most. Slots share them, so a queue may be woken for another slot's claim, and looks again in vain.
const MAX_WORDS: u32 = 256;

/// Queues, as bits: a queue's is its number modulo 64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "these queues wait to be woken"]
pub struct QueueSet(u64);

impl QueueSet {
    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// These queues and others.
    pub const fn union(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// Whether this queue is one of them. Of more than 64 queues, each shares its bit with others.
    #[must_use]
    pub const fn contains(self, queue: u16) -> bool {
        self.0 >> (queue % 64) & 1 == 1
    }
}

/// Who waits for which slots, and who is to be woken.
///
/// A wake-up is not lost: a waiter registers, and then looks whether the claim is still there; a releaser releases the
/// claim, and then looks for waiters. All of that is sequentially consistent, so one of them sees the other.
#[derive(Debug)]
pub(super) struct Waiters<W = AtomicU64> {
    of: Box<[W]>,
    woken: W,
}

impl<W: Word> Waiters<W> {
    pub(super) fn new(slots: u32) -> Self {
        Self {
            of: W::zeroes(slots.min(MAX_WORDS) as usize),
            woken: W::new(0),
        }
    }

    /// `queue` waits for a claim of this slot. Look afterwards whether it is still there.
    pub(super) fn register(&self, slot: u32, queue: u16) {
        self.word_of(slot).fetch_or(1 << (queue % 64));
    }

    fn word_of(&self, slot: u32) -> &W {
        &self.of[slot as usize % self.of.len()]
    }

    /// A claim of this slot was released.
    pub(super) fn wake(&self, slot: u32) {
        let word = self.word_of(slot);
        if word.load() != 0 {
            self.woken.fetch_or(word.swap(0));
        }
    }

    /// Wakes these queues, for something other than a claim.
    pub(super) fn wake_queues(&self, queues: u64) {
        if queues != 0 {
            self.woken.fetch_or(queues);
        }
    }

    /// Wakes all.
    pub(super) fn wake_all(&self) {
        for word in &self.of {
            self.woken.fetch_or(word.swap(0));
        }
    }

    /// Takes the queues to wake.
    pub(super) fn take(&self) -> QueueSet {
        if self.woken.load() == 0 {
            return QueueSet::default();
        }
        QueueSet(self.woken.swap(0))
    }
}
