//! What a policy says of a write, and what becomes of that.

use ublk_bpf_abi::{Decision, Priority};

use super::*;
use crate::queue::UserCopy;

const BACK: u64 = Decision::pass().back().pack();
const THROUGH: u64 = Decision::pass().through().pack();
const AROUND: u64 = Decision::pass().around().pack();
const MODES: [Mode; 3] = [Mode::WriteBack, Mode::WriteThrough, Mode::WriteAround];

/// The mover brings the block into the cache. Returns where its slot is.
fn promote(cache: &Cache<'_>, mover: &mut Mover<'_, '_>) -> u64 {
    assert_eq!(cache.hint(4096, Priority::Normal), crate::cache::Hinted::Queued);
    let load = mover.poll(Duration::ZERO);
    let Ok(MoverIo::Load {
        job, offset: 4096, ..
    }) = load
    else {
        panic!("{load:?}");
    };
    let store = mover.done(job, 4096);
    let Some(MoverIo::Store { offset, .. }) = store else {
        panic!("{store:?}");
    };
    assert_eq!(mover.done(job, 4096), None);
    offset
}

/// The operations of a request until its end.
fn all(machine: &mut Machine<'_>, tag: u16, op: u32, verdict: u64) -> Vec<Io> {
    let mut all = begin(machine, tag, op, verdict);
    while let Some(&last) = all.last() {
        let moved = match last {
            Io::Copy(UserCopy::In { len, .. })
            | Io::Store { len, .. }
            | Io::Write { len, .. }
            | Io::Record { len, .. } => len.cast_signed(),
            _ => 0,
        };
        let next = ios(&done(machine, tag, moved));
        if next.is_empty() {
            break;
        }
        all.extend(next);
    }
    assert_eq!(committed(machine).len(), 1);
    all
}

/// Writes to the backing and to the cache device, with and without FUA, in operations of at least a sector.
fn written(ios: &[Io]) -> Vec<(Tier, u64, bool)> {
    let write = |io: &Io| match *io {
        Io::Write {
            to, offset, durable, ..
        }
        | Io::Store {
            to, offset, durable, ..
        } => Some((to, offset, durable)),
        _ => None,
    };
    ios.iter().filter_map(write).collect()
}

#[test]
fn a_write_ends_where_the_policy_says_whatever_the_mode() {
    for mode in MODES {
        for is_cached in [false, true] {
            let memory = Memory::new();
            let cache = memory.cache();
            cache.set_mode(mode);
            let mut mover = mover(&cache, LAZY);
            if is_cached {
                promote(&cache, &mut mover);
            }
            let mut machine = machine(&cache);
            assert_eq!(
                all(&mut machine, 0, WRITE, AROUND),
                [write(Tier::Backing, 4096, false)],
                "one write, no copy"
            );
            assert_eq!(
                (machine.counters().absorbed, machine.counters().cache_writes),
                (0, 0)
            );
            assert_eq!(all(&mut machine, 1, FLUSH, PASSTHROUGH), [FLUSH_BACKING]);
            let back = all(&mut machine, 0, WRITE, BACK);
            assert!(
                matches!(
                    back[..],
                    [Io::Write {
                        to: Tier::Cache,
                        len: 4096,
                        durable: false,
                        ..
                    }]
                ),
                "one write, no copy: {back:?}"
            );
            assert_eq!((machine.counters().absorbed, cache.dirty_slots()), (1, 1));
            let flush = all(&mut machine, 1, FLUSH, PASSTHROUGH);
            assert_eq!(flush[0], FLUSH_CACHE);
            assert!(
                is_record(&flush[1..]),
                "nothing is owed to the backing: {flush:?}"
            );
            assert_eq!(machine.counters().user_copies, 0);
        }
    }
}

#[test]
fn a_write_through_goes_to_both_devices_if_its_block_is_cached() {
    for mode in MODES {
        let memory = Memory::new();
        let cache = memory.cache();
        cache.set_mode(mode);
        let mut mover = mover(&cache, LAZY);
        let mut machine = machine(&cache);
        assert_eq!(
            all(&mut machine, 0, WRITE, THROUGH),
            [write(Tier::Backing, 4096, false)]
        );
        let slot = promote(&cache, &mut mover);
        // In four pieces, because the buffer has as few bytes.
        let expected: Vec<_> = (0..4)
            .flat_map(|piece| {
                [(Tier::Backing, 4096), (Tier::Cache, slot)].map(|(to, at)| (to, at + piece * 1024, false))
            })
            .collect();
        assert_eq!(written(&all(&mut machine, 0, WRITE, THROUGH)), expected);
        assert_eq!(machine.counters().user_copies, 4);
        assert_eq!((machine.counters().absorbed, cache.dirty_slots()), (0, 0));
        assert_eq!(machine.counters().cache_writes, 1);
        assert_eq!(all(&mut machine, 1, FLUSH, PASSTHROUGH), [FLUSH_BACKING]);
    }
}

