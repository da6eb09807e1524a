//! Policy `pin-range`: ranges of sectors that stay in the cache, or never come into it.
//!
//! The map `ranges` has room for eight of them. The first that a request touches holds; a request that touches none
//! promotes its block at its second read.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use ublk_bpf_policy::{Array, Decision, Priority, Request, Verdict, map, policy};

/// Comes into the cache at its first read and stays.
const PIN: u64 = 1;
/// Is neither brought into the cache nor read from there.
const BAN: u64 = 2;
/// The reason that reads of banned ranges are counted under.
const CODE_BANNED: u8 = 2;
/// How many ranges there may be: each costs a look-up until one is found.
const RANGES: u32 = 8;

map! {
    /// What operators chose. The first entry without a rule ends the list.
    static CHOSEN: Array<Range, { RANGES as usize }> = "ranges";
}

/// Sectors that a rule is for.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Range {
    /// First sector.
    first_sector: u64,
    /// Last sector.
    last_sector: u64,
    /// [`PIN`] or [`BAN`]; 0: the list ends here.
    rule: u64,
}

fn decide(request: &Request) -> Decision {
    if !request.is_read() {
        return Decision::pass();
    }
    match rule(request) {
        BAN => Decision::coded(Verdict::Passthrough, CODE_BANNED).cold(),
        PIN if request.is_cached() => Decision::hit(),
        PIN => Decision::pass().promote(Priority::Pinned),
        _ if request.is_cached() => Decision::hit(),
        _ if request.heat > 0 => Decision::pass().promote(Priority::Normal),
        _ => Decision::pass(),
    }
}

/// The rule for a request; 0 if there is none.
fn rule(request: &Request) -> u64 {
    for index in 0..RANGES {
        match CHOSEN.get(index) {
            Some(range) if range.rule == 0 => return 0,
            Some(range) if request.overlaps(range.first_sector, range.last_sector) => return range.rule,
            _ => {}
        }
    }
    0
}

policy!(decide);

#[cfg(test)]
mod tests {
    use super::*;
    use ublk_bpf_policy::testkit::{Kit, Trace, clear_maps};

    /// The first 10 blocks are pinned, the next 90 banned.
    fn kit() -> Kit {
        clear_maps();
        for (index, (first_sector, last_sector, rule)) in (0..).zip([(0, 1279, PIN), (1280, 12_799, BAN)]) {
            let range = Range {
                first_sector,
                last_sector,
                rule,
            };
            assert!(CHOSEN.set(index, &range));
        }
        Kit::new(decide).cache_blocks(40)
    }

    #[test]
    fn what_is_pinned_stays_whatever_is_read() {
        let mut kit = kit();
        kit.run(&Trace::new().sequential(0, 1280));
        let others = Trace::new().sequential(1 << 20, 60 * 128);
        let report = kit.run(&(0..6).fold(Trace::new(), |trace, _| trace.then(others.clone())));
        assert!(report.evicted > 0, "{report}");
        for block in 0..10 {
            assert_eq!(kit.priority_of(block * 128), Some(Priority::Pinned));
        }
    }

    #[test]
    fn what_is_banned_never_comes_in() {
        let mut kit = kit();
        let report = kit.run(&Trace::new().read(1280, 128).read(1280, 128).read(1280, 128));
        assert_eq!((report.by_code(CODE_BANNED), report.promoted), (3, 0));
        assert_eq!(kit.heat_of(1280), 0);
    }

    #[test]
    fn all_else_comes_in_at_its_second_read() {
        let report = kit().run(&Trace::new().read(1 << 20, 8).read(1 << 20, 8).read(1 << 20, 8));
        assert_eq!((report.hits, report.misses), (1, 2));
    }
}
