//! Policy `sparse`: zero-fills reads of blocks that hold no data, without I/O.
//!
//! The server tracks these blocks in the map `written`; the classifier sets `NEVER_WRITTEN` from it.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use ublk_bpf_policy::{Decision, Op, Reason, Request, Verdict, policy, request_flags};

fn decide(request: &Request) -> Decision {
    if request.op() == Op::Read && request.has(request_flags::NEVER_WRITTEN) {
        return Decision::new(Verdict::Drop, Reason::NeverWritten);
    }
    Decision::new(Verdict::Passthrough, Reason::Default)
}

policy!(decide);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_reads_of_unwritten_blocks() {
        let request = |op: Op, flags| Request {
            flags,
            ..Request::new(op, 0, 8)
        };
        let flags = request_flags::NEVER_WRITTEN | request_flags::SYNC;
        assert_eq!(
            decide(&request(Op::Read, flags)),
            Decision::new(Verdict::Drop, Reason::NeverWritten)
        );
        let pass = Decision::new(Verdict::Passthrough, Reason::Default);
        assert_eq!(decide(&request(Op::Read, request_flags::SYNC)), pass);
        assert_eq!(decide(&request(Op::Write, flags)), pass);
    }
}
