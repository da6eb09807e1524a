//! The races between fills and everything else, each as the one sequence of calls that matters.

use std::time::Duration;

use ublk_bpf_abi::{CacheCounters, IndexEntry, SECTOR_SIZE};

use super::*;
use crate::cache::Shape;
use crate::cache::evict::Algorithm;
use crate::cache::{Maps, Mode, Mover, PromoteLimits, WriteClaim};

const REGION: u64 = 4096;
const BLOCK: u64 = 16 * REGION;
/// The last block has two regions and a half.
const CAPACITY: u64 = 8 * BLOCK + 2 * REGION + 2048;

fn cache_of(maps: &Maps, mode: Mode) -> Cache<'_> {
    let shape = Shape {
        shift: 16,
        capacity: CAPACITY / SECTOR_SIZE,
        slots: 8,
        data_offset: 1 << 20,
        mode,
    };
    Cache::new(shape, &maps.index, &maps.heat)
}

/// A mover that a queue has asked for free slots.
fn mover<'c, 'm>(cache: &'c Cache<'m>) -> Mover<'c, 'm> {
    let limits = PromoteLimits { rate: None };
    let mut mover = Mover::new(cache, Algorithm::Clock, limits, CacheCounters::default());
    assert_eq!(begin(cache, 0, 1, Extent::Request), FillStart::Later, "none yet");
    assert!(mover.poll(Duration::ZERO).is_err());
    mover
}

fn begin(cache: &Cache<'_>, offset: u64, regions: u64, extent: Extent) -> FillStart {
    cache.begin_fill(offset, regions * REGION, extent, Priority::Normal)
}

fn begun(cache: &Cache<'_>, offset: u64, regions: u64, extent: Extent) -> Fill {
    match begin(cache, offset, regions, extent) {
        FillStart::Begun(fill) => fill,
        other => panic!("{other:?}"),
    }
}

/// Fills what a read of these regions misses.
fn fill(cache: &Cache<'_>, offset: u64, regions: u64, extent: Extent) {
    let fill = begun(cache, offset, regions, extent);
    assert!(cache.end_fill(&fill, true).is_published);
}

fn is_hit(cache: &Cache<'_>, offset: u64, regions: u64) -> bool {
    let pin = cache.begin_read(offset, regions * REGION);
    pin.map(|pin| cache.end_read(pin)).is_some()
}

#[test]
fn a_fill_brings_in_what_the_policy_wants_and_another_the_rest() {
    let maps = Maps::of(9);
    let cache = cache_of(&maps, Mode::WriteThrough);
    let mut mover = mover(&cache);
    let first = begun(&cache, BLOCK + 5 * REGION, 1, Extent::Around);
    assert_eq!(
        (first.offset, u64::from(first.length)),
        (BLOCK + 4 * REGION, 4 * REGION)
    );
    assert_eq!(first.slot_offset % BLOCK, 4 * REGION);
    assert!(!is_hit(&cache, BLOCK + 5 * REGION, 1), "not yet");
    assert!(cache.end_fill(&first, true).is_published);
    assert!(is_hit(&cache, BLOCK + 4 * REGION, 4) && !is_hit(&cache, BLOCK + 4 * REGION, 5));
    let (pin, readable) = cache.begin_split_read(BLOCK + 3 * REGION, 3 * REGION).unwrap();
    assert_eq!(readable, 0b11_0000);
    cache.end_read(pin);
    let rest = begun(&cache, BLOCK + 7 * REGION, 3, Extent::Block);
    assert_eq!(
        (rest.offset, u64::from(rest.length)),
        (BLOCK + 8 * REGION, 8 * REGION)
    );
    assert!(cache.end_fill(&rest, true).is_published);
    assert!(is_hit(&cache, BLOCK + 4 * REGION, 12));
    assert!(mover.poll(Duration::ZERO).is_err());
    assert_eq!(mover.counters().used, 1);
}

#[test]
fn what_is_apart_is_left_to_the_mover_and_what_is_there_is_read() {
    let maps = Maps::of(9);
    let cache = cache_of(&maps, Mode::WriteThrough);
    let _mover = mover(&cache);
    fill(&cache, BLOCK + 5 * REGION, 1, Extent::Request);
    assert_eq!(
        begin(&cache, BLOCK + 4 * REGION, 3, Extent::Block),
        FillStart::Later
    );
    assert_eq!(
        begin(&cache, BLOCK + 5 * REGION, 1, Extent::Block),
        FillStart::Readable
    );
}

