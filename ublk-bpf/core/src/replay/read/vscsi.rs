//! VMware's vSCSI traces, as libCacheSim reads them: records of 32 (version 1) or 40 bytes (version 2), little endian,
//! with the SCSI command, the first sector, the bytes and the time in microseconds. Commands that move no data are
//! skipped.

use ublk_bpf_abi::Op;

use super::binary::{self, u16_at, u32_at, u64_at};
use super::fault::{At, Fault, push};
use crate::replay::trace::{Trace, TraceRequest};

/// Where the fields of a version are in its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct VscsiLayout {
    version: u8,
    bytes: usize,
    version_at: usize,
    command_at: usize,
    length_at: usize,
    sector_at: usize,
    time_at: usize,
}

const V1: VscsiLayout = VscsiLayout {
    version: 1,
    bytes: 32,
    version_at: 14,
    command_at: 12,
    length_at: 4,
    sector_at: 16,
    time_at: 24,
};

const V2: VscsiLayout = VscsiLayout {
    version: 2,
    bytes: 40,
    version_at: 2,
    command_at: 0,
    length_at: 8,
    sector_at: 16,
    time_at: 24,
};

/// Records by whose version a file is recognised.
const LOOKED_AT: usize = 100;

/// The layout of the file's records, if it is such a trace.
pub(super) fn version(bytes: &[u8]) -> Option<VscsiLayout> {
    [V2, V1].into_iter().find(|layout| {
        let mut records = bytes.chunks_exact(layout.bytes).take(LOOKED_AT).peekable();
        records.peek().is_some() && records.all(|record| layout.is_of_version(record))
    })
}

impl VscsiLayout {
    /// The version is in the high byte.
    fn is_of_version(&self, record: &[u8]) -> bool {
        u16_at(record, self.version_at) >> 8 == self.version.into()
    }
}

pub(super) fn read(bytes: &[u8], trace: &mut Trace) -> Result<(), Fault> {
    match version(bytes) {
        Some(layout) if layout.version == 1 => records::<32>(bytes, &layout, trace),
        Some(layout) => records::<40>(bytes, &layout, trace),
        None => Err(Fault::new(
            At::Byte(0),
            "a vSCSI record of version 1 or 2",
            "neither",
        )),
    }
}

fn records<const N: usize>(bytes: &[u8], layout: &VscsiLayout, trace: &mut Trace) -> Result<(), Fault> {
    for (at, record) in binary::records::<N>(bytes) {
        if !layout.is_of_version(record) {
            let found = u16_at(record, layout.version_at);
            let wanted = format!("a vSCSI record of version {}", layout.version);
            return Err(Fault::new(at, wanted, format!("version {found:#06x}")));
        }
        let length = u32_at(record, layout.length_at);
        let Some(op) = op(u16_at(record, layout.command_at)).filter(|_| length > 0) else {
            continue;
        };
        let request = TraceRequest {
            time_ns: binary::micros(at, u64_at(record, layout.time_at))?,
            ..TraceRequest::new(op, u64_at(record, layout.sector_at), length.div_ceil(512))
        };
        push(trace, at, request)?;
    }
    binary::whole::<N>(bytes)
}

/// The operation of a SCSI command (SBC-4): READ and WRITE of 6, 10, 12 and 16 bytes.
const fn op(command: u16) -> Option<Op> {
    match command & 0xff {
        0x08 | 0x28 | 0xa8 | 0x88 => Some(Op::Read),
        0x0a | 0x2a | 0xaa | 0x8a => Some(Op::Write),
        _ => None,
    }
}
