//! What a descriptor asks for, parsed once at the door.

use ublk_bpf_abi::{Op, SECTOR_SIZE};

use super::event::{Arrival, Direct, Tier, Way};
use crate::cache::Mode;
use crate::errno::Errno;
use crate::sys::uapi::{
    UBLK_IO_BUF_BITS, UBLK_IO_F_FUA, UBLK_IO_F_NEED_REG_BUF, UBLK_IO_F_NOUNMAP, UBLK_IO_OP_DISCARD,
    UBLK_IO_OP_FLUSH, UBLK_IO_OP_READ, UBLK_IO_OP_WRITE, UBLK_IO_OP_WRITE_ZEROES,
};

/// The longest READ or WRITE that user copy can address: 32 MiB.
pub(super) const MAX_DATA_BYTES: u64 = 1 << UBLK_IO_BUF_BITS;

/// What the device serves: every range is inside the device and aligned to its logical blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RequestLimits {
    /// Sectors of the device.
    pub(super) capacity: u64,
    /// Sectors of it that its backing still has: `capacity`, until others truncate the file.
    pub(super) reach: u64,
    /// Sectors of a logical block, minus one.
    pub(super) block_mask: u64,
    /// Nothing may change it.
    pub(super) read_only: bool,
}

impl RequestLimits {
    /// Whether a request may be for this range: not empty, inside of `capacity` sectors, of whole blocks and, where it has
    /// data, not too long for user copy.
    #[inline(always)]
    fn admit(&self, capacity: u64, action: Action, first: u64, sectors: u64) -> bool {
        let inside = sectors <= capacity && first <= capacity - sectors;
        let aligned = (first | sectors) & self.block_mask == 0;
        let fits = sectors != 0 && (sectors <= MAX_DATA_BYTES / SECTOR_SIZE || !action.has_data());
        inside && aligned && fits
    }
}

/// What a request does to its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
}

impl Action {
    /// The operation's number in verdicts.
    #[inline]
    pub(super) const fn op(self) -> Op {
        match self {
            Self::Read => Op::Read,
            Self::Write => Op::Write,
            Self::Flush => Op::Flush,
            Self::Discard => Op::Discard,
            Self::WriteZeroes => Op::WriteZeroes,
        }
    }

    /// READ and WRITE have pages; the others only a range, or nothing.
    #[inline]
    pub(super) const fn has_data(self) -> bool {
        matches!(self, Self::Read | Self::Write)
    }
}

/// A request that this device can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockRequest {
    pub(super) action: Action,
    /// Durable when it completes (`REQ_FUA`).
    pub(super) durable: bool,
    /// WRITE_ZEROES: the space stays allocated (`REQ_NOUNMAP`).
    pub(super) keep_allocated: bool,
    /// READ, WRITE: the request's pages are in the ring's buffer table.
    pub(super) registered: bool,
    /// WRITE: where it ends, if the policy says so. A descriptor does not.
    pub(super) mode: Option<Mode>,
    /// To whom what it brings into the cache is accounted; 0: no tenant.
    pub(super) tenant: u8,
    /// First byte on the device; 0 for FLUSH.
    pub(super) offset: u64,
    /// Bytes; 0 for FLUSH, at most [`MAX_DATA_BYTES`] for READ and WRITE.
    pub(super) length: u64,
}

