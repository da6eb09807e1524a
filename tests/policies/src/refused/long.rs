//! Terminates, but only after more branches than the verifier follows.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use core::hint::black_box;

use ublk_bpf_policy::{Decision, Request, policy};

fn decide(request: &Request) -> Decision {
    let mut sum = 0;
    for n in 0..20_000 {
        if black_box(request.sector) >> (n & 31) & 1 == 1 {
            sum ^= black_box(n);
        }
    }
    if sum == 7 {
        Decision::hit()
    } else {
        Decision::pass()
    }
}

policy!(decide);
