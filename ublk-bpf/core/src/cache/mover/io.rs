//! What the mover asks its driver to do.

use std::time::Duration;

#[cfg(doc)]
use super::Mover;

/// Something for the driver to do. Offsets and lengths are in bytes, and no length is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoverIo {
    /// From the backing device to a staging buffer; its result goes to [`Mover::done`].
    Load {
        /// The staging buffer, below [`Mover::jobs`].
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
        /// The verification, or the copy that cleans.
        job: u16,
        /// The other buffer, below [`Mover::buffers`].
        buffer: u16,
        /// Where on the cache device.
        offset: u64,
        /// Where in the buffer, and for a copy in those behind it.
        skip: u32,
        /// How many.
        len: u32,
    },
    /// From a staging buffer to the backing device; its result goes to [`Mover::done`].
    StoreBacking {
        /// The job.
        job: u16,
        /// Its first buffer, below [`Mover::buffers`].
        buffer: u16,
        /// Where on the backing device.
        offset: u64,
        /// How many bytes, from the buffer's start and on into those behind it.
        len: u32,
    },
    /// Make what the backing device has completed durable; as above.
    FlushBacking {
        /// The job.
        job: u16,
    },
    /// Make what the cache device has completed durable; as above.
    FlushCache {
        /// The job.
        job: u16,
    },
    /// The log's record ([`Cache::record`](crate::cache::Cache::record)) to the cache device, durable when it completes; as above.
    StoreRecord {
        /// The job.
        job: u16,
        /// Where on the cache device.
        offset: u64,
        /// How many bytes.
        len: u32,
    },
    /// [`Mover::pages`] to the cache device; as above.
    StorePages {
        /// The job.
        job: u16,
        /// Where on the cache device.
        offset: u64,
        /// How many bytes.
        len: u32,
        /// They are durable when it completes.
        is_durable: bool,
    },
    /// Compares two staging buffers; whether they are equal goes to [`Mover::compared`].
    Compare {
        /// The verification, and its first buffer.
        job: u16,
        /// The other buffer.
        buffer: u16,
        /// How many bytes.
        len: u32,
    },
}

/// When to call [`Mover::poll`] again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// When an operation completes or the mover is woken.
    UntilWoken,
    /// The same, or at this time.
    Until(Duration),
}