#[test]
fn a_durable_write_is_durable_wherever_it_ends() {
    for (verdict, tier, offset) in [(AROUND, Tier::Backing, 4096), (BACK, Tier::Cache, SLOTS)] {
        let memory = Memory::new();
        let cache = memory.cache();
        let _mover = mover(&cache, LAZY);
        let mut machine = machine(&cache);
        let ios = all(&mut machine, 0, FUA_WRITE, verdict);
        assert_eq!(ios[0], write(tier, offset, true));
        if tier == Tier::Cache {
            assert!(is_record(&ios[1..]), "{ios:?}");
        } else {
            assert_eq!(ios.len(), 1);
        }
    }
}

#[test]
fn what_is_dirty_goes_to_the_slot_whatever_the_policy_says() {
    for verdict in [AROUND, THROUGH, BACK, SLOW, PASSTHROUGH] {
        let memory = Memory::new();
        let cache = memory.cache();
        cache.set_mode(Mode::WriteAround);
        let _mover = mover(&cache, LAZY);
        let mut machine = machine(&cache);
        all(&mut machine, 0, WRITE, BACK);
        let again = written(&all(&mut machine, 0, WRITE, verdict));
        assert!(
            !again.is_empty() && again.iter().all(|(to, ..)| *to == Tier::Cache),
            "{again:?}"
        );
        assert_eq!(machine.counters().absorbed, 2);
    }
}

#[test]
fn a_cache_without_write_back_writes_through_instead() {
    for mode in [Mode::WriteThrough, Mode::WriteAround] {
        let maps = Maps::of(CONFIG.capacity / 8);
        let shape = Shape {
            shift: 12,
            capacity: CONFIG.capacity,
            slots: 4,
            data_offset: SLOTS,
            mode,
        };
        let cache = Cache::new(shape, &maps.index, &maps.heat);
        let no_limit = PromoteLimits { rate: None };
        let mut mover = Mover::new(&cache, Algorithm::Clock, no_limit, CacheCounters::default());
        let slot = promote(&cache, &mut mover);
        let mut machine = machine(&cache);
        let back = written(&all(&mut machine, 0, WRITE, BACK));
        assert_eq!(
            (back[0], back[1]),
            ((Tier::Backing, 4096, false), (Tier::Cache, slot, false))
        );
        assert_eq!(
            (machine.counters().absorbed, machine.counters().cache_writes),
            (0, 1)
        );
        assert_eq!(
            written(&all(&mut machine, 0, WRITE, AROUND)),
            [(Tier::Backing, 4096, false)]
        );
    }
}

#[test]
fn what_the_policy_says_is_known_after_a_wait() {
    for (verdict, expected) in [
        (AROUND, write(Tier::Backing, 4096, false)),
        (PASSTHROUGH, write(Tier::Cache, SLOTS, false)),
    ] {
        let memory = Memory::new();
        let cache = memory.cache();
        let mut mover = mover(&cache, LAZY);
        let mut machine = machine(&cache);
        begin(&mut machine, 0, WRITE, BACK);
        assert_eq!(
            begin(&mut machine, 1, WRITE, verdict),
            [],
            "the first has its regions"
        );
        machine.handle(Event::IoDone { tag: 0, result: 4096 });
        clean(&mut mover);
        machine.handle(Event::Rung);
        assert_eq!(ios(&effects(&mut machine)), [expected]);
    }
}

#[test]
fn only_what_was_to_end_in_the_cache_is_counted_as_a_downgrade() {
    let memory = Memory::new();
    let cache = memory.cache();
    cache.set_mode(Mode::WriteThrough);
    let _mover = mover(&cache, FULL);
    let mut machine = machine(&cache);
    for (verdict, downgrades) in [(AROUND, 0), (THROUGH, 0), (PASSTHROUGH, 0), (BACK, 1)] {
        assert_eq!(
            all(&mut machine, 0, WRITE, verdict),
            [write(Tier::Backing, 4096, false)]
        );
        assert_eq!(machine.counters().back_limit, downgrades);
    }
}

#[test]
fn what_a_policy_says_of_a_write_means_nothing_for_others() {
    let memory = Memory::new();
    let cache = memory.cache();
    let mut mover = mover(&cache, LAZY);
    let slot = promote(&cache, &mut mover);
    let mut machine = machine(&cache);
    for verdict in [BACK, THROUGH, AROUND] {
        for (op, device) in [(READ, Tier::Backing), (DISCARD, Tier::Backing)] {
            let ios = begin(&mut machine, 0, op, verdict);
            let is_expected = matches!(
                ios[..],
                [Io::Read { from, .. } | Io::Discard { device: from, .. }] if from == device
            );
            assert!(is_expected, "{ios:?}");
            let moved = if op == READ { 4096 } else { 0 };
            assert_eq!(end(&mut machine, 0, moved).len(), 1);
        }
    }
    assert_eq!((machine.counters().fills, machine.counters().hinted), (0, 0));
    assert!(slot >= SLOTS);
}
