//! A request, as the policy sees it.

use crate::req_op;

numbered! {
    /// What a request asks for. Dense, so that it can index [`map::DECISIONS`](crate::map::DECISIONS); the kernel's own codes differ
    /// between `REQ_OP_*` (block layer) and `UBLK_IO_OP_*` (ublk), and both are translated to this.
    Op {
        /// Fill the request's pages from the device.
        Read = 0, "read";
        /// Put the request's pages on the device.
        Write = 1, "write";
        /// Make completed writes durable. Carries no data and no range.
        Flush = 2, "flush";
        /// The range's content is no longer needed. Carries no data.
        Discard = 3, "discard";
        /// The range reads as zeroes from now on. Carries no data.
        WriteZeroes = 4, "write-zeroes";
        /// Anything else that the block layer may issue; this device serves none of it.
        Other = 5, "other";
    }
}

impl Op {
    /// The operation that the block layer calls by this number ([`req_op`]).
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

/// Facts about a request that a policy may ask for.
pub mod request_flags {
    /// Force unit access: durable when it completes.
    pub const FUA: u32 = 1 << 0;
    /// File-system metadata.
    pub const META: u32 = 1 << 1;
    /// Someone waits for it.
    pub const SYNC: u32 = 1 << 2;
    /// Higher priority than most.
    pub const PRIO: u32 = 1 << 3;
    /// Read-ahead: nobody waits for it.
    pub const RAHEAD: u32 = 1 << 4;
    /// Write-zeroes that must keep its space allocated.
    pub const NOUNMAP: u32 = 1 << 5;
    /// How many of the flags above come from the kernel, from bit 0 on.
    pub const FROM_KERNEL: usize = 6;
    /// Every block of the range is known by the server to read as zeroes ([`map::WRITTEN`](crate::map::WRITTEN)).
    /// Only ever set for reads.
    pub const NEVER_WRITTEN: u32 = 1 << 6;
    /// All of the request is in the cache: [`Verdict::Hit`](crate::Verdict::Hit) would serve it from there.
    pub const CACHED: u32 = 1 << 7;
}

/// A request as the policy sees it: the argument of [`POLICY_FUNCTION`](crate::POLICY_FUNCTION).
///
/// The kernel matches a policy to the classifier by the shape of this type, so it is part of the interface.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// First sector (512 bytes). A flush has none: it is `u64::MAX` there.
    pub sector: u64,
    /// Length in sectors; 0 for a flush.
    pub nr_sectors: u32,
    /// Bits of [`request_flags`].
    pub flags: u32,
    /// An [`Op`] by number.
    pub op: u32,
    /// Hardware queue.
    pub qid: u16,
    /// Tag within the queue.
    pub tag: u16,
    /// The cache block that the request is in (its first, if it is a discard or the like of several); 0 on a device
    /// without a cache.
    pub block: u64,
    /// How often reads touched that block of late, before this request: 0 to 255, whether it is in the cache or not.
    /// The server halves it from time to time. 0 on a device without a cache.
    pub heat: u32,
    /// The I/O priority of who asks, as `ioprio_get(2)` gives it: class in bits 13 and up, level in the low three.
    /// 0: none was set.
    pub ioprio: u32,
}

impl Request {
    /// A request of queue 0 and tag 0 about which nothing else is known.
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

    /// The operation asked for.
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

    /// Whether it fills pages from the device.
    #[must_use]
    #[inline(always)]
    pub const fn is_read(&self) -> bool {
        self.op == Op::Read as u32
    }

    /// Whether it puts pages on the device.
    #[must_use]
    #[inline(always)]
    pub const fn is_write(&self) -> bool {
        self.op == Op::Write as u32
    }

    /// Whether all of it is in the cache ([`request_flags::CACHED`]).
    #[must_use]
    #[inline(always)]
    pub const fn is_cached(&self) -> bool {
        self.has(request_flags::CACHED)
    }

    /// Whether a file system marked it as its metadata ([`request_flags::META`]).
    #[must_use]
    #[inline(always)]
    pub const fn is_metadata(&self) -> bool {
        self.has(request_flags::META)
    }

    /// Whether someone waits for a write ([`request_flags::SYNC`]). The block layer takes it for granted of a read and does
    /// not say so; of a read that is not [read-ahead](Self::is_readahead), it is true.
    #[must_use]
    #[inline(always)]
    pub const fn is_sync(&self) -> bool {
        self.has(request_flags::SYNC)
    }

    /// Whether it is read-ahead, for which nobody waits yet ([`request_flags::RAHEAD`]).
    #[must_use]
    #[inline(always)]
    pub const fn is_readahead(&self) -> bool {
        self.has(request_flags::RAHEAD)
    }

    /// The sector behind its last one.
    #[must_use]
    #[inline(always)]
    pub const fn end(&self) -> u64 {
        self.sector.saturating_add(self.nr_sectors as u64)
    }

    /// The class of who asks: 0 none was set, 1 real time, 2 best effort, 3 idle.
    #[must_use]
    #[inline(always)]
    pub const fn ioprio_class(&self) -> u32 {
        self.ioprio >> 13
    }

    /// The level in the class, 0 (first) to 7.
    #[must_use]
    #[inline(always)]
    pub const fn ioprio_level(&self) -> u32 {
        self.ioprio & 7
    }

    /// Whether the request touches a sector of `first..=last`. A request without sectors touches none.
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

/// Which requests the policy `fault` fails: those of the chosen operations that touch the range.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultRange {
    /// First sector of the range.
    pub first_sector: u64,
    /// Last sector of the range.
    pub last_sector: u64,
    /// Bit `op` set: requests of that [`Op`] fail. 0: none do.
    pub ops: u64,
}
