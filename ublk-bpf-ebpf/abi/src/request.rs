//! A request as the policy sees it.

use crate::req_op;

numbered! {
    /// The operation of a request. The numbers are dense, to index [`map::DECISIONS`](crate::map::DECISIONS). The
    /// kernel's codes differ between `REQ_OP_*` (block layer) and `UBLK_IO_OP_*` (ublk); both are translated to this.
    Op {
        /// Read from the device.
        Read = 0, "read";
        /// Write to the device.
        Write = 1, "write";
        /// Make completed writes durable. Carries no data and no range.
        Flush = 2, "flush";
        /// The range's data is no longer needed. Carries no data.
        Discard = 3, "discard";
        /// The range reads as zeroes from now on. Carries no data.
        WriteZeroes = 4, "write-zeroes";
        /// Any other operation; the device does not support it.
        Other = 5, "other";
    }
}

impl Op {
    /// The operation with this block-layer number ([`req_op`]).
    #[must_use]
    #[inline(always)]
    pub const fn from_req_op(raw: u32) -> Self {
        match raw {
            req_op::READ => Self::Read,
            req_op::WRITE => Self::Write,
            req_op::FLUSH => Self::Flush,
            req_op::DISCARD => Self::Discard,
            req_op::WRITE_ZEROES => Self::WriteZeroes,
            _ => Self::Other,
        }
    }
}

/// Flags of a request.
pub mod request_flags {
    /// Forced unit access: durable on completion.
    pub const FUA: u32 = 1 << 0;
    /// File-system metadata.
    pub const META: u32 = 1 << 1;
    /// Synchronous: a task waits for it.
    pub const SYNC: u32 = 1 << 2;
    /// Higher priority than other requests.
    pub const PRIO: u32 = 1 << 3;
    /// Read-ahead: no task waits for it yet.
    pub const RAHEAD: u32 = 1 << 4;
    /// Write-zeroes that must keep the space allocated.
    pub const NOUNMAP: u32 = 1 << 5;
    /// Number of flags that come from the kernel, from bit 0 on.
    pub const FROM_KERNEL: usize = 6;
    /// The server knows that the whole range reads as zeroes ([`map::WRITTEN`](crate::map::WRITTEN)). Set for reads
    /// only.
    pub const NEVER_WRITTEN: u32 = 1 << 6;
    /// The whole request is cached: [`Verdict::Hit`](crate::Verdict::Hit) would serve it from the cache.
    pub const CACHED: u32 = 1 << 7;
    /// The block is cached, but not all of the request: some of its regions were never filled, or are being written.
    /// [`Verdict::Hit`](crate::Verdict::Hit) would serve the others from the cache. Never set with [`CACHED`].
    pub const PARTLY_CACHED: u32 = 1 << 8;
    /// The block has, or is about to have, data in the cache that the backing device lacks; not necessarily in the
    /// request's own range. Of a discard or write-zeroes, the first block is looked at. Set with [`CACHED`] or
    /// [`PARTLY_CACHED`].
    pub const DIRTY: u32 = 1 << 9;
}

/// A request as the policy sees it: the argument of [`POLICY_FUNCTION`](crate::POLICY_FUNCTION).
///
/// The kernel checks that a policy and the classifier agree on this type, so its layout is part of the interface.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// First sector (512 bytes); `u64::MAX` for a flush, which has none.
    pub sector: u64,
    /// Length in sectors; 0 for a flush.
    pub nr_sectors: u32,
    /// Bits of [`request_flags`].
    pub flags: u32,
    /// An [`Op`], as its number.
    pub op: u32,
    /// Hardware queue.
    pub qid: u16,
    /// Tag within the queue.
    pub tag: u16,
    /// The cache block that holds the request; the first one if a discard or write-zeroes spans several. 0 on a device
    /// without a cache.
    pub block: u64,
    /// Recent reads of that block before this request: 0 to 255, whether it is cached or not. The server halves it
    /// periodically. 0 on a device without a cache.
    pub heat: u32,
    /// I/O priority of the submitter, as in `ioprio_get(2)`: class in bits 13 and up, level in the low three. 0: not
    /// set.
    pub ioprio: u32,
}

