//! Policy `cgroup-tiers`: controls cache access per cgroup, so that a backup does not evict a database's blocks.
//!
//! The map `tiers` holds the tier of each cgroup: `ublk-bpf policy map ID tiers set PATH tier=TIER`. Cached blocks are
//! served from the cache for every tier. The tier decides the side effects of a read:
//!
//! | tier | effect of a read |
//! |---|---|
//! | 1, bulk | none: no promotion, no heat |
//! | 2, or no tier | promotes a block on its second read |
//! | 3, favoured | promotes a block on its first read, with high priority |
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use ublk_bpf_policy::{CgroupId, Decision, Priority, Request, Table, current, map, policy, reasons};

/// Does not promote or add heat.
const BULK: u32 = 1;
/// Promotes on the first read, with high priority.
const FAVOURED: u32 = 3;

reasons! {
    /// Reasons that `ublk-bpf stats` names.
    enum Why {
        /// A read of the tier [`BULK`].
        Bulk = 1,
    }
}

map! {
    /// Tiers by cgroup.
    static TIERS: Table<CgroupId, Tier, 1024> = "tiers";
}

/// Cache access of a cgroup. A struct, so that `bpftool map dump` prints the field name.
#[repr(C)]
#[derive(Clone, Copy)]
struct Tier {
    tier: u32,
}

fn decide(request: &Request) -> Decision {
    if !request.is_read() {
        return Decision::pass();
    }
    let tier = TIERS.get(&current::cgroup()).map_or(0, |entry| entry.tier);
    match tier {
        BULK if request.is_cached() => Decision::hit().because(Why::Bulk).cold(),
        BULK => Decision::pass().because(Why::Bulk).cold(),
        FAVOURED if request.is_cached() => Decision::hit(),
        FAVOURED => Decision::pass().promote(Priority::High),
        _ if request.is_cached() => Decision::hit(),
        _ if request.heat > 0 => Decision::pass().promote(Priority::Normal),
        _ => Decision::pass(),
    }
}

policy!(decide);

#[cfg(test)]
mod tests {
    use super::*;
    use ublk_bpf_policy::testkit::{Kit, Trace};

    const DATABASE: u32 = 10;
    const BACKUP: u32 = 20;
    /// The backup's cgroup.
    const BULK_CGROUP: u64 = 77;

    fn database() -> Trace {
        Trace::new()
            .as_task(DATABASE, "postgres", 1)
            .zipf(7, 0.99, 4096, 20_000)
    }

    /// Two backups of the whole device, one after the other: every block is read twice.
    fn backup() -> Trace {
        let once = Trace::new()
            .as_task(BACKUP, "tar", BULK_CGROUP)
            .sequential(0, 4096 * 128);
        once.clone().then(once)
    }

    #[test]
    fn a_backup_does_not_pollute_the_databases_cache() {
        TIERS.insert(&CgroupId(BULK_CGROUP), &Tier { tier: BULK });
        let mut kit = Kit::new(decide).cache_blocks(400);
        kit.run(&database());
        let alone = kit.run(&database()).hit_ratio_of(DATABASE);
        let report = kit.run(&database().interleave(backup()));
        assert!(
            report.hit_ratio_of(DATABASE) > alone - 0.01,
            "{alone} alone, then {report}"
        );
        assert_eq!(report.by_code(Why::Bulk as u8), 2 * 4096);
    }

    #[test]
    fn the_tier_decides_when_a_read_promotes() {
        for (tier, reads) in [(BULK, None), (2, Some(2)), (FAVOURED, Some(1))] {
            TIERS.insert(&CgroupId(5), &Tier { tier });
            let mut kit = Kit::new(decide);
            let promoted = (1..10).find(|_| {
                kit.run(&Trace::new().as_task(1, "reader", 5).read(0, 8));
                kit.is_cached(0)
            });
            assert_eq!(promoted, reads, "tier {tier}");
        }
    }
}
