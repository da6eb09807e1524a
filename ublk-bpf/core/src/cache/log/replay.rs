//! What a log says.

use std::collections::{HashMap, HashSet};
use std::fmt;

use super::block::{self, Block, Kind, Place};
use super::position::Position;
use super::{Half, Head, Log, LogEntry, LogLayout, LogSeal, checkpoint, head};

/// How damage names the parts.
const LOG: &str = "the log";
const CHECKPOINT: &str = "the checkpoint of the log";

/// What a log is read from. Most pages are asked for in ascending order.
pub trait ReadPages {
    /// What can go wrong.
    type Error;

    /// The [`LOG_PAGE`](super::LOG_PAGE) bytes at `offset`, a multiple of that.
    ///
    /// # Errors
    /// If they cannot be read.
    fn page(&mut self, offset: u64) -> Result<&[u8], Self::Error>;
}

/// Where a log is damaged, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// In which part.
    pub part: &'static str,
    /// The damaged page's place on the device, in bytes.
    pub offset: u64,
    /// What is wrong, in words.
    pub what: &'static str,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}: {}", self.part, self.offset, self.what)
    }
}

/// Why nothing can be said about what is dirty.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError<E> {
    /// The device failed.
    #[error("cannot read the log: {0}")]
    Read(E),
    /// The log contradicts itself.
    #[error("{0}")]
    Damaged(Damage),
}

/// What a log says.
#[derive(Debug)]
pub struct Replayed {
    /// The dirty slots in ascending order, each with another block; none of them has no dirty region.
    pub dirty: Vec<LogEntry>,
    /// What the next log has to spare until it counts.
    pub previous: Previous,
}

/// A log that was replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Previous {
    layout: LogLayout,
    /// The head that counted.
    pub head: Head,
    half: Half,
    /// Where the log ends.
    next: Position,
}

impl Previous {
    /// The log to go on with: empty, of another id. It counts when its first checkpoint, of what was dirty, has ended and
    /// the superblock has its id; until then everything that the old one needs is left as it is.
    #[must_use]
    pub const fn successor(&self, seal: LogSeal) -> Log {
        Log::sparing(self.layout, seal, self.half)
    }

    /// Blocks of the log that replay went through, with those that were left out at its end.
    #[must_use]
    pub const fn blocks(&self) -> u64 {
        self.next.seq - self.head.start.seq
    }
}

/// What stands where a head is to be: `None` if none of this log does.
///
/// # Errors
/// If the device fails.
pub fn heads<R: ReadPages>(
    from: &mut R,
    layout: &LogLayout,
    seal: &LogSeal,
) -> Result<[Result<Option<Head>, Damage>; 2], R::Error> {
    let mut found = [Ok(None), Ok(None)];
    for (found, half) in found.iter_mut().zip(Half::BOTH) {
        let offset = layout.head(half);
        let parsed = head::parse(seal, layout, from.page(offset)?);
        *found = parsed.map_err(damage("a head of the log", offset));
    }
    Ok(found)
}

/// Reads which slots are dirty, of a cache of a backing with so many blocks.
///
/// The newest head counts. Should its checkpoint not be there whole, which only a failed write explains, the other one
/// does, and what it needs of the log is there still or is missed.
///
/// # Errors
/// If the device fails, if there is no head, and at anything that no crash explains.
pub fn replay<R: ReadPages>(
    from: &mut R,
    layout: &LogLayout,
    seal: &LogSeal,
    blocks: u64,
) -> Result<Replayed, ReplayError<R::Error>> {
    let heads = heads(from, layout, seal).map_err(ReplayError::Read)?;
    let mut good = Vec::new();
    for (found, half) in heads.into_iter().zip(Half::BOTH) {
        good.extend(found.map_err(ReplayError::Damaged)?.map(|head| (head, half)));
    }
    good.sort_unstable_by_key(|(head, _)| std::cmp::Reverse(head.checkpoint));
    let mut error = missing(layout);
    for (nth, (head, half)) in good.into_iter().enumerate() {
        match replay_from(from, layout, seal, head, half, blocks) {
            Err(ReplayError::Damaged(damage)) if nth == 0 => error = damage,
            Err(ReplayError::Damaged(_)) => {}
            other => return other,
        }
    }
    Err(ReplayError::Damaged(error))
}

const fn missing(layout: &LogLayout) -> Damage {
    Damage {
        part: "the heads of the log",
        offset: layout.heads_offset,
        what: "neither is one of this log",
    }
}

fn replay_from<R: ReadPages>(
    from: &mut R,
    layout: &LogLayout,
    seal: &LogSeal,
    head: Head,
    half: Half,
    blocks: u64,
) -> Result<Replayed, ReplayError<R::Error>> {
    let mut reader = Reader {
        from,
        layout,
        seal,
        state: HashMap::new(),
    };
    reader.checkpoint(&head, half)?;
    let next = reader.transactions(head.start)?;
    reader.require_end(next)?;
    let dirty = reader.dirty();
    check(&dirty, blocks).map_err(|what| ReplayError::Damaged(damage(LOG, layout.log_offset)(what)))?;
    let previous = Previous {
        layout: *layout,
        head,
        half,
        next,
    };
    Ok(Replayed { dirty, previous })
}

/// The whole must be possible; on the way to it a block may be in two slots, because a checkpoint is fuzzy, and the backing
/// may have been larger.
fn check(dirty: &[LogEntry], blocks: u64) -> Result<(), &'static str> {
    let mut seen = HashSet::with_capacity(dirty.len());
    for entry in dirty {
        if u64::from(entry.block) >= blocks {
            return Err("a dirty block beyond the backing's end");
        }
        if !seen.insert(entry.block) {
            return Err("a dirty block in two slots");
        }
    }
    Ok(())
}

