use std::sync::atomic::AtomicU64;
use std::time::Duration;

use ublk_bpf_abi::{Decision, Extent, Op, Priority, Request};

use super::*;
use crate::cache::Mode;
use crate::cache::evict::Algorithm;

const BLOCK: u64 = 128;

/// A read of a whole block at each time, in milliseconds.
fn reads(of: &[(u64, u64)]) -> Trace {
    let mut trace = Trace::default();
    for &(ms, block) in of {
        let request = TraceRequest {
            time_ns: ms * 1_000_000,
            ..TraceRequest::new(Op::Read, block * BLOCK, 128)
        };
        trace.push(request).unwrap();
    }
    trace
}

fn setup(slots: u32) -> Setup {
    Setup {
        slots,
        eviction: Algorithm::Clock,
        mode: Mode::WriteThrough,
        promote_limit: None,
        promote_latency: Duration::ZERO,
    }
}

fn run(trace: &Trace, setup: &Setup, decide: impl Fn(&Request) -> Decision) -> Counts {
    let stream = Stream::new(trace, 16).unwrap();
    replay(
        trace,
        &stream,
        setup,
        &mut |_, request, _| decide(request),
        &AtomicU64::new(0),
    )
}

fn promotes(request: &Request) -> Decision {
    match request.op() {
        Op::Read if request.is_cached() => Decision::hit(),
        Op::Read => Decision::pass().promote(Priority::Normal),
        _ => Decision::pass(),
    }
}

#[test]
fn a_promotion_reads_the_block_a_second_time() {
    let counts = run(&reads(&[(0, 1), (1, 1), (2, 1)]), &setup(2), promotes);
    assert_eq!((counts.reads, counts.hits, counts.promoted), (3, 2, 1));
    assert_eq!(counts.backing_bytes, 2 << 16);
    assert_eq!((counts.hit_bytes, counts.filled_bytes), (2 << 16, 1 << 16));
    assert_eq!((counts.read_requests, counts.hit_requests), (3, 2));
}

#[test]
fn a_promotion_takes_its_time() {
    let trace = reads(&[(0, 1), (5, 1), (15, 1), (25, 1)]);
    let slow = Setup {
        promote_latency: Duration::from_millis(10),
        ..setup(2)
    };
    assert_eq!(run(&trace, &slow, promotes).hits, 2);
}

#[test]
fn promotion_keeps_to_its_limit() {
    let each_ms: Vec<(u64, u64)> = (0..1000).map(|ms| (ms, ms)).collect();
    let limited = Setup {
        promote_limit: Some(64 << 16),
        ..setup(1000)
    };
    let counts = run(&reads(&each_ms), &limited, promotes);
    assert!((63..=130).contains(&counts.promoted), "64 a second: {counts:?}");
}

#[test]
fn a_write_updates_the_cache_or_invalidates_it() {
    let mut trace = reads(&[(0, 1), (1, 1)]);
    for op in [Op::Write, Op::Read] {
        let request = TraceRequest {
            time_ns: 2_000_000,
            ..TraceRequest::new(op, BLOCK, 128)
        };
        trace.push(request).unwrap();
    }
    let through = run(&trace, &setup(2), promotes);
    assert_eq!(
        (through.hits, through.updated_bytes, through.write_bytes),
        (2, 1 << 16, 1 << 16)
    );
    let around = Setup {
        mode: Mode::WriteAround,
        ..setup(2)
    };
    let around = run(&trace, &around, promotes);
    assert_eq!((around.hits, around.updated_bytes), (1, 0));
}

#[test]
fn a_policy_says_where_a_write_ends() {
    let mut trace = Trace::default();
    for op in [Op::Write, Op::Read, Op::Write] {
        trace.push(TraceRequest::new(op, BLOCK, 128)).unwrap();
    }
    let ends = |mode, decision: Decision| {
        let counts = run(&trace, &Setup { mode, ..setup(4) }, |_| decision);
        (counts.absorbed, counts.hits, counts.writes)
    };
    for mode in [Mode::WriteThrough, Mode::WriteAround, Mode::WriteBack] {
        let back = mode == Mode::WriteBack;
        let absorbed = if back { (2, 1, 2) } else { (0, 0, 2) };
        assert_eq!(ends(mode, Decision::pass()), absorbed);
        assert_eq!(
            ends(mode, Decision::pass().back()),
            absorbed,
            "without write-back, through"
        );
        assert_eq!(ends(mode, Decision::pass().around()), (0, 0, 2));
        assert_eq!(ends(mode, Decision::pass().through()), (0, 0, 2));
    }
}

