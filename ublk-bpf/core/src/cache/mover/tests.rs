//! The races between promotions and requests, each as the one sequence of calls that matters.

use std::sync::atomic::Ordering;

use ublk_bpf_abi::{Extent, IndexEntry, Priority, SECTOR_SIZE};

use super::*;
use crate::cache::{FillStart, Hinted, Maps, Mode, Shape, surviving};

mod bearing;
mod cleaning;
mod steered;
mod stock;
mod write_back;

const BLOCK: u64 = 1 << 12;
const BLOCK_RESULT: i32 = 1 << 12;

/// A cache of so many slots, for a device of 16 blocks.
fn cache_of(maps: &Maps, slots: u32) -> Cache<'_> {
    let shape = Shape {
        shift: 12,
        capacity: 16 * BLOCK / SECTOR_SIZE,
        slots,
        data_offset: 0,
        mode: Mode::WriteThrough,
    };
    Cache::new(shape, &maps.index, &maps.heat)
}

fn mover<'c, 'm>(cache: &'c Cache<'m>) -> Mover<'c, 'm> {
    Mover::new(
        cache,
        Algorithm::Clock,
        PromoteLimits { rate: None },
        CacheCounters::default(),
    )
}

/// A whole block without heat.
const fn resident(slot: u32, block: u32, priority: Priority) -> Resident {
    Resident {
        slot,
        block,
        priority,
        heat: 0,
        valid: u16::MAX,
    }
}

/// A promotion of this block begins, if it may.
fn begin(mover: &mut Mover<'_, '_>, block: u64) -> Option<MoverIo> {
    assert_eq!(mover.cache.hint(block * BLOCK, Priority::Normal), Hinted::Queued);
    mover.poll(Duration::ZERO).ok()
}

fn promote(mover: &mut Mover<'_, '_>, block: u64) {
    assert!(begin(mover, block).is_some());
    end(mover);
}

/// The first promotion is read and written in full.
fn end(mover: &mut Mover<'_, '_>) {
    assert!(mover.done(0, BLOCK_RESULT).is_some());
    assert_eq!(mover.done(0, BLOCK_RESULT), None);
}

#[test]
fn a_block_that_is_written_while_it_is_filled_is_not_published() {
    for write_ends_first in [true, false] {
        let maps = Maps::of(16);
        let cache = cache_of(&maps, 4);
        let mut mover = mover(&cache);
        begin(&mut mover, 5).expect("no write is in flight");
        let change = cache.marked_write(5 * BLOCK, 512);
        assert_eq!(change.claim, None);
        if write_ends_first {
            cache.end_change(5 * BLOCK, 512, None, true);
        }
        end(&mut mover);
        assert_eq!(cache.begin_read(5 * BLOCK, 512), None);
        assert_eq!((mover.counters().overtaken, mover.counters().promoted), (1, 0));
    }
}

#[test]
fn a_block_that_is_discarded_while_it_is_filled_is_not_published() {
    let maps = Maps::of(16);
    let cache = cache_of(&maps, 4);
    let mut mover = mover(&cache);
    begin(&mut mover, 5).expect("no write is in flight");
    let _ = cache.marked_discard(0, 16 * BLOCK);
    cache.end_change(0, 16 * BLOCK, None, true);
    end(&mut mover);
    assert_eq!(cache.begin_read(5 * BLOCK, 512), None);
    assert_eq!(mover.counters().overtaken, 1);
}

#[test]
fn a_block_that_is_being_written_or_discarded_is_not_begun_to_be_filled() {
    let maps = Maps::of(16);
    let cache = cache_of(&maps, 4);
    let mut mover = mover(&cache);
    let _ = cache.marked_write(5 * BLOCK, 512);
    let _ = cache.marked_discard(6 * BLOCK, BLOCK);
    assert_eq!(begin(&mut mover, 5), None);
    assert_eq!(begin(&mut mover, 6), None);
    cache.end_change(5 * BLOCK, 512, None, true);
    assert!(begin(&mut mover, 5).is_some());
}

