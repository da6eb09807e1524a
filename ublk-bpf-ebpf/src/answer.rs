//! The policy's place in a program, and the check of its answer.

use ublk_bpf_abi::{Decision, Reason, Request, Verdict};

const PASSTHROUGH: u64 = Decision::new(Verdict::Passthrough, Reason::Default).pack();
const HIT: u64 = Decision::new(Verdict::Hit, Reason::Cached).pack();

/// The decision while no policy is attached: pass through. A policy replaces this function, so it must stay a
/// function: `weak` keeps the linker from inlining it.
#[unsafe(no_mangle)]
#[inline(never)]
#[linkage = "weak"]
pub(crate) extern "C" fn policy(request: *const Request) -> u64 {
    // Keeps the argument, and with it the function's type.
    core::hint::black_box(request);
    PASSTHROUGH
}

/// Validates a policy's answer: to the verifier, and so to us, it can be any number.
#[inline(always)]
pub(crate) fn checked(answer: u64) -> u64 {
    // The most common answers first: saves a dozen instructions.
    if answer == PASSTHROUGH || answer == HIT || Decision::is_answer(answer) {
        return answer;
    }
    Decision::BAD_ANSWER.pack()
}
