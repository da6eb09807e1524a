//! How the recorder passes requests to user space.

/// A request as the recorder saw it: [`map::RECORDS`](crate::map::RECORDS) is a ring of these. A trace file has the
/// same bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceRecord {
    /// Nanoseconds of the monotonic clock; in a file, since the start of the recording.
    pub time: u64,
    /// First sector.
    pub sector: u64,
    /// Length in sectors.
    pub nr_sectors: u32,
    /// The [`Op`](crate::Op) in the lowest byte, above it the first three bytes of a
    /// [`VerdictSlot`](crate::VerdictSlot): verdict, reason and hints.
    pub op_and_advice: u32,
    /// Bits of [`request_flags`](crate::request_flags) that come from the kernel.
    pub flags: u16,
    /// I/O priority of the submitter.
    pub ioprio: u16,
    /// Its thread.
    pub pid: u32,
    /// Its process.
    pub tgid: u32,
    /// Hardware queue.
    pub qid: u16,
    /// Zero.
    pub reserved: u16,
    /// Cgroup of the submitter.
    pub cgroup_id: u64,
    /// Its name, zero padded.
    pub comm: [u8; 16],
}

/// A request that has ended, as the tracer saw it: [`map::ENDED`](crate::map::ENDED) is a ring of these.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedRecord {
    /// The request when it was issued.
    pub record: TraceRecord,
    /// Nanoseconds from its issue to its end.
    pub latency: u64,
    /// The kernel's `blk_status_t` of the end; 0: no error.
    pub status: u64,
}
