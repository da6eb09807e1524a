//! Reads, changes and hints.

use ublk_bpf_abi::{BlockState, Extent};

use super::*;
use crate::cache::Maps;
use crate::cache::blocks::FillAttempt;

const SHIFT: u32 = 16;
const BLOCK: u64 = 1 << SHIFT;

/// A cache of four slots that has block 3 in slot 2.
fn cache_of(maps: &Maps, mode: Mode) -> Cache<'_> {
    let shape = Shape {
        shift: SHIFT,
        capacity: 16 * BLOCK / SECTOR_SIZE,
        slots: 4,
        data_offset: 0,
        mode,
    };
    let cache = Cache::new(shape, &maps.index, &maps.heat);
    cache.blocks.slots.give(2, 3);
    assert!(cache.blocks.restore(3, 2, BlockState::Present, 0));
    cache
}

/// A fill of all of the block begins, if it may; there is no free slot.
fn begin_fill(cache: &Cache<'_>, block: u32) -> FillAttempt {
    let wish = cache.wish(block, u16::MAX, Extent::Block);
    cache.blocks.begin_fill(block, &wish, || None)
}

#[test]
fn a_read_of_a_present_block_pins_its_slot() {
    let maps = Maps::of(16);
    let cache = cache_of(&maps, Mode::WriteThrough);
    let pin = cache.begin_read(3 * BLOCK + 4096, 4096).unwrap();
    assert_eq!(
        cache.slot_delta(pin, 3 * BLOCK + 4096).wrapping_add(3 * BLOCK),
        2 * BLOCK
    );
    assert!(
        cache.blocks.evict(3, 2) && !cache.blocks.slots.take(2),
        "gone, but still in use"
    );
    assert_eq!(cache.begin_read(3 * BLOCK, 512), None);
    cache.end_read(pin);
    assert!(cache.blocks.slots.take(2));
    assert_eq!(cache.begin_read(4 * BLOCK, 512), None);
}

#[test]
fn a_read_beyond_one_block_is_no_hit() {
    let maps = Maps::of(16);
    assert_eq!(
        cache_of(&maps, Mode::WriteThrough).begin_read(4 * BLOCK - 512, 1024),
        None
    );
}

#[test]
fn a_scribbled_index_finds_no_other_blocks_slot() {
    let maps = Maps::of(16);
    let cache = cache_of(&maps, Mode::WriteThrough);
    for slot in [2, 3, 4, IndexEntry::MAX_SLOTS - 1] {
        maps.index[5].store(IndexEntry::new(BlockState::Present, slot).0, Ordering::SeqCst);
        assert_eq!(cache.begin_read(5 * BLOCK, 512), None);
        assert_eq!(cache.marked_write(5 * BLOCK, 512).claim, None);
        assert!(!cache.blocks.slots.is_pinned(2));
    }
}

#[test]
fn a_write_through_hides_its_regions_until_its_end() {
    let maps = Maps::of(16);
    let cache = cache_of(&maps, Mode::WriteThrough);
    let change = cache.marked_write(3 * BLOCK, 4096);
    assert!(change.claim.is_some());
    assert_eq!(cache.begin_read(3 * BLOCK + 512, 512), None, "where it writes");
    cache.end_read(cache.begin_read(3 * BLOCK + 8192, 512).expect("elsewhere"));
    assert!(!cache.blocks.evict(3, 2), "in use");
    cache.end_change(3 * BLOCK, 4096, change.claim, true);
    assert!(cache.begin_read(3 * BLOCK + 512, 512).is_some());
}

#[test]
fn overlapping_writes_empty_the_block_and_others_do_not() {
    let maps = Maps::of(16);
    let cache = cache_of(&maps, Mode::WriteThrough);
    let first = cache.marked_write(3 * BLOCK, 4096);
    let beside = cache.marked_write(3 * BLOCK + 4096, 4096);
    assert!(beside.claim.is_some());
    let over = cache.marked_write(3 * BLOCK + 2048, 4096);
    assert_eq!((over.claim, over.invalidated), (None, 1));
    assert_eq!(begin_fill(&cache, 3), FillAttempt::Written);
    assert!(!cache.blocks.slots.take(2), "in use");
    cache.end_change(3 * BLOCK, 4096, first.claim, true);
    cache.end_change(3 * BLOCK + 2048, 4096, over.claim, true);
    cache.end_change(3 * BLOCK + 4096, 4096, beside.claim, true);
    assert_eq!(cache.entry(3), IndexEntry::ABSENT);
    assert!(cache.blocks.slots.take(2));
}

