//! The cache index: the state and slot of each block.

numbered! {
    /// State of a block in the cache.
    BlockState {
        /// Not cached.
        Absent = 0, "absent";
        /// Cached, and its slot has data that the backing device lacks, or is about to: see [`DirtyEntry`]. It stays until
        /// that is written back.
        Dirty = 1, "dirty";
        /// Cached.
        Present = 2, "present";
        /// Its slot held it when an earlier server ended, is not yet compared with the backing device, and must not be
        /// read. Hidden regions are not valid.
        Unverified = 3, "unverified";
    }
}

/// Regions of a block: what of it is valid in its slot is tracked by region.
pub const REGIONS: u32 = 16;

/// One block of the backing device in one word, so that every state change is one compare-and-swap:
/// state in bits 0..2, slot in bits 2..32, writers in bits 32..48, hidden regions in bits 48..64.
///
/// Only the server writes it. A region of a present block is *hidden* if its slot cannot serve it: it was never filled,
/// or a fill or a write is storing it. Reads of hidden regions bypass the cache. An absent block with writers is not
/// filled.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexEntry(pub u64);

impl IndexEntry {
    /// Not cached, no writers.
    pub const ABSENT: Self = Self(0);
    /// Number of slots that an entry can address: 2^30.
    pub const MAX_SLOTS: u32 = 1 << 30;
    /// Maximum number of writes in flight that it can count.
    pub const MAX_WRITERS: u32 = 0xffff;

    /// An entry for `slot`, which is below [`Self::MAX_SLOTS`].
    #[must_use]
    #[inline(always)]
    pub const fn new(state: BlockState, slot: u32) -> Self {
        Self(state as u64 | (slot as u64) << 2)
    }

    /// State of the block.
    #[must_use]
    #[inline(always)]
    pub const fn state(self) -> BlockState {
        match self.0 & 3 {
            1 => BlockState::Dirty,
            2 => BlockState::Present,
            3 => BlockState::Unverified,
            _ => BlockState::Absent,
        }
    }

    /// Whether the block is cached: present or dirty.
    #[must_use]
    #[inline(always)]
    pub const fn is_present(self) -> bool {
        // 1 or 2 of four values.
        self.0.wrapping_add(1) & 2 != 0
    }

    /// Whether the block has dirty regions, or is about to have some.
    #[must_use]
    #[inline(always)]
    pub const fn is_dirty(self) -> bool {
        self.0 & 3 == BlockState::Dirty as u64
    }

    /// The entry in this state, the rest unchanged.
    #[must_use]
    #[inline(always)]
    pub const fn in_state(self, state: BlockState) -> Self {
        Self(self.0 & !3 | state as u64)
    }

    /// The slot; meaningless if the block is absent.
    #[must_use]
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the slot is in the low half")]
    pub const fn slot(self) -> u32 {
        (self.0 as u32) >> 2
    }

    /// Number of writes, discards and write-zeroes in flight on the block.
    #[must_use]
    #[inline(always)]
    pub const fn writers(self) -> u32 {
        (self.0 >> 32) as u32 & Self::MAX_WRITERS
    }

    /// Regions of a block that its slot cannot serve, one bit each.
    #[must_use]
    #[inline(always)]
    pub const fn hidden(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// Whether a read of these regions may be served from the slot.
    #[must_use]
    #[inline(always)]
    pub const fn serves(self, regions: u16) -> bool {
        self.is_present() && self.hidden() & regions == 0
    }

    /// The entry with this number of writers and these regions hidden.
    #[must_use]
    #[inline(always)]
    pub const fn with_writers(self, writers: u32, hidden: u16) -> Self {
        let place = self.0 & 0xffff_ffff;
        Self(place | ((writers & Self::MAX_WRITERS) as u64) << 32 | (hidden as u64) << 48)
    }

    /// The entry marked absent, with the same writers.
    #[must_use]
    #[inline(always)]
    pub const fn invalidated(self) -> Self {
        Self::ABSENT.with_writers(self.writers(), 0)
    }
}

/// What of a slot is dirty, in one word: dirty regions in bits 0..16, *held* in bit 16, generation in bits 32..64.
///
/// Only the server writes it. A region is *dirty* if the slot has data that the backing device lacks; it is valid then,
/// whatever the block's [`IndexEntry`] hides. A slot is *held* for its block as long as it is dirty, or the log on the cache
/// device says so. The generation changes with each write that begins, so that a copy of the slot can be known to be old.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirtyEntry(pub u64);

impl DirtyEntry {
    const HELD: u64 = 1 << 16;
    const GENERATION: u64 = 1 << 32;

