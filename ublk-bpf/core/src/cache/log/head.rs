//! What a checkpoint counts by.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::position::Position;
use super::{LOG_PAGE, LogLayout, LogSeal, block};

const MAGIC: [u8; 8] = *b"ublkbpfH";
/// More than there ever are; beyond every one there is another.
const MOST: u64 = u64::MAX / 2;

/// A head: a checkpoint, and where the log goes on from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The number of the checkpoint; the highest one counts.
    pub checkpoint: u64,
    /// Blocks of it in the head's area.
    pub blocks: u32,
    pub(super) start: Position,
}

impl Head {
    /// The number of the log's block where replay starts.
    #[must_use]
    pub const fn seq(&self) -> u64 {
        self.start.seq
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    log_id: U64,
    checkpoint: U64,
    seq: U64,
    tx: U64,
    blocks: U32,
    reserved: [u8; 4048],
    /// CRC-32C, of the seal and of everything before.
    crc: U32,
}

const _: () = assert!(size_of::<Raw>() == LOG_PAGE);

impl Raw {
    fn checksum(&self, seal: &LogSeal) -> u32 {
        let before = &self.as_bytes()[..std::mem::offset_of!(Self, crc)];
        crc32c::crc32c_append(block::seed(seal), before)
    }

    fn values(&self, layout: &LogLayout) -> Result<Head, &'static str> {
        let numbers = [self.checkpoint, self.seq, self.tx].map(U64::get);
        if numbers.iter().any(|&number| number > MOST) || self.blocks.get() > layout.area_pages {
            return Err("impossible numbers");
        }
        if self.reserved.iter().any(|&byte| byte != 0) {
            return Err("unknown values");
        }
        let [checkpoint, seq, tx] = numbers;
        Ok(Head {
            checkpoint,
            blocks: self.blocks.get(),
            start: Position { seq, tx },
        })
    }
}

/// Writes a head into a page.
pub(super) fn encode(seal: &LogSeal, head: &Head, page: &mut [u8]) {
    let mut raw = Raw::new_zeroed();
    raw.magic = MAGIC;
    raw.log_id = seal.log_id.into();
    raw.checkpoint = head.checkpoint.into();
    (raw.seq, raw.tx) = (head.start.seq.into(), head.start.tx.into());
    raw.blocks = head.blocks.into();
    raw.crc = raw.checksum(seal).into();
    page.copy_from_slice(raw.as_bytes());
}

/// The head of this seal in a page; `None` if there is none.
///
/// # Errors
/// If it was written so and cannot be, or not by this version of the program; in words.
pub(super) fn parse(seal: &LogSeal, layout: &LogLayout, page: &[u8]) -> Result<Option<Head>, &'static str> {
    let Ok(raw) = Raw::ref_from_bytes(page) else {
        return Ok(None);
    };
    let is_ours = raw.magic == MAGIC && raw.log_id.get() == seal.log_id;
    if !is_ours || raw.crc.get() != raw.checksum(seal) {
        return Ok(None);
    }
    raw.values(layout).map(Some)
}
