//! Loops in functions that call each other: few instructions, many steps.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use core::hint::black_box;

use ublk_bpf_policy::{Decision, Request, policy};

/// A request makes this many rounds to the third power.
const ROUNDS: u64 = 25;

/// What a function of each level does. A function with a name of its own in the object is global: the verifier would look at
/// it once, on its own, however often it is called.
macro_rules! level {
    ($name:ident, $below:expr) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name(start: u64) -> u64 {
            let below: fn(u64) -> u64 = $below;
            let mut sum = start;
            for round in 0..ROUNDS {
                sum ^= below(black_box(round));
            }
            sum
        }
    };
}

level!(lowest, |round| round);
level!(middle, |round| lowest(round));
level!(highest, |round| middle(round));

fn decide(request: &Request) -> Decision {
    if highest(request.sector) == 7 {
        return Decision::hit();
    }
    Decision::pass()
}

policy!(decide);
