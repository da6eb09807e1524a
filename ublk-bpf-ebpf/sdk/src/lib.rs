//! SDK for ublk-bpf policies.
//!
//! A policy is one function from a request to a decision. [`policy!`] makes it the entry point of a BPF object:
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
//! Built for `bpfel-unknown-none`, this is an object that `ublk-bpf run --policy FILE.o` and
//! `ublk-bpf policy swap ID FILE.o` load. Built for the host, it is a program that replays traces with the policy
//! (`ublk-bpf replay --policy-crate DIR`), and its function can be unit-tested like any other. A policy can have [maps] of its own; on BPF, `bpf` re-exports `aya-ebpf`.
//!
//! A decision is advice. Whatever a policy returns, the server loses no data, unless the device was created with
//! `--allow-lossy`.
#![cfg_attr(
    target_arch = "bpf",
    no_std,
    feature(core_intrinsics),
    allow(internal_features)
)]

pub mod cache;
pub mod current;
pub mod maps;
#[cfg(not(target_arch = "bpf"))]
pub mod native;
pub mod quota;
mod reasons;
#[cfg(not(target_arch = "bpf"))]
pub mod testkit;

#[cfg(target_arch = "bpf")]
pub use aya_ebpf as bpf;
pub use cache::CacheView;
pub use current::CgroupId;
pub use maps::{Array, LruTable, Table};
pub use quota::{Quota, Quotas};
pub use ublk_bpf_abi::{
    CacheState, Decision, Delay, Extent, FaultRange, Op, POLICY_ABI_VERSION, Priority, Reason, Request,
    SECTOR_SIZE, Verdict, WriteMode, hint, request_flags,
};

/// Makes a function `fn(&Request) -> Decision` the entry point of this crate's BPF object.
///
/// The object's licence is `Dual MIT/GPL`. Use `policy!(decide, license = "GPL")` for a different one. Some BPF helpers
/// need a licence that the kernel accepts as GPL-compatible.
#[macro_export]
macro_rules! policy {
    ($decide:path) => {
        $crate::policy!($decide, license = "Dual MIT/GPL");
    };
    ($decide:path, license = $license:literal) => {
        /// Called by the classifier: the kernel replaces the classifier's own `policy` with it.
        #[cfg(target_arch = "bpf")]
        #[unsafe(no_mangle)]
        #[unsafe(link_section = "freplace/policy")]
        extern "C" fn policy(request: *const $crate::Request) -> u64 {
            // With its type: a function of another one is refused here, not for what is done with its result.
            const DECIDE: fn(&$crate::Request) -> $crate::Decision = $decide;
            // SAFETY: The verifier accepts this access because the caller passes a whole `Request` or null, and
            // `as_ref` checks for null.
            match unsafe { request.as_ref() } {
                Some(request) => $crate::Decision::pack(DECIDE(request)),
                None => 0,
            }
        }

        /// The version of the interface that this object is compiled with, which ublk-bpf checks.
        #[cfg(target_arch = "bpf")]
        #[unsafe(no_mangle)]
        #[unsafe(link_section = "ublk_bpf_abi")]
        static UBLK_BPF_ABI: [u8; 4] = $crate::POLICY_ABI_VERSION.to_le_bytes();

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

        /// The policy on the host.
        #[cfg(not(target_arch = "bpf"))]
        pub(crate) const NATIVE_POLICY: $crate::native::Native = $crate::native::Native($decide);

        /// On the host, a policy is a program that replays traces with it.
        #[cfg(not(target_arch = "bpf"))]
        #[allow(dead_code, reason = "a crate may have several policies in modules")]
        fn main() -> ::std::process::ExitCode {
            $crate::native::main(NATIVE_POLICY)
        }
    };
}

/// BPF programs do not panic: the verifier rejects a program that could reach this loop.
#[cfg(all(target_arch = "bpf", not(test)))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Compiles the program of the page on crates.io.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Compiles the programs of the guide.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/policies.md")]
struct Guide;
