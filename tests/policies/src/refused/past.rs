//! Reads past the copy of a value.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use core::hint::black_box;
use core::ptr::from_ref;

use ublk_bpf_policy::{Array, Decision, Request, map, policy};

map! {
    static LIMITS: Array<[u64; 4], 1> = "limits";
}

fn decide(request: &Request) -> Decision {
    let Some(limits) = LIMITS.get(0) else {
        return Decision::pass();
    };
    let first = from_ref(black_box(&limits)).cast::<u64>();
    // SAFETY: None: this is the mistake.
    let limit = unsafe { first.wrapping_add(request.op as usize).read_volatile() };
    if request.sector < limit {
        return Decision::hit();
    }
    Decision::pass()
}

policy!(decide);
