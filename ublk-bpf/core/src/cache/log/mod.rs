//! The log of the cache device: which regions of which slots are *dirty*, newer than the backing, as far as a power loss
//! must not take that knowledge. This is the format; what becomes dirty when, and the I/O, are the server's.
//!
//! | where | what |
//! |---|---|
//! | [`LogLayout::heads_offset`] | two heads of 4 KiB: a checkpoint, and where in the log replay starts after it |
//! | [`LogLayout::areas_offset`] | two areas: the entries of a checkpoint; head 0 is of area 0, head 1 of area 1 |
//! | [`LogLayout::log_offset`] | the log, circular: transactions of entries |
//!
//! An *entry* is the whole dirty state of one slot: its block, and the regions that are dirty, of which there may be none.
//! So entries are absolute, and to replay one twice does no harm. All are in blocks of 4 KiB of up to [`BLOCK_ENTRIES`] entries,
//! each with a CRC-32C that is seeded with the cache's id and the log's. All numbers are little endian.
//!
//! # The log
//!
//! Blocks are numbered; number *s* is at page *s* modulo the number of pages. A *transaction* is one or more consecutive
//! blocks with the same transaction number, and is one write. It does not cross the end of the log: if it does not fit
//! there, it goes to the start, and the rest of the lap stays as it was. One transaction is in flight at a time, and is
//! durable before the next one is placed. After a power loss any of the blocks of the last one may be there or not; it
//! counts if all are.
//!
//! Replay goes from transaction to transaction, and ends at the first one that is not there whole. A block of a later
//! one beyond that is proof of damage: then nothing is believed.
//!
//! What a torn transaction left must never complete a later one with its number. So each start goes on under a new log
//! id, after a checkpoint of what it found: [`Previous::successor`] is the only way to go on. And it reads nothing before the
//! last write of a server that was killed has ended: that would take the place of a block of the new log.
//!
//! # Checkpoints
//!
//! A checkpoint frees the log: it has the state of all dirty slots, goes to the area that is not in use, and counts when its
//! head is durable. It is fuzzy: transactions go on while its entries are collected, and replay after it starts at the
//! last transaction that was placed before it began, because that one may still be in flight. Each attempt has its own
//! number, so blocks of one that failed are not taken for those of the next.

mod block;
mod checkpoint;
mod head;
mod position;
mod replay;
#[cfg(test)]
mod tests;

pub use block::BLOCK_ENTRIES;
pub use checkpoint::Checkpoint;
pub use head::Head;
pub use position::{Full, Log};
pub use replay::{Damage, Previous, ReadPages, ReplayError, Replayed, heads, replay};

/// The unit that all of this is read and written in, in bytes.
pub const LOG_PAGE: usize = 4096;
/// Bytes of a buffer that every transaction fits in.
pub const LOG_BUFFER: usize = MOST_BLOCKS as usize * LOG_PAGE;
/// Blocks of a transaction at most.
const MOST_BLOCKS: u32 = 64;
/// The fewest pages that a log can have.
pub const MIN_LOG_PAGES: u32 = 8;

/// The dirty state of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogEntry {
    /// The slot, below [`LogLayout::slots`].
    pub slot: u32,
    /// The block of the backing that it holds.
    pub block: u32,
    /// The regions that are dirty, one bit each; 0 if the slot is clean.
    pub dirty: u16,
}

/// What tells the log's blocks from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSeal {
    /// The cache's id.
    pub cache_id: [u8; 16],
    /// The log's: random, new with each start, never 0.
    pub log_id: u64,
}

/// Where things are on the cache device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLayout {
    /// How many slots the cache has: at least one.
    pub slots: u32,
    /// Where the heads start, in bytes: a multiple of [`LOG_PAGE`].
    pub heads_offset: u64,
    /// Where area 0 starts, in bytes.
    pub areas_offset: u64,
    /// Pages of each area: an entry for every slot fits in.
    pub area_pages: u32,
    /// Where the log starts, in bytes.
    pub log_offset: u64,
    /// Pages of the log: at least [`MIN_LOG_PAGES`].
    pub log_pages: u32,
}

impl LogLayout {
    /// Heads, areas and log one after the other from `offset` on, a multiple of [`LOG_PAGE`]; a log of fewer than
    /// [`MIN_LOG_PAGES`] gets so many.
    #[must_use]
    pub const fn new(offset: u64, slots: u32, log_pages: u32) -> Self {
        let area_pages = slots.div_ceil(block::ENTRIES);
        let areas_offset = offset + 2 * LOG_PAGE as u64;
        Self {
            slots,
            heads_offset: offset,
            areas_offset,
            area_pages,
            log_offset: areas_offset + 2 * area_pages as u64 * LOG_PAGE as u64,
            log_pages: if log_pages < MIN_LOG_PAGES {
                MIN_LOG_PAGES
            } else {
                log_pages
            },
        }
    }

    /// Where the log ends, in bytes.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.log_offset + self.log_pages as u64 * LOG_PAGE as u64
    }

    /// Blocks of a transaction in this log at most. With a quarter of the log, one fits into a log that a checkpoint has freed, wherever
    /// that is: behind the one that a checkpoint keeps, and behind what is left of the lap.
    const fn most_blocks(&self) -> u32 {
        let quarter = self.log_pages / 4;
        if quarter < MOST_BLOCKS {
            quarter
        } else {
            MOST_BLOCKS
        }
    }

    /// Where a page of an area is, in bytes.
    const fn area_page(&self, area: Half, page: u32) -> u64 {
        self.areas_offset + (area.index() as u64 * self.area_pages as u64 + page as u64) * LOG_PAGE as u64
    }

    const fn head(&self, half: Half) -> u64 {
        self.heads_offset + (half.index() * LOG_PAGE) as u64
    }

    const fn log_page(&self, page: u32) -> u64 {
        self.log_offset + page as u64 * LOG_PAGE as u64
    }

    /// The page of a block of the log.
    #[expect(clippy::cast_possible_truncation, reason = "below the number of pages")]
    const fn page_of(&self, seq: u64) -> u32 {
        (seq % self.log_pages as u64) as u32
    }
}

/// What is to be written where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Where on the device, in bytes: a multiple of [`LOG_PAGE`].
    pub offset: u64,
    /// How many bytes of the buffer, from its start: a multiple of [`LOG_PAGE`].
    pub length: usize,
}

/// One of the two heads, with its area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    First,
    Second,
}

impl Half {
    const BOTH: [Self; 2] = [Self::First, Self::Second];

    const fn index(self) -> usize {
        match self {
            Self::First => 0,
            Self::Second => 1,
        }
    }

    const fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }
}
