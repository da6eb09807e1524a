//! Loops on a condition that may never change.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use ublk_bpf_policy::{Decision, Request, policy};

fn decide(request: &Request) -> Decision {
    let sector = core::ptr::from_ref(&request.sector);
    // SAFETY: A reference is readable.
    while unsafe { sector.read_volatile() } == 7 {}
    Decision::pass()
}

policy!(decide);
