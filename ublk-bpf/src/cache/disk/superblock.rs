//! The superblock of a cache device, of which there are two copies.

use std::fmt;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::DiskError;
use super::layout::{COPIES, Layout, PAGE};
use super::storage::{Storage, failed};
use crate::backend::fingerprint::{Identity, SavedIdentity};
use crate::cache::log::LogSeal;
use crate::sys;
use crate::sys::aligned::Aligned;

/// What a copy starts with.
const MAGIC: [u8; 8] = *b"ublkbpfC";
/// The version of the format that this program writes.
pub(super) const VERSION: u32 = 3;
/// The version before, which it reads as well: without a log, so that nothing is dirty, and with the slots in its place.
pub(super) const WITHOUT_LOG: u32 = 2;
/// The same, and all blocks are cached as a whole.
pub(super) const WHOLE_BLOCKS: u32 = 1;

/// Which saved list of blocks: no two saves of any caches have the same. Entries are sealed with it, so that those of
/// an older save, or of another cache that was here, are not taken for this one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seal {
    /// Random, made with the cache.
    pub(super) id: [u8; 16],
    /// Counts the superblock's changes.
    pub(super) generation: u64,
}

/// What a copy of the superblock says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Superblock {
    /// The version of the copy that was read; what is [next](Self::next) is always of [`VERSION`].
    pub(super) version: u32,
    pub(super) layout: Layout,
    /// Whether the entries are those of a cache that was stopped in good order and not started since.
    pub(super) clean: bool,
    /// How many slots are in use, if it is clean; else zero.
    pub(super) in_use: u32,
    /// The id of the log that says what is dirty; `None`: nothing is.
    pub(super) log_id: Option<u64>,
    pub(super) seal: Seal,
    pub(super) identity: Identity,
}

/// What stands where a copy is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Zeroes.
    Blank,
    /// Something of others.
    Foreign,
    /// A superblock once.
    Damaged(&'static str),
    /// One of another version of the format.
    Version(u32),
    /// One that can be trusted.
    Good(Box<Superblock>),
}

/// Both copies, as they were read.
#[derive(Clone, Debug)]
pub(super) struct Copies([Found; 2]);

impl Copies {
    pub(super) fn read(storage: &impl Storage) -> Result<Self, DiskError> {
        let mut found = [Found::Foreign, Found::Foreign];
        let mut buffer = Aligned::new(size_of::<Raw>());
        let failed = failed("read its superblock");
        if storage.bytes().map_err(&failed)? < COPIES[1] + PAGE {
            return Ok(Self(found));
        }
        for (found, at) in found.iter_mut().zip(COPIES) {
            storage.read(&mut buffer, at).map_err(&failed)?;
            *found = parse(&buffer);
        }
        Ok(Self(found))
    }

    /// Both, the first one first.
    pub(super) const fn found(&self) -> &[Found; 2] {
        &self.0
    }

    /// The newest good copy; `None` if both places are blank.
    ///
    /// # Errors
    /// If the device holds other data, is of another version, or is damaged beyond use.
    pub(super) fn best(&self) -> Result<Option<&Superblock>, DiskError> {
        let version = self.0.iter().find_map(|found| match found {
            Found::Version(version) => Some(*version),
            _ => None,
        });
        if let Some(version) = version {
            return Err(DiskError::Version {
                found: version,
                known: VERSION,
            });
        }
        if let Some((_, newest)) = self.newest() {
            return Ok(Some(newest));
        }
        match &self.0 {
            [Found::Blank, Found::Blank] => Ok(None),
            [a, b] if [a, b].iter().any(|found| matches!(found, Found::Damaged(_))) => {
                Err(DiskError::Superblock {
                    a: a.to_string(),
                    b: b.to_string(),
                })
            }
            _ => Err(DiskError::Foreign),
        }
    }

    /// The newest good copy, whatever the other place has.
    pub(super) fn newest_good(&self) -> Option<&Superblock> {
        self.newest().map(|(_, newest)| newest)
    }

    /// Whether both copies are good and this holds for them.
    pub(super) fn both(&self, holds: impl Fn(&Superblock) -> bool) -> bool {
        self.0
            .iter()
            .all(|found| matches!(found, Found::Good(superblock) if holds(superblock)))
    }

    /// A superblock for a cache without content, newer than both copies.
    pub(super) fn empty(&self, layout: &Layout, identity: &Identity) -> Result<Superblock, DiskError> {
        let before = self.newest().map_or(0, |(_, newest)| newest.seal.generation);
        Ok(Superblock {
            version: VERSION,
            layout: *layout,
            clean: false,
            in_use: 0,
            log_id: None,
            seal: Seal {
                id: sys::process::random().map_err(failed("get random numbers for its id"))?,
                generation: before + 1,
            },
            identity: identity.clone(),
        })
    }

    /// Puts `superblock` in both places, one durably before the other, and the newest good copy last: whatever a crash
    /// leaves of the write that it cuts short, the other place has a whole copy, old or new.
    pub(super) fn replace(&self, storage: &impl Storage, superblock: &Superblock) -> Result<(), DiskError> {
        let last = self.newest().map_or(1, |(place, _)| place);
        for place in [1 - last, last] {
            let mut buffer = Aligned::new(size_of::<Raw>());
            buffer.copy_from_slice(Raw::new(superblock).as_bytes());
            storage
                .write(&buffer, COPIES[place])
                .and_then(|()| storage.sync())
                .map_err(failed("write its superblock"))?;
        }
        Ok(())
    }