#[test]
fn the_end_of_the_device_is_the_end_of_a_fill() {
    let maps = Maps::of(9);
    let cache = cache_of(&maps, Mode::WriteThrough);
    let _mover = mover(&cache);
    let last = begun(&cache, 8 * BLOCK, 1, Extent::Block);
    assert_eq!(
        (last.offset, u64::from(last.length)),
        (8 * BLOCK, CAPACITY - 8 * BLOCK)
    );
    assert!(cache.end_fill(&last, true).is_published);
    assert_eq!(cache.blocks.entry(8).hidden(), 0);
    let change = cache.marked_write(8 * BLOCK + 2 * REGION, 2048);
    assert!(change.claim.is_some_and(WriteClaim::stores));
    cache.end_change(8 * BLOCK + 2 * REGION, 2048, change.claim, true);
    assert!(cache.begin_read(8 * BLOCK, CAPACITY - 8 * BLOCK).is_some());
}

#[test]
fn a_write_overtakes_the_fill_that_it_meets_and_no_other() {
    for mode in [Mode::WriteThrough, Mode::WriteAround] {
        for write_ends_first in [true, false] {
            let maps = Maps::of(9);
            let cache = cache_of(&maps, mode);
            let mut mover = mover(&cache);
            let fill = begun(&cache, BLOCK, 2, Extent::Request);
            let beside = cache.marked_write(BLOCK + 2 * REGION, REGION);
            assert!(beside.claim.is_some() && cache.is_current(&fill));
            cache.end_change(BLOCK + 2 * REGION, REGION, beside.claim, true);
            let over = cache.marked_write(BLOCK + REGION, REGION);
            assert_eq!((over.claim, over.invalidated), (None, 1));
            assert!(!cache.is_current(&fill), "no read may join it now");
            assert_eq!(begin(&cache, BLOCK, 1, Extent::Request), FillStart::Refused);
            if write_ends_first {
                cache.end_change(BLOCK + REGION, REGION, None, true);
            }
            assert!(!cache.end_fill(&fill, true).is_published);
            if !write_ends_first {
                cache.end_change(BLOCK + REGION, REGION, None, true);
            }
            assert_eq!(cache.blocks.entry(1), IndexEntry::ABSENT);
            assert!(mover.poll(Duration::ZERO).is_err());
            assert_eq!(mover.counters().used, 0);
        }
    }
}

#[test]
fn a_block_that_came_back_is_not_published_by_the_fill_that_was_overtaken() {
    let maps = Maps::of(9);
    let cache = cache_of(&maps, Mode::WriteThrough);
    let mut mover = mover(&cache);
    let old = begun(&cache, BLOCK, 2, Extent::Request);
    let over = cache.marked_write(BLOCK, REGION);
    cache.end_change(BLOCK, REGION, over.claim, true);
    assert!(mover.poll(Duration::ZERO).is_err());
    let new = begun(&cache, BLOCK, 1, Extent::Request);
    assert_ne!(new.slot_offset, old.slot_offset);
    assert!(cache.is_current(&new) && !cache.is_current(&old));
    assert!(!cache.end_fill(&old, true).is_published);
    assert!(!is_hit(&cache, BLOCK, 1));
    assert!(cache.end_fill(&new, true).is_published);
    assert!(is_hit(&cache, BLOCK, 1) && !is_hit(&cache, BLOCK + REGION, 1));
}

#[test]
fn a_read_of_what_is_being_filled_waits_and_is_woken_once() {
    let maps = Maps::of(9);
    let cache = cache_of(&maps, Mode::WriteThrough);
    let mut mover = mover(&cache);
    for is_stored in [true, false] {
        assert!(mover.poll(Duration::ZERO).is_err());
        let fill = begun(&cache, BLOCK, 2, Extent::Request);
        assert_eq!(begin(&cache, BLOCK + REGION, 1, Extent::Request), FillStart::Busy);
        assert!(cache.wait_for_fill(BLOCK + REGION, REGION, 70));
        assert!(
            !cache.wait_for_fill(BLOCK + 2 * REGION, REGION, 3),
            "not that one"
        );
        assert!(cache.take_woken().is_empty());
        cache.end_fill(&fill, is_stored);
        let woken = cache.take_woken();
        assert!(woken.contains(70) && !woken.contains(7));
        assert!(cache.take_woken().is_empty());
        assert!(!cache.wait_for_fill(BLOCK + REGION, REGION, 70), "it has ended");
        let _ = cache.take_woken();
        let discard = cache.marked_discard(BLOCK, BLOCK);
        cache.end_change(BLOCK, BLOCK, discard.claim, true);
    }
}

#[test]
fn who_waits_when_the_cache_is_detached_is_woken() {
    let maps = Maps::of(9);
    let cache = cache_of(&maps, Mode::WriteThrough);
    let _mover = mover(&cache);
    let fill = begun(&cache, BLOCK, 1, Extent::Request);
    assert!(cache.wait_for_fill(BLOCK, REGION, 1));
    cache.detach(crate::cache::CacheFailure::Device {
        during: "filling",
        errno: crate::errno::Errno::EIO,
    });
    assert!(cache.take_woken().contains(1));
    assert!(!cache.wait_for_fill(BLOCK, REGION, 1));
    assert_eq!(begin(&cache, BLOCK, 1, Extent::Request), FillStart::Refused);
    cache.end_fill(&fill, false);
}

