//! Fills by the miss, by hand. The simulator races them with everything else.

use std::time::Duration;

use ublk_bpf_abi::{CacheCounters, Decision, Extent, Priority};

use crate::cache::evict::Algorithm;
use crate::cache::{Cache, ChangeStart, Maps, Mode, Mover, PromoteLimits, Shape};
use crate::queue::machine::tests::{CONFIG, PASSTHROUGH, READ, WRITE, arrive, committed, done, effects};
use crate::queue::{Effect, Event, FillBuffer, FillIo, Io, Machine, QueueConfig, Tier, UserCopy, Written};

const HIT: u64 = 2;
/// Where the slots are.
const SLOTS: u64 = 1 << 20;
const FILL: FillBuffer = FillBuffer(0);

/// A cache of 8 KiB blocks. All requests are for the second half of the first.
fn cache_of(maps: &Maps) -> Cache<'_> {
    let shape = Shape {
        shift: 13,
        capacity: CONFIG.capacity,
        slots: 4,
        data_offset: SLOTS,
        mode: Mode::WriteThrough,
    };
    Cache::new(shape, &maps.index, &maps.heat)
}

fn mover<'c, 'm>(cache: &'c Cache<'m>) -> Mover<'c, 'm> {
    let limits = PromoteLimits { rate: None };
    Mover::new(cache, Algorithm::Clock, limits, CacheCounters::default())
}

fn machine<'c>(cache: &'c Cache<'c>, number: u16) -> Machine<'c> {
    let config = QueueConfig {
        staging_bytes: 4096,
        ..CONFIG
    };
    let machine = Machine::new(&config, Written::untracked()).expect("a good config");
    let mut machine = machine.with_cache(Some(cache), number);
    effects(&mut machine);
    machine.handle(Event::Prepared(0));
    effects(&mut machine);
    machine
}

/// A read that fills, by its first attempt's hint: the mover keeps a slot free from then on.
fn warm_up(machine: &mut Machine<'_>, mover: &mut Mover<'_, '_>) {
    let none = Decision::pass().fill(Extent::Block, Priority::Normal);
    arrive(machine, 3, READ, 8, none.pack());
    assert_eq!(effects(machine).len(), 1, "there is no free slot yet");
    assert_eq!(done(machine, 3, 4096), []);
    committed(machine);
    // The hint is dropped, as by a write: the block stays absent.
    arrive(machine, 3, WRITE, 8, PASSTHROUGH);
    effects(machine);
    while mover.poll(Duration::ZERO).is_ok() {}
    done(machine, 3, 4096);
    committed(machine);
}

fn fill_of(extent: Extent) -> u64 {
    Decision::pass().fill(extent, Priority::Normal).pack()
}

fn load(len: u32) -> Effect {
    let skip = 8192 - len;
    Effect::Fill {
        fill: FILL,
        io: FillIo::Load {
            offset: skip.into(),
            skip,
            len,
        },
    }
}

fn store(len: u32) -> Effect {
    let skip = 8192 - len;
    Effect::Fill {
        fill: FILL,
        io: FillIo::Store {
            offset: SLOTS + u64::from(skip),
            skip,
            len,
        },
    }
}

fn copy(tag: u16) -> Effect {
    let io = Io::Copy(UserCopy::Filled {
        fill: FILL,
        skip: 4096,
        at: 0,
        len: 4096,
    });
    Effect::Io { tag, io }
}

fn filled(machine: &mut Machine<'_>, result: i32) -> Vec<Effect> {
    machine.handle(Event::FillDone { fill: FILL, result });
    effects(machine)
}

fn backing_read(tag: u16) -> Effect {
    let io = Io::Read {
        from: Tier::Backing,
        offset: 4096,
        at: 0,
        len: 4096,
    };
    Effect::Io { tag, io }
}

