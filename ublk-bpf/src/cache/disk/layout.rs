//! Where things are on a cache device.

use super::DiskError;
use crate::cache::log::{LogLayout, MIN_LOG_PAGES};
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
const SLOTS: u32 = (1 << 30) - 1;
/// Pages of a log: as many as an area for each slot's entry, but no more than 64 MiB; and at least as many as make
/// transactions of 64 KiB, unless that is more than a 64th of the slots' data.
const MOST_LOG_PAGES: u32 = 16 << 10;
const LEAST_LOG_PAGES: u32 = 64;

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
        let Some(least) = Self::of(1, block_bytes) else {
            return Err(DiskError::BlockSize(block_bytes));
        };
        let most = device_bytes.saturating_sub(ENTRIES) / (u64::from(block_bytes) + ENTRY);
        let most = u32::try_from(most).unwrap_or(SLOTS).min(SLOTS);
        let found = most_fitting(most, |slots| {
            Self::of(slots, block_bytes).filter(|layout| layout.end() <= device_bytes)
        });
        found.ok_or(DiskError::TooSmall {
            found: device_bytes,
            needed: least.end(),
            block_bytes,
        })
    }

    /// The layout of so many slots of this size; `None` if that is not a size or a number of slots.
    pub(super) fn of(slots: u32, block_bytes: u32) -> Option<Self> {
        let before = Self::without_log(slots, block_bytes)?;
        let data_offset = before.log().end().next_multiple_of(block_bytes.into());
        Some(Self {
            data_offset,
            ..before
        })
    }

    /// The same in the versions of the format that had no log: the slots' data follows the entries.
    pub(super) fn without_log(slots: u32, block_bytes: u32) -> Option<Self> {
        let sized = block_bytes.is_power_of_two() && (MIN_BLOCK..=MAX_BLOCK).contains(&block_bytes);
        (sized && (1..=SLOTS).contains(&slots)).then(|| Self {
            block_bytes,
            slots,
            entries_offset: ENTRIES,
            data_offset: entries_end(slots).next_multiple_of(block_bytes.into()),
        })
    }

    /// Whether this layout without a log is the one that a device of so many bytes was given.
    pub(super) fn fills(&self, device_bytes: u64) -> bool {
        let more = Self::without_log(self.slots + 1, self.block_bytes);
        self.end() <= device_bytes && more.is_none_or(|more| more.end() > device_bytes)
    }

    /// Where the log is that says what is dirty: between the entries and the slots' data.
    #[must_use]
    pub fn log(&self) -> LogLayout {
        let data_pages = u64::from(self.slots) * u64::from(self.block_bytes) / PAGE;
        let share = u32::try_from(data_pages / 64).unwrap_or(u32::MAX);
        let least = share.clamp(MIN_LOG_PAGES, LEAST_LOG_PAGES);
        let areas = LogLayout::new(0, self.slots, 0).area_pages;
        LogLayout::new(
            entries_end(self.slots),
            self.slots,
            areas.clamp(least, MOST_LOG_PAGES),
        )
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

fn entries_end(slots: u32) -> u64 {
    ENTRIES + (u64::from(slots) * ENTRY).next_multiple_of(PAGE)
}

/// The layout of the most slots, up to `most`, that there is one of; what is fewer than one that fits does too.
fn most_fitting(most: u32, layout: impl Fn(u32) -> Option<Layout>) -> Option<Layout> {
    let (mut low, mut high) = (0, most);
    while low < high {
        let middle = high - (high - low) / 2;
        match layout(middle) {
            Some(_) => low = middle,
            None => high = middle - 1,
        }
    }
    layout(low)
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
            Err(DiskError::TooSmall { needed: 65536, .. })
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

    #[test]
    fn the_log_grows_with_the_slots() {
        for (device, block, area_pages, log_pages) in [
            (128 << 10, 65536, 1, 8),
            (8 << 20, 65536, 1, 31),
            (1 << 30, 65536, 65, 65),
            (1 << 40, 65536, 66_523, 16384),
        ] {
            let log = Layout::plan(device, block).unwrap().log();
            assert_eq!(
                (log.area_pages, log.log_pages),
                (area_pages, log_pages),
                "{device}"
            );
        }
    }

    proptest! {
        #[test]
        fn everything_is_in_its_place_and_no_room_is_wasted(bytes in 0_u64..1 << 50, shift in 12_u32..=20) {
            let block = 1 << shift;
            let Ok(layout) = Layout::plan(bytes, block) else {
                prop_assert!(bytes < 61440 + 2 * u64::from(block));
                return Ok(());
            };
            prop_assert!(layout.entries_offset.is_multiple_of(PAGE));
            prop_assert!(layout.data_offset.is_multiple_of(block.into()));
            prop_assert!(layout.entries_offset + u64::from(layout.slots) * ENTRY <= layout.log().heads_offset);
            prop_assert!(layout.log().end() <= layout.data_offset);
            prop_assert!(layout.log().area_pages * 252 >= layout.slots);
            prop_assert!(layout.end() <= bytes);
            let more = Layout::of(layout.slots + 1, block);
            prop_assert!(more.is_none_or(|more| more.end() > bytes));
            prop_assert_eq!(Layout::of(layout.slots, block), Some(layout));
        }
    }
}
