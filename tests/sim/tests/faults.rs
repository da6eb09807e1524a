//! A million requests over random faults.
//!
//! Every run prints its seeds. `SIM_SEED=N` runs that one world, `SIM_OPS=N` sends that many requests.

use sim_tests::variable;
use sim_tests::{Fault, Report, RunOptions, run};

/// Requests of a run without `SIM_OPS`.
const REQUESTS: u64 = 1_000_000;

/// Requests of a world. Small: what differs between worlds matters more than what happens long after a start.
const REQUESTS_OF_A_WORLD: u64 = 2_000;

fn simulate(seed: u64, requests: u64) -> Report {
    run(&RunOptions { seed, requests, world: None, bug: None }).unwrap_or_else(|violation| {
        panic!("{violation}\nrepeat with SIM_SEED={seed} SIM_OPS={requests} cargo test -p sim-tests --test faults")
    })
}

#[test]
fn a_million_requests_over_every_fault() {
    let requests = variable("SIM_OPS");
    if let Some(seed) = variable("SIM_SEED") {
        let report = simulate(seed, requests.unwrap_or(REQUESTS_OF_A_WORLD));
        println!("seed {seed}: {report:#?}");
        return;
    }
    let worlds = requests.unwrap_or(REQUESTS).div_ceil(REQUESTS_OF_A_WORLD);
    let mut total = Report::default();
    for seed in 0..worlds {
        total.add(&simulate(seed, REQUESTS_OF_A_WORLD));
    }
    println!(
        "seeds 0 to {}: {} requests, {} operations",
        worlds - 1,
        total.requests,
        total.operations
    );
    for &fault in Fault::ALL {
        println!("{:>10} {fault:?}", total.faults.of(fault));
    }
    println!("{:#?}", total.counters);
    if requests.is_none() {
        assert!(total.requests >= REQUESTS);
        let missed: Vec<_> = Fault::ALL
            .iter()
            .filter(|&&fault| total.faults.of(fault) == 0)
            .collect();
        assert!(missed.is_empty(), "never injected: {missed:?}");
        // Most verdicts are good ones: if they were not taken, no other assertion would notice.
        assert!(total.counters.passthrough > REQUESTS / 3 && total.counters.dropped > REQUESTS / 100);
    }
}
