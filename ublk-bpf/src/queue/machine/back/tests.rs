//! What the machine does with a cache that is written back, operation by operation.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use ublk_bpf_abi::CacheCounters;

use crate::cache::evict::Algorithm;
use crate::cache::log::{Log, LogLayout, LogSeal};
use crate::cache::{Cache, CleanLimits, Maps, Mode, Mover, MoverIo, PromoteLimits, Shape};
use crate::queue::machine::tests::{
    CONFIG, FLUSH, PASSTHROUGH, READ, SLOW, WRITE, arrive, committed, done, effects,
};
use crate::queue::{Effect, Event, Io, Machine, Tier, Written};
use crate::sys::uapi::{UBLK_IO_F_FUA, UBLK_IO_OP_DISCARD};

mod policy;

/// Where the slots are.
const SLOTS: u64 = 1 << 20;
const FUA_WRITE: u32 = WRITE | UBLK_IO_F_FUA;
const DISCARD: u32 = UBLK_IO_OP_DISCARD as u32;

struct Memory {
    maps: Maps,
    dirty: Vec<AtomicU64>,
}

impl Memory {
    fn new() -> Self {
        Self {
            maps: Maps::of(CONFIG.capacity / 8),
            dirty: (0..4).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    fn cache(&self) -> Cache<'_> {
        let shape = Shape {
            shift: 12,
            capacity: CONFIG.capacity,
            slots: 4,
            data_offset: SLOTS,
            mode: Mode::WriteBack,
        };
        let cache = Cache::new(shape, &self.maps.index, &self.maps.heat).with_writeback(&self.dirty);
        let seal = LogSeal {
            cache_id: [1; 16],
            log_id: 1,
        };
        cache.set_log(Log::new(LogLayout::new(0, 4, 8), seal), false);
        cache
    }
}

fn mover<'c, 'm>(cache: &'c Cache<'m>, limits: CleanLimits) -> Mover<'c, 'm> {
    let no_limit = PromoteLimits { rate: None };
    let mover = Mover::new(cache, Algorithm::Clock, no_limit, CacheCounters::default());
    let mut mover = mover.with_writeback(limits);
    // It provides a free slot.
    assert!(mover.poll(Duration::ZERO).is_err());
    mover
}

/// Nothing is cleaned by itself, and everything may be dirty.
const LAZY: CleanLimits = CleanLimits {
    low: 4,
    high: 4,
    rate: None,
};

/// Nothing may be dirty.
const FULL: CleanLimits = CleanLimits {
    low: 0,
    high: 0,
    rate: None,
};

fn machine<'c>(cache: &'c Cache<'c>) -> Machine<'c> {
    let machine = Machine::new(&CONFIG, Written::untracked()).expect("a good config");
    let mut machine = machine.with_cache(Some(cache), 0);
    effects(&mut machine);
    machine.handle(Event::Prepared(0));
    effects(&mut machine);
    machine
}

/// The operations among these effects.
fn ios(effects: &[Effect]) -> Vec<Io> {
    let io = |effect: &Effect| match effect {
        Effect::Io { io, .. } => Some(*io),
        _ => None,
    };
    effects.iter().filter_map(io).collect()
}

/// Arrives, and returns its operation.
fn begin(machine: &mut Machine<'_>, tag: u16, op: u32, verdict: u64) -> Vec<Io> {
    arrive(machine, tag, op, 8, verdict);
    ios(&effects(machine))
}

const fn write(to: Tier, offset: u64, durable: bool) -> Io {
    Io::Write {
        to,
        offset,
        at: 0,
        len: 4096,
        durable,
    }
}

const FLUSH_CACHE: Io = Io::Flush { device: Tier::Cache };
const FLUSH_BACKING: Io = Io::Flush {
    device: Tier::Backing,
};

fn is_record(ios: &[Io]) -> bool {
    matches!(ios, [Io::Record { len: 4096, .. }])
}

/// The last operation of a tag ends with this. Returns what is committed.
fn end(machine: &mut Machine<'_>, tag: u16, result: i32) -> Vec<(u16, i32)> {
    assert_eq!(ios(&done(machine, tag, result)), []);
    committed(machine)
}

/// A write of the block that is served.
fn absorb(machine: &mut Machine<'_>) {
    assert_eq!(
        begin(machine, 0, WRITE, PASSTHROUGH),
        [write(Tier::Cache, SLOTS, false)]
    );
    assert_eq!(end(machine, 0, 4096), [(0, 4096)]);
}

/// The mover cleans the block, which is asked of it.
fn clean(mover: &mut Mover<'_, '_>) {
    let load = mover.poll(Duration::ZERO).expect("it is urgent");
    let MoverIo::LoadSlot {
        job,
        offset: SLOTS,
        len: 4096,
        ..
    } = load
    else {
        panic!("{load:?}");
    };
    let store = mover.done(job, 4096);
    assert!(
        matches!(
            store,
            Some(MoverIo::StoreBacking {
                offset: 4096,
                len: 4096,
                ..
            })
        ),
        "{store:?}"
    );
    assert_eq!(mover.done(job, 4096), None);
    let flush = mover.poll(Duration::ZERO);
    let Ok(MoverIo::FlushBacking { job }) = flush else {
        panic!("{flush:?}");
    };
    assert_eq!(mover.done(job, 0), None);
}

#[test]
fn a_write_and_a_flush_are_two_writes_and_a_flush_of_the_cache_device() {
    let memory = Memory::new();
    let cache = memory.cache();
    let _mover = mover(&cache, LAZY);
    let mut machine = machine(&cache);
    absorb(&mut machine);
    assert_eq!(begin(&mut machine, 1, FLUSH, PASSTHROUGH), [FLUSH_CACHE]);
    assert!(is_record(&ios(&done(&mut machine, 1, 0))));
    assert_eq!(end(&mut machine, 1, 4096), [(1, 0)]);
    // Now the log calls it dirty.
    absorb(&mut machine);
    assert_eq!(begin(&mut machine, 1, FLUSH, PASSTHROUGH), [FLUSH_CACHE]);
    assert_eq!(end(&mut machine, 1, 0), [(1, 0)]);
    // And there is nothing to flush.
    assert_eq!(begin(&mut machine, 1, FLUSH, PASSTHROUGH), []);
    assert_eq!(committed(&mut machine), [(1, 0)]);
    assert_eq!(machine.counters().absorbed, 2);
    assert_eq!(machine.counters().user_copies, 0);
}

#[test]
fn a_durable_write_is_one_in_the_slot_and_one_in_the_log() {
    let memory = Memory::new();
    let cache = memory.cache();
    let _mover = mover(&cache, LAZY);
    let mut machine = machine(&cache);
    for is_logged in [false, true] {
        assert_eq!(
            begin(&mut machine, 0, FUA_WRITE, PASSTHROUGH),
            [write(Tier::Cache, SLOTS, true)]
        );
        let next = ios(&done(&mut machine, 0, 4096));
        if !is_logged {
            assert!(is_record(&next), "{next:?}");
            assert_eq!(ios(&done(&mut machine, 0, 4096)), []);
        }
        assert_eq!(committed(&mut machine), [(0, 4096)]);
    }
}

#[test]
fn what_is_dirty_is_read_from_its_slot_whatever_the_policy_says() {
    let memory = Memory::new();
    let cache = memory.cache();
    let _mover = mover(&cache, LAZY);
    let mut machine = machine(&cache);
    absorb(&mut machine);
    for verdict in [PASSTHROUGH, SLOW] {
        let read = begin(&mut machine, 2, READ, verdict);
        assert!(
            matches!(
                read[..],
                [Io::Read {
                    from: Tier::Cache,
                    offset: SLOTS,
                    len: 4096,
                    ..
                }]
            ),
            "{read:?}"
        );
        assert_eq!(end(&mut machine, 2, 4096), [(2, 4096)]);
    }
    // Its slot fails: the backing device has something else.
    begin(&mut machine, 2, READ, PASSTHROUGH);
    assert_eq!(end(&mut machine, 2, -5), [(2, -5)]);
}

#[test]
fn a_flush_goes_to_the_backing_device_for_what_passed_through() {
    let memory = Memory::new();
    let cache = memory.cache();
    let _mover = mover(&cache, FULL);
    let mut machine = machine(&cache);
    let through = begin(&mut machine, 0, WRITE, PASSTHROUGH);
    assert_eq!(through, [write(Tier::Backing, 4096, false)], "at the limit");
    assert_eq!(end(&mut machine, 0, 4096), [(0, 4096)]);
    assert_eq!(machine.counters().back_limit, 1);
    assert_eq!(begin(&mut machine, 1, FLUSH, PASSTHROUGH), [FLUSH_BACKING]);
    assert_eq!(end(&mut machine, 1, 0), [(1, 0)]);
    assert_eq!(
        begin(&mut machine, 1, FLUSH, PASSTHROUGH),
        [],
        "it is owed no longer"
    );
    assert_eq!(committed(&mut machine), [(1, 0)]);
}

#[test]
fn a_failing_slot_costs_no_data() {
    let memory = Memory::new();
    let cache = memory.cache();
    let _mover = mover(&cache, LAZY);
    let mut machine = machine(&cache);
    // Nothing was dirty: the backing device takes it.
    begin(&mut machine, 0, WRITE, PASSTHROUGH);
    assert_eq!(
        ios(&done(&mut machine, 0, -5)),
        [write(Tier::Backing, 4096, false)]
    );
    assert_eq!(end(&mut machine, 0, 4096), [(0, 4096)]);
    assert!(cache.failure().is_some() && cache.dirty_slots() == 0);

    let memory = Memory::new();
    let cache = memory.cache();
    let _mover = mover(&cache, LAZY);
    let mut machine = self::machine(&cache);
    absorb(&mut machine);
    // Only the slot has what the write does not cover, or did not reach.
    begin(&mut machine, 0, WRITE, PASSTHROUGH);
    assert_eq!(end(&mut machine, 0, -5), [(0, -5)]);
    assert_eq!(cache.dirty_slots(), 1);
}

#[test]
fn a_commit_that_fails_fails_the_flush() {
    let memory = Memory::new();
    let cache = memory.cache();
    let _mover = mover(&cache, LAZY);
    let mut machine = machine(&cache);
    absorb(&mut machine);
    for _ in 0..2 {
        assert_eq!(begin(&mut machine, 1, FLUSH, PASSTHROUGH), [FLUSH_CACHE]);
        assert_eq!(ios(&done(&mut machine, 1, -5)), []);
        assert_eq!(
            committed(&mut machine),
            [(1, -5)],
            "nor does the next one forget it"
        );
    }
}

#[test]
fn flushes_share_the_next_commit() {
    let memory = Memory::new();
    let cache = memory.cache();
    let _mover = mover(&cache, LAZY);
    let mut machine = machine(&cache);
    absorb(&mut machine);
    assert_eq!(begin(&mut machine, 1, FLUSH, PASSTHROUGH), [FLUSH_CACHE]);
    absorb(&mut machine);
    for tag in [2, 3] {
        assert_eq!(begin(&mut machine, tag, FLUSH, PASSTHROUGH), [], "it waits");
    }
    assert!(is_record(&ios(&done(&mut machine, 1, 0))));
    done(&mut machine, 1, 4096);
    // The first of the others leads their commit, which has nothing to record.
    assert_eq!(committed(&mut machine), [(1, 0)]);
    assert_eq!(machine.counters().log_commits, 2);
    assert_eq!(end(&mut machine, 2, 0), [(2, 0), (3, 0)]);
    assert_eq!(machine.counters().log_commits, 2);
}

#[test]
fn a_discard_waits_until_its_range_is_clean() {
    let memory = Memory::new();
    let cache = memory.cache();
    let mut mover = mover(&cache, LAZY);
    let mut machine = machine(&cache);
    absorb(&mut machine);
    assert_eq!(begin(&mut machine, 1, DISCARD, PASSTHROUGH), []);
    clean(&mut mover);
    assert!(cache.take_woken().contains(0));
    machine.handle(Event::Rung);
    let discard = ios(&effects(&mut machine));
    assert!(
        matches!(discard[..], [Io::Discard { offset: 4096, .. }]),
        "{discard:?}"
    );
}
