//! Expects that a look-up finds something.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use ublk_bpf_policy::{Decision, Request, Table, map, policy};

map! {
    static LIMITS: Table<u32, u64, 16> = "limits";
}

#[expect(clippy::unwrap_used, reason = "this is the mistake")]
fn decide(request: &Request) -> Decision {
    let limit = LIMITS.get(&request.op).unwrap();
    if request.sector < limit {
        return Decision::hit();
    }
    Decision::pass()
}

policy!(decide);
