//! A block of entries, of the log and of a checkpoint.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{LOG_PAGE, LogEntry, LogSeal};

/// Entries of a block at most.
pub const BLOCK_ENTRIES: usize = ENTRIES as usize;
pub(super) const ENTRIES: u32 = 252;

/// What a block is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A transaction of the log.
    Log,
    /// A checkpoint.
    Checkpoint,
}

impl Kind {
    const fn magic(self) -> [u8; 8] {
        match self {
            Self::Log => *b"ublkbpfL",
            Self::Checkpoint => *b"ublkbpfK",
        }
    }
}

/// Which block it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The number of the block in the log; of a checkpoint's, the number of the checkpoint.
    pub(super) seq: u64,
    /// The number of the transaction; 0 in a checkpoint.
    pub(super) tx: u64,
    /// Which of the transaction's or checkpoint's blocks, from 1.
    pub(super) k: u32,
    /// How many the transaction has; 0 in a checkpoint, whose head says that.
    pub(super) n: u32,
}

/// A block whose checksum is right.
#[derive(Debug)]
pub(super) struct Block<'a> {
    pub(super) place: Place,
    entries: &'a [RawEntry],
}

impl Block<'_> {
    /// Its entries: at least one.
    pub(super) fn entries(&self) -> impl Iterator<Item = LogEntry> {
        self.entries.iter().map(RawEntry::entry)
    }

    /// Whether there is no room for another entry.
    pub(super) const fn is_full(&self) -> bool {
        self.entries.len() == BLOCK_ENTRIES
    }
}

/// The slot's whole dirty state.
const STATE: u8 = 1;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
struct RawEntry {
    block: U32,
    slot: U32,
    dirty: U16,
    kind: u8,
    reserved: [u8; 5],
}

impl RawEntry {
    fn new(entry: LogEntry) -> Self {
        Self {
            block: entry.block.into(),
            slot: entry.slot.into(),
            dirty: entry.dirty.into(),
            kind: STATE,
            reserved: [0; 5],
        }
    }

    fn entry(&self) -> LogEntry {
        LogEntry {
            slot: self.slot.get(),
            block: self.block.get(),
            dirty: self.dirty.get(),
        }
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    log_id: U64,
    seq: U64,
    tx: U64,
    k: U32,
    n: U32,
    count: U32,
    reserved: [u8; 16],
    /// CRC-32C, of the seal and of all other bytes.
    crc: U32,
    entries: [RawEntry; BLOCK_ENTRIES],
}

const _: () = assert!(size_of::<Raw>() == LOG_PAGE);

impl Raw {
    fn checksum(&self, seal: &LogSeal) -> u32 {
        let before = &self.as_bytes()[..std::mem::offset_of!(Self, crc)];
        let crc = crc32c::crc32c_append(seed(seal), before);
        crc32c::crc32c_append(crc, self.entries.as_bytes())
    }

    /// The entries, if there is nothing in the block that is not understood.
    fn known(&self, slots: u32) -> Result<&[RawEntry], &'static str> {
        let count = self.count.get() as usize;
        if !(1..=BLOCK_ENTRIES).contains(&count) {
            return Err("an impossible number of entries");
        }
        let (entries, rest) = self.entries.split_at(count);
        if entries.iter().any(|entry| entry.kind != STATE) {
            return Err("an entry of unknown kind");
        }
        let reserved = entries.iter().map(|entry| &entry.reserved[..]);
        let mut reserved = reserved.chain([&self.reserved[..], rest.as_bytes()]);
        if reserved.any(|bytes| bytes.iter().any(|&byte| byte != 0)) {
            return Err("unknown values");
        }
        if entries.iter().any(|entry| entry.slot.get() >= slots) {
            return Err("a slot that there is not");
        }
        Ok(entries)
    }
}

/// What every checksum goes on from.
pub(super) fn seed(seal: &LogSeal) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&seal.cache_id), &seal.log_id.to_le_bytes())
}

/// Writes a block with these entries, 1 to [`BLOCK_ENTRIES`], into a page.
pub(super) fn encode(kind: Kind, seal: &LogSeal, place: Place, entries: &[LogEntry], page: &mut [u8]) {
    let mut raw = Raw::new_zeroed();
    raw.magic = kind.magic();
    raw.log_id = seal.log_id.into();
    (raw.seq, raw.tx) = (place.seq.into(), place.tx.into());
    (raw.k, raw.n) = (place.k.into(), place.n.into());
    let mut count = 0;
    for (raw, &entry) in raw.entries.iter_mut().zip(entries) {
        *raw = RawEntry::new(entry);
        count += 1;
    }
    raw.count = count.into();
    raw.crc = raw.checksum(seal).into();
    page.copy_from_slice(raw.as_bytes());
}

/// The block of this kind and seal in a page; `None` if there is none.
///
/// # Errors
/// If it was written so and cannot be, or not by this version of the program; in words.
pub(super) fn parse<'a>(
    kind: Kind,
    seal: &LogSeal,
    slots: u32,
    page: &'a [u8],
) -> Result<Option<Block<'a>>, &'static str> {
    let Ok(raw) = Raw::ref_from_bytes(page) else {
        return Ok(None);
    };
    let is_ours = raw.magic == kind.magic() && raw.log_id.get() == seal.log_id;
    if !is_ours || raw.crc.get() != raw.checksum(seal) {
        return Ok(None);
    }
    let place = Place {
        seq: raw.seq.get(),
        tx: raw.tx.get(),
        k: raw.k.get(),
        n: raw.n.get(),
    };
    raw.known(slots).map(|entries| Some(Block { place, entries }))
}
