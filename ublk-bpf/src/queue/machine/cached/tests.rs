//! What the machine does with a cache, by hand.

use std::sync::atomic::Ordering;
use std::time::Duration;

use ublk_bpf_abi::{CacheCounters, IndexEntry, Priority};

use crate::cache::Maps;
use crate::cache::evict::Algorithm;
use crate::cache::{self, Cache, Mode, Mover, PromoteLimits, Shape};
use crate::queue::machine::tests::{
    CONFIG, FLUSH, PASSTHROUGH, READ, SLOW, WRITE, arrive, committed, done, effects,
};
use crate::queue::{Effect, Event, Io, Machine, QueueConfig, Staging, Tier, UserCopy, Written};

const HIT: u64 = 2;
/// Where the slots are.
const SLOTS: u64 = 1 << 20;

/// The entry of that block.
fn entry(maps: &Maps) -> IndexEntry {
    IndexEntry(maps.index[1].load(Ordering::SeqCst))
}

/// A cache that has the block where all requests go, the second, in its first slot.
fn cache_of(maps: &Maps) -> Cache<'_> {
    let shape = Shape {
        shift: 12,
        capacity: CONFIG.capacity,
        slots: 2,
        data_offset: SLOTS,
        mode: Mode::WriteThrough,
    };
    let cache = Cache::new(shape, &maps.index, &maps.heat);
    let mut mover = Mover::new(
        &cache,
        Algorithm::Clock,
        PromoteLimits { rate: None },
        CacheCounters::default(),
    );
    assert_eq!(cache.hint(4096, Priority::Normal), cache::Hinted::Queued);
    let load = mover.poll(Duration::ZERO);
    assert!(matches!(load, Ok(cache::MoverIo::Load { offset: 4096, .. })));
    assert!(matches!(
        mover.done(0, 4096),
        Some(cache::MoverIo::Store { offset: SLOTS, .. })
    ));
    assert_eq!(mover.done(0, 4096), None);
    drop(mover);
    assert!(entry(maps).is_present());
    cache
}

fn machine<'c>(cache: &'c Cache<'c>) -> Machine<'c> {
    machine_of(&CONFIG, cache)
}

fn machine_of<'c>(config: &QueueConfig, cache: &'c Cache<'c>) -> Machine<'c> {
    let machine = Machine::new(config, Written::untracked()).expect("a good config");
    let mut machine = machine.with_cache(Some(cache), 0);
    effects(&mut machine);
    machine.handle(Event::Prepared(0));
    effects(&mut machine);
    machine
}

fn operation(effects: &[Effect]) -> Io {
    match effects {
        [Effect::Io { io, .. }] => *io,
        other => panic!("one operation was expected, not {other:?}"),
    }
}

fn store(to: Tier, offset: u64) -> Io {
    Io::Store {
        to,
        offset,
        staging: Staging(0),
        skip: 0,
        len: 1024,
        durable: false,
    }
}

/// The client may change its pages at any time: they are read once, whatever the advice.
#[test]
fn a_write_is_copied_once_and_goes_to_the_backing_device_and_then_to_the_slot() {
    let config = QueueConfig {
        staging_bytes: 4096,
        ..CONFIG
    };
    for advice in [PASSTHROUGH, SLOW] {
        let maps = Maps::of(CONFIG.capacity / 8);
        let cache = cache_of(&maps);
        let mut machine = machine_of(&config, &cache);
        arrive(&mut machine, 0, WRITE, 8, advice);
        let copy = Io::Copy(UserCopy::In {
            staging: Staging(0),
            skip: 0,
            at: 0,
            len: 4096,
        });
        assert_eq!(operation(&effects(&mut machine)), copy);
        assert!(!entry(&maps).serves(1), "the backing device may have it, or not");
        let store = |to, offset| Io::Store {
            to,
            offset,
            staging: Staging(0),
            skip: 0,
            len: 4096,
            durable: false,
        };
        assert_eq!(
            operation(&done(&mut machine, 0, 4096)),
            store(Tier::Backing, 4096)
        );
        assert_eq!(operation(&done(&mut machine, 0, 4096)), store(Tier::Cache, SLOTS));
        assert_eq!(done(&mut machine, 0, 4096), []);
        assert!(entry(&maps).serves(u16::MAX));
        assert_eq!(committed(&mut machine), [(0, 4096)]);
    }
}

#[test]
fn a_write_through_staging_goes_on_without_a_cache_that_failed() {
    let maps = Maps::of(CONFIG.capacity / 8);
    let cache = cache_of(&maps);
    let mut machine = machine(&cache);
    arrive(&mut machine, 0, WRITE, 8, SLOW);
    assert!(matches!(
        operation(&effects(&mut machine)),
        Io::Copy(UserCopy::In { at: 0, .. })
    ));
    assert_eq!(
        operation(&done(&mut machine, 0, 1024)),
        store(Tier::Backing, 4096)
    );
    assert_eq!(operation(&done(&mut machine, 0, 1024)), store(Tier::Cache, SLOTS));
    let mut next = done(&mut machine, 0, -5);
    for chunk in 1..4 {
        assert!(matches!(operation(&next), Io::Copy(UserCopy::In { at, .. }) if at == 1024 * chunk));
        let stored = operation(&done(&mut machine, 0, 1024));
        assert_eq!(stored, store(Tier::Backing, 4096 + 1024 * u64::from(chunk)));
        next = done(&mut machine, 0, 1024);
    }
    assert_eq!(next, []);
    assert_eq!(entry(&maps), IndexEntry::ABSENT);
    assert!(cache.failure().is_some());
    assert_eq!(committed(&mut machine), [(0, 4096)]);
}

#[test]
fn a_hit_that_fails_is_read_from_the_backing_device() {
    let maps = Maps::of(CONFIG.capacity / 8);
    let cache = cache_of(&maps);
    let mut machine = machine(&cache);
    arrive(&mut machine, 0, READ, 8, HIT);
    let read = |from, offset| Io::Read {
        from,
        offset,
        at: 0,
        len: 4096,
    };
    assert_eq!(operation(&effects(&mut machine)), read(Tier::Cache, SLOTS));
    assert_eq!(operation(&done(&mut machine, 0, -5)), read(Tier::Backing, 4096));
    assert_eq!(done(&mut machine, 0, 4096), []);
    assert_eq!(committed(&mut machine), [(0, 4096)]);
    assert_eq!(machine.counters().hits_failed, 1);
}

#[test]
fn only_a_request_with_data_promotes_its_block() {
    let promote = u64::from(ublk_bpf_abi::hint::PROMOTE) << 16 | PASSTHROUGH;
    for (op, sectors, hinted) in [(READ, 8, 1), (WRITE, 8, 1), (FLUSH, 0, 0)] {
        let maps = Maps::of(CONFIG.capacity / 8);
        let cache = cache_of(&maps);
        let mut machine = machine(&cache);
        arrive(&mut machine, 0, op, sectors, promote);
        let mut next = effects(&mut machine);
        while let [Effect::Io { io, .. }] = next[..] {
            let moved = match io {
                Io::Copy(UserCopy::In { len, .. }) | Io::Store { len, .. } | Io::Read { len, .. } => {
                    len.cast_signed()
                }
                _ => 0,
            };
            next = done(&mut machine, 0, moved);
        }
        assert_eq!(machine.counters().completed, 1);
        assert_eq!(machine.counters().hinted, hinted, "operation {op}");
    }
}
