//! Calls a helper that only network programs may use.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod bpf {
    use ublk_bpf_policy::bpf::helpers::generated::bpf_redirect;
    use ublk_bpf_policy::{Decision, Request, policy};

    fn decide(request: &Request) -> Decision {
        // SAFETY: The helper takes numbers.
        if unsafe { bpf_redirect(request.op, 0) } == 0 {
            return Decision::hit();
        }
        Decision::pass()
    }

    policy!(decide);
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
