//! Policy `metadata-first`: keeps metadata and synchronous reads in the cache and evicts bulk data first.
//!
//! | request | effect on the cache |
//! |---|---|
//! | read or write of file-system metadata | promotes the block with high priority |
//! | read-ahead, or any read of the idle I/O class | promotes the block on its second read, with low priority |
//! | other read (synchronous) | promotes the block with normal priority |
//! | other write | none |
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use ublk_bpf_policy::{Decision, Priority, Request, policy};

/// The idle I/O class (`ionice -c 3`).
const IDLE: u32 = 3;

fn decide(request: &Request) -> Decision {
    let is_data = request.is_read() || request.is_write();
    if is_data && request.is_metadata() {
        return metadata(request);
    }
    if !request.is_read() {
        return Decision::pass();
    }
    let is_bulk = request.is_readahead() || request.ioprio_class() == IDLE;
    match (request.is_cached(), is_bulk) {
        (true, false) => Decision::hit(),
        (true, true) => Decision::hit().cold(),
        (false, false) => Decision::pass().promote(Priority::Normal),
        (false, true) if request.heat > 0 => Decision::pass().promote(Priority::Low),
        (false, true) => Decision::pass(),
    }
}

/// Raises the priority of a block that was promoted for other reasons.
fn metadata(request: &Request) -> Decision {
    if request.is_read() && request.is_cached() {
        return Decision::hit().promote(Priority::High);
    }
    Decision::pass().promote(Priority::High)
}

policy!(decide);

#[cfg(test)]
mod tests {
    use super::*;
    use ublk_bpf_policy::request_flags::{META, RAHEAD};
    use ublk_bpf_policy::testkit::{Kit, Trace};

    fn priority(trace: &Trace) -> Option<Priority> {
        let mut kit = Kit::new(decide);
        kit.run(trace);
        kit.priority_of(0)
    }

    #[test]
    fn the_kind_of_request_decides_the_priority() {
        let once = Trace::new().read(0, 8);
        assert_eq!(priority(&once), Some(Priority::Normal));
        let meta = Trace::new().with_flags(META);
        assert_eq!(priority(&meta.clone().read(0, 8)), Some(Priority::High));
        assert_eq!(priority(&meta.clone().write(0, 8)), Some(Priority::High));
        assert_eq!(priority(&once.then(meta.read(0, 8))), Some(Priority::High));
        for bulk in [Trace::new().with_flags(RAHEAD), Trace::new().with_ioprio(IDLE, 0)] {
            assert_eq!(priority(&bulk.clone().read(0, 8)), None);
            assert_eq!(priority(&bulk.read(0, 8).read(0, 8)), Some(Priority::Low));
        }
        assert_eq!(priority(&Trace::new().write(0, 8)), None);
    }

    #[test]
    fn metadata_survives_a_flood_of_bulk_reads() {
        const FILES: u32 = 1;
        let metadata = || {
            let trace = Trace::new().as_task(FILES, "find", 0).with_flags(META);
            (0..100).fold(trace, |trace, block| trace.read(block * 128, 8))
        };
        let bulk = Trace::new()
            .as_task(2, "cp", 0)
            .with_flags(RAHEAD)
            .sequential(1 << 20, 300 * 128);
        let mut kit = Kit::new(decide).cache_blocks(200);
        kit.run(&metadata());
        let flood = kit.run(&(0..6).fold(Trace::new(), |trace, _| trace.then(bulk.clone())));
        assert!(flood.evicted > 500, "{flood}");
        let report = kit.run(&metadata());
        assert!(report.hit_ratio_of(FILES) > 0.999, "{report}");
    }
}
