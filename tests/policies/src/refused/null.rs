//! Assumes that a look-up succeeds.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod bpf {
    use ublk_bpf_policy::bpf::btf_maps::Array;
    use ublk_bpf_policy::bpf::macros::btf_map;
    use ublk_bpf_policy::{Decision, Request, policy};

    #[btf_map(name = "limits")]
    static LIMITS: Array<u64, 4> = Array::new();

    fn decide(request: &Request) -> Decision {
        // SAFETY: None: this is the mistake.
        let limit = unsafe { LIMITS.get_ptr(request.op).unwrap_unchecked() };
        // SAFETY: As above.
        if request.sector < unsafe { *limit } {
            return Decision::hit();
        }
        Decision::pass()
    }

    policy!(decide);
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
