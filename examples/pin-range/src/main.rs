//! Policy `pin-range`: pins ranges of sectors in the cache, or bans them from it.
//!
//! The map `ranges` holds up to eight ranges. The first range that overlaps a request applies. A request that overlaps
//! none promotes its block on the second read.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use ublk_bpf_policy::{Array, Decision, Priority, Request, map, policy, reasons};

/// Promoted on the first read, and pinned.
const PIN: u64 = 1;
/// Never promoted and never served from the cache.
const BAN: u64 = 2;
/// Maximum number of ranges. Each costs a look-up until one matches.
const RANGES: u32 = 8;

reasons! {
    /// Reasons that `ublk-bpf stats` names.
    enum Why {
        /// A read of a banned range.
        Banned = 2,
    }
}

map! {
    /// The configured ranges. The first entry without a rule ends the list.
    static CONFIGURED: Array<Range, { RANGES as usize }> = "ranges";
}

/// A range of sectors and its rule.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Range {
    /// First sector.
    first_sector: u64,
    /// Last sector.
    last_sector: u64,
    /// [`PIN`] or [`BAN`]; 0 ends the list.
    rule: u64,
}

fn decide(request: &Request) -> Decision {
    if !request.is_read() {
        return Decision::pass();
    }
    match rule(request) {
        BAN => Decision::pass().because(Why::Banned).cold(),
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
        match CONFIGURED.get(index) {
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
            assert!(CONFIGURED.set(index, &range));
        }
        Kit::new(decide).cache_blocks(40)
    }

    #[test]
    fn pinned_blocks_survive_other_reads() {
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
    fn banned_blocks_are_never_promoted() {
        let mut kit = kit();
        let report = kit.run(&Trace::new().read(1280, 128).read(1280, 128).read(1280, 128));
        assert_eq!((report.by_code(Why::Banned as u8), report.promoted), (3, 0));
        assert_eq!(kit.heat_of(1280), 0);
    }

    #[test]
    fn other_blocks_are_promoted_on_the_second_read() {
        let report = kit().run(&Trace::new().read(1 << 20, 8).read(1 << 20, 8).read(1 << 20, 8));
        assert_eq!((report.hits, report.misses), (1, 2));
    }
}
