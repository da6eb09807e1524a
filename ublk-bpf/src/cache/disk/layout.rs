//! Where things are on a cache device.

use super::DiskError;
use crate::cache::{MAX_BLOCK, MIN_BLOCK};
use crate::sys::aligned;

/// The unit that metadata is written in, and its alignment.
pub(super) const PAGE: u64 = aligned::PAGE as u64;
/// Where the copies of the superblock are.
pub(super) const COPIES: [u64; 2] = [0, PAGE];
/// Where the entries start: behind the copies.
const ENTRIES: u64 = 2 * PAGE;
/// Bytes of a slot's entry.
pub(super) const ENTRY: u64 = 16;
/// Slot numbers have 30 bits in the index.
const SLOTS: u64 = (1 << 30) - 1;

/// How a cache device is divided. There is one for each number of slots and size of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of a cache block, which is a slot's data: a power of two from [`MIN_BLOCK`] to [`MAX_BLOCK`].
    pub block_bytes: u32,
    /// How many there are: 1 to 2^30 - 1.
    pub slots: u32,
    /// Where the entries start, in bytes: a multiple of 4096. They have 16 bytes a slot.
    pub entries_offset: u64,
    /// Where slot 0's data starts, in bytes: a multiple of `block_bytes`. The other slots' follow.
    pub data_offset: u64,
}

impl Layout {
    /// Divides a device of `device_bytes` into as many slots of `block_bytes` as it has room for.
    ///
    /// # Errors
    /// If `block_bytes` is no size of a block, or there is no room for one slot.
    pub fn plan(device_bytes: u64, block_bytes: u32) -> Result<Self, DiskError> {
        let fits = |slots| Self::of(slots, block_bytes).filter(|layout| layout.end() <= device_bytes);
        let Some(least) = Self::of(1, block_bytes) else {
            return Err(DiskError::BlockSize(block_bytes));
        };
        // Without what alignment takes, which is less than a few slots.
        let most = device_bytes.saturating_sub(ENTRIES) / (u64::from(block_bytes) + ENTRY);
        let most = u32::try_from(most.min(SLOTS)).unwrap_or(u32::MAX);
        let found = (1..=most).rev().take(4).find_map(fits);
        found.ok_or(DiskError::TooSmall {
            found: device_bytes,
            needed: least.end(),
            block_bytes,
        })
    }

    /// The layout of so many slots of this size; `None` if that is not a size or a number of slots.
    pub(super) fn of(slots: u32, block_bytes: u32) -> Option<Self> {
        let sized = block_bytes.is_power_of_two() && (MIN_BLOCK..=MAX_BLOCK).contains(&block_bytes);
        if !sized || slots == 0 || u64::from(slots) > SLOTS {
            return None;
        }
        let entries_end = ENTRIES + (u64::from(slots) * ENTRY).next_multiple_of(PAGE);
        Some(Self {
            block_bytes,
            slots,
            entries_offset: ENTRIES,
            data_offset: entries_end.next_multiple_of(block_bytes.into()),
        })
    }

    /// Where a slot's data starts, in bytes.
    #[must_use]
    pub fn data_of(&self, slot: u32) -> u64 {
        self.data_offset + u64::from(slot) * u64::from(self.block_bytes)
    }

    /// Where the last slot's data ends, in bytes.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.data_of(self.slots)
    }

    /// How many cache blocks a backing of `capacity_bytes` has; the last one may be shorter than the others.
    #[must_use]
    pub fn blocks_of(&self, capacity_bytes: u64) -> u64 {
        capacity_bytes.div_ceil(self.block_bytes.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_device_too_small_is_told_how_much_is_needed() {
        let error = Layout::plan(127 << 10, 64 << 10).unwrap_err();
        assert_eq!(
            error.to_string(),
            "has 127K, too little for one slot of 64K: give it at least 128K, better thousands of times that"
        );
        assert_eq!(Layout::plan(128 << 10, 64 << 10).unwrap().slots, 1);
        assert!(matches!(
            Layout::plan(0, 4096),
            Err(DiskError::TooSmall { needed: 16384, .. })
        ));
    }

    #[test]
    fn only_powers_of_two_in_range_are_blocks() {
        for block in [0, 512, 2048, 4097, 12 << 10, 2 << 20, u32::MAX] {
            assert!(matches!(
                Layout::plan(1 << 30, block),
                Err(DiskError::BlockSize(_))
            ));
        }
    }

    #[test]
    fn the_largest_device_has_the_most_slots() {
        assert_eq!(Layout::plan(u64::MAX, 4096).unwrap().slots, (1 << 30) - 1);
        assert_eq!(Layout::plan(u64::MAX, 1 << 20).unwrap().slots, (1 << 30) - 1);
    }

    proptest! {
        #[test]
        fn everything_is_in_its_place_and_no_room_is_wasted(bytes in 0_u64..1 << 50, shift in 12_u32..=20) {
            let block = 1 << shift;
            let Ok(layout) = Layout::plan(bytes, block) else {
                prop_assert!(bytes < 12288 + 2 * u64::from(block));
                return Ok(());
            };
            prop_assert!(layout.entries_offset.is_multiple_of(PAGE));
            prop_assert!(layout.data_offset.is_multiple_of(block.into()));
            prop_assert!(layout.entries_offset + u64::from(layout.slots) * ENTRY <= layout.data_offset);
            prop_assert!(layout.end() <= bytes);
            let more = Layout::of(layout.slots + 1, block);
            prop_assert!(more.is_none_or(|more| more.end() > bytes));
            prop_assert_eq!(Layout::of(layout.slots, block), Some(layout));
        }
    }
}
