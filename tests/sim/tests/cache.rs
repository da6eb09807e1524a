//! Ten million operations over a cache: promotions race with requests of one or two queues.
//!
//! `SIM_OPS=N` sets the number of operations, `SIM_SEED=N` runs that one world of each kind.

use sim_tests::variable;
use sim_tests::{Fault, Report, RunOptions, World, run};
use ublk_bpf::cache::Mode;
use ublk_bpf::cache::evict::Algorithm;

/// Operations of a run without `SIM_OPS`.
const OPERATIONS: u64 = 10_000_000;

/// Requests of a world.
const REQUESTS_OF_A_WORLD: u64 = 2_000;

fn simulate(seed: u64, mode: Mode, algorithm: Algorithm) -> Report {
    let options = RunOptions {
        seed,
        requests: REQUESTS_OF_A_WORLD,
        world: Some(World::cached(seed, mode, algorithm)),
        bug: None,
    };
    run(&options).unwrap_or_else(|violation| {
        panic!("{violation}\nrepeat with SIM_SEED={seed} cargo test -p sim-tests --test cache")
    })
}

/// Worlds of one kind, until this many operations are done.
fn all(mode: Mode, algorithm: Algorithm) {
    if let Some(seed) = variable("SIM_SEED") {
        println!("seed {seed}: {:#?}", simulate(seed, mode, algorithm));
        return;
    }
    let mut total = Report::default();
    let operations = variable("SIM_OPS").unwrap_or(OPERATIONS) / 4;
    let mut seed = 0;
    while total.operations < operations {
        total.add(&simulate(seed, mode, algorithm));
        seed += 1;
    }
    println!(
        "seeds 0 to {}: {} requests, {} operations\n{:#?}\n{:?}",
        seed - 1,
        total.requests,
        total.operations,
        total.counters,
        total.cache
    );
    if variable("SIM_OPS").is_none() {
        check_that_all_happened(&total);
    }
}

fn check_that_all_happened(total: &Report) {
    let (counters, cache) = (&total.counters, &total.cache);
    assert!(counters.hits > 0 && counters.invalidated > 0 && counters.hits_lost > 0);
    assert!(cache.promoted > 0 && cache.evicted > 0 && cache.overtaken > 0);
    assert!(cache.verified > 0 && cache.differing > 0);
    assert!(counters.fills > 0 && counters.filled > counters.fills && counters.hits_split > 0);
    assert!(counters.fills_overtaken > 0 && counters.fills_failed > 0 && counters.fill_waits > 0);
    // In either mode: policies say so.
    assert!(counters.cache_writes > 0);
    let of_a_cache = [
        Fault::Crossing,
        Fault::CacheError,
        Fault::CacheBroken,
        Fault::FillError,
        Fault::ShortFill,
        Fault::FillAgain,
        Fault::MissError,
        Fault::ShortMiss,
        Fault::Requeued,
        Fault::BackingChanged,
    ];
    for fault in of_a_cache {
        assert!(total.faults.of(fault) > 0, "never injected: {fault:?}");
    }
}

#[test]
fn write_through_and_clock() {
    all(Mode::WriteThrough, Algorithm::Clock);
}

#[test]
fn write_through_and_adaptive() {
    all(Mode::WriteThrough, Algorithm::Adaptive);
}

#[test]
fn write_around_and_clock() {
    all(Mode::WriteAround, Algorithm::Clock);
}

#[test]
fn write_around_and_adaptive() {
    all(Mode::WriteAround, Algorithm::Adaptive);
}
