//! Records of 24 bytes, little endian: time in microseconds (8), sector (8), sectors (4), operation (4): 0 read, 1 write.

use ublk_bpf_abi::Op;

use super::binary::{self, u32_at, u64_at};
use super::fault::{Fault, push};
use crate::replay::trace::{Trace, TraceRequest};

const RECORD: usize = 24;

/// Longest request by which the format is recognised: 1 GiB.
const LONGEST: u32 = 1 << 21;

pub(super) fn is_one(bytes: &[u8]) -> bool {
    let mut latest = 0;
    binary::all::<RECORD>(bytes, |record| {
        let before = std::mem::replace(&mut latest, u64_at(record, 0));
        before <= latest && (1..=LONGEST).contains(&u32_at(record, 16)) && op(u32_at(record, 20)).is_some()
    })
}

pub(super) fn read(bytes: &[u8], trace: &mut Trace) -> Result<(), Fault> {
    for (at, record) in binary::records::<RECORD>(bytes) {
        let raw = u32_at(record, 20);
        let op = op(raw).ok_or_else(|| Fault::new(at, "operation 0 (read) or 1 (write)", raw.to_string()))?;
        let request = TraceRequest {
            time_ns: binary::micros(at, u64_at(record, 0))?,
            ..TraceRequest::new(op, u64_at(record, 8), u32_at(record, 16))
        };
        push(trace, at, request)?;
    }
    binary::whole::<RECORD>(bytes)
}

const fn op(raw: u32) -> Option<Op> {
    match raw {
        0 => Some(Op::Read),
        1 => Some(Op::Write),
        _ => None,
    }
}
