//! The simulator's checks have teeth: each of these bugs is found.

use ublk_bpf::driver::sim::{Bug, Options, run};

/// Worlds in which a bug may show.
const WORLDS: u64 = 300;

#[test]
fn every_bug_is_found() {
    for &bug in Bug::ALL {
        let found = (0..WORLDS).find_map(|seed| {
            run(&Options {
                seed,
                requests: 500,
                world: None,
                bug: Some(bug),
            })
            .err()
        });
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
            run(&Options {
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
