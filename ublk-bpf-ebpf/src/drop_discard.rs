//! Policy `drop-discard`: drops discards, which are advisory; everything else passes through.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use ublk_bpf_policy::{Decision, Op, Reason, Request, Verdict, policy};

fn decide(request: &Request) -> Decision {
    if request.op() == Op::Discard {
        return Decision::new(Verdict::Drop, Reason::Advisory);
    }
    Decision::new(Verdict::Passthrough, Reason::Default)
}

policy!(decide);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_only_discards() {
        for op in Op::ALL {
            let request = Request::new(op, 8, 8);
            let dropped = decide(&request) == Decision::new(Verdict::Drop, Reason::Advisory);
            assert_eq!(dropped, op == Op::Discard);
        }
    }
}
