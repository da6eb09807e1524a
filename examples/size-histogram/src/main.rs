//! Policy `size-histogram`: passes everything through and keeps a histogram of read and write sizes.
//!
//! Row `n` of the map `sizes` counts requests of 2^n to 2^(n+1) - 1 sectors: row 0 is 512 bytes, row 3 is 4 KiB, row 11
//! is 1 MiB. `bpftool map dump pinned /sys/fs/bpf/ublk-bpf/ublkbN/maps/sizes` prints it.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use ublk_bpf_policy::{Decision, Op, Reason, Request, Verdict, policy};

/// Rows of the histogram: the largest request is 1 MiB, 2^11 sectors.
const ROWS: u32 = 12;

/// Number of requests of one size.
#[repr(C)]
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "bpf"), expect(dead_code, reason = "only BPF has maps"))]
struct Row {
    reads: u64,
    writes: u64,
}

#[cfg(target_arch = "bpf")]
#[ublk_bpf_policy::bpf::macros::btf_map(name = "sizes")]
static SIZES: ublk_bpf_policy::bpf::btf_maps::PerCpuArray<Row, { ROWS as usize }> =
    ublk_bpf_policy::bpf::btf_maps::PerCpuArray::new();

fn decide(request: &Request) -> Decision {
    if let Some(row) = row(request) {
        count(row, request.op());
    }
    Decision::new(Verdict::Passthrough, Reason::Default)
}

/// The histogram row of a read or write.
fn row(request: &Request) -> Option<u32> {
    match request.op() {
        Op::Read | Op::Write => Some(request.nr_sectors.checked_ilog2()?.min(ROWS - 1)),
        _ => None,
    }
}

#[cfg(target_arch = "bpf")]
fn count(row: u32, op: Op) {
    let Some(row) = SIZES.get_ptr_mut(row) else {
        return;
    };
    // SAFETY: The map returns this CPU's own row, and a policy does not interrupt itself.
    let row = unsafe { &mut *row };
    match op {
        Op::Write => row.writes += 1,
        _ => row.reads += 1,
    }
}

/// On the host there is no map.
#[cfg(not(target_arch = "bpf"))]
fn count(_row: u32, _op: Op) {}

policy!(decide);

#[cfg(test)]
mod tests {
    use super::*;

    fn request(op: Op, nr_sectors: u32) -> Request {
        Request::new(op, 0, nr_sectors)
    }

    #[test]
    fn a_row_is_a_power_of_two() {
        assert_eq!(row(&request(Op::Read, 1)), Some(0));
        assert_eq!(row(&request(Op::Write, 8)), Some(3));
        assert_eq!(row(&request(Op::Write, 15)), Some(3));
        assert_eq!(row(&request(Op::Read, 2048)), Some(11));
        assert_eq!(
            row(&request(Op::Read, 1 << 20)),
            Some(11),
            "larger than the last row"
        );
    }

    #[test]
    fn requests_without_data_have_no_row() {
        assert_eq!(row(&request(Op::Flush, 0)), None);
        assert_eq!(row(&request(Op::Discard, 2048)), None);
    }

    #[test]
    fn everything_passes_through() {
        assert_eq!(
            decide(&request(Op::Discard, 8)),
            Decision::new(Verdict::Passthrough, Reason::Default)
        );
    }
}