#[test]
fn one_read_of_the_backing_device_serves_all_that_wait() {
    let maps = Maps::of(CONFIG.capacity / 16);
    let cache = cache_of(&maps);
    let (mut machine, mut mover) = (machine(&cache, 0), mover(&cache));
    warm_up(&mut machine, &mut mover);
    arrive(&mut machine, 0, READ, 8, fill_of(Extent::Block));
    assert_eq!(effects(&mut machine), [load(8192)]);
    arrive(&mut machine, 1, READ, 8, fill_of(Extent::Request));
    assert_eq!(effects(&mut machine), [], "it waits");
    assert_eq!(filled(&mut machine, 8192), [copy(0), copy(1), store(8192)]);
    // One that comes now need not wait.
    arrive(&mut machine, 2, READ, 8, fill_of(Extent::Block));
    assert_eq!(effects(&mut machine), [copy(2)]);
    for tag in 0..3 {
        assert_eq!(done(&mut machine, tag, 4096), []);
    }
    assert_eq!(committed(&mut machine), [(0, 4096), (1, 4096), (2, 4096)]);
    assert_eq!(filled(&mut machine, 8192), []);
    let counters = machine.counters();
    assert_eq!(
        (counters.fills, counters.filled, counters.fill_bytes),
        (1, 3, 8192)
    );
    arrive(&mut machine, 0, READ, 8, HIT);
    assert!(matches!(
        effects(&mut machine)[..],
        [Effect::Io {
            io: Io::Read {
                from: Tier::Cache,
                ..
            },
            ..
        }]
    ));
}

#[test]
fn a_read_does_not_join_a_fill_that_a_write_has_overtaken() {
    let maps = Maps::of(CONFIG.capacity / 16);
    let cache = cache_of(&maps);
    let (mut machine, mut mover) = (machine(&cache, 0), mover(&cache));
    warm_up(&mut machine, &mut mover);
    arrive(&mut machine, 0, READ, 8, fill_of(Extent::Block));
    effects(&mut machine);
    arrive(&mut machine, 1, WRITE, 8, PASSTHROUGH);
    effects(&mut machine);
    done(&mut machine, 1, 4096);
    assert_eq!(committed(&mut machine), [(1, 4096)]);
    arrive(&mut machine, 2, READ, 8, PASSTHROUGH);
    assert_eq!(effects(&mut machine), [backing_read(2)]);
    arrive(&mut machine, 3, READ, 8, fill_of(Extent::Block));
    assert_eq!(
        effects(&mut machine),
        [backing_read(3)],
        "there is no other free slot"
    );
    // The one that came before the write may find what was before; the slot is not published.
    assert_eq!(filled(&mut machine, 8192), [copy(0)]);
    assert_eq!(machine.counters().fills_overtaken, 1);
}

#[test]
fn a_fill_that_fails_restarts_every_reader_and_the_slot_is_free_again() {
    let maps = Maps::of(CONFIG.capacity / 16);
    let cache = cache_of(&maps);
    let (mut machine, mut mover) = (machine(&cache, 0), mover(&cache));
    warm_up(&mut machine, &mut mover);
    for tag in [0, 1] {
        arrive(&mut machine, tag, READ, 8, fill_of(Extent::Request));
    }
    assert_eq!(effects(&mut machine), [load(4096)]);
    assert_eq!(filled(&mut machine, -5), [backing_read(0), backing_read(1)]);
    assert_eq!(done(&mut machine, 0, 4096), []);
    assert_eq!(done(&mut machine, 1, -5), []);
    assert_eq!(committed(&mut machine), [(0, 4096), (1, -5)]);
    assert!(cache.failure().is_none());
    while mover.poll(Duration::ZERO).is_ok() {}
    arrive(&mut machine, 0, READ, 8, fill_of(Extent::Request));
    assert!(matches!(effects(&mut machine)[..], [Effect::Fill { .. }]));
}

#[test]
fn a_slot_that_fails_costs_its_readers_nothing() {
    let maps = Maps::of(CONFIG.capacity / 16);
    let cache = cache_of(&maps);
    let (mut machine, mut mover) = (machine(&cache, 0), mover(&cache));
    warm_up(&mut machine, &mut mover);
    arrive(&mut machine, 0, READ, 8, fill_of(Extent::Block));
    effects(&mut machine);
    assert_eq!(filled(&mut machine, 8192).len(), 2);
    assert_eq!(filled(&mut machine, -5), []);
    assert_eq!(done(&mut machine, 0, 4096), [], "its buffer is still there");
    assert_eq!(committed(&mut machine), [(0, 4096)]);
    assert!(cache.failure().is_some());
}