fn damage(part: &'static str, offset: u64) -> impl Fn(&'static str) -> Damage {
    move |what| Damage { part, offset, what }
}

struct Reader<'a, R> {
    from: &'a mut R,
    layout: &'a LogLayout,
    seal: &'a LogSeal,
    state: HashMap<u32, LogEntry>,
}

type PageResult<T, R> = Result<T, ReplayError<<R as ReadPages>::Error>>;

impl<R: ReadPages> Reader<'_, R> {
    fn checkpoint(&mut self, head: &Head, half: Half) -> PageResult<(), R> {
        let mut slots = 0;
        for page in 0..head.blocks {
            let offset = self.layout.area_page(half, page);
            let failed = |what| ReplayError::Damaged(damage(CHECKPOINT, offset)(what));
            let block = block_at(self.from, Kind::Checkpoint, self.seal, self.layout.slots, offset)?;
            let block = block.filter(|block| block.place == checkpoint::place(head, page + 1));
            let block = block.ok_or_else(|| failed("not the block that its head counts"))?;
            for entry in block.entries() {
                if entry.slot < slots || entry.dirty == 0 {
                    return Err(failed("slots out of order, or a clean one"));
                }
                slots = entry.slot + 1;
                self.state.insert(entry.slot, entry);
            }
        }
        Ok(())
    }

    /// Goes through the transactions, and says where the one after the last is.
    fn transactions(&mut self, start: Position) -> PageResult<Position, R> {
        let end = start.seq + u64::from(self.layout.log_pages);
        let mut next = start;
        loop {
            let mut found = self.transaction(next, end)?;
            if found.is_none()
                && let Some(lap) = self.next_lap(next)
            {
                found = self.transaction(lap, end)?;
            }
            let Some(after) = found else {
                return Ok(next);
            };
            next = after;
        }
    }

    /// Where a transaction is that did not fit into the lap.
    fn next_lap(&self, next: Position) -> Option<Position> {
        let page = self.layout.page_of(next.seq);
        let left = self.layout.log_pages - page;
        (page != 0 && left < self.layout.most_blocks()).then(|| Position {
            seq: next.seq + u64::from(left),
            tx: next.tx,
        })
    }

    /// Applies the transaction at this place, if it is there whole, and says where it ends.
    fn transaction(&mut self, at: Position, end: u64) -> PageResult<Option<Position>, R> {
        let (mut k, mut n) = (1, 1);
        let mut entries = Vec::new();
        while k <= n {
            let seq = at.seq + u64::from(k - 1);
            let wanted = |n| Place { seq, tx: at.tx, k, n };
            let Some(block) = self.log_block(seq)?.filter(|_| seq < end) else {
                return Ok(None);
            };
            n = if k == 1 { block.place.n } else { n };
            if block.place != wanted(n) {
                return Ok(None);
            }
            entries.extend(block.entries());
            k += 1;
        }
        self.state
            .extend(entries.into_iter().map(|entry| (entry.slot, entry)));
        Ok(Some(Position {
            seq: at.seq + u64::from(n),
            tx: at.tx + 1,
        }))
    }

    /// What is where the log's block `seq` is to be; whatever was written there can be of a transaction.
    fn log_block(&mut self, seq: u64) -> PageResult<Option<Block<'_>>, R> {
        let page = self.layout.page_of(seq);
        let offset = self.layout.log_page(page);
        let layout = self.layout;
        let block = block_at(self.from, Kind::Log, self.seal, layout.slots, offset)?;
        if let Some(block) = &block
            && !is_possible(layout, page, block)
        {
            return Err(ReplayError::Damaged(damage(LOG, offset)(
                "an impossible transaction",
            )));
        }
        Ok(block)
    }

    /// After the last transaction, there can be blocks of a torn one with the next number, and none of a later one.
    fn require_end(&mut self, next: Position) -> PageResult<(), R> {
        for seq in 0..u64::from(self.layout.log_pages) {
            let block = self.log_block(seq)?;
            if block.is_some_and(|block| block.place.tx > next.tx) {
                let missing = damage(LOG, self.layout.log_page(self.layout.page_of(next.seq)));
                return Err(ReplayError::Damaged(missing("a transaction is missing")));
            }
        }
        Ok(())
    }

    fn dirty(self) -> Vec<LogEntry> {
        let entries = self.state.into_values().filter(|entry| entry.dirty != 0);
        let mut dirty: Vec<LogEntry> = entries.collect();
        dirty.sort_unstable();
        dirty
    }
}

/// Whether a transaction can have this block at this page.
fn is_possible(layout: &LogLayout, page: u32, block: &Block<'_>) -> bool {
    let Place { k, n, .. } = block.place;
    (1..=n).contains(&k)
        && n <= layout.most_blocks()
        && n - k < layout.log_pages - page
        && (k == n || block.is_full())
}

/// The block at `offset`, if there is one.
fn block_at<'a, R: ReadPages>(
    from: &'a mut R,
    kind: Kind,
    seal: &LogSeal,
    slots: u32,
    offset: u64,
) -> PageResult<Option<Block<'a>>, R> {
    let part = match kind {
        Kind::Log => LOG,
        Kind::Checkpoint => CHECKPOINT,
    };
    let page = from.page(offset).map_err(ReplayError::Read)?;
    block::parse(kind, seal, slots, page).map_err(|what| ReplayError::Damaged(damage(part, offset)(what)))
}
