//! The configuration of a queue's machine.

use crate::cache::MAX_FILL_BUFFERS;
use crate::sys::uapi::UBLK_MAX_QUEUE_DEPTH;

/// What the backing can do. The device's parameters say the same to the block layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Nothing is kept. Writes, flushes, discards and write-zeroes succeed at once.
    Null {
        /// Reads are filled with zeroes. Otherwise they complete with whatever the client's pages held: for
        /// measurements only.
        filled: bool,
    },
    /// Bytes are kept.
    Storage(Capabilities),
}

impl Backing {
    /// Whether what it has completed is lost with its power until it is flushed.
    pub(super) const fn has_volatile_cache(self) -> bool {
        match self {
            Self::Null { .. } => false,
            Self::Storage(storage) => storage.volatile_cache,
        }
    }
}

/// A backing that keeps bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Completed writes may be lost by a power failure until they are flushed. Otherwise FLUSH succeeds at once,
    /// and no operation is `durable`.
    pub volatile_cache: bool,
    /// [`Io::Discard`](super::Io::Discard) works; otherwise DISCARD fails with EOPNOTSUPP.
    pub discard: bool,
    /// [`Io::WriteZeroes`](super::Io::WriteZeroes) works; otherwise WRITE_ZEROES fails with EOPNOTSUPP, and the
    /// block layer writes zeroes instead.
    pub write_zeroes: bool,
}

/// The configuration of a queue's machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueConfig {
    /// Tags of the queue: 1 to 4096.
    pub depth: u16,
    /// Staging buffers of the queue, numbered from 0. At least 1.
    pub staging_buffers: u16,
    /// Bytes of each: a multiple of the logical block, at most 32 MiB.
    pub staging_bytes: u32,
    /// Buffers for fills, of a cache block each, numbered from 0: at most 64. 0: no read fills the cache.
    pub fill_buffers: u16,
    /// Sectors of the device.
    pub capacity: u64,
    /// Bytes of a logical block: a power of two from 512 to 65536.
    pub logical_block: u32,
    /// The device refuses to be changed.
    pub read_only: bool,
    /// The policy may lose data and fail requests (`--allow-lossy`).
    pub lossy: bool,
    /// What the backing can do.
    pub backing: Backing,
}

/// A [`QueueConfig`] that no machine can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadConfig {
    /// The depth is out of range.
    #[error("queue depth is {0}; it must be 1 to 4096")]
    Depth(u16),
    /// There is no staging buffer, or their size is wrong.
    #[error("{buffers} staging buffers of {bytes} bytes; at least one, of whole logical blocks, is needed")]
    Staging {
        /// How many.
        buffers: u16,
        /// Their size.
        bytes: u32,
    },
    /// There are too many fill buffers.
    #[error("{0} fill buffers; the most is 64")]
    Fills(u16),
    /// The logical block size is none.
    #[error("logical block size is {0} bytes; it must be a power of two from 512 to 65536")]
    LogicalBlock(u32),
    /// The device's bytes cannot be counted.
    #[error("capacity is {0} sectors; the most is 2^54")]
    Capacity(u64),
}

impl QueueConfig {
    /// The most sectors of a device: its bytes fit 63 bits, as file offsets do.
    pub const MAX_CAPACITY: u64 = 1 << 54;

    const MAX_STAGING_BYTES: u32 = 32 << 20;

    /// Whether a machine can be made of it.
    ///
    /// # Errors
    /// The first field that is out of its range.
    pub fn check(&self) -> Result<(), BadConfig> {
        if !(1..=UBLK_MAX_QUEUE_DEPTH).contains(&self.depth) {
            return Err(BadConfig::Depth(self.depth));
        }
        if !(self.logical_block.is_power_of_two() && (512..=65536).contains(&self.logical_block)) {
            return Err(BadConfig::LogicalBlock(self.logical_block));
        }
        let (buffers, bytes) = (self.staging_buffers, self.staging_bytes);
        let whole_blocks = bytes.is_multiple_of(self.logical_block);
        if buffers == 0 || bytes == 0 || bytes > Self::MAX_STAGING_BYTES || !whole_blocks {
            return Err(BadConfig::Staging { buffers, bytes });
        }
        if self.fill_buffers > MAX_FILL_BUFFERS {
            return Err(BadConfig::Fills(self.fill_buffers));
        }
        if self.capacity > Self::MAX_CAPACITY {
            return Err(BadConfig::Capacity(self.capacity));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: QueueConfig = QueueConfig {
        depth: 128,
        staging_buffers: 8,
        staging_bytes: 128 << 10,
        fill_buffers: 4,
        capacity: 2048,
        logical_block: 512,
        read_only: false,
        lossy: false,
        backing: Backing::Null { filled: true },
    };

    #[test]
    fn each_field_has_its_range() {
        assert_eq!(GOOD.check(), Ok(()));
        assert_eq!(QueueConfig { depth: 0, ..GOOD }.check(), Err(BadConfig::Depth(0)));
        assert_eq!(
            QueueConfig { depth: 4097, ..GOOD }.check(),
            Err(BadConfig::Depth(4097))
        );
        assert_eq!(
            QueueConfig {
                logical_block: 768,
                ..GOOD
            }
            .check(),
            Err(BadConfig::LogicalBlock(768))
        );
        assert!(
            QueueConfig {
                staging_buffers: 0,
                ..GOOD
            }
            .check()
            .is_err()
        );
        assert!(
            QueueConfig {
                staging_bytes: 1000,
                ..GOOD
            }
            .check()
            .is_err()
        );
        let capacity = QueueConfig::MAX_CAPACITY + 1;
        assert_eq!(
            QueueConfig { capacity, ..GOOD }.check(),
            Err(BadConfig::Capacity(capacity))
        );
    }
}
