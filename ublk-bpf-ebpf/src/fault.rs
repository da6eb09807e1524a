//! Policy `fault`: fails requests that overlap a configured range of sectors; everything else passes through.
//!
//! The range is entry 0 of the map `fault_range`, empty by default. The server fails requests only on a device that was
//! created with `--allow-lossy`.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use ublk_bpf_policy::{Decision, FaultRange, Reason, Request, Verdict, hint, policy};

#[cfg(target_arch = "bpf")]
#[ublk_bpf_policy::bpf::macros::btf_map(name = "fault_range")]
static FAULT_RANGE: ublk_bpf_policy::bpf::btf_maps::Array<FaultRange, 1> =
    ublk_bpf_policy::bpf::btf_maps::Array::new();

#[cfg(target_arch = "bpf")]
fn decide_by_map(request: &Request) -> Decision {
    match FAULT_RANGE.get(0) {
        Some(range) => decide(request, range),
        None => Decision::new(Verdict::Passthrough, Reason::Default),
    }
}

/// On the host there is no map, so nothing fails.
#[cfg(not(target_arch = "bpf"))]
fn decide_by_map(request: &Request) -> Decision {
    decide(
        request,
        &FaultRange {
            first_sector: 0,
            last_sector: 0,
            ops: 0,
        },
    )
}

fn decide(request: &Request, range: &FaultRange) -> Decision {
    let chosen = range.ops >> (request.op & 63) & 1 == 1;
    if chosen && request.overlaps(range.first_sector, range.last_sector) {
        return Decision::new(Verdict::Drop, Reason::FaultRange).with_hints(hint::FAIL);
    }
    Decision::new(Verdict::Passthrough, Reason::Default)
}

policy!(decide_by_map);

#[cfg(test)]
mod tests {
    use super::*;
    use ublk_bpf_policy::Op;

    #[test]
    fn fails_selected_operations_in_the_range() {
        let range = FaultRange {
            first_sector: 100,
            last_sector: 107,
            ops: 1 << Op::Write as u32,
        };
        let fails = |op: Op, sector| {
            let request = Request::new(op, sector, 8);
            decide(&request, &range).hints == hint::FAIL
        };
        assert!(fails(Op::Write, 93));
        assert!(fails(Op::Write, 107));
        assert!(!fails(Op::Write, 92));
        assert!(!fails(Op::Write, 108));
        assert!(!fails(Op::Read, 100));
    }
}