#[test]
fn a_queue_that_waits_for_another_is_rung_for_and_looks_again() {
    let maps = Maps::of(CONFIG.capacity / 16);
    let cache = cache_of(&maps);
    let (mut one, mut other, mut mover) = (machine(&cache, 0), machine(&cache, 1), mover(&cache));
    warm_up(&mut one, &mut mover);
    arrive(&mut one, 0, READ, 8, fill_of(Extent::Block));
    effects(&mut one);
    arrive(&mut other, 0, READ, 8, fill_of(Extent::Block));
    assert_eq!(effects(&mut other), [], "it is parked");
    filled(&mut one, 8192);
    filled(&mut one, 8192);
    one.handle(Event::Idle);
    let rings = |effect: &Effect| matches!(effect, Effect::Ring(queues) if queues.contains(1));
    assert!(effects(&mut one).iter().any(rings));
    other.handle(Event::Rung);
    assert!(matches!(
        effects(&mut other)[..],
        [Effect::Io {
            io: Io::Read {
                from: Tier::Cache,
                ..
            },
            ..
        }]
    ));
    assert_eq!(other.counters().fill_waits, 1);
}

#[test]
fn a_queue_that_is_abandoned_gives_its_fills_up() {
    let maps = Maps::of(CONFIG.capacity / 16);
    let cache = cache_of(&maps);
    let (mut one, mut other, mut mover) = (machine(&cache, 0), machine(&cache, 1), mover(&cache));
    warm_up(&mut one, &mut mover);
    arrive(&mut one, 0, READ, 8, fill_of(Extent::Block));
    arrive(&mut other, 0, READ, 8, fill_of(Extent::Block));
    effects(&mut one);
    one.handle(Event::Abandon);
    one.handle(Event::Idle);
    assert_eq!(effects(&mut one), [], "the fill is still in flight");
    assert_eq!(filled(&mut one, 8192), []);
    one.handle(Event::Idle);
    let ended = effects(&mut one);
    assert!(
        matches!(ended[..], [.., Effect::Ring(_), Effect::Finished]),
        "{ended:?}"
    );
    other.handle(Event::Rung);
    assert_eq!(effects(&mut other).len(), 1, "it reads by itself");
}

#[test]
fn a_read_of_a_block_that_is_cached_in_part_has_a_leg_on_each_device() {
    let maps = Maps::of(CONFIG.capacity / 16);
    let cache = cache_of(&maps);
    let (mut machine, mut mover) = (machine(&cache, 0), mover(&cache));
    warm_up(&mut machine, &mut mover);
    // The second half becomes valid; a write then hides its first quarter while the other one is read.
    arrive(&mut machine, 0, READ, 8, fill_of(Extent::Request));
    effects(&mut machine);
    filled(&mut machine, 4096);
    filled(&mut machine, 4096);
    done(&mut machine, 0, 4096);
    committed(&mut machine);
    let ChangeStart::Marked(hidden, _) = cache.start_write(4096, 1024, None) else {
        panic!("nothing is dirty");
    };
    arrive(&mut machine, 1, READ, 8, HIT);
    let read = |from, offset, at, len| {
        let io = Io::Read {
            from,
            offset,
            at,
            len,
        };
        vec![Effect::Io { tag: 1, io }]
    };
    assert_eq!(effects(&mut machine), read(Tier::Backing, 4096, 0, 1024));
    assert_eq!(done(&mut machine, 1, 512), read(Tier::Backing, 4608, 512, 512));
    assert_eq!(
        done(&mut machine, 1, 512),
        read(Tier::Cache, SLOTS + 5120, 1024, 3072)
    );
    assert_eq!(
        done(&mut machine, 1, -5),
        read(Tier::Backing, 4096, 0, 4096),
        "all of it again"
    );
    assert_eq!(done(&mut machine, 1, 4096), []);
    assert_eq!(committed(&mut machine), [(1, 4096)]);
    assert_eq!(machine.counters().hits_split, 1);
    cache.end_change(4096, 1024, hidden.claim, false);
}