impl BlockRequest {
    /// Parses a descriptor.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for an operation that this device does not serve, `EROFS` for a change to a read-only
    /// device, `EINVAL` for a range that is empty, too long, misaligned or beyond the device. The block layer
    /// sends none of these to a device whose parameters are true. `EIO` for a range beyond the end that others have
    /// truncated the backing to.
    #[inline]
    pub(super) fn parse(arrival: &Arrival, limits: &RequestLimits) -> Result<Self, Errno> {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the operation is in the low eight bits"
        )]
        let action = match arrival.op_flags as u8 {
            UBLK_IO_OP_READ => Action::Read,
            UBLK_IO_OP_WRITE => Action::Write,
            UBLK_IO_OP_FLUSH => return Ok(Self::flush()),
            UBLK_IO_OP_DISCARD => Action::Discard,
            UBLK_IO_OP_WRITE_ZEROES => Action::WriteZeroes,
            _ => return Err(Errno::EOPNOTSUPP),
        };
        if limits.read_only && action != Action::Read {
            return Err(Errno::EROFS);
        }
        let (first, sectors) = (arrival.start_sector, u64::from(arrival.nr_sectors));
        if !limits.admit(limits.capacity, action, first, sectors) {
            return Err(Errno::EINVAL);
        }
        // Admitted: the sum does not overflow.
        if first + sectors > limits.reach {
            return Err(Errno::EIO);
        }
        Ok(Self {
            action,
            durable: arrival.op_flags & UBLK_IO_F_FUA != 0,
            keep_allocated: arrival.op_flags & UBLK_IO_F_NOUNMAP != 0,
            registered: arrival.op_flags & UBLK_IO_F_NEED_REG_BUF == 0,
            mode: None,
            tenant: 0,
            // Inside the device, whose bytes fit 63 bits (`QueueConfig::check`).
            offset: first * SECTOR_SIZE,
            length: sectors * SECTOR_SIZE,
        })
    }

    /// What [`parse`](Self::parse) makes of the descriptors that nearly all are: READ or WRITE, not durable in
    /// particular, with registered pages. `None`: ask `parse`.
    #[inline(always)]
    pub(super) fn ordinary(arrival: &Arrival, limits: &RequestLimits) -> Option<Self> {
        /// Operations above WRITE, and what makes READ and WRITE unusual.
        const UNUSUAL: u32 = 0xfe | UBLK_IO_F_FUA | UBLK_IO_F_NEED_REG_BUF;
        const _: () = assert!(UBLK_IO_OP_READ == 0 && UBLK_IO_OP_WRITE == 1);
        if arrival.op_flags & UNUSUAL != 0 {
            return None;
        }
        let action = if arrival.op_flags & 1 == 0 {
            Action::Read
        } else {
            Action::Write
        };
        let (first, sectors) = (arrival.start_sector, u64::from(arrival.nr_sectors));
        if (limits.read_only && action == Action::Write)
            || !limits.admit(limits.reach, action, first, sectors)
        {
            return None;
        }
        Some(Self {
            action,
            durable: false,
            keep_allocated: false,
            registered: true,
            mode: None,
            tenant: 0,
            offset: first * SECTOR_SIZE,
            length: sectors * SECTOR_SIZE,
        })
    }

    /// Bytes of a READ or WRITE.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "at most `MAX_DATA_BYTES`: parsed so"
    )]
    pub(super) const fn data(&self) -> u32 {
        debug_assert!(self.action.has_data() && self.length <= MAX_DATA_BYTES);
        self.length as u32
    }

    /// The operation that is all of a READ or WRITE with registered pages, on the backing device.
    #[inline(always)]
    pub(super) fn direct(&self) -> Direct {
        Direct {
            way: if self.action == Action::Write {
                Way::Write(Tier::Backing)
            } else {
                Way::Read(Tier::Backing)
            },
            offset: self.offset,
            len: self.data(),
        }
    }

    /// The operation that is all of a READ or WRITE with registered pages on the cache device, `slot_delta` further on.
    #[inline(always)]
    pub(super) fn direct_on_slot(&self, slot_delta: u64) -> Direct {
        Direct {
            way: if self.action == Action::Write {
                Way::Write(Tier::Cache)
            } else {
                Way::Read(Tier::Cache)
            },
            offset: self.offset.wrapping_add(slot_delta),
            len: self.data(),
        }
    }

    /// A FLUSH: its descriptor's range means nothing (the block layer leaves sector 2^64 - 1 there).
    const fn flush() -> Self {
        Self {
            action: Action::Flush,
            durable: false,
            keep_allocated: false,
            registered: false,
            mode: None,
            tenant: 0,
            offset: 0,
            length: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ublk_bpf_abi::TakenVerdict;

    const LIMITS: RequestLimits = RequestLimits {
        capacity: 2048,
        reach: 2048,
        block_mask: 7,
        read_only: false,
    };

    fn arrival(op_flags: u32, start_sector: u64, nr_sectors: u32) -> Arrival {
        let verdict = TakenVerdict { head: 0, place: 0 };
        Arrival {
            tag: 0,
            op_flags,
            nr_sectors,
            start_sector,
            verdict,
        }
    }

    fn parse(op: u8, start_sector: u64, nr_sectors: u32) -> Result<BlockRequest, Errno> {
        BlockRequest::parse(&arrival(u32::from(op), start_sector, nr_sectors), &LIMITS)
    }

    #[test]
    fn reads_and_writes_carry_their_range_and_flags() {
        let flags = u32::from(UBLK_IO_OP_WRITE) | UBLK_IO_F_FUA | UBLK_IO_F_NEED_REG_BUF;
        let request = BlockRequest::parse(&arrival(flags, 8, 16), &LIMITS).expect("a good write");
        assert_eq!(
            (request.action, request.offset, request.length),
            (Action::Write, 4096, 8192)
        );
        assert!(request.durable && !request.registered);
        let request = parse(UBLK_IO_OP_READ, 0, 2048).expect("the whole device");
        assert!(!request.durable && request.registered);
    }

    #[test]
    fn a_flush_has_no_range() {
        assert_eq!(parse(UBLK_IO_OP_FLUSH, u64::MAX, 0), Ok(BlockRequest::flush()));
    }

    #[test]
    fn ranges_outside_the_device_are_refused() {
        for (sector, count) in [
            (2048, 8),
            (2040, 16),
            (u64::MAX, 8),
            (u64::MAX / 512, 8),
            (0, 4096),
        ] {
            assert_eq!(
                parse(UBLK_IO_OP_WRITE_ZEROES, sector, count),
                Err(Errno::EINVAL),
                "{sector}+{count}"
            );
        }
    }

    #[test]
    fn what_the_backing_has_lost_is_an_io_error() {
        let limits = RequestLimits {
            reach: 1024,
            ..LIMITS
        };
        for op in [
            UBLK_IO_OP_READ,
            UBLK_IO_OP_WRITE,
            UBLK_IO_OP_DISCARD,
            UBLK_IO_OP_WRITE_ZEROES,
        ] {
            let parse = |sector, count| BlockRequest::parse(&arrival(u32::from(op), sector, count), &limits);
            assert_eq!(parse(1024, 8), Err(Errno::EIO));
            assert_eq!(parse(1016, 16), Err(Errno::EIO), "across the end");
            assert_eq!(parse(2048, 8), Err(Errno::EINVAL), "beyond the device");
            assert!(parse(1016, 8).is_ok());
            let ordinary = |sector| BlockRequest::ordinary(&arrival(u32::from(op), sector, 8), &limits);
            assert!(ordinary(1024).is_none());
        }
        assert!(BlockRequest::parse(&arrival(u32::from(UBLK_IO_OP_FLUSH), 0, 0), &limits).is_ok());
    }

    #[test]
    fn misaligned_and_empty_ranges_are_refused() {
        for (sector, count) in [(1, 8), (0, 7), (0, 0)] {
            assert_eq!(
                parse(UBLK_IO_OP_READ, sector, count),
                Err(Errno::EINVAL),
                "{sector}+{count}"
            );
        }
    }

    #[test]
    fn data_beyond_user_copy_is_refused_but_a_discard_may_be_long() {
        let limits = RequestLimits {
            capacity: 1 << 54,
            reach: 1 << 54,
            ..LIMITS
        };
        let sectors = !7_u32;
        let of = |op| BlockRequest::parse(&arrival(u32::from(op), 0, sectors), &limits);
        assert_eq!(of(UBLK_IO_OP_WRITE), Err(Errno::EINVAL));
        assert_eq!(
            of(UBLK_IO_OP_DISCARD).expect("long").length,
            u64::from(sectors) * 512
        );
    }

    #[test]
    fn a_read_only_device_is_never_changed() {
        let limits = RequestLimits {
            read_only: true,
            ..LIMITS
        };
        for op in [UBLK_IO_OP_WRITE, UBLK_IO_OP_DISCARD, UBLK_IO_OP_WRITE_ZEROES] {
            assert_eq!(
                BlockRequest::parse(&arrival(u32::from(op), 0, 8), &limits),
                Err(Errno::EROFS)
            );
        }
        assert!(BlockRequest::parse(&arrival(u32::from(UBLK_IO_OP_READ), 0, 8), &limits).is_ok());
    }

    #[test]
    fn operations_that_no_device_here_serves_are_refused() {
        for op in [4, 6, 10, 13, 18, 255] {
            assert_eq!(parse(op, 0, 8), Err(Errno::EOPNOTSUPP));
        }
    }
}
