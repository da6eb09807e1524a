//! Page numbers of four bytes, big endian, as the authors of ARC published theirs: a read of each page.

use ublk_bpf_abi::Op;

use super::binary;
use super::fault::{Fault, push};
use crate::replay::trace::{Trace, TraceRequest};

const RECORD: usize = 4;

/// Bytes of a page.
const UNIT: u32 = 4096;

pub(super) fn read(bytes: &[u8], unit: Option<u32>, trace: &mut Trace) -> Result<(), Fault> {
    let sectors = binary::unit_sectors(unit.unwrap_or(UNIT))?;
    for (at, record) in binary::records::<RECORD>(bytes) {
        let page = u32::from_be_bytes(*record);
        let sector = u64::from(page) * u64::from(sectors);
        push(trace, at, TraceRequest::new(Op::Read, sector, sectors))?;
    }
    binary::whole::<RECORD>(bytes)
}
