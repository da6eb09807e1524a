//! Which blocks of an earlier server can be trusted.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use ublk_bpf_abi::{BlockState, IndexEntry};

/// How far the blocks of an earlier server are trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The backing device provably has the content that it had when the cache was saved: blocks are hit at once.
    Proven,
    /// The backing device may have changed since. Each block is compared with it, byte by byte, before its first hit.
    ToVerify,
}

/// Takes all entries out of `index` and returns the usable ones, as slot (below `slots`) and block, for
/// [`Mover::restore`](super::Mover::restore).
///
/// The server that wrote them may have been killed at any moment, and the map may be damaged. Entries are dropped if the
/// block was being filled (its slot is incomplete), had writes in flight (the devices may differ) or shares its slot with
/// another block (its owner is unknown). The others were correct when that server died, and must be verified. Only the
/// classifier may use the index at the same time; it finds no block.
#[must_use]
pub fn surviving(index: &[AtomicU64], slots: u32) -> Vec<(u32, u32)> {
    let mut found: Vec<(u32, u32)> = Vec::new();
    for (word, block) in index.iter().zip(0..) {
        let entry = IndexEntry(word.swap(0, Ordering::SeqCst));
        // Unverified: the server died before it came to these.
        let is_whole = matches!(entry.state(), BlockState::Present | BlockState::Unverified)
            && entry == IndexEntry::new(entry.state(), entry.slot());
        if is_whole && entry.slot() < slots {
            found.push((entry.slot(), block));
        }
    }
    let mut users: HashMap<u32, u32> = HashMap::with_capacity(found.len());
    for &(slot, _) in &found {
        *users.entry(slot).or_default() += 1;
    }
    found.retain(|(slot, _)| users.get(slot) == Some(&1));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(entries: &[IndexEntry]) -> Vec<(u32, u32)> {
        let index: Vec<_> = entries.iter().map(|entry| AtomicU64::new(entry.0)).collect();
        let found = surviving(&index, 8);
        assert!(index.iter().all(|word| word.load(Ordering::SeqCst) == 0));
        found
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
    fn what_was_being_filled_or_written_does_not() {
        let filling = IndexEntry::new(BlockState::Filling, 1);
        let entries = [
            filling,
            present(2).with_writers(1, 0),
            present(3).with_writers(1, 0x8000),
            present(4).with_writers(0, 1),
            IndexEntry::ABSENT.with_writers(2, 0),
            present(5),
        ];
        assert_eq!(taken(&entries), [(5, 5)]);
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
