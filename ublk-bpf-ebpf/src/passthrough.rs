//! Policy `passthrough`: passes every request through to the backing device.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use ublk_bpf_policy::{Decision, Reason, Request, Verdict, policy};

const fn decide(_: &Request) -> Decision {
    Decision::new(Verdict::Passthrough, Reason::Default)
}

policy!(decide);

#[cfg(test)]
mod tests {
    use super::*;
    use ublk_bpf_policy::Op;

    #[test]
    fn passes_every_operation_through() {
        for op in 0..6 {
            let request = Request {
                op,
                ..Request::new(Op::Read, 8, 8)
            };
            assert_eq!(
                decide(&request),
                Decision::new(Verdict::Passthrough, Reason::Default)
            );
        }
    }
}
