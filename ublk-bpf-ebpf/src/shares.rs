//! Policy `shares`: as `auto`, within the quotas of cgroups that share the device.
//!
//! `ublk-bpf quota set ID CGROUP iops=N bandwidth=SIZE cache=SHARE` sets them. A cgroup without a quota is not limited.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

mod fill;

use ublk_bpf_policy::{Decision, Extent, Request, policy, quotas};

quotas! {
    static QUOTAS;
}

#[inline(always)]
fn decide(request: &Request) -> Decision {
    QUOTAS.apply(request, fill::decide(request, Extent::Block, |_| 0))
}

policy!(decide);

#[cfg(test)]
mod tests {
    use ublk_bpf_policy::current::{self, Task};
    use ublk_bpf_policy::{CgroupId, Op, Priority, Quota, maps};

    use super::*;

    #[test]
    fn a_miss_fills_unless_its_cgroup_has_its_share() {
        maps::clear();
        let (miss, fill) = (
            Request::new(Op::Read, 1280, 16),
            Decision::pass().fill(Extent::Block, Priority::Normal),
        );
        assert_eq!(decide(&miss), fill);
        let quota = Quota {
            cache_blocks: 1,
            tenant: 2,
            ..Quota::default()
        };
        current::set(Task::new(1, "tar", 77));
        QUOTAS.table.insert(&CgroupId(77), &quota);
        assert_eq!(decide(&miss), fill.owned_by(2));
        QUOTAS.usage.set(2, &1);
        assert_eq!(decide(&miss).hints, Decision::pass().hints);
    }
}