#[test]
fn what_a_failed_write_touched_stays_hidden_and_a_block_without_more_leaves() {
    let maps = Maps::of(16);
    let cache = cache_of(&maps, Mode::WriteThrough);
    let change = cache.marked_write(3 * BLOCK, 4096);
    cache.end_change(3 * BLOCK, 4096, change.claim, false);
    assert_eq!(cache.begin_read(3 * BLOCK, 512), None);
    cache.end_read(cache.begin_read(3 * BLOCK + 4096, 512).expect("elsewhere"));
    let change = cache.marked_write(3 * BLOCK, BLOCK);
    cache.end_change(3 * BLOCK, BLOCK, change.claim, false);
    assert_eq!(cache.entry(3), IndexEntry::ABSENT);
    assert!(cache.blocks.slots.take(2));
}

#[test]
fn a_write_around_hides_what_it_touches() {
    let maps = Maps::of(16);
    let cache = cache_of(&maps, Mode::WriteAround);
    let change = cache.marked_write(3 * BLOCK, 512);
    assert!(change.claim.is_some_and(|claim| !claim.stores()));
    cache.end_change(3 * BLOCK, 512, change.claim, true);
    assert_eq!(cache.begin_read(3 * BLOCK, 512), None);
    cache.end_read(cache.begin_read(3 * BLOCK + 4096, 512).expect("elsewhere"));
    let change = cache.marked_write(3 * BLOCK + 4096, BLOCK - 4096);
    cache.end_change(3 * BLOCK + 4096, BLOCK - 4096, change.claim, true);
    assert_eq!(cache.entry(3), IndexEntry::ABSENT, "nothing is left of it");
    assert!(cache.blocks.slots.take(2));
}

#[test]
fn a_discard_empties_what_it_touches() {
    let maps = Maps::of(16);
    let cache = cache_of(&maps, Mode::WriteThrough);
    let change = cache.marked_discard(BLOCK, 4 * BLOCK);
    assert_eq!(change.invalidated, 1);
    for block in 1..5 {
        assert_eq!(begin_fill(&cache, block), FillAttempt::Written);
    }
    cache.end_change(BLOCK, 4 * BLOCK, None, true);
    assert!(maps.index.iter().all(|word| word.load(Ordering::SeqCst) == 0));
}

#[test]
fn a_detached_cache_serves_nothing_and_forgets_what_is_written() {
    let maps = Maps::of(16);
    let cache = cache_of(&maps, Mode::WriteThrough);
    let failure = CacheFailure::Device {
        during: "reading",
        errno: Errno::EIO,
    };
    cache.detach(failure);
    assert_eq!(cache.begin_read(3 * BLOCK, 512), None);
    let change = cache.marked_write(3 * BLOCK, 512);
    assert_eq!((change.claim, change.invalidated), (None, 1));
    assert_eq!(cache.hint(0, Priority::Normal), Hinted::Refused);
    assert_eq!(cache.failure(), Some(&failure));
}

#[test]
fn heat_is_a_byte_for_each_block_and_is_halved() {
    let maps = Maps::of(16);
    let cache = cache_of(&maps, Mode::WriteThrough);
    cache.set_heat(9, 255);
    cache.set_heat(10, 3);
    assert!(cache.halve_heat(0, 9));
    assert_eq!([8, 9, 10, 11].map(|block| cache.heat(block)), [0, 127, 1, 0]);
}

#[test]
fn what_an_earlier_server_knew_of_heat_cools_nothing() {
    let maps = Maps::of(16);
    let cache = cache_of(&maps, Mode::WriteThrough);
    cache.remember_heat(9, 7);
    assert_eq!(cache.heat(9), 7);
    cache.remember_heat(9, 0);
    assert_eq!(cache.heat(9), 7, "the map outlived that server, and knows better");
}
