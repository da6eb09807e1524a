//! The legs of a request: which devices its bytes come from or go to, and what it holds in the cache for that.

use ublk_bpf_abi::REGIONS;

use super::event::Tier;
use crate::cache::{BackWrite, CommitTicket, Scope, SlotPin, WriteClaim};

/// The legs of a request, as data. A read of a block that is cached in part has several, one for each run of regions that
/// come from the same place; all other requests repeat theirs chunk by chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Legs {
    /// On the backing device alone.
    Backing,
    /// A read of the slot alone.
    Slot(SlotPin),
    /// A read of the regions `slot` from the slot, of the regions `fill` from a fill's buffer, and of all others from the
    /// backing device.
    Split { pin: SlotPin, slot: u16, fill: u16 },
    /// The same, with nothing in a slot.
    Filled { fill: u16 },
    /// A change of the backing device alone. Its blocks are marked, and absent until it ends.
    Marked,
    /// A write to the backing device alone, whose regions are claimed.
    Around(WriteClaim),
    /// A write of each chunk to the backing device and then to the slot.
    Through(WriteClaim),
    /// What is left of that after the slot has failed.
    Detached(WriteClaim),
    /// A write to the slot alone.
    Back(BackWrite),
    /// The same to the backing device, since the slot has failed.
    BackAround(BackWrite),
    /// A commit, for a request that is otherwise done: a FLUSH, or a write that must be durable.
    Commit(CommitTicket, Scope),
}

/// Where a piece of a read comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Device(Tier),
    Fill,
}

/// What a request does when the slot, or the fill, of one of its legs has failed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fallback {
    /// It fails.
    None,
    /// It starts again, on the backing device alone.
    Restart,
    /// It goes on behind the failed leg, with these legs.
    GoOn(Legs),
    /// It starts again with these legs, on the backing device.
    Again(Legs),
}

impl Legs {
    /// Of a read whose readable regions are pinned, and whose others come from a fill of the regions `filled` or from the
    /// backing device.
    pub(super) fn of_read(regions: u16, readable: Option<(SlotPin, u16)>, filled: u16) -> Self {
        match readable {
            Some((pin, slot)) => Self::Split {
                pin,
                slot,
                fill: regions & filled & !slot,
            },
            None if regions & filled == 0 => Self::Backing,
            None => Self::Filled {
                fill: regions & filled,
            },
        }
    }

    /// Of a write with this claim.
    pub(super) const fn of_write(claim: WriteClaim) -> Self {
        if claim.stores() {
            Self::Through(claim)
        } else {
            Self::Around(claim)
        }
    }

    /// Whether its pieces come from different places.
    pub(super) const fn is_split(self) -> bool {
        matches!(self, Self::Split { .. } | Self::Filled { .. })
    }

    /// Whether a piece comes from a fill.
    pub(super) const fn needs_fill(self) -> bool {
        match self {
            Self::Split { fill, .. } | Self::Filled { fill } => fill != 0,
            _ => false,
        }
    }

    /// What follows the failure of a slot or a fill. A read finds everything on the backing device; a chunk of a write
    /// is there already.
    pub(super) const fn fallback(self) -> Fallback {
        match self {
            Self::Slot(_) | Self::Split { .. } | Self::Filled { .. } => Fallback::Restart,
            Self::Through(claim) => Fallback::GoOn(Self::Detached(claim)),
            Self::Back(write) if write.may_go_around() => Fallback::Again(Self::BackAround(write)),
            Self::Backing
            | Self::Marked
            | Self::Around(_)
            | Self::Detached(_)
            | Self::Back(_)
            | Self::BackAround(_)
            | Self::Commit(..) => Fallback::None,
        }
    }

    /// The piece of a split read that begins at byte `at` of its cache block, of `1 << shift` bytes: where it comes from,
    /// and where it ends at most.
    pub(super) fn piece(self, at: u32, shift: u32) -> (Source, u32) {
        let region_shift = shift - REGIONS.ilog2();
        let first = at >> region_shift;
        let source = self.source(first);
        let next = (first + 1..REGIONS)
            .find(|&region| self.source(region) != source)
            .unwrap_or(REGIONS);
        (source, next << region_shift)
    }

    fn source(self, region: u32) -> Source {
        let (slot, fill) = match self {
            Self::Split { slot, fill, .. } => (slot, fill),
            Self::Filled { fill } => (0, fill),
            _ => (0, 0),
        };
        if slot >> region & 1 == 1 {
            Source::Device(Tier::Cache)
        } else if fill >> region & 1 == 1 {
            Source::Fill
        } else {
            Source::Device(Tier::Backing)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_a_run_of_regions_from_one_place() {
        let legs = Legs::of_read(0b0111_1110, None, 0b0011_1000);
        assert_eq!(legs, Legs::Filled { fill: 0b0011_1000 });
        let backing = Source::Device(Tier::Backing);
        assert_eq!(legs.piece(4096 + 512, 16), (backing, 3 << 12));
        assert_eq!(legs.piece(3 << 12, 16), (Source::Fill, 6 << 12));
        assert_eq!(legs.piece(6 << 12, 16), (backing, 1 << 16));
        assert!(legs.is_split() && legs.needs_fill());
        assert_eq!(Legs::of_read(1, None, 0b10), Legs::Backing);
    }

    #[test]
    fn a_read_that_the_cache_fails_starts_again_without_it() {
        assert_eq!(Legs::Filled { fill: 1 }.fallback(), Fallback::Restart);
        assert_eq!(Legs::Backing.fallback(), Fallback::None);
        assert_eq!(Legs::Marked.fallback(), Fallback::None);
    }
}
