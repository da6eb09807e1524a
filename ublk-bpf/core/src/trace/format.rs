//! The bytes of headers and records. All numbers are little endian.

use ublk_bpf_abi::{Op, Reason, Verdict, hint, request_flags};

use super::{End, Header, TraceError, TracedRequest};
use crate::cache::{MAX_BLOCK, MIN_BLOCK};

/// The first bytes of every trace. The first one is not ASCII, so that a trace is not taken for text.
pub const MAGIC: [u8; 8] = *b"\x89ublktr\n";
/// Version of the format.
pub const VERSION: u32 = 1;
/// Bytes of the header.
pub const HEADER_BYTES: usize = 64;
/// Bytes of a record.
pub const RECORD_BYTES: usize = RECORD as usize;
/// The same, as the header has it.
const RECORD: u32 = 64;

/// In place of the number of records: the recording did not end.
const UNENDED: u64 = u64::MAX;
/// Every flag that a record may have.
const FLAGS: u16 = (1 << request_flags::FROM_KERNEL) - 1;

/// The header's bytes.
pub(super) fn encode_header(header: &Header) -> [u8; HEADER_BYTES] {
    let end = header.end.unwrap_or(End {
        recorded: UNENDED,
        dropped: 0,
    });
    let mut bytes = [0; HEADER_BYTES];
    put(&mut bytes, 0, MAGIC);
    put(&mut bytes, 8, VERSION.to_le_bytes());
    put(&mut bytes, 12, RECORD.to_le_bytes());
    put(&mut bytes, 16, header.device_sectors.to_le_bytes());
    put(&mut bytes, 24, header.block_bytes.unwrap_or(0).to_le_bytes());
    put(&mut bytes, 32, header.started_ns.to_le_bytes());
    put(&mut bytes, 40, end.recorded.to_le_bytes());
    put(&mut bytes, 48, end.dropped.to_le_bytes());
    bytes
}

/// Checks and reads a header.
pub(super) fn decode_header(bytes: &[u8; HEADER_BYTES]) -> Result<Header, TraceError> {
    if take(bytes, 0) != MAGIC {
        return Err(TraceError::NotATrace);
    }
    let (version, record_bytes) = (u32_at(bytes, 8), u32_at(bytes, 12));
    if version != VERSION {
        return Err(TraceError::Version(version));
    }
    let wrong = |what: String| Err(TraceError::Header(what));
    if record_bytes != RECORD {
        return wrong(format!("records of {record_bytes} bytes, not {RECORD}"));
    }
    let (device_sectors, block) = (u64_at(bytes, 16), u32_at(bytes, 24));
    if device_sectors == 0 {
        return wrong("a device of 0 sectors".to_owned());
    }
    if block != 0 && !(block.is_power_of_two() && (MIN_BLOCK..=MAX_BLOCK).contains(&block)) {
        return wrong(format!("cache blocks of {block} bytes"));
    }
    let (recorded, dropped) = (u64_at(bytes, 40), u64_at(bytes, 48));
    let ended = recorded != UNENDED;
    if u32_at(bytes, 28) != 0 || u64_at(bytes, 56) != 0 || (!ended && dropped != 0) {
        return wrong("a reserved field is not 0".to_owned());
    }
    Ok(Header {
        device_sectors,
        block_bytes: (block != 0).then_some(block),
        started_ns: u64_at(bytes, 32),
        end: ended.then_some(End { recorded, dropped }),
    })
}

impl TracedRequest {
    /// The record's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        put(&mut bytes, 0, self.time_ns.to_le_bytes());
        put(&mut bytes, 8, self.sector.to_le_bytes());
        put(&mut bytes, 16, self.nr_sectors.to_le_bytes());
        let (op, verdict, reason) = (self.op as u8, self.verdict as u8, self.reason as u8);
        put(&mut bytes, 20, [op, verdict, reason, self.hints]);
        put(&mut bytes, 24, self.flags.to_le_bytes());
        put(&mut bytes, 26, self.ioprio.to_le_bytes());
        put(&mut bytes, 28, self.pid.to_le_bytes());
        put(&mut bytes, 32, self.tgid.to_le_bytes());
        put(&mut bytes, 36, self.qid.to_le_bytes());
        put(&mut bytes, 40, self.cgroup_id.to_le_bytes());
        put(&mut bytes, 48, self.comm);
        bytes
    }

    /// Checks and reads a record of a device with so many sectors.
    ///
    /// # Errors
    /// The field that is wrong, with its value.
    pub fn from_bytes(bytes: &[u8; RECORD_BYTES], device_sectors: u64) -> Result<Self, String> {
        let request = Self {
            time_ns: u64_at(bytes, 0),
            sector: u64_at(bytes, 8),
            nr_sectors: u32_at(bytes, 16),
            op: known("operation", Op::parse, bytes[20])?,
            verdict: known("verdict", Verdict::parse, bytes[21])?,
            reason: known("reason", Reason::parse, bytes[22])?,
            hints: bytes[23],
            flags: u16::from_le_bytes(take(bytes, 24)),
            ioprio: u16::from_le_bytes(take(bytes, 26)),
            pid: u32_at(bytes, 28),
            tgid: u32_at(bytes, 32),
            qid: u16::from_le_bytes(take(bytes, 36)),
            cgroup_id: u64_at(bytes, 40),
            comm: take(bytes, 48),
        };
        check(&request, device_sectors)?;
        if bytes[38..40] != [0, 0] {
            return Err("the reserved field is not 0".to_owned());
        }
        Ok(request)
    }
}

fn check(request: &TracedRequest, device_sectors: u64) -> Result<(), String> {
    let &TracedRequest {
        sector, nr_sectors, ..
    } = request;
    let end = sector.checked_add(nr_sectors.into());
    if nr_sectors != 0 && end.is_none_or(|end| end > device_sectors) {
        return Err(format!(
            "{nr_sectors} sectors from {sector} on a device of {device_sectors}"
        ));
    }
    if nr_sectors == 0 && matches!(request.op, Op::Read | Op::Write) {
        return Err(format!("a {} of 0 sectors", request.op.name()));
    }
    if !hint::is_defined(request.hints) {
        return Err(format!("hints {:#04x}", request.hints));
    }
    if request.flags & !FLAGS != 0 {
        return Err(format!("flags {:#06x}", request.flags));
    }
    let name = request.comm.iter().position(|&byte| byte == 0);
    if name.is_none_or(|end| request.comm[end..].iter().any(|&byte| byte != 0)) {
        return Err("a task's name that does not end".to_owned());
    }
    Ok(())
}

fn known<T>(field: &str, parse: impl Fn(u8) -> Option<T>, raw: u8) -> Result<T, String> {
    parse(raw).ok_or_else(|| format!("unknown {field} {raw}"))
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&value);
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(take(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(take(bytes, at))
}