#[test]
fn a_slot_is_given_to_no_other_block_while_it_is_read() {
    let maps = Maps::of(16);
    let cache = cache_of(&maps, 1);
    let mut mover = mover(&cache);
    promote(&mut mover, 5);
    let pin = cache.begin_read(5 * BLOCK, 512).expect("it is there");
    assert_eq!(begin(&mut mover, 6), None);
    assert_eq!(mover.counters().no_room, 1);
    cache.end_read(pin);
    assert!(begin(&mut mover, 6).is_some());
    assert_eq!(mover.counters().evicted, 1);
}

#[test]
fn nor_when_its_block_has_left_it() {
    let maps = Maps::of(16);
    let cache = cache_of(&maps, 1);
    let mut mover = mover(&cache);
    promote(&mut mover, 5);
    let pin = cache.begin_read(5 * BLOCK, 512).expect("it is there");
    let _ = cache.marked_discard(5 * BLOCK, BLOCK);
    cache.end_change(5 * BLOCK, BLOCK, None, true);
    assert_eq!(begin(&mut mover, 5), None, "not even to the same");
    cache.end_read(pin);
    assert!(begin(&mut mover, 5).is_some());
}

#[test]
fn a_block_whose_write_overlapped_another_comes_back_when_both_have_ended() {
    let maps = Maps::of(16);
    let cache = cache_of(&maps, 1);
    let mut mover = mover(&cache);
    promote(&mut mover, 5);
    let first = cache.marked_write(5 * BLOCK, 512);
    let second = cache.marked_write(5 * BLOCK, 1024);
    assert!(first.claim.is_some() && second.claim.is_none());
    cache.end_change(5 * BLOCK, 1024, None, true);
    assert_eq!(begin(&mut mover, 5), None, "the first goes to the slot still");
    cache.end_change(5 * BLOCK, 512, first.claim, true);
    promote(&mut mover, 5);
    assert!(cache.begin_read(5 * BLOCK, 512).is_some());
}

#[test]
fn what_survives_is_put_back_and_the_rest_of_the_slots_is_free() {
    let maps = Maps::of(16);
    let cache = cache_of(&maps, 2);
    let mut first = mover(&cache);
    promote(&mut first, 5);
    begin(&mut first, 6).expect("there is a slot");
    let cache = cache_of(&maps, 2);
    let survivors = surviving(&maps.index, &[], 2, &[]).unwrap().clean;
    assert_eq!(survivors, [resident(0, 5, Priority::Normal)]);
    let mut second = mover(&cache);
    assert_eq!(second.restore(survivors, Trust::Proven), 1);
    cache.end_read(cache.begin_read(5 * BLOCK, 512).expect("it was whole"));
    promote(&mut second, 7);
    assert!(cache.begin_read(5 * BLOCK, 512).is_some() && cache.begin_read(7 * BLOCK, 512).is_some());
    assert_eq!(maps.index[6].load(Ordering::SeqCst), 0);
}

#[test]
fn nothing_is_left_in_a_cache_whose_device_fails() {
    let maps = Maps::of(16);
    let cache = cache_of(&maps, 2);
    let mut mover = mover(&cache);
    promote(&mut mover, 5);
    begin(&mut mover, 6).expect("there is a slot");
    assert!(mover.done(0, BLOCK_RESULT).is_some());
    assert_eq!(mover.done(0, -5), None);
    assert_eq!(mover.poll(Duration::ZERO), Err(Rest::UntilWoken));
    assert!(maps.index.iter().all(|word| word.load(Ordering::SeqCst) == 0));
    assert_eq!(mover.residents().count(), 0);
    assert!(cache.failure().is_some());
}

#[test]
fn a_limit_lets_so_many_bytes_pass_in_a_second() {
    let maps = Maps::of(16);
    let cache = cache_of(&maps, 8);
    let limits = PromoteLimits {
        rate: Some(2 * BLOCK),
    };
    let mut mover = Mover::new(&cache, Algorithm::Clock, limits, CacheCounters::default());
    let mut promoted_in = |second: u64| {
        let mut count = 0;
        for block in 0..4 {
            assert_eq!(
                cache.hint((4 * second + block) * BLOCK, Priority::Normal),
                Hinted::Queued
            );
        }
        while mover.poll(Duration::from_secs(second)).is_ok() {
            end(&mut mover);
            count += 1;
        }
        mover.take_hints();
        mover.hints.clear(|_| {});
        count
    };
    assert_eq!([0, 1, 2].map(&mut promoted_in), [2, 2, 2]);
}

