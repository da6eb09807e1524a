//! What a device on a backend may promise.

/// The most that one discard or write-zeroes may cover: what fits the block layer's 32-bit length.
pub(super) const MAX_RANGE_BYTES: u64 = (u32::MAX as u64 >> 9) << 9;

/// What a device on this backend may promise. Lengths are in bytes, and powers of two where not said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Capacity in sectors of 512 bytes; a multiple of `logical_block`.
    pub sectors: u64,
    /// Whether it can only be read.
    pub read_only: bool,
    /// The unit of addresses and lengths: 512 to 4096.
    pub logical_block: u32,
    /// The unit that is written without read-modify-write; at least `logical_block`.
    pub physical_block: u32,
    /// The smallest length that performs well; zero if nothing is known.
    pub io_min: u32,
    /// The length that performs best; zero if nothing is known. Not always a power of two.
    pub io_opt: u32,
    /// The alignment that memory must have for I/O without a copy: 4 to 4096.
    pub memory_align: u32,
    /// Whether access time depends on the address.
    pub rotational: bool,
    /// The latency that the kernel's write-back throttling keeps its queue below, in microseconds
    /// (`queue/wbt_lat_usec`); 0: nothing is throttled; `None`: not known.
    pub throttle: Option<u64>,
    /// Whether pages must not change while they are written (`queue/stable_writes`): it computes checksums or parity.
    pub stable_writes: bool,
    /// Whether a completed write may be lost with power until a flush. If so, a durable write (FUA) is
    /// offered too (`RWF_DSYNC`).
    pub volatile_cache: bool,
    /// How discards reach it, if they do.
    pub discard: Option<DiscardFacts>,
    /// How write-zeroes reach it, if they do without writing zeroes.
    pub write_zeroes: Option<WriteZeroes>,
}

impl Facts {
    /// Raises the logical block, and withdraws what cannot be done in whole blocks.
    pub(super) fn set_logical_block(&mut self, block: u32) {
        let whole = |bytes: u64| bytes - bytes % u64::from(block);
        self.logical_block = block;
        self.physical_block = self.physical_block.max(block);
        self.discard = self.discard.map(|discard| DiscardFacts {
            granularity: discard.granularity.next_multiple_of(block),
            max_bytes: whole(discard.max_bytes),
            ..discard
        });
        self.discard
            .take_if(|discard| discard.max_bytes < discard.granularity.into());
        self.write_zeroes = self.write_zeroes.map(|zeroes| WriteZeroes {
            max_bytes: whole(zeroes.max_bytes),
            ..zeroes
        });
        self.write_zeroes.take_if(|zeroes| zeroes.max_bytes == 0);
    }

    /// How a ring does these discards and write-zeroes.
    pub(super) fn ring_ops(&self) -> RingOps {
        RingOps {
            block_discard: self
                .discard
                .is_some_and(|discard| discard.how == DiscardBy::BlockCommand),
            zero_range: self.write_zeroes.is_some_and(|zeroes| zeroes.zero_range),
        }
    }
}

/// How a ring does what not every file can do in the same way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingOps {
    /// Discards by io_uring's block command; otherwise by punching a hole.
    pub block_discard: bool,
    /// `fallocate` with `ZERO_RANGE` works.
    pub zero_range: bool,
}

/// Discards that really reach the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiscardFacts {
    /// The unit that space is given back in, in bytes. Not always a power of two.
    pub granularity: u32,
    /// Where the first whole unit starts, in bytes from the backend's start.
    pub alignment: u32,
    /// The most that one may cover, in bytes; a multiple of 512.
    pub max_bytes: u64,
    /// How it is done.
    pub how: DiscardBy,
}

/// The operation that discards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiscardBy {
    /// io_uring's `BLOCK_URING_CMD_DISCARD` (Linux 6.12).
    BlockCommand,
    /// `fallocate` with `PUNCH_HOLE`.
    PunchHole,
}

/// Write-zeroes that really reach the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteZeroes {
    /// The most that one may cover, in bytes; a multiple of 512.
    pub max_bytes: u64,
    /// Whether `fallocate` with `ZERO_RANGE` works, which keeps the space allocated. If not, `PUNCH_HOLE`
    /// serves for both kinds.
    pub zero_range: bool,
}
