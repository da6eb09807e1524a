//! Which blocks of an earlier server can be trusted.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use ublk_bpf_abi::{BlockState, DirtyEntry, IndexEntry, Priority};

use super::log::LogEntry;

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

/// A dirty block of an earlier server, which only its slot has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirtyBlock {
    /// Its slot.
    pub slot: u32,
    /// Its number.
    pub block: u32,
    /// Its dirty regions, one bit each.
    pub dirty: u16,
    /// What the log on the cache device says of the slot. `dirty` may be 0 if this is not.
    pub logged: u16,
}

/// What a killed server has left in the index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survivors {
    /// Blocks to verify, without dirty regions.
    pub clean: Vec<Resident>,
    /// Slots that are dirty, or that the log calls so. Those that are not dirty have no block in the index.
    pub dirty: Vec<DirtyBlock>,
}

/// Why the maps of a killed server cannot be trusted, though they have dirty blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damaged {
    /// Two blocks name one slot.
    #[error("slot {0} is dirty, and the index has more than one block in it")]
    TwoBlocks(u32),
    /// No block names it.
    #[error("slot {0} is dirty, and the index has no block in it")]
    NoBlock(u32),
    /// The log and the index disagree.
    #[error("slot {0} is dirty, and the log has another block in it than the index")]
    OtherBlock(u32),
}

/// What is usable of the entries of `index`, in slots below `slots`, for [`Mover::restore`](super::Mover::restore) and
/// [`Mover::restore_dirty`](super::Mover::restore_dirty). Their heat is in its map, which outlived the server as well, and their priority is
/// lost. `dirty` has a word for each slot, or none without write-back; `log` says what is durable of them.
///
/// The server that wrote them may have been killed at any moment, and the index may be damaged. Hidden regions of an entry
/// are not valid: they were never filled, or were being stored. Entries are dropped if nothing of them is valid, if they had
/// writes in flight (the devices may differ) or if they share their slot with another block (its owner is unknown). The
/// others were correct when that server died, and must be verified.
///
/// A dirty region is right, whatever was in flight: its slot is all there is of it. Other regions of its block are given up.
///
/// Entries of clean blocks are taken out of the index; a dirty block has its entry at any moment, so that another kill during
/// the recovery loses nothing. Only the classifier may use the index at the same time.
///
/// # Errors
/// If there is dirty data whose block is in doubt. Nothing has changed then.
pub fn surviving(
    index: &[AtomicU64],
    dirty: &[AtomicU64],
    slots: u32,
    log: &[LogEntry],
) -> Result<Survivors, Damaged> {
    let dirty_of = |slot: u32| {
        let word = dirty.get(slot as usize);
        word.map_or(0, |word| DirtyEntry(word.load(Ordering::SeqCst)).dirty())
    };
    let blocks = dirty_blocks(index, dirty, slots, dirty_of)?;
    let survivors = Survivors {
        dirty: with_log(&blocks, log, dirty_of)?,
        clean: Vec::new(),
    };
    Ok(Survivors {
        clean: take_clean(index, slots, &survivors.dirty),
        ..survivors
    })
}

/// The block of each dirty slot.
fn dirty_blocks(
    index: &[AtomicU64],
    dirty: &[AtomicU64],
    slots: u32,
    dirty_of: impl Fn(u32) -> u16,
) -> Result<HashMap<u32, u32>, Damaged> {
    let mut blocks = HashMap::new();
    for (word, block) in index.iter().zip(0..) {
        let entry = IndexEntry(word.load(Ordering::SeqCst));
        let is_dirty = entry.is_present() && entry.slot() < slots && dirty_of(entry.slot()) != 0;
        if is_dirty && blocks.insert(entry.slot(), block).is_some() {
            return Err(Damaged::TwoBlocks(entry.slot()));
        }
    }
    let unnamed = (0..slots)
        .take(dirty.len())
        .find(|&slot| dirty_of(slot) != 0 && !blocks.contains_key(&slot));
    unnamed.map_or(Ok(blocks), |slot| Err(Damaged::NoBlock(slot)))
}

/// These, and the slots that only the log calls dirty.
fn with_log(
    blocks: &HashMap<u32, u32>,
    log: &[LogEntry],
    dirty_of: impl Fn(u32) -> u16,
) -> Result<Vec<DirtyBlock>, Damaged> {
    let mut found: HashMap<u32, DirtyBlock> = HashMap::with_capacity(blocks.len() + log.len());
    for entry in log {
        let LogEntry { slot, block, dirty } = *entry;
        if blocks.get(&slot).is_some_and(|&of| of != block) {
            return Err(Damaged::OtherBlock(slot));
        }
        let logged = dirty;
        let dirty = dirty_of(slot);
        found.insert(
            slot,
            DirtyBlock {
                slot,
                block,
                dirty,
                logged,
            },
        );
    }
    for (&slot, &block) in blocks {
        found.entry(slot).or_insert(DirtyBlock {
            slot,
            block,
            dirty: dirty_of(slot),
            logged: 0,
        });
    }
    let mut found: Vec<_> = found.into_values().collect();
    found.sort_unstable_by_key(|of| of.slot);
    Ok(found)
}

