//! What a promoter wants its driver to do.

use std::time::Duration;

#[cfg(doc)]
use super::Promoter;

/// Something for the driver to do. Offsets and lengths are in bytes, and no length is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoverIo {
    /// From the backing device to a staging buffer; its result goes to [`Promoter::done`].
    Load {
        /// The staging buffer, below [`Promoter::jobs`].
        job: u16,
        /// Where on the backing device.
        offset: u64,
        /// Where in the buffer.
        skip: u32,
        /// How many.
        len: u32,
    },
    /// From a staging buffer to the cache device; as above.
    Store {
        /// The staging buffer.
        job: u16,
        /// Where on the cache device.
        offset: u64,
        /// Where in the buffer.
        skip: u32,
        /// How many.
        len: u32,
    },
    /// From the cache device to another staging buffer; as above.
    LoadSlot {
        /// The verification.
        job: u16,
        /// The other buffer, below [`Promoter::buffers`].
        buffer: u16,
        /// Where on the cache device.
        offset: u64,
        /// Where in the buffer.
        skip: u32,
        /// How many.
        len: u32,
    },
    /// Two staging buffers are compared; whether they hold the same goes to [`Promoter::compared`].
    Compare {
        /// The verification, and its first buffer.
        job: u16,
        /// The other buffer.
        buffer: u16,
        /// How many bytes.
        len: u32,
    },
}

/// When there is something to do again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// When an operation completes or the promoter is woken.
    UntilWoken,
    /// The same, or at this time.
    Until(Duration),
}
