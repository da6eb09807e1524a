//! What an index that a dead server left is still good for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use ublk_bpf_abi::IndexEntry;

/// The blocks that were in the cache when their server died, as (slot, block).
///
/// A block that was being filled or written then is not among them: nobody knows how far that came. Nor is one whose
/// entry no server writes: a slot that there is not, or one that another block claims too.
#[must_use]
pub fn surviving(index: &[AtomicU64], slots: u32) -> Vec<(u32, u32)> {
    let mut blocks: HashMap<u32, Option<u32>> = HashMap::new();
    for (block, word) in (0..).zip(index) {
        let entry = IndexEntry(word.load(Ordering::SeqCst));
        if entry.is_present() && entry.writers() == 0 && entry.writing() == 0 && entry.slot() < slots {
            blocks
                .entry(entry.slot())
                .and_modify(|claim| *claim = None)
                .or_insert(Some(block));
        }
    }
    let mut found: Vec<_> = blocks
        .into_iter()
        .filter_map(|(slot, block)| Some((slot, block?)))
        .collect();
    found.sort_unstable();
    found
}

#[cfg(test)]
mod tests {
    use ublk_bpf_abi::BlockState;

    use super::*;

    #[test]
    fn only_what_is_certain_survives() {
        let present = |slot| IndexEntry::new(BlockState::Present, slot);
        let entries = [
            present(2),
            IndexEntry::ABSENT,
            IndexEntry::new(BlockState::Filling, 0),
            present(1).with_writers(1, 1),
            IndexEntry::ABSENT.with_writers(3, 0),
            present(9),
            present(4),
            present(3),
            present(4),
            IndexEntry(3),
            present(0),
        ];
        let index = entries.map(|entry| AtomicU64::new(entry.0));
        assert_eq!(surviving(&index, 8), [(0, 10), (2, 0), (3, 7)]);
    }
}