    /// The good copy that was written last, and its place.
    fn newest(&self) -> Option<(usize, &Superblock)> {
        let good = self
            .0
            .iter()
            .enumerate()
            .filter_map(|(place, found)| match found {
                Found::Good(superblock) => Some((place, &**superblock)),
                _ => None,
            });
        // Two that differ are never of one generation; were they, the one that promises less is right.
        good.max_by_key(|(_, superblock)| (superblock.seal.generation, !superblock.clean))
    }
}

impl Superblock {
    /// This one in its next generation, clean or not, with this log; the other values stay.
    pub(super) fn next(&self, clean: bool, log_id: Option<u64>) -> Self {
        let mut next = self.clone();
        next.version = VERSION;
        next.clean = clean;
        next.log_id = log_id;
        next.in_use = 0;
        next.seal.generation += 1;
        next
    }

    /// `Ok` if the device of `bytes` is still divided as the cache was made, and as is wanted now.
    pub(super) fn require(&self, layout: &Layout, bytes: u64) -> Result<(), DiskError> {
        let saved = &self.layout;
        if saved.block_bytes != layout.block_bytes {
            return Err(DiskError::BlockChanged {
                saved: saved.block_bytes,
                asked: layout.block_bytes,
            });
        }
        let is_same = match self.version {
            VERSION => saved == layout,
            _ => saved.fills(bytes),
        };
        if !is_same {
            return Err(DiskError::DeviceChanged {
                saved: saved.slots,
                now: layout.slots,
            });
        }
        Ok(())
    }

    /// What tells the log's blocks, if there is a log.
    pub(super) fn log_seal(&self) -> Option<LogSeal> {
        let cache_id = self.seal.id;
        self.log_id.map(|log_id| LogSeal { cache_id, log_id })
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blank => f.write_str("blank"),
            Self::Foreign => f.write_str("not a superblock of a cache"),
            Self::Damaged(what) => f.write_str(what),
            Self::Version(version) => write!(f, "of format version {version}"),
            Self::Good(_) => f.write_str("good"),
        }
    }
}

/// A superblock on the disk, little endian. Magic, version and checksum stay where they are in every version.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    version: U32,
    block_bytes: U32,
    slots: U32,
    in_use: U32,
    entries_offset: U64,
    data_offset: U64,
    generation: U64,
    id: [u8; 16],
    clean: u8,
    reserved: [u8; 7],
    identity: SavedIdentity,
    /// 0: nothing is dirty.
    log_id: U64,
    rest: [u8; 3756],
    /// CRC-32C of everything before it.
    crc: U32,
}

const _: () = assert!(size_of::<Raw>() as u64 == PAGE);

impl Raw {
    fn new(superblock: &Superblock) -> Self {
        let layout = &superblock.layout;
        let mut raw = Self::new_zeroed();
        raw.magic = MAGIC;
        raw.version = superblock.version.into();
        raw.block_bytes = layout.block_bytes.into();
        raw.slots = layout.slots.into();
        raw.in_use = superblock.in_use.into();
        raw.entries_offset = layout.entries_offset.into();
        raw.data_offset = layout.data_offset.into();
        raw.generation = superblock.seal.generation.into();
        raw.id = superblock.seal.id;
        raw.clean = superblock.clean.into();
        raw.identity = SavedIdentity::new(&superblock.identity);
        raw.log_id = superblock.log_id.unwrap_or(0).into();
        raw.crc = raw.checksum().into();
        raw
    }

    fn checksum(&self) -> u32 {
        let bytes = self.as_bytes();
        crc32c::crc32c(&bytes[..bytes.len() - size_of::<U32>()])
    }

    /// What it says, checksum and version being right.
    fn values(&self) -> Result<Superblock, &'static str> {
        let (slots, block_bytes) = (self.slots.get(), self.block_bytes.get());
        let has_log = self.version.get() == VERSION;
        let of = if has_log { Layout::of } else { Layout::without_log };
        let layout = of(slots, block_bytes).ok_or("impossible slots or block size")?;
        if (layout.entries_offset, layout.data_offset) != (self.entries_offset.get(), self.data_offset.get())
        {
            return Err("impossible offsets");
        }
        let generation = self.generation.get();
        // More changes than anybody makes; and there is always a next one.
        if generation == 0 || generation > u64::MAX / 2 {
            return Err("impossible generation");
        }
        let (clean, in_use) = (self.clean == 1, self.in_use.get());
        if self.clean > 1 || in_use > if clean { slots } else { 0 } {
            return Err("impossible state");
        }
        let log_id = self.log_id.get();
        let is_unknown = !has_log && log_id != 0;
        if is_unknown || self.reserved.iter().chain(&self.rest).any(|&byte| byte != 0) {
            return Err("unknown values");
        }
        Ok(Superblock {
            version: self.version.get(),
            layout,
            clean,
            in_use,
            log_id: (log_id != 0).then_some(log_id),
            seal: Seal {
                id: self.id,
                generation,
            },
            identity: self.identity.parse().ok_or("impossible backing")?,
        })
    }
}

/// Tells what stands in a copy's place.
fn parse(bytes: &[u8]) -> Found {
    let Ok(raw) = Raw::ref_from_bytes(bytes) else {
        return Found::Foreign;
    };
    if bytes.iter().all(|&byte| byte == 0) {
        return Found::Blank;
    }
    if raw.magic != MAGIC {
        return Found::Foreign;
    }
    if raw.crc.get() != raw.checksum() {
        return Found::Damaged("wrong checksum");
    }
    if ![VERSION, WITHOUT_LOG, WHOLE_BLOCKS].contains(&raw.version.get()) {
        return Found::Version(raw.version.get());
    }
    match raw.values() {
        Ok(superblock) => Found::Good(Box::new(superblock)),
        Err(what) => Found::Damaged(what),
    }
}
