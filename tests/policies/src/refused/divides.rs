//! Divides by what may be zero.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use ublk_bpf_policy::{Decision, Request, policy};

fn decide(request: &Request) -> Decision {
    if request.sector / u64::from(request.nr_sectors) > 100 {
        return Decision::hit();
    }
    Decision::pass()
}

policy!(decide);
