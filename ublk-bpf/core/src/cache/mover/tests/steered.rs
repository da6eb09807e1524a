//! Another eviction algorithm, and tenants.

use std::sync::atomic::AtomicU64;

use super::*;

#[test]
fn another_algorithm_takes_over_every_slot() {
    let maps = Maps::of(16);
    let cache = cache_of(&maps, 8);
    let mut mover = mover(&cache);
    for block in 0..8 {
        promote(&mut mover, block);
    }
    for algorithm in [Algorithm::Adaptive, Algorithm::Clock] {
        let heats: Vec<u8> = (0..16).map(|block| cache.heat(block)).collect();
        let before = mover.counters().evicted;
        cache.evict_by(algorithm);
        assert!(mover.poll(Duration::ZERO).is_err(), "nothing is to do");
        assert_eq!(heats, (0..16).map(|block| cache.heat(block)).collect::<Vec<_>>());
        assert_eq!(mover.counters().evicted, before, "no block leaves for it");
        for block in 0..16 {
            if !cache.entry(block).is_present() {
                promote(&mut mover, block.into());
            }
        }
        let cached = (0..16).filter(|&block| cache.entry(block).is_present()).count();
        assert_eq!((cached, mover.counters().used), (8, 8), "{algorithm:?}");
    }
}

#[test]
fn what_is_promoted_for_a_tenant_is_its_until_it_is_evicted() {
    let maps = Maps::of(16);
    let zeroes = |count| (0..count).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
    let (of_slot, used) = (zeroes(1), zeroes(256));
    let cache = cache_of(&maps, 4).with_tenants(&of_slot, &used);
    let mut mover = mover(&cache);
    let promote_for = |mover: &mut Mover<'_, '_>, block: u64, tenant: u8| {
        let hinted = cache.hint_for(block * BLOCK, Priority::Normal, tenant);
        assert_eq!(hinted, Hinted::Queued);
        mover.poll(Duration::ZERO).expect("a promotion begins");
        end(mover);
    };
    (0..3).for_each(|block| promote_for(&mut mover, block, 9));
    promote_for(&mut mover, 3, 0);
    assert_eq!((cache.slots_of(9), cache.slots_of(0)), (3, 0));
    // The next server counts the same slots.
    cache.count_tenants();
    assert_eq!(cache.slots_of(9), 3);
    for (block, left) in [(4, 2), (5, 1), (6, 0)] {
        promote_for(&mut mover, block, 0);
        assert_eq!(cache.slots_of(9), left, "CLOCK evicts in order");
    }
}

#[test]
fn what_is_to_be_promoted_counts_for_its_tenant_until_it_is_dropped() {
    let maps = Maps::of(16);
    let zeroes = |count| (0..count).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
    let (of_slot, used) = (zeroes(1), zeroes(256));
    let cache = cache_of(&maps, 4).with_tenants(&of_slot, &used);
    let mut mover = mover(&cache);
    // More than the queues of hints hold.
    for hint in 1..=2000 {
        let _ = cache.hint_for(5 * BLOCK, Priority::Normal, 9);
        assert_eq!(cache.slots_of(9), u64::min(hint, 1024));
    }
    mover.take_hints();
    assert_eq!(cache.slots_of(9), 64);
    mover.poll(Duration::ZERO).expect("a promotion begins");
    end(&mut mover);
    while mover.poll(Duration::ZERO).is_ok() {}
    assert_eq!(cache.slots_of(9), 1, "all were of one block");
    let _ = cache.hint_for(6 * BLOCK, Priority::Normal, 9);
    cache.detach(CacheFailure::Asked);
    let _ = mover.poll(Duration::ZERO);
    assert_eq!(cache.slots_of(9), 1, "the hint is dropped with the cache");
}
