//! Which blocks of an earlier server can be trusted.

use std::num::NonZeroU32;
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
    let dirty = dirty.get(..slots as usize).unwrap_or(dirty);
    let dirty_of = |slot: u32| {
        let word = dirty.get(slot as usize);
        word.map_or(0, |word| DirtyEntry(word.load(Ordering::SeqCst)).dirty())
    };
    let left = LeftIndex {
        index,
        groups: used_groups(index),
    };
    let blocks = dirty_blocks(&left, dirty, dirty_of)?;
    let dirty = with_log(&blocks, log, slots, dirty_of)?;
    let clean = take_clean(&left, slots, &dirty, dirty_of);
    Ok(Survivors { clean, dirty })
}

/// Slots, one bit each: an index has up to hundreds of millions, so that a hash of each would dominate a recovery.
struct SlotSet(Box<[u64]>);

impl SlotSet {
    /// The empty set of slots below `slots`.
    fn new(slots: u32) -> Self {
        Self(vec![0; slots.div_ceil(64) as usize].into_boxed_slice())
    }

    /// Adds a slot. Returns whether it was not there.
    fn insert(&mut self, slot: u32) -> bool {
        let (word, bit) = (&mut self.0[slot as usize / 64], 1 << (slot % 64));
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    fn contains(&self, slot: u32) -> bool {
        self.0[slot as usize / 64] & 1 << (slot % 64) != 0
    }
}

/// So many words are looked at together.
const GROUP: u32 = 32;

/// The numbers of the groups of words that have one that is not 0: few, if most of a large map are.
fn used_groups(words: &[AtomicU64]) -> Vec<u32> {
    let is_used = |words: &[AtomicU64]| {
        let all = words
            .iter()
            .fold(0, |all, word| all | word.load(Ordering::Relaxed));
        all != 0
    };
    // Of a length that is known when this is compiled: two instructions a word.
    let (groups, rest) = words.as_chunks::<{ GROUP as usize }>();
    let groups = groups.iter().map(|group| is_used(group));
    let groups = groups.chain(std::iter::once_with(|| is_used(rest)));
    let used = (0..).zip(groups).filter(|(_, is_used)| *is_used);
    used.map(|(group, _)| group).collect()
}

/// The words of these groups that are not 0, with their positions.
fn used<'w>(words: &'w [AtomicU64], groups: &[u32]) -> impl Iterator<Item = (&'w AtomicU64, u64, u32)> {
    let words = groups.iter().flat_map(|&group| {
        let first = group * GROUP;
        words[first as usize..].iter().take(GROUP as usize).zip(first..)
    });
    words
        .map(|(word, at)| (word, word.load(Ordering::SeqCst), at))
        .filter(|(_, value, _)| *value != 0)
}

/// The index of a killed server, with the groups that have entries: to look for them takes the most of a recovery, so it is
/// done once.
struct LeftIndex<'i> {
    index: &'i [AtomicU64],
    groups: Vec<u32>,
}

impl<'i> LeftIndex<'i> {
    /// The entries that are not absent without a trace, with their blocks.
    fn entries(&self) -> impl Iterator<Item = (&'i AtomicU64, IndexEntry, u32)> {
        let used = used(self.index, &self.groups);
        used.map(|(word, value, block)| (word, IndexEntry(value), block))
    }
}

/// The block of each dirty slot, in the order of the slots.
fn dirty_blocks(
    left: &LeftIndex<'_>,
    dirty: &[AtomicU64],
    dirty_of: impl Fn(u32) -> u16,
) -> Result<Vec<(u32, u32)>, Damaged> {
    if dirty.is_empty() {
        return Ok(Vec::new());
    }
    // Only what is written of it takes memory.
    let mut blocks: Vec<Option<NonZeroU32>> = vec![None; dirty.len()];
    for (_, entry, block) in left.entries().filter(|(_, entry, _)| entry.is_present()) {
        let slot = entry.slot();
        let Some(of) = blocks.get_mut(slot as usize).filter(|_| dirty_of(slot) != 0) else {
            continue;
        };
        if of.replace(NonZeroU32::MIN.saturating_add(block)).is_some() {
            return Err(Damaged::TwoBlocks(slot));
        }
    }
    let groups = used_groups(dirty);
    let slots = used(dirty, &groups)
        .map(|(_, _, slot)| slot)
        .filter(|&slot| dirty_of(slot) != 0);
    let named = slots.map(|slot| {
        let block = blocks[slot as usize].ok_or(Damaged::NoBlock(slot))?;
        Ok((slot, block.get() - 1))
    });
    named.collect()
}

/// These, and the slots that only the log calls dirty, in the order of the slots.
fn with_log(
    blocks: &[(u32, u32)],
    log: &[LogEntry],
    slots: u32,
    dirty_of: impl Fn(u32) -> u16,
) -> Result<Vec<DirtyBlock>, Damaged> {
    let mut found = Vec::with_capacity(blocks.len() + log.len());
    let mut is_logged = SlotSet::new(slots);
    for entry in log {
        let LogEntry { slot, block, dirty } = *entry;
        let named = blocks.binary_search_by_key(&slot, |&(slot, _)| slot);
        if named.is_ok_and(|at| blocks[at].1 != block) {
            return Err(Damaged::OtherBlock(slot));
        }
        is_logged.insert(slot);
        found.push(DirtyBlock {
            slot,
            block,
            dirty: dirty_of(slot),
            logged: dirty,
        });
    }
    let others = blocks.iter().filter(|&&(slot, _)| !is_logged.contains(slot));
    found.extend(others.map(|&(slot, block)| DirtyBlock {
        slot,
        block,
        dirty: dirty_of(slot),
        logged: 0,
    }));
    found.sort_unstable_by_key(|of| of.slot);
    Ok(found)
}

/// Takes the entries out that are not dirty. Those in slots that the log calls dirty are not used.
fn take_clean(
    left: &LeftIndex<'_>,
    slots: u32,
    dirty: &[DirtyBlock],
    dirty_of: impl Fn(u32) -> u16,
) -> Vec<Resident> {
    let mut held = SlotSet::new(slots);
    for of in dirty {
        held.insert(of.slot);
    }
    let (mut used, mut used_twice) = (SlotSet::new(slots), SlotSet::new(slots));
    let mut found: Vec<Resident> = Vec::new();
    for (word, entry, block) in left.entries() {
        let is_held = entry.is_present() && entry.slot() < slots && held.contains(entry.slot());
        let dirty = if is_held { dirty_of(entry.slot()) } else { 0 };
        if dirty != 0 {
            let restored = IndexEntry::new(BlockState::Dirty, entry.slot()).with_writers(0, !dirty);
            word.store(restored.0, Ordering::SeqCst);
            continue;
        }
        word.store(0, Ordering::SeqCst);
        // Unverified: the server died before it came to these.
        let is_usable = entry.state() != BlockState::Absent
            && entry.writers() == 0
            && entry.hidden() != u16::MAX
            && entry.slot() < slots;
        if is_usable && !used.insert(entry.slot()) {
            used_twice.insert(entry.slot());
        }
        if is_usable && !held.contains(entry.slot()) {
            found.push(Resident {
                slot: entry.slot(),
                block,
                priority: Priority::Normal,
                heat: 0,
                valid: !entry.hidden(),
            });
        }
    }
    found.retain(|of| !used_twice.contains(of.slot));
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
