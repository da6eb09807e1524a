//! Assumes that an external index is small.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod bpf {
    use ublk_bpf_policy::bpf::btf_maps::Array;
    use ublk_bpf_policy::bpf::macros::btf_map;
    use ublk_bpf_policy::{Decision, Request, policy};

    #[btf_map(name = "limits")]
    static LIMITS: Array<[u64; 4], 1> = Array::new();

    fn decide(request: &Request) -> Decision {
        let Some(limits) = LIMITS.get(0) else {
            return Decision::pass();
        };
        // SAFETY: None: this is the mistake.
        if request.sector < unsafe { *limits.get_unchecked(request.op as usize) } {
            return Decision::hit();
        }
        Decision::pass()
    }

    policy!(decide);
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
