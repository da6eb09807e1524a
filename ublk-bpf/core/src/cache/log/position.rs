//! The log in use: where the next transaction goes, and what is free.

use super::block::{self, BLOCK_ENTRIES, Kind, Place};
use super::{Checkpoint, Half, LOG_PAGE, LogEntry, LogLayout, LogSeal, Placed};

/// The place of a transaction: the number of its first block, and its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) seq: u64,
    pub(super) tx: u64,
}

impl Position {
    pub(super) const START: Self = Self { seq: 0, tx: 1 };
}

/// There is no room in the log before a checkpoint has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the log of the cache is full until a checkpoint of it has ended")]
pub struct Full;

/// A log in use. It does no I/O; that is the caller's, in the order that this says.
///
/// A new one counts after its first checkpoint has ended and the superblock has its id.
#[derive(Debug)]
pub struct Log {
    layout: LogLayout,
    seal: LogSeal,
    next: Position,
    /// The last transaction that was placed, which may not be durable yet; where there is none, the next one.
    last: Position,
    /// The first block that replay needs.
    tail: u64,
    /// How many checkpoints were begun.
    checkpoints: u64,
    /// Where the last one that ended is.
    half: Half,
}

impl Log {
    /// An empty log.
    #[must_use]
    pub const fn new(layout: LogLayout, seal: LogSeal) -> Self {
        Self::sparing(layout, seal, Half::Second)
    }

    /// An empty log whose first checkpoint leaves this half as it is.
    pub(super) const fn sparing(layout: LogLayout, seal: LogSeal, half: Half) -> Self {
        Self {
            layout,
            seal,
            next: Position::START,
            last: Position::START,
            tail: 0,
            checkpoints: 0,
            half,
        }
    }

    /// What its blocks are sealed with.
    #[must_use]
    pub const fn seal(&self) -> LogSeal {
        self.seal
    }

    /// Where it is.
    #[must_use]
    pub const fn layout(&self) -> &LogLayout {
        &self.layout
    }

    /// How many entries a transaction can have.
    #[must_use]
    pub const fn max_entries(&self) -> usize {
        self.layout.most_blocks() as usize * BLOCK_ENTRIES
    }

    /// How many bytes a transaction can have.
    #[must_use]
    pub const fn record_bytes(&self) -> usize {
        self.layout.most_blocks() as usize * LOG_PAGE
    }

    /// Whether it is time for a checkpoint.
    #[must_use]
    pub const fn is_half_full(&self) -> bool {
        self.next.seq - self.tail > self.layout.log_pages as u64 / 2
    }

    /// Places a transaction of these entries, 1 to [`Self::max_entries`], and encodes it into the start of `into`, a buffer
    /// of [`LOG_BUFFER`](super::LOG_BUFFER) bytes. The caller writes it there in one write, and calls this again only
    /// when that is durable. A write that failed must be done again: replay does not go beyond a transaction that is
    /// not there.
    ///
    /// # Errors
    /// If a checkpoint is needed first. Nothing has changed then.
    ///
    /// # Panics
    /// If there is no entry or too many, one is of a slot that there is not, or the buffer is too small.
    pub fn append(&mut self, entries: &[LogEntry], into: &mut [u8]) -> Result<Placed, Full> {
        assert!(!entries.is_empty() && entries.len() <= self.max_entries());
        assert!(entries.iter().all(|entry| entry.slot < self.layout.slots));
        let blocks = entries.chunks(BLOCK_ENTRIES).len() as u64;
        let pages = u64::from(self.layout.log_pages);
        let page = u64::from(self.layout.page_of(self.next.seq));
        let skipped = if page + blocks > pages { pages - page } else { 0 };
        let (seq, tx) = (self.next.seq + skipped, self.next.tx);
        if seq + blocks - self.tail > pages {
            return Err(Full);
        }
        let length = self.encode(seq, entries, into);
        self.last = Position { seq, tx };
        self.next = Position {
            seq: seq + blocks,
            tx: tx + 1,
        };
        let offset = self.layout.log_page(self.layout.page_of(seq));
        Ok(Placed { offset, length })
    }

    fn encode(&self, seq: u64, entries: &[LogEntry], into: &mut [u8]) -> usize {
        let blocks = entries.chunks(BLOCK_ENTRIES);
        let n = (1..).zip(blocks.clone()).map(|(k, _)| k).last().unwrap_or(0);
        let length = blocks.len() * LOG_PAGE;
        let pages = into[..length].chunks_exact_mut(LOG_PAGE);
        for ((k, entries), page) in (1..).zip(blocks).zip(pages) {
            let place = Place {
                seq: seq + u64::from(k - 1),
                tx: self.next.tx,
                k,
                n,
            };
            block::encode(Kind::Log, &self.seal, place, entries, page);
        }
        length
    }

    /// Begins a checkpoint. Its entries must be collected after this call.
    #[must_use]
    pub const fn begin_checkpoint(&mut self) -> Checkpoint {
        self.checkpoints += 1;
        Checkpoint::new(
            self.layout,
            self.seal,
            self.checkpoints,
            self.half.other(),
            self.last,
        )
    }

    /// The checkpoint's head is durable: what is before it is free. One that failed is dropped instead.
    ///
    /// # Panics
    /// If another one has begun since.
    pub fn end_checkpoint(&mut self, checkpoint: &Checkpoint) {
        let head = checkpoint.described();
        assert_eq!(head.checkpoint, self.checkpoints, "one checkpoint at a time");
        self.half = checkpoint.half();
        self.tail = head.start.seq;
    }
}