#[test]
fn a_request_hits_if_all_of_its_parts_do() {
    let mut trace = reads(&[(0, 1)]);
    for _ in 0..2 {
        let request = TraceRequest {
            time_ns: 1_000_000,
            ..TraceRequest::new(Op::Read, BLOCK, 200)
        };
        trace.push(request).unwrap();
    }
    let counts = run(&trace, &setup(4), promotes);
    assert_eq!((counts.reads, counts.hits), (5, 3));
    assert_eq!((counts.read_requests, counts.hit_requests), (3, 1));
}

#[test]
fn a_fill_reads_once_what_its_extent_says() {
    let fills = |extent| {
        move |request: &Request| match request.is_cached() {
            true => Decision::hit(),
            false => Decision::pass().fill(extent, Priority::Normal),
        }
    };
    // The first read finds no free slot: the mover frees some when fills are wanted. Its block is promoted only where all
    // of it is wanted.
    let first = |extent| match extent {
        Extent::Block => (4 << 10) + (64 << 10),
        Extent::Request | Extent::Around => 4 << 10,
    };
    let mut trace = Trace::default();
    for sector in [50 * BLOCK, BLOCK, BLOCK, BLOCK + 8, BLOCK + 64] {
        trace.push(TraceRequest::new(Op::Read, sector, 8)).unwrap();
    }
    let of = |extent| {
        let counts = run(&trace, &setup(100), fills(extent));
        (counts.fills, counts.hits, counts.backing_bytes - first(extent))
    };
    assert_eq!(of(Extent::Block), (1, 3, 64 << 10));
    assert_eq!(of(Extent::Around), (2, 2, 32 << 10));
    assert_eq!(of(Extent::Request), (3, 1, 12 << 10));
}

#[test]
fn reads_wait_for_a_fill_that_is_in_progress() {
    let trace = reads(&[(0, 50), (20, 1), (21, 1), (22, 1), (50, 1)]);
    let slow = Setup {
        promote_latency: Duration::from_millis(10),
        ..setup(100)
    };
    let counts = run(&trace, &slow, |request| match request.is_cached() {
        true => Decision::hit(),
        false => Decision::pass().fill(Extent::Block, Priority::Normal),
    });
    assert_eq!(
        (counts.fills, counts.waited, counts.hits, counts.backing_reads),
        (1, 2, 3, 1 + 2),
        "the first read finds no free slot"
    );
}

#[test]
fn the_references_are_what_they_are_called() {
    let trace = reads(&[(0, 1), (1, 2), (2, 3), (3, 1), (4, 2), (5, 3), (6, 1)]);
    let stream = Stream::new(&trace, 16).unwrap();
    let hits = |reference: Reference, slots| reference.run(&trace, &stream, slots).hits;
    assert_eq!((hits(Reference::Lru, 2), hits(Reference::Lru, 3)), (0, 4));
    assert_eq!((hits(Reference::Belady, 1), hits(Reference::Belady, 2)), (2, 3));
    let counts = Reference::Belady.run(&trace, &stream, 2);
    assert_eq!(
        (counts.read_requests, counts.hit_requests, counts.backing_reads),
        (7, 3, 4)
    );
}

#[test]
fn belady_beats_lru_on_random_traces() {
    let mut random = 1u64;
    let mut next = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let wide = random >> 33;
        (wide % 40) * (wide % 7) % 97
    };
    let blocks: Vec<(u64, u64)> = (0..3000).map(|ms| (ms, next())).collect();
    let trace = reads(&blocks);
    let stream = Stream::new(&trace, 16).unwrap();
    for slots in [1, 3, 10, 50, 97] {
        let [lru, best] = Reference::ALL.map(|reference| reference.run(&trace, &stream, slots));
        assert!(best.hits >= lru.hits && best.promoted <= lru.promoted, "{slots}");
        let ours = run(&trace, &setup(slots), promotes);
        assert!(ours.hits <= best.hits, "{slots}");
    }
}
