//! Has the kernel call back, for longer than anyone waits.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod bpf {
    use core::ffi::c_void;
    use core::ptr::null_mut;

    use ublk_bpf_policy::bpf::helpers::generated::bpf_loop;
    use ublk_bpf_policy::{Decision, Request, policy};

    const ROUNDS: u32 = 1 << 23;

    unsafe extern "C" fn inner(_: u32, _: *mut c_void) -> i64 {
        0
    }

    unsafe extern "C" fn outer(_: u32, _: *mut c_void) -> i64 {
        // SAFETY: The function is what the helper calls.
        unsafe { bpf_loop(ROUNDS, inner as *mut c_void, null_mut(), 0) }
    }

    fn decide(_: &Request) -> Decision {
        // SAFETY: As above.
        unsafe { bpf_loop(ROUNDS, outer as *mut c_void, null_mut(), 0) };
        Decision::pass()
    }

    policy!(decide);
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
