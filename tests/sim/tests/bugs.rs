//! The simulator's checks have teeth: each of these bugs is found.

use sim_tests::{Bug, RunOptions, Violation, World, run};
use ublk_bpf::cache::Mode;
use ublk_bpf::cache::evict::Algorithm;

/// Worlds in which a bug may show.
const WORLDS: u64 = 1000;

/// A world where the bug may show: one of a cache has to have one.
fn world(bug: Bug, seed: u64) -> Option<World> {
    let mode = match bug {
        Bug::OverlapWrites | Bug::PublishFailedWrite | Bug::WriteFromPagesTwice => Mode::WriteThrough,
        Bug::ForgetToInvalidate => Mode::WriteAround,
        _ if seed.is_multiple_of(2) => Mode::WriteThrough,
        _ => Mode::WriteAround,
    };
    let algorithm = if seed % 4 < 2 {
        Algorithm::Clock
    } else {
        Algorithm::Adaptive
    };
    bug.is_of_cache().then(|| World::cached(seed, mode, algorithm))
}

fn search(bug: Bug) -> Option<Box<Violation>> {
    (0..WORLDS).find_map(|seed| {
        run(&RunOptions {
            seed,
            requests: 500,
            world: world(bug, seed),
            bug: Some(bug),
        })
        .err()
    })
}

#[test]
fn every_bug_is_found() {
    for &bug in Bug::ALL {
        let found = search(bug);
        let violation = found.unwrap_or_else(|| panic!("{bug:?} was not found in {WORLDS} worlds"));
        println!(
            "{bug:?}: seed {}, step {}: {}",
            violation.seed, violation.step, violation.what
        );
    }
}

#[test]
fn a_seed_repeats_its_run() {
    for seed in 0..20 {
        let once = || {
            run(&RunOptions {
                seed,
                requests: 300,
                world: None,
                bug: Some(Bug::TakeShortForWhole),
            })
        };
        match (once(), once()) {
            (Ok(a), Ok(b)) => assert_eq!((a.operations, a.faults), (b.operations, b.faults)),
            (Err(a), Err(b)) => assert_eq!((a.step, a.what), (b.step, b.what)),
            (a, b) => panic!("seed {seed}: {a:?} and {b:?}"),
        }
    }
}