#[test]
fn a_limit_is_followed_when_it_changes() {
    let maps = Maps::of(16);
    let cache = cache_of(&maps, 8);
    let limits = PromoteLimits { rate: Some(512) };
    let mut mover = Mover::new(&cache, Algorithm::Clock, limits, CacheCounters::default());
    promote(&mut mover, 1);
    let now = Duration::from_millis(1);
    let hint = |block: u64| assert_eq!(cache.hint(block * BLOCK, Priority::Normal), Hinted::Queued);
    hint(2);
    let waits = |rest| matches!(rest, Err(Rest::Until(then)) if then > now);
    assert!(waits(mover.poll(now)));
    // Higher: what may be promoted in a second at once, and no more.
    cache.limit_promotion(PromoteLimits {
        rate: Some(2 * BLOCK),
    });
    hint(3);
    hint(4);
    for _ in 0..2 {
        assert!(mover.poll(now).is_ok());
        end(&mut mover);
    }
    assert!(waits(mover.poll(now)));
    // None: the rest, and a queue's fill is not counted.
    cache.limit_promotion(PromoteLimits { rate: None });
    assert!(mover.poll(now).is_ok());
    end(&mut mover);
    assert!(!cache.free.are_too_dear(0));
    // One again.
    cache.limit_promotion(PromoteLimits { rate: Some(1) });
    hint(5);
    hint(6);
    assert!(mover.poll(now).is_ok());
    end(&mut mover);
    assert!(waits(mover.poll(now)));
}

#[test]
fn what_is_promoted_ahead_of_the_limit_is_waited_for() {
    let maps = Maps::of(16);
    let cache = cache_of(&maps, 8);
    let limits = PromoteLimits { rate: Some(512) };
    let mut mover = Mover::new(&cache, Algorithm::Clock, limits, CacheCounters::default());
    promote(&mut mover, 1);
    // A hundredth of a second later a few bytes are left, which lets one more begin.
    let now = Duration::from_millis(10);
    for block in [2, 3] {
        assert_eq!(cache.hint(block * BLOCK, Priority::Normal), Hinted::Queued);
    }
    assert!(mover.poll(now).is_ok());
    end(&mut mover);
    let Err(Rest::Until(then)) = mover.poll(now) else {
        panic!("a block is eight seconds' worth");
    };
    assert!(then > Duration::from_secs(7) && then < Duration::from_secs(9));
    assert!(mover.poll(then).is_ok());
}

/// Begins to fill a block by a miss.
fn fill(cache: &Cache<'_>, block: u64) -> FillStart {
    cache.begin_fill(block * BLOCK, 512, Extent::Block, Priority::Normal)
}

#[test]
fn fills_in_progress_leave_free_slots_for_others() {
    let maps = Maps::of(16);
    let cache = cache_of(&maps, 64);
    let mut mover = mover(&cache);
    let mut begun = Vec::new();
    assert_eq!(fill(&cache, 0), FillStart::Later, "none was wanted before");
    for block in 0..16 {
        assert_eq!(mover.poll(Duration::ZERO), Err(Rest::UntilWoken));
        match fill(&cache, block) {
            FillStart::Begun(fill) => begun.push(fill),
            other => {
                assert_eq!(other, FillStart::Later);
                break;
            }
        }
        assert_eq!(cache.is_short_of_slots(), begun.len() < 9);
    }
    assert_eq!(
        begun.len(),
        9,
        "an eighth of the slots, and the one that is kept free"
    );
    assert!(cache.end_fill(&begun[0], true).wants_mover);
    assert_eq!(mover.poll(Duration::ZERO), Err(Rest::UntilWoken));
    assert!(matches!(fill(&cache, 15), FillStart::Begun(_)));
}

