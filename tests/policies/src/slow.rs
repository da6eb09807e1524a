//! Policy `slow`: sends every request through a staging buffer.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use ublk_bpf_policy::{Decision, Reason, Request, Verdict, policy};

fn decide(_: &Request) -> Decision {
    Decision::new(Verdict::Slow, Reason::Default)
}

policy!(decide);
