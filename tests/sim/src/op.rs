//! Operations of tags: what they are about, and which ones a request may have.

use super::Check;
use super::kernel::Request;
use ublk_bpf::queue::{Io, Staging, Tier, UserCopy};
use ublk_bpf::sys::uapi::{
    UBLK_IO_F_FUA, UBLK_IO_OP_DISCARD, UBLK_IO_OP_FLUSH, UBLK_IO_OP_READ, UBLK_IO_OP_WRITE,
    UBLK_IO_OP_WRITE_ZEROES,
};

/// An operation that is out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Op {
    pub(super) tag: u16,
    pub(super) io: Io,
    /// In the order of their issue.
    pub(super) number: u64,
    /// Writes that the disk had completed at its issue: what a flush must make durable.
    pub(super) writes: u64,
}

/// Bytes that an operation moves, or `None` if it has no data.
pub(super) const fn length(io: &Io) -> Option<u32> {
    match *io {
        Io::Read { len, .. }
        | Io::Write { len, .. }
        | Io::Zero { len, .. }
        | Io::Load { len, .. }
        | Io::Store { len, .. }
        | Io::Copy(
            UserCopy::Out { len, .. }
            | UserCopy::Filled { len, .. }
            | UserCopy::In { len, .. }
            | UserCopy::Zero { len, .. },
        ) => Some(len),
        Io::Flush { .. }
        | Io::Record { .. }
        | Io::Discard { .. }
        | Io::WriteZeroes { .. }
        | Io::Trim { .. }
        | Io::Delay { .. } => None,
    }
}

/// The staging buffer of an operation.
pub(super) const fn staging_of(io: &Io) -> Option<(Staging, u32, u32)> {
    match *io {
        Io::Load {
            staging, skip, len, ..
        }
        | Io::Store {
            staging, skip, len, ..
        }
        | Io::Copy(
            UserCopy::Out {
                staging, skip, len, ..
            }
            | UserCopy::In {
                staging, skip, len, ..
            },
        ) => Some((staging, skip, len)),
        _ => None,
    }
}

/// The device range of an operation, and where in the request it has to be.
pub(super) const fn device_range(io: &Io) -> Option<(u64, u64)> {
    match *io {
        Io::Read { offset, len, .. }
        | Io::Write { offset, len, .. }
        | Io::Load { offset, len, .. }
        | Io::Store { offset, len, .. } => Some((offset, len as u64)),
        Io::Discard { offset, len, .. } | Io::WriteZeroes { offset, len, .. } => Some((offset, len)),
        _ => None,
    }
}

/// The range of an operation on the cache device.
pub(super) const fn cache_range(io: &Io) -> Option<(u64, u64)> {
    match io {
        Io::Read {
            from: Tier::Cache, ..
        }
        | Io::Load {
            from: Tier::Cache, ..
        }
        | Io::Store { to: Tier::Cache, .. } => device_range(io),
        _ => None,
    }
}

/// Whether an operation changes its range.
pub(super) const fn is_write(io: &Io) -> bool {
    matches!(io, Io::Write { .. } | Io::Store { .. })
}

/// The part of the request's pages that an operation touches.
pub(super) const fn page_range(io: &Io) -> Option<(u32, u32)> {
    match *io {
        Io::Read { at, len, .. }
        | Io::Write { at, len, .. }
        | Io::Zero { at, len }
        | Io::Copy(
            UserCopy::Out { at, len, .. }
            | UserCopy::Filled { at, len, .. }
            | UserCopy::In { at, len, .. }
            | UserCopy::Zero { at, len },
        ) => Some((at, len)),
        _ => None,
    }
}

/// Operations that serve a request of this kind.
pub(super) const fn serves(io: &Io, op: u8) -> bool {
    match io {
        Io::Read { .. }
        | Io::Zero { .. }
        | Io::Load { .. }
        | Io::Copy(UserCopy::Out { .. } | UserCopy::Filled { .. } | UserCopy::Zero { .. }) => {
            op == UBLK_IO_OP_READ
        }
        Io::Write { .. } | Io::Store { .. } | Io::Copy(UserCopy::In { .. }) | Io::Trim { .. } => {
            op == UBLK_IO_OP_WRITE
        }
        // A WRITE_ZEROES that must be durable is followed by one.
        Io::Flush { .. } => op == UBLK_IO_OP_FLUSH || op == UBLK_IO_OP_WRITE_ZEROES,
        // These devices have no write-back.
        Io::Record { .. } => false,
        Io::Discard { .. } => op == UBLK_IO_OP_DISCARD,
        Io::WriteZeroes { .. } => op == UBLK_IO_OP_WRITE_ZEROES,
        Io::Delay { .. } => op != UBLK_IO_OP_FLUSH,
    }
}

/// A write is durable exactly if it has to be.
pub(super) fn check_durable(io: &Io, request: &Request, volatile_cache: bool) -> Check {
    // What is on the cache device is lost by a power failure anyway.
    let needed = request.op_flags & UBLK_IO_F_FUA != 0 && volatile_cache && cache_range(io).is_none();
    match *io {
        Io::Write { durable, .. } | Io::Store { durable, .. } if durable != needed => {
            Err("durability is wrong".into())
        }
        _ => Ok(()),
    }
}