#[test]
fn what_is_left_of_a_limit_is_for_blocks_that_were_read_before() {
    let maps = Maps::of(16);
    let cache = cache_of(&maps, 8);
    let limits = PromoteLimits {
        rate: Some(4 * BLOCK),
    };
    let mut mover = Mover::new(&cache, Algorithm::Clock, limits, CacheCounters::default());
    assert_eq!(fill(&cache, 0), FillStart::Later);
    let mut begins = |block: u64, heat| {
        let _ = mover.poll(Duration::ZERO);
        cache.set_heat(u32::try_from(block).unwrap(), heat);
        match fill(&cache, block) {
            FillStart::Begun(fill) => cache.end_fill(&fill, true).is_published,
            other => {
                assert_eq!(other, FillStart::Refused);
                false
            }
        }
    };
    assert!(begins(1, 1) && begins(2, 1));
    assert!(begins(3, 1), "half is left");
    assert!(!begins(4, 1) && begins(4, 2));
    assert!(!begins(5, 200), "nothing is left");
}

/// A mover after a server that had blocks 0, 1, ... in slots 0, 1, ..., none of them verified.
fn successor<'c, 'm>(cache: &'c Cache<'m>, blocks: u32) -> Mover<'c, 'm> {
    let mut mover = mover(cache);
    let had = (0..blocks).map(|slot| resident(slot, slot, Priority::Normal));
    assert_eq!(mover.restore(had, Trust::ToVerify), blocks);
    assert_eq!(mover.counters().unverified, u64::from(blocks));
    mover
}

/// The next verification begins: its job, and the block in whose slot it looks.
fn begin_verification(mover: &mut Mover<'_, '_>) -> Option<(u16, u64)> {
    match mover.poll(Duration::ZERO) {
        Ok(MoverIo::LoadSlot { job, offset, .. }) => Some((job, offset / BLOCK)),
        _ => None,
    }
}

/// Both of its reads are done, and it is compared.
fn end_verification(mover: &mut Mover<'_, '_>, job: u16, is_same: bool) {
    assert!(matches!(
        mover.done(job, BLOCK_RESULT),
        Some(MoverIo::Load { .. })
    ));
    assert!(matches!(
        mover.done(job, BLOCK_RESULT),
        Some(MoverIo::Compare { .. })
    ));
    assert_eq!(mover.compared(job, is_same), None);
}

#[test]
fn an_earlier_servers_block_is_hit_once_it_is_verified() {
    let maps = Maps::of(16);
    let cache = cache_of(&maps, 4);
    let mut mover = successor(&cache, 2);
    let is_hit = |block| {
        let pin = cache.begin_read(block * BLOCK, 512);
        pin.map(|pin| cache.end_read(pin)).is_some()
    };
    for (block, is_same) in [(0, true), (1, false)] {
        assert!(!is_hit(block), "not yet begun");
        let (job, begun) = begin_verification(&mut mover).expect("there is one");
        assert_eq!(begun, block);
        assert!(!is_hit(block), "not yet compared");
        end_verification(&mut mover, job, is_same);
        assert_eq!(is_hit(block), is_same);
    }
    let counters = mover.counters();
    assert_eq!(
        (
            counters.verified,
            counters.differing,
            counters.unverified,
            counters.used
        ),
        (1, 1, 0, 1)
    );
    assert_eq!(mover.poll(Duration::ZERO), Err(Rest::UntilWoken));
    for block in 5..8 {
        promote(&mut mover, block);
    }
    assert_eq!(mover.counters().evicted, 0, "the slot of what differed is free");
}

#[test]
fn a_block_that_is_written_while_it_is_verified_is_not_published() {
    for write_ends_first in [true, false] {
        let maps = Maps::of(16);
        let cache = cache_of(&maps, 4);
        let mut mover = successor(&cache, 1);
        let (job, _) = begin_verification(&mut mover).expect("there is one");
        let change = cache.marked_write(0, 512);
        assert_eq!(change.claim, None);
        if write_ends_first {
            cache.end_change(0, 512, None, true);
        }
        end_verification(&mut mover, job, true);
        assert_eq!(cache.begin_read(0, 512), None);
        let counters = mover.counters();
        assert_eq!(
            (counters.overtaken, counters.verified, counters.unverified),
            (1, 0, 0)
        );
    }
}

