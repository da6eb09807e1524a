//! The verdicts of one queue, where the classifier leaves them.

use std::sync::atomic::{AtomicU64, Ordering};

use ublk_bpf_abi::VerdictSlot;

use crate::queue::TakenVerdict;

/// One tag's slot: a [`VerdictSlot`] in memory that the classifier writes.
#[repr(C)]
#[derive(Debug, Default)]
pub struct VerdictCell {
    head: AtomicU64,
    sector: AtomicU64,
}

const _: () = assert!(size_of::<VerdictCell>() == size_of::<VerdictSlot>());

/// The slots of one queue, by tag.
///
/// The classifier writes a slot while its tag is on the way to the server, sector first; the server owns it
/// from the tag's arrival to its commit. So neither ever waits for the other, and relaxed accesses do: what
/// orders them is the kernel's queue of tags between the two.
#[derive(Clone, Copy, Debug)]
pub struct VerdictSlots<'a>(&'a [VerdictCell]);

impl<'a> VerdictSlots<'a> {
    /// The slots of a queue's tags, in their order.
    #[must_use]
    pub const fn new(slots: &'a [VerdictCell]) -> Self {
        Self(slots)
    }

    /// How many tags have a slot.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no tag has one.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes what is in a tag's slot and leaves it empty. A tag without a slot has no verdict.
    #[inline]
    #[must_use]
    pub fn take(&self, tag: u16) -> TakenVerdict {
        let Some(slot) = self.0.get(usize::from(tag)) else {
            return TakenVerdict { head: 0, sector: 0 };
        };
        let taken = TakenVerdict {
            head: slot.head.load(Ordering::Relaxed),
            sector: slot.sector.load(Ordering::Relaxed),
        };
        slot.head.store(0, Ordering::Relaxed);
        taken
    }

    /// Empties every slot: what an earlier server did not take is about requests of its own.
    pub fn clear(&self) {
        for slot in self.0 {
            slot.head.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_taken_once() {
        let cells = [
            VerdictCell::default(),
            VerdictCell {
                head: 5.into(),
                sector: 77.into(),
            },
        ];
        let slots = VerdictSlots::new(&cells);
        assert_eq!(slots.take(1), TakenVerdict { head: 5, sector: 77 });
        assert_eq!(slots.take(1).head, 0);
        assert_eq!(slots.take(2).head, 0);
        cells[0].head.store(9, Ordering::Relaxed);
        slots.clear();
        assert_eq!(slots.take(0).head, 0);
    }
}
