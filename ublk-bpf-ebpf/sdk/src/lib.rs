//! What a policy for ublk-bpf is written with.
//!
//! A policy is one function from a request to a decision, which [`policy!`] makes the entry of a BPF object:
//!
//! ```
//! #![cfg_attr(target_arch = "bpf", no_std, no_main)]
//! use ublk_bpf_policy::{Decision, Op, Reason, Request, Verdict, policy};
//!
//! fn decide(request: &Request) -> Decision {
//!     match request.op() {
//!         Op::Discard => Decision::new(Verdict::Drop, Reason::Advisory),
//!         _ => Decision::new(Verdict::Passthrough, Reason::Default),
//!     }
//! }
//!
//! policy!(decide);
//! ```
//!
//! Built for `bpfel-unknown-none` this becomes an object that `ublk-bpf run --policy FILE.o` and
//! `ublk-bpf policy swap ID FILE.o` load. Built for the host it is an empty program whose function can be
//! unit-tested like any other. A policy may own maps: `bpf` is `aya-ebpf`, where it exists.
//!
//! A policy's answer is advice. Whatever it says, the server loses no data by it, unless the device was made
//! with `--allow-lossy`.
#![cfg_attr(target_arch = "bpf", no_std)]

pub mod current;
pub mod maps;
#[cfg(not(target_arch = "bpf"))]
pub mod testkit;

#[cfg(target_arch = "bpf")]
pub use aya_ebpf as bpf;
pub use maps::{Array, LruTable, Table};
pub use ublk_bpf_abi::{
    Decision, FaultRange, Op, Priority, Reason, Request, SECTOR_SIZE, Verdict, hint, request_flags,
};

/// Makes a function `fn(&Request) -> Decision` the entry of this crate's BPF object.
///
/// The object's licence is `Dual MIT/GPL`; another one that the kernel takes for GPL-compatible (which the
/// helpers that a policy calls may need) is named as `policy!(decide, license = "GPL")`.
#[macro_export]
macro_rules! policy {
    ($decide:path) => {
        $crate::policy!($decide, license = "Dual MIT/GPL");
    };
    ($decide:path, license = $license:literal) => {
        /// What the classifier calls: the kernel puts it in the place of the classifier's own `policy`.
        #[cfg(target_arch = "bpf")]
        #[unsafe(no_mangle)]
        #[unsafe(link_section = "freplace/policy")]
        extern "C" fn policy(request: *const $crate::Request) -> u32 {
            // SAFETY: The verifier admits this access only because the caller passes a whole `Request` or
            // null, and null is what `as_ref` looks for.
            match unsafe { request.as_ref() } {
                Some(request) => $decide(request).pack(),
                None => 0,
            }
        }

        /// The licence that the kernel reads.
        #[cfg(target_arch = "bpf")]
        #[unsafe(no_mangle)]
        #[unsafe(link_section = "license")]
        static LICENSE: [u8; $license.len() + 1] = {
            let mut bytes = [0; $license.len() + 1];
            let mut i = 0;
            while i < $license.len() {
                bytes[i] = $license.as_bytes()[i];
                i += 1;
            }
            bytes
        };

        /// Not a program of the host's: this keeps the function in use where there is no BPF.
        #[cfg(not(target_arch = "bpf"))]
        fn main() {
            let _: fn(&$crate::Request) -> $crate::Decision = $decide;
        }
    };
}

/// BPF programs do not panic: the verifier refuses one that could get here.
#[cfg(all(target_arch = "bpf", not(test)))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The guide's program, compiled as it stands there.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/policies.md")]
struct Guide;
