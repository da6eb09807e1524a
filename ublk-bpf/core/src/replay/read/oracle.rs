//! libCacheSim's `oracleGeneral`: packed records of 24 bytes, little endian: time in seconds (4), object (8), its size in
//! bytes (4), and the number of the request that asks for it next (8), -1 for none. Operations are not in it: all are
//! reads.

use ublk_bpf_abi::Op;

use super::binary::{self, u32_at, u64_at};
use super::fault::{Fault, push};
use crate::replay::trace::{Trace, TraceRequest};

const RECORD: usize = 24;

/// Largest object by which the format is recognised: 1 GiB.
const LARGEST: u32 = 1 << 30;

/// Bytes that one object number stands for: block traces have sectors there.
const UNIT: u32 = 512;

pub(super) fn is_one(bytes: &[u8]) -> bool {
    let mut latest = 0;
    let mut number = 0;
    binary::all::<RECORD>(bytes, |record| {
        let before = std::mem::replace(&mut latest, u32_at(record, 0));
        let next = u64_at(record, 16).cast_signed();
        number += 1;
        // Some writers put the largest number where there is no next request.
        let is_next = next == -1 || next == i64::MAX || (next >= number && next < 1 << 40);
        before <= latest && (1..=LARGEST).contains(&u32_at(record, 12)) && is_next
    })
}

pub(super) fn read(bytes: &[u8], unit: Option<u32>, trace: &mut Trace) -> Result<(), Fault> {
    let unit = u64::from(binary::unit_sectors(unit.unwrap_or(UNIT))?);
    for (at, record) in binary::records::<RECORD>(bytes) {
        let object = u64_at(record, 4);
        let fault = || Fault::new(at, "an object that is a place on a device", object.to_string());
        let sector = object.checked_mul(unit).ok_or_else(fault)?;
        let request = TraceRequest {
            time_ns: u64::from(u32_at(record, 0)) * 1_000_000_000,
            ..TraceRequest::new(Op::Read, sector, u32_at(record, 12).div_ceil(512))
        };
        push(trace, at, request)?;
    }
    binary::whole::<RECORD>(bytes)
}
