//! Has a path that panics, which in BPF is an endless loop.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use ublk_bpf_policy::{Decision, Request, policy};

const LIMITS: [u64; 4] = [100, 2000, 30, 4];

fn decide(request: &Request) -> Decision {
    if request.sector < LIMITS[request.op as usize] {
        return Decision::hit();
    }
    Decision::pass()
}

policy!(decide);