impl Request {
    /// A request on queue 0 with tag 0; all other fields are zero.
    #[must_use]
    pub const fn new(op: Op, sector: u64, nr_sectors: u32) -> Self {
        Self {
            sector,
            nr_sectors,
            flags: 0,
            op: op as u32,
            qid: 0,
            tag: 0,
            block: 0,
            heat: 0,
            ioprio: 0,
        }
    }

    /// The operation.
    #[must_use]
    #[inline(always)]
    pub const fn op(&self) -> Op {
        match self.op {
            0 => Op::Read,
            1 => Op::Write,
            2 => Op::Flush,
            3 => Op::Discard,
            4 => Op::WriteZeroes,
            _ => Op::Other,
        }
    }

    /// Whether all of these bits of [`request_flags`] are set.
    #[must_use]
    #[inline(always)]
    pub const fn has(&self, flags: u32) -> bool {
        self.flags & flags == flags
    }

    /// Whether it is a read.
    #[must_use]
    #[inline(always)]
    pub const fn is_read(&self) -> bool {
        self.op == Op::Read as u32
    }

    /// Whether it is a write.
    #[must_use]
    #[inline(always)]
    pub const fn is_write(&self) -> bool {
        self.op == Op::Write as u32
    }

    /// Whether all of it is cached ([`request_flags::CACHED`]).
    #[must_use]
    #[inline(always)]
    pub const fn is_cached(&self) -> bool {
        self.has(request_flags::CACHED)
    }

    /// Whether its block is cached but not all of the request ([`request_flags::PARTLY_CACHED`]).
    #[must_use]
    #[inline(always)]
    pub const fn is_partly_cached(&self) -> bool {
        self.has(request_flags::PARTLY_CACHED)
    }

    /// Whether its block is dirty ([`request_flags::DIRTY`]): the cache has data of it that the backing device lacks, in the
    /// request's own range or beside it. A write of what is dirty goes to the cache, whatever the policy says.
    #[must_use]
    #[inline(always)]
    pub const fn is_dirty(&self) -> bool {
        self.has(request_flags::DIRTY)
    }

    /// Whether it has to be durable when it ends ([`request_flags::FUA`]).
    #[must_use]
    #[inline(always)]
    pub const fn is_fua(&self) -> bool {
        self.has(request_flags::FUA)
    }

    /// Whether the file system marked it as metadata ([`request_flags::META`]).
    #[must_use]
    #[inline(always)]
    pub const fn is_metadata(&self) -> bool {
        self.has(request_flags::META)
    }

    /// Whether a task waits for this write ([`request_flags::SYNC`]). The block layer treats every read as synchronous
    /// without setting the flag; assume it for reads that are not [read-ahead](Self::is_readahead).
    #[must_use]
    #[inline(always)]
    pub const fn is_sync(&self) -> bool {
        self.has(request_flags::SYNC)
    }

    /// Whether it is read-ahead, which no task waits for yet ([`request_flags::RAHEAD`]).
    #[must_use]
    #[inline(always)]
    pub const fn is_readahead(&self) -> bool {
        self.has(request_flags::RAHEAD)
    }

    /// The sector after the last one.
    #[must_use]
    #[inline(always)]
    pub const fn end(&self) -> u64 {
        self.sector.saturating_add(self.nr_sectors as u64)
    }

    /// I/O priority class: 0 not set, 1 real time, 2 best effort, 3 idle.
    #[must_use]
    #[inline(always)]
    pub const fn ioprio_class(&self) -> u32 {
        self.ioprio >> 13
    }

    /// Level within the class, 0 (highest) to 7.
    #[must_use]
    #[inline(always)]
    pub const fn ioprio_level(&self) -> u32 {
        self.ioprio & 7
    }

    /// Whether the request overlaps sectors `first..=last`. A request without sectors overlaps nothing.
    #[must_use]
    #[inline(always)]
    pub const fn overlaps(&self, first: u64, last: u64) -> bool {
        if self.nr_sectors == 0 {
            return false;
        }
        let end = self.sector.saturating_add(self.nr_sectors as u64 - 1);
        self.sector <= last && first <= end
    }
}

/// Which requests the policy `fault` fails: those with a selected operation that overlap the range.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultRange {
    /// First sector of the range.
    pub first_sector: u64,
    /// Last sector of the range.
    pub last_sector: u64,
    /// Bit `op` set: requests with that [`Op`] fail. 0: none fails.
    pub ops: u64,
}
