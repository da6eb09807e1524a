//! Policy `lru`: serves cached blocks from the cache and promotes a block on every read miss.
//!
//! The simplest policy that uses a cache, and the fastest to fill it. A scan larger than the cache evicts everything
//! else; use `scan-resistant` on devices that are scanned.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use ublk_bpf_policy::{Decision, Priority, Request, policy};

const fn decide(request: &Request) -> Decision {
    if !request.is_read() {
        return Decision::pass();
    }
    if request.is_cached() {
        return Decision::hit();
    }
    Decision::pass().promote(Priority::Normal)
}

policy!(decide);

#[cfg(test)]
mod tests {
    use super::*;
    use ublk_bpf_policy::{Op, request_flags};

    #[test]
    fn a_read_hits_or_promotes() {
        let miss = Request::new(Op::Read, 0, 8);
        assert_eq!(decide(&miss), Decision::pass().promote(Priority::Normal));
        let cached = Request {
            flags: request_flags::CACHED,
            ..miss
        };
        assert_eq!(decide(&cached), Decision::hit());
    }

    #[test]
    fn other_operations_pass_through() {
        for op in Op::ALL.into_iter().filter(|&op| op != Op::Read) {
            let request = Request {
                flags: request_flags::CACHED,
                ..Request::new(op, 0, 8)
            };
            assert_eq!(decide(&request), Decision::pass());
        }
    }
}
