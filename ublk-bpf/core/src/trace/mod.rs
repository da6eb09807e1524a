//! Traces: the requests to a device in the order in which they were issued, each with its time, its task and what the
//! policy decided.
//!
//! [`docs/traces.md`](../../../docs/traces.md) describes the file byte by byte. A trace is input from outside: the
//! [`Reader`] checks every field.

mod format;
mod read;
mod write;

use std::io;

use ublk_bpf_abi::{Op, Reason, Verdict};

pub use format::{HEADER_BYTES, MAGIC, RECORD_BYTES, VERSION};
pub use read::Reader;
pub use write::Writer;

/// The first part of a trace: its device and its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Size of the device in sectors of 512 bytes: at least 1.
    pub device_sectors: u64,
    /// Bytes of the device's cache block, a power of two from 4 KiB to 1 MiB; none for a device without a cache.
    pub block_bytes: Option<u32>,
    /// When the recording started, in nanoseconds since 1970 (UTC).
    pub started_ns: u64,
    /// How it ended; none if it did not, because the recorder was killed or is still running.
    pub end: Option<End>,
}

/// How a recording ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Requests in the trace.
    pub recorded: u64,
    /// Requests of the same period that are missing, because the recorder was too slow.
    pub dropped: u64,
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TracedRequest {
    /// When it was issued, in nanoseconds since the start of the recording. CPUs record concurrently, so a time may be
    /// slightly less than the one before it.
    pub time_ns: u64,
    /// First sector. A request without sectors (a flush) has any number here.
    pub sector: u64,
    /// Length in sectors. All of them are on the device.
    pub nr_sectors: u32,
    /// The operation.
    pub op: Op,
    /// What the policy advised; [`Verdict::None`] if the classifier did not run for the request.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// Bits of [`hint`](ublk_bpf_abi::hint).
    pub hints: u8,
    /// The bits of [`request_flags`](ublk_bpf_abi::request_flags) that come from the kernel.
    pub flags: u16,
    /// I/O priority of the submitter, as in `ioprio_get(2)`.
    pub ioprio: u16,
    /// The thread that submitted it. Kernel threads write back buffered data.
    pub pid: u32,
    /// Its process.
    pub tgid: u32,
    /// Its name, zero padded; the last byte is 0.
    pub comm: [u8; 16],
    /// The inode number of its cgroup's directory (version 2).
    pub cgroup_id: u64,
    /// Hardware queue.
    pub qid: u16,
}

impl TracedRequest {
    /// A request of no task, at time 0, without a verdict.
    #[must_use]
    pub const fn new(op: Op, sector: u64, nr_sectors: u32) -> Self {
        Self {
            time_ns: 0,
            sector,
            nr_sectors,
            op,
            verdict: Verdict::None,
            reason: Reason::Default,
            hints: 0,
            flags: 0,
            ioprio: 0,
            pid: 0,
            tgid: 0,
            comm: [0; 16],
            cgroup_id: 0,
            qid: 0,
        }
    }
}

/// Why a trace cannot be read. One line, to follow the file's name and a colon.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file could not be read.
    #[error("reading it failed: {0}")]
    Read(#[from] io::Error),
    /// It does not start as a trace does.
    #[error("not a trace of ublk-bpf: `ublk-bpf trace ID --record FILE` makes one")]
    NotATrace,
    /// It is of another version of the format.
    #[error("a trace of format version {0}, and this ublk-bpf reads version {VERSION}: record it again")]
    Version(u32),
    /// The header has an impossible value.
    #[error("its header is damaged: {0}: record it again")]
    Header(String),
    /// A record has an impossible value.
    #[error("record {number} is damaged: {what}: record the trace again")]
    Record {
        /// Counted from 1.
        number: u64,
        /// The field and its value.
        what: String,
    },
    /// The file does not have as many records as its header says.
    #[error("has {found}, and its header says {expected} records: copy or record it again")]
    Length {
        /// The header's number.
        expected: u64,
        /// What there is instead.
        found: String,
    },
}

#[cfg(test)]
mod tests;
