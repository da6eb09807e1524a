//! Caches of the versions of the format that had no log.

use super::*;
use crate::cache::disk::superblock::{WHOLE_BLOCKS, WITHOUT_LOG};

/// Three pages of log more than the entries: 12 slots fewer, and the others are numbered from the 13th on.
const MOVED: u32 = 12;

fn old_layout() -> Layout {
    let old = Layout::without_log(73, BLOCK).unwrap();
    assert!(old.fills(DEVICE));
    assert_eq!(layout().data_offset - old.data_offset, u64::from(MOVED * BLOCK));
    old
}

fn old_entries(valid: u16) -> Vec<SavedEntry> {
    let entry = |slot: u32| SavedEntry {
        slot,
        block: u64::from(slot) + 100,
        priority: 1,
        heat: 2,
        valid,
    };
    (0..73).step_by(4).map(entry).collect()
}

/// A saved cache of that version.
fn of_version(version: u32, identity: &Identity, entries: &[SavedEntry]) -> Vec<u8> {
    let disk = blank();
    let copies = Copies::read(&disk).unwrap();
    let mut superblock = copies.empty(&old_layout(), identity).unwrap();
    (superblock.version, superblock.clean) = (version, true);
    let entries = entries.iter().copied();
    superblock.in_use = entries::write(&disk, &old_layout(), &superblock.seal, entries).unwrap();
    copies.replace(&disk, &superblock).unwrap();
    disk.content()
}

#[test]
fn older_caches_are_taken_over_with_other_slots() {
    let (_folder, _, identity) = backing();
    for (version, valid) in [(WHOLE_BLOCKS, u16::MAX), (WITHOUT_LOG, 0x0f01)] {
        let before = of_version(version, &identity, &old_entries(valid));
        let kept = old_entries(valid).into_iter().filter(|entry| entry.slot >= MOVED);
        let kept: Vec<SavedEntry> = kept
            .map(|entry| SavedEntry {
                slot: entry.slot - MOVED,
                ..entry
            })
            .collect();
        // The data of each is where it was.
        assert_eq!(layout().data_of(0), old_layout().data_of(MOVED));
        let disk = Disk::new(before.clone());
        let opened = open_on(&disk, &layout(), &identity).unwrap();
        assert_eq!(opened, Opened::Warm(kept.clone()));
        assert_eq!([0, 4096].map(|copy| disk.content()[copy + 8]), [3, 3]);
        for content in crashes(&before, &disk.log.take()) {
            let opened = open_on(&Disk::new(content), &layout(), &identity).unwrap();
            assert!(
                is_cold(&opened) || opened == Opened::Warm(kept.clone()),
                "{opened:?}"
            );
        }
    }
}

#[test]
fn an_older_cache_that_is_not_clean_is_cold() {
    let (_folder, _, identity) = backing();
    let disk = blank();
    let copies = Copies::read(&disk).unwrap();
    let mut superblock = copies.empty(&old_layout(), &identity).unwrap();
    superblock.version = WITHOUT_LOG;
    copies.replace(&disk, &superblock).unwrap();
    assert!(is_cold(&open_on(&disk, &layout(), &identity).unwrap()));
}

#[test]
fn an_older_cache_of_a_device_of_another_size_is_refused() {
    let (_folder, _, identity) = backing();
    let mut content = of_version(WITHOUT_LOG, &identity, &old_entries(1));
    content.resize(content.len() + 4 * BLOCK as usize, 0);
    let layout = Layout::plan(content.len() as u64, BLOCK).unwrap();
    let message = refusal(open_on(&Disk::new(content), &layout, &identity));
    assert!(message.contains("was made with 73 slots"), "{message}");
}

#[test]
fn a_cache_of_version_1_has_no_blocks_in_part() {
    let (_folder, _, identity) = backing();
    let disk = Disk::new(of_version(WHOLE_BLOCKS, &identity, &old_entries(1)));
    let message = refusal(open_on(&disk, &layout(), &identity));
    assert!(message.contains("slot 0 (unknown values)"), "{message}");
}

#[test]
fn a_block_of_which_nothing_is_cached_is_refused() {
    let (_folder, _, identity) = backing();
    let mut nothing = entries(7);
    nothing[2].valid = 0;
    let message = refusal(open_on(
        &Disk::new(saved(&identity, &nothing)),
        &layout(),
        &identity,
    ));
    assert!(message.contains("slot 6 (a block of which nothing"), "{message}");
}