#[test]
fn a_fill_that_fails_leaves_nothing_unless_others_did() {
    let maps = Maps::of(9);
    let cache = cache_of(&maps, Mode::WriteThrough);
    let mut mover = mover(&cache);
    let failing = begun(&cache, BLOCK, 1, Extent::Request);
    assert!(!cache.end_fill(&failing, false).is_published);
    assert_eq!(cache.blocks.entry(1), IndexEntry::ABSENT);
    assert!(mover.poll(Duration::ZERO).is_err());
    let failing = begun(&cache, BLOCK, 1, Extent::Request);
    fill(&cache, BLOCK + REGION, 1, Extent::Request);
    assert!(!cache.end_fill(&failing, false).is_published);
    assert!(is_hit(&cache, BLOCK + REGION, 1) && !is_hit(&cache, BLOCK, 1));
    assert!(mover.poll(Duration::ZERO).is_err());
    assert_eq!(mover.counters().used, 1);
}

#[test]
fn a_write_through_makes_valid_what_it_covers_whole() {
    let maps = Maps::of(9);
    let cache = cache_of(&maps, Mode::WriteThrough);
    let _mover = mover(&cache);
    fill(&cache, BLOCK, 1, Extent::Request);
    let part = cache.marked_write(BLOCK + REGION, 512);
    assert!(
        part.claim.is_some_and(|claim| !claim.stores()),
        "the rest would be missing"
    );
    assert_eq!(
        begin(&cache, BLOCK + REGION, 1, Extent::Request),
        FillStart::Refused
    );
    cache.end_change(BLOCK + REGION, 512, part.claim, true);
    assert!(!is_hit(&cache, BLOCK + REGION, 1));
    // The end of a valid region, a whole invalid one, and the start of another.
    let over = cache.marked_write(BLOCK + 2048, 2 * REGION);
    assert!(over.claim.is_some_and(WriteClaim::stores));
    cache.end_change(BLOCK + 2048, 2 * REGION, over.claim, true);
    assert!(is_hit(&cache, BLOCK, 2) && !is_hit(&cache, BLOCK + 2 * REGION, 1));
}

#[test]
fn small_blocks_are_hidden_and_filled_by_4_kib() {
    let maps = Maps::of(9);
    let shape = Shape {
        shift: 12,
        slots: 8,
        ..*cache_of(&maps, Mode::WriteThrough).shape()
    };
    let maps = Maps::of(CAPACITY / 4096);
    let shape = Shape {
        capacity: CAPACITY / 4096 * 8,
        ..shape
    };
    let cache = Cache::new(shape, &maps.index, &maps.heat);
    let _mover = mover(&cache);
    let FillStart::Begun(whole) = cache.begin_fill(512, 512, Extent::Request, Priority::Normal) else {
        panic!("there is room");
    };
    assert_eq!((whole.offset, whole.length), (0, 4096));
    assert!(cache.end_fill(&whole, true).is_published);
    let [first, second] = [0, 512].map(|offset| cache.marked_write(offset, 512));
    cache.end_change(0, 512, first.claim, true);
    cache.end_change(512, 512, second.claim, true);
    assert!(cache.begin_read(0, 4096).is_some_and(|pin| {
        cache.end_read(pin);
        true
    }));
    let failed = cache.marked_write(512, 512);
    cache.end_change(512, 512, failed.claim, false);
    assert_eq!(
        cache.blocks.entry(0),
        IndexEntry::ABSENT,
        "nothing of 4 KiB is left"
    );
}

#[test]
fn a_block_that_is_being_filled_is_no_victim() {
    let maps = Maps::of(9);
    let cache = cache_of(&maps, Mode::WriteThrough);
    let mut mover = mover(&cache);
    fill(&cache, 0, 1, Extent::Request);
    let filling = begun(&cache, REGION, 1, Extent::Request);
    for block in 1..8 {
        assert!(mover.poll(Duration::ZERO).is_err());
        if let FillStart::Begun(other) = begin(&cache, block * BLOCK, 1, Extent::Request) {
            cache.end_fill(&other, true);
        }
    }
    for _ in 0..8 {
        assert!(mover.poll(Duration::ZERO).is_err());
    }
    assert!(mover.counters().used > 0 && cache.is_current(&filling));
    assert!(cache.end_fill(&filling, true).is_published);
    assert!(is_hit(&cache, 0, 2));
}