/// Takes the entries out that are not dirty. Those in slots that the log calls dirty are not used.
fn take_clean(index: &[AtomicU64], slots: u32, dirty: &[DirtyBlock]) -> Vec<Resident> {
    let held: HashMap<u32, u16> = dirty.iter().map(|of| (of.slot, of.dirty)).collect();
    let mut found: Vec<Resident> = Vec::new();
    for (word, block) in index.iter().zip(0..) {
        let entry = IndexEntry(word.load(Ordering::SeqCst));
        let dirty = held.get(&entry.slot()).copied().filter(|_| entry.is_present());
        if let Some(dirty) = dirty.filter(|&dirty| dirty != 0) {
            let restored = IndexEntry::new(BlockState::Dirty, entry.slot()).with_writers(0, !dirty);
            word.store(restored.0, Ordering::SeqCst);
            continue;
        }
        word.store(0, Ordering::SeqCst);
        // Unverified: the server died before it came to these.
        let is_usable = entry.state() != BlockState::Absent
            && dirty.is_none()
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
    found.retain(|of| users.get(&of.slot) == Some(&1) && !held.contains_key(&of.slot));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Slot, block and valid regions of the survivors.
    fn regions_taken(entries: &[IndexEntry]) -> Vec<(u32, u32, u16)> {
        let index: Vec<_> = entries.iter().map(|entry| AtomicU64::new(entry.0)).collect();
        let found = surviving(&index, &[], 8, &[]).unwrap().clean;
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

    #[test]
    fn dirty_blocks_survive_whatever_was_in_flight() {
        let index = [
            present(1).in_state(BlockState::Dirty).with_writers(3, 0xff01),
            present(2),
            present(3).with_writers(1, 0),
            present(5),
        ];
        let index: Vec<_> = index.iter().map(|entry| AtomicU64::new(entry.0)).collect();
        let dirty: Vec<_> = [0, 0x0006, 0, 0x8000, 0, 0, 0]
            .map(|dirty| AtomicU64::new(DirtyEntry::held_with(dirty).0))
            .into();
        // Slot 2 was cleaned, slot 6 was cleaned and its block left; neither is in the log yet.
        let log = [(2, 1, 7), (3, 2, 0x8000), (6, 9, 1)];
        let log = log.map(|(slot, block, dirty)| LogEntry { slot, block, dirty });
        for _ in 0..2 {
            let found = surviving(&index, &dirty, 7, &log).unwrap();
            let of = |slot, block, dirty, logged| DirtyBlock {
                slot,
                block,
                dirty,
                logged,
            };
            assert_eq!(
                found.dirty,
                [
                    of(1, 0, 6, 0),
                    of(2, 1, 0, 7),
                    of(3, 2, 0x8000, 0x8000),
                    of(6, 9, 0, 1)
                ],
                "and again after a kill in the recovery"
            );
            assert!(found.clean.iter().all(|of| of.slot == 5));
            let entry = IndexEntry(index[0].load(Ordering::SeqCst));
            assert!(entry.is_dirty() && entry.serves(6) && !entry.serves(1) && entry.writers() == 0);
        }
    }

    #[test]
    fn dirty_data_in_doubt_is_refused() {
        let words =
            |values: &[u64]| -> Vec<_> { values.iter().map(|&value| AtomicU64::new(value)).collect() };
        let dirty = words(&[DirtyEntry::held_with(1).0, 0]);
        let two = words(&[present(0).0, present(0).0]);
        assert_eq!(surviving(&two, &dirty, 2, &[]), Err(Damaged::TwoBlocks(0)));
        let none = words(&[0, present(1).0]);
        assert_eq!(surviving(&none, &dirty, 2, &[]), Err(Damaged::NoBlock(0)));
        let one = words(&[present(0).0, 0]);
        let log = [LogEntry {
            slot: 0,
            block: 1,
            dirty: 1,
        }];
        assert_eq!(surviving(&one, &dirty, 2, &log), Err(Damaged::OtherBlock(0)));
        assert_eq!(two[0].load(Ordering::SeqCst), present(0).0);
    }
}