#[test]
fn what_was_written_before_its_turn_is_not_verified() {
    let maps = Maps::of(16);
    let cache = cache_of(&maps, 2);
    let mut mover = successor(&cache, 2);
    let _ = cache.marked_write(0, 512);
    let begun = begin_verification(&mut mover);
    assert_eq!(begun.map(|(_, block)| block), Some(1));
    cache.end_change(0, 512, None, true);
    assert_eq!(mover.counters().unverified, 1);
    promote(&mut mover, 0);
    assert_eq!(mover.counters().evicted, 0, "its slot was free");
}

#[test]
fn what_is_missed_is_verified_first() {
    let maps = Maps::of(16);
    let cache = cache_of(&maps, 8);
    let mut mover = successor(&cache, 8);
    assert_eq!(cache.hint(6 * BLOCK, Priority::High), Hinted::Queued);
    // They take turns; whichever begins, the block is not promoted into another slot.
    let begun: Vec<_> = (0..3).map_while(|_| begin_verification(&mut mover)).collect();
    assert_eq!(
        begun.iter().map(|&(_, block)| block).collect::<Vec<_>>(),
        [0, 6, 1]
    );
    end_verification(&mut mover, begun[1].0, true);
    cache.end_read(cache.begin_read(6 * BLOCK, 512).expect("it was verified"));
    assert_eq!(mover.residents().next(), Some(resident(6, 6, Priority::High)));
}

#[test]
fn verifications_are_few_and_take_turns_with_promotions() {
    let maps = Maps::of(16);
    let cache = cache_of(&maps, 16);
    let mut mover = successor(&cache, 8);
    for block in 8..12 {
        assert_eq!(cache.hint(block * BLOCK, Priority::Normal), Hinted::Queued);
    }
    let begun: Vec<_> = std::iter::from_fn(|| mover.poll(Duration::ZERO).ok())
        .map(|effect| matches!(effect, MoverIo::LoadSlot { .. }))
        .collect();
    assert_eq!(begun, [true, false, true, false, true, false, true, false]);
}

#[test]
fn a_promotion_finds_room_among_what_is_not_verified() {
    let maps = Maps::of(16);
    let cache = cache_of(&maps, 8);
    let mut mover = successor(&cache, 8);
    assert_eq!(cache.hint(9 * BLOCK, Priority::Normal), Hinted::Queued);
    assert!(begin_verification(&mut mover).is_some());
    let Ok(MoverIo::Load { job, .. }) = mover.poll(Duration::ZERO) else {
        panic!("nothing was promoted");
    };
    assert!(matches!(
        mover.done(job, BLOCK_RESULT),
        Some(MoverIo::Store { offset, .. }) if offset == 7 * BLOCK
    ));
    assert_eq!(mover.done(job, BLOCK_RESULT), None);
    assert!(cache.begin_read(9 * BLOCK, 512).is_some());
    assert_eq!(cache.entry(7), IndexEntry::ABSENT);
    assert_eq!((mover.counters().evicted, mover.counters().unverified), (1, 7));
}

#[test]
fn a_slot_that_cannot_be_read_detaches_the_cache_and_a_block_that_cannot_leaves_it() {
    let maps = Maps::of(16);
    let cache = cache_of(&maps, 4);
    let mut mover = successor(&cache, 2);
    let (job, _) = begin_verification(&mut mover).expect("there are two");
    assert!(mover.done(job, BLOCK_RESULT).is_some());
    assert_eq!(mover.done(job, -5), None);
    assert!(cache.failure().is_none());
    assert_eq!((mover.counters().unverified, mover.counters().errors), (1, 1));
    let (job, _) = begin_verification(&mut mover).expect("there is one");
    assert_eq!(mover.done(job, -5), None);
    assert!(cache.failure().is_some());
    assert_eq!(mover.poll(Duration::ZERO), Err(Rest::UntilWoken));
    assert!(maps.index.iter().all(|word| word.load(Ordering::SeqCst) == 0));
    assert_eq!(mover.counters().unverified, 0);
}
