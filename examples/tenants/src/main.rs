//! Policy `tenants`: cgroups share a device and its cache by quotas, so that a backup cannot take more than its part of
//! either.
//!
//! `ublk-bpf quota set ID CGROUP iops=N bandwidth=SIZE cache=SHARE` sets the quota of a cgroup. Cgroups without one are not
//! limited. A read that misses fills its block, whoever reads, as far as the quota allows.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use ublk_bpf_policy::{Decision, Extent, Priority, Request, policy, quotas};

quotas! {
    /// `ublk-bpf quota` sets and lists them.
    static QUOTAS;
}

fn decide(request: &Request) -> Decision {
    QUOTAS.apply(request, unlimited(request))
}

/// What happens without a quota.
fn unlimited(request: &Request) -> Decision {
    if !request.is_read() {
        Decision::pass()
    } else if request.is_cached() {
        Decision::hit()
    } else {
        Decision::pass().fill(Extent::Block, Priority::Normal)
    }
}

policy!(decide);

#[cfg(test)]
mod tests {
    use super::*;
    use ublk_bpf_policy::testkit::{Kit, Trace};
    use ublk_bpf_policy::{CgroupId, Quota};

    const BLOCK: u64 = 128;
    /// The backup's cgroup.
    const BACKUP: u64 = 77;

    fn backup(blocks: u64) -> Trace {
        Trace::new()
            .as_task(1, "tar", BACKUP)
            .sequential(0, blocks * BLOCK)
    }

    fn limit(quota: Quota) {
        QUOTAS.table.insert(&CgroupId(BACKUP), &quota);
    }

    #[test]
    fn a_backup_without_a_quota_fills_the_cache() {
        let mut kit = Kit::new(decide).cache_blocks(100);
        let report = kit.run(&backup(50));
        assert_eq!(report.misses, 50, "{report}");
        assert!(kit.is_cached(49 * BLOCK));
    }

    #[test]
    fn a_backup_that_has_its_share_leaves_the_cache_alone() {
        // A kit has no tenants of its own: the share is what this says.
        limit(Quota {
            cache_blocks: 10,
            tenant: 1,
            ..Quota::default()
        });
        QUOTAS.usage.set(1, &10);
        let mut kit = Kit::new(decide).cache_blocks(100);
        kit.run(&backup(50));
        assert!(!kit.is_cached(0) && !kit.is_cached(49 * BLOCK));
        let entry = QUOTAS.table.get(&CgroupId(BACKUP)).expect("it has a quota");
        assert_eq!(entry.refused, 50);
        kit.run(&Trace::new().as_task(2, "postgres", 5).read(0, 8));
        assert!(kit.is_cached(0), "others fill");
    }
}