    /// With these dirty regions, held, in generation 0.
    #[must_use]
    pub const fn held_with(dirty: u16) -> Self {
        Self(dirty as u64 | Self::HELD)
    }

    /// The dirty regions.
    #[must_use]
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "it is the lowest 16 bits that are meant"
    )]
    pub const fn dirty(self) -> u16 {
        self.0 as u16
    }

    /// Whether the slot is held.
    #[must_use]
    #[inline(always)]
    pub const fn is_held(self) -> bool {
        self.0 & Self::HELD != 0
    }

    /// The generation.
    #[must_use]
    #[inline(always)]
    pub const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The entry with these dirty regions, held or not, in the same generation.
    #[must_use]
    #[inline(always)]
    pub const fn with(self, dirty: u16, is_held: bool) -> Self {
        let generation = self.0 >> 32 << 32;
        Self(generation | dirty as u64 | if is_held { Self::HELD } else { 0 })
    }

    /// The entry in its next generation.
    #[must_use]
    #[inline(always)]
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(Self::GENERATION))
    }
}

/// Bit mask of the regions of a cache block of `1 << shift` bytes that `sectors` (not 0) from `sector` on overlap.
/// `shift` is 12 to 20. A range past the end of the block counts as its last region.
#[must_use]
#[inline(always)]
pub const fn regions(shift: u32, sector: u64, sectors: u32) -> u16 {
    let mask = (1u64 << shift) - 1;
    let first = (sector << 9) & mask;
    let last = first + ((sectors as u64) << 9) - 1;
    let from = (first >> (shift - 4)) & 15;
    let to = last >> (shift - 4);
    let to = if to > 15 { 15 } else { to };
    u16::MAX << from & (u16::MAX >> (15 - to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_an_entry_do_not_overlap() {
        let entry =
            IndexEntry::new(BlockState::Present, IndexEntry::MAX_SLOTS - 1).with_writers(0xffff, 0x8001);
        assert_eq!(entry.state(), BlockState::Present);
        assert_eq!(entry.slot(), IndexEntry::MAX_SLOTS - 1);
        assert_eq!((entry.writers(), entry.hidden()), (0xffff, 0x8001));
        assert_eq!(entry.invalidated(), IndexEntry::ABSENT.with_writers(0xffff, 0));
        for state in BlockState::ALL {
            let entry = IndexEntry::new(state, 7).with_writers(1, 1);
            assert_eq!((entry.state(), entry.slot()), (state, 7));
            let is_present = matches!(state, BlockState::Present | BlockState::Dirty);
            assert_eq!((entry.is_present(), entry.serves(2)), (is_present, is_present));
            assert_eq!(entry.is_dirty(), state == BlockState::Dirty);
            assert_eq!(entry.in_state(BlockState::Present).slot(), 7);
        }
        assert!(entry.serves(2) && !entry.serves(1));
    }

    #[test]
    fn a_generation_changes_nothing_else() {
        let entry = DirtyEntry(u64::MAX).with(0x8001, true);
        let next = entry.next();
        assert_eq!((entry.generation(), next.generation()), (u32::MAX, 0));
        assert_eq!((next.dirty(), next.is_held()), (0x8001, true));
        assert_eq!(DirtyEntry::held_with(0x8001), next);
        assert!(!next.with(1, false).is_held());
    }

    #[test]
    fn regions_are_sixteenths_of_a_block() {
        assert_eq!(regions(16, 0, 1), 1);
        assert_eq!(regions(16, 0, 128), u16::MAX);
        assert_eq!(regions(16, 128 + 7, 2), 3);
        assert_eq!(regions(16, 127, 1), 1 << 15);
        assert_eq!(
            regions(12, 9, 1),
            0b1100,
            "in a 4 KiB block, a sector is two regions"
        );
        assert_eq!(regions(16, 120, 128), 1 << 15, "past the end");
    }
}
