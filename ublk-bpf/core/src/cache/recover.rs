//! Which blocks of an earlier server can be trusted.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use ublk_bpf_abi::{BlockState, IndexEntry, Priority};

/// A block in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resident {
    /// Its slot.
    pub slot: u32,
    /// Its number.
    pub block: u32,
    /// How strongly the policy wants to keep it.
    pub priority: Priority,
    /// Its heat.
    pub heat: u8,
    /// The regions that its slot can serve, one bit each; bits beyond the end of the device mean nothing.
    pub valid: u16,
}

/// How far the blocks of an earlier server are trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The backing device provably has the content that it had when the cache was saved: blocks are hit at once.
    Proven,
    /// The backing device may have changed since. Each block is compared with it, byte by byte, before its first hit.
    ToVerify,
}

impl Trust {
    pub(super) const fn state(self) -> BlockState {
        match self {
            Self::Proven => BlockState::Present,
            Self::ToVerify => BlockState::Unverified,
        }
    }
}

/// Takes all entries out of `index` and returns the usable ones, in slots below `slots`, for
/// [`Mover::restore`](super::Mover::restore). Their heat is in its map, which outlived the server as well, and their
/// priority is lost.
///
/// The server that wrote them may have been killed at any moment, and the map may be damaged. Hidden regions of an entry
/// are not valid: they were never filled, or were being stored. Entries are dropped if nothing of them is valid, if they had
/// writes in flight (the devices may differ) or if they share their slot with another block (its owner is unknown). The
/// others were correct when that server died, and must be verified. Only the classifier may use the index at the same
/// time; it finds no block.
#[must_use]
pub fn surviving(index: &[AtomicU64], slots: u32) -> Vec<Resident> {
    let mut found: Vec<Resident> = Vec::new();
    for (word, block) in index.iter().zip(0..) {
        let entry = IndexEntry(word.swap(0, Ordering::SeqCst));
        // Unverified: the server died before it came to these.
        let is_usable = matches!(entry.state(), BlockState::Present | BlockState::Unverified)
            && entry.writers() == 0
            && entry.hidden() != u16::MAX;
        if is_usable && entry.slot() < slots {
            found.push(Resident {
                slot: entry.slot(),
                block,
                priority: Priority::Normal,
                heat: 0,
                valid: !entry.hidden(),
            });
        }
    }
    let mut users: HashMap<u32, u32> = HashMap::with_capacity(found.len());
    for of in &found {
        *users.entry(of.slot).or_default() += 1;
    }
    found.retain(|of| users.get(&of.slot) == Some(&1));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Slot, block and valid regions of the survivors.
    fn regions_taken(entries: &[IndexEntry]) -> Vec<(u32, u32, u16)> {
        let index: Vec<_> = entries.iter().map(|entry| AtomicU64::new(entry.0)).collect();
        let found = surviving(&index, 8);
        assert!(index.iter().all(|word| word.load(Ordering::SeqCst) == 0));
        found.iter().map(|of| (of.slot, of.block, of.valid)).collect()
    }

    fn taken(entries: &[IndexEntry]) -> Vec<(u32, u32)> {
        let found = regions_taken(entries).into_iter();
        found.map(|(slot, block, _)| (slot, block)).collect()
    }

    const fn present(slot: u32) -> IndexEntry {
        IndexEntry::new(BlockState::Present, slot)
    }

    #[test]
    fn whole_blocks_survive_in_their_slots() {
        assert_eq!(
            taken(&[present(7), IndexEntry::ABSENT, present(0)]),
            [(7, 0), (0, 2)]
        );
    }

    #[test]
    fn so_do_blocks_that_were_yet_to_be_verified() {
        let unverified = IndexEntry::new(BlockState::Unverified, 3);
        assert_eq!(taken(&[unverified, unverified.with_writers(1, 0)]), [(3, 0)]);
    }

    #[test]
    fn what_was_being_written_does_not() {
        let entries = [
            present(2).with_writers(1, 0),
            present(3).with_writers(1, 0x8000),
            IndexEntry::ABSENT.with_writers(2, 0),
            present(5),
        ];
        assert_eq!(taken(&entries), [(5, 3)]);
    }

    #[test]
    fn of_a_block_in_part_the_valid_regions_do() {
        let unverified = IndexEntry::new(BlockState::Unverified, 3);
        let entries = [
            present(1).with_writers(0, 0xfff0),
            present(2).with_writers(0, u16::MAX),
            unverified.with_writers(0, 1),
        ];
        assert_eq!(regions_taken(&entries), [(1, 0, 0x000f), (3, 2, 0xfffe)]);
    }

    #[test]
    fn scribbled_entries_do_not() {
        let entries = [
            IndexEntry(u64::MAX),
            present(8),
            present(IndexEntry::MAX_SLOTS - 1),
            present(1),
        ];
        assert_eq!(taken(&entries), [(1, 3)]);
    }

    #[test]
    fn of_blocks_with_one_slot_none_does() {
        let entries = [present(1), present(2), present(1), present(1), present(3)];
        assert_eq!(taken(&entries), [(2, 1), (3, 4)]);
    }
}
