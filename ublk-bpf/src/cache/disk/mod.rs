//! What a cache device holds: its format, version 3.
//!
//! | where | what |
//! |---|---|
//! | 0 | the superblock, copy A: 4 KiB, CRC-32C |
//! | 4096 | the same, copy B |
//! | 8192 | an entry of 16 bytes for every slot, each with a CRC-32C that is sealed with the save it belongs to |
//! | [`Layout::log`] | the log of what is dirty: [`ublk_bpf_core::cache::log`] |
//! | [`Layout::data_offset`] | the slots' data, a cache block each |
//!
//! Versions 1 and 2 have no log, and the slots' data in its place; version 1 has no mask of the regions that a slot
//! holds: its blocks are cached as a whole. They are read, and what is written is of version 3: the first slots are
//! lost to the log, the others get other numbers.
//!
//! All numbers are little endian; all metadata is read and written in whole, aligned blocks of 4 KiB.
//!
//! # What a crash leaves
//!
//! The entries count only while the superblock says *clean*, and it does so only between a stop in good order
//! ([`save`]) and the next start ([`open`]). A copy is one write of 4 KiB; of the good copies the one of the
//! highest generation is believed. Step by step, with power lost after any of them, and any write since the last
//! fsync done, undone or torn:
//!
//! 1. `open` finds generation *g*, clean, and verifies the entries. Nothing is written yet: the next start is as warm.
//! 2. It writes generation *g+1*, not clean, over one copy. Torn: the other one is *g*, clean, and still right, for
//!    the cache was not used since. Whole: the next start is cold.
//! 3. fsync, then the other copy, fsync. From here on no clean copy exists, so nothing that is done to slots and backing
//!    while the device runs can be contradicted by what was saved. Only now the entries are handed out.
//! 4. `save` writes entries that are sealed with *g+2*, and fsyncs them and the slots' data. Both copies say not
//!    clean: cold.
//! 5. It writes generation *g+2*, clean, over one copy. Torn: the other one says not clean: cold. Whole: everything that
//!    it promises is durable already, so the next start is warm, and rightly.
//! 6. fsync, then the other copy, fsync.
//!
//! # What is dirty
//!
//! The superblock has the id of a log while the slots may hold what the backing has not: from [`mark_dirty`], which is to
//! be called before the first such write, to [`clear_dirty`] or a [`save`] without a log. No crash and no start loses that:
//! whatever the entries are worth, [`open`] returns what the log says, and refuses the cache if that cannot be known.
//!
//! `open` and [`resume`] go on under a new log id. They write what is dirty to the places that the old log does not need,
//! and flush, before the superblock has the new id; until then the next start finds the old log whole.
//!
//! # The seal
//!
//! The seal covers what this order cannot: a device that loses a write which it said was durable. Entries of an older
//! save then fail their checksum, and are refused.

mod entries;
mod error;
pub mod inspect;
mod layout;
mod log;
mod sample;
mod storage;
mod superblock;
#[cfg(test)]
mod tests;
pub mod verify;

use std::fs::File;

use storage::{Storage, failed};
use superblock::{Copies, Superblock};

use crate::backend::fingerprint::Identity;
use crate::cache::log::{Log, LogEntry, LogSeal, Replayed};
use crate::sys::aligned::{self, Aligned};

pub use entries::SavedEntry;
pub use error::DiskError;
pub use layout::Layout;
pub use sample::sample_matches;

/// What [`open`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// A blank device, which is a cache now.
    New,
    /// The cache of this backing as it was saved: the slots in use in ascending order, each with another block, all of
    /// them blocks of the backing.
    Warm(Vec<SavedEntry>),
    /// The same, but nothing proves that the backing holds what it held when the cache was saved: no block is to be believed
    /// before it was compared.
    Unproven {
        /// The slots in use.
        entries: Vec<SavedEntry>,
        /// Why, in words that follow "its backing".
        reason: &'static str,
    },
    /// A cache whose content cannot be used, though nothing is wrong with it; it is empty now.
    Cold {
        /// Why, in words that follow "it".
        reason: &'static str,
    },
}

/// A cache device that was taken into use.
#[derive(Debug)]
pub struct Started {
    /// What it holds, dirty or not.
    pub opened: Opened,
    /// What the backing has yet to get, in ascending order of slots. Of a warm or unproven cache, these blocks are among the
    /// entries, with more regions perhaps; of a cold one these regions are all that is left.
    pub dirty: Vec<LogEntry>,
    /// The log to go on with; there is one if anything is dirty.
    pub log: Option<Log>,
    /// The cache's random id.
    pub cache_id: [u8; 16],
}

/// Takes the cache device into use for the backing `identity`, which must be as it was found at the start, before
/// anything is written to it. From the return on the device says that it is in use.
///
/// `file` is open for reading and writing, with direct I/O or without. Who wants to compare some slots with the backing
/// ([`sample_matches`]) does so with what this returns; if that refuses, the next start is cold.
///
/// # Errors
/// One line for everything else than these outcomes: other data, another version, damage, another
/// backing, a backing that was changed meanwhile, other blocks, another size. Nothing was written then.
pub fn open(file: &File, layout: &Layout, identity: &Identity) -> Result<Started, DiskError> {
    open_on(file, layout, identity)
}

/// Goes on with the log of a server that was killed, on the same cache: what the log says is dirty, which is what is
/// durable, and a new log. `None` if nothing was dirty.
///
/// # Errors
/// If the superblock is not that of a cache in use, the log is damaged, or the device fails.
pub fn resume(file: &File, layout: &Layout) -> Result<Option<(Vec<LogEntry>, Log)>, DiskError> {
    resume_on(file, layout)
}

/// Says that slots are to be dirty, of a cache that is in use and has no log. From the return on no start takes the cache for
/// one without dirty blocks.
///
/// # Errors
/// If the superblock is not that of a cache in use without a log, or the device fails.
pub fn mark_dirty(file: &File, layout: &Layout) -> Result<Log, DiskError> {
    mark_dirty_on(file, layout)
}

/// Says that nothing is dirty. The backing must have everything durably, and the log must say so too.
///
/// # Errors
/// If the superblock is not that of a cache in use with this log, or the device fails: then the log still counts.
pub fn clear_dirty(file: &File, layout: &Layout, log: &Log) -> Result<(), DiskError> {
    clear_dirty_on(file, layout, log)
}

/// Saves what the slots hold, in ascending order of slots, and says that the cache was stopped in good order. Whatever
/// was written to slots and backing must be complete; `identity` is that of the backing after its fsync.
///
/// With a `log`, what that says is dirty stays so. The entries have those blocks too, and their dirty regions as valid.
/// Without one, nothing is dirty.
///
/// # Errors
/// If an entry's slot is out of order or the device fails: then the next start is cold, but for what is dirty. The blocks are
/// checked when they are read.
pub fn save(
    file: &File,
    layout: &Layout,
    identity: &Identity,
    log: Option<&Log>,
    entries: impl Iterator<Item = SavedEntry>,
) -> Result<(), DiskError> {
    save_on(file, layout, identity, log, entries)
}

/// Says durably that these are the dirty blocks, in ascending order of slots, and makes their data durable before. For the end
/// of a server, when nothing else is written to the log or the slots. Returns the log that says so; `None` if nothing is dirty.
///
/// It is another log, because a checkpoint keeps the last record of its own, which may say less.
///
/// # Errors
/// If the superblock is not that of a cache in use with a log, or the device fails: then the log says what it said before.
pub fn settle(file: &File, layout: &Layout, dirty: Vec<LogEntry>) -> Result<Option<Log>, DiskError> {
    settle_on(file, layout, dirty)
}

/// What a cache is that may be on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its random id.
    pub cache_id: [u8; 16],
    /// Blocks of it may be dirty.
    pub may_be_dirty: bool,
}

/// The cache that is on a device, if its superblock can be read; whether it can be used, [`open`] says.
///
/// # Errors
/// If the device fails.
pub fn held(file: &File) -> Result<Option<Held>, DiskError> {
    let copies = Copies::read(file)?;
    Ok(copies.newest_good().map(|found| Held {
        cache_id: found.seal.id,
        may_be_dirty: found.log_id.is_some() && !found.identity.is_volatile(),
    }))
}

/// What becomes of dirty blocks in a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abandon {
    /// A cache with any is refused.
    Nothing,
    /// They are lost.
    Dirty,
}

/// Makes the device an empty cache in use, whatever is on it, and says how many dirty blocks were lost with it, as far as
/// the log can be read.
///
/// # Errors
/// If it holds dirty blocks that are not to be abandoned, or the device fails.
pub fn reset(
    file: &File,
    layout: &Layout,
    identity: &Identity,
    abandon: Abandon,
) -> Result<usize, DiskError> {
    reset_on(file, layout, identity, abandon)
}

fn reset_on(
    storage: &impl Storage,
    layout: &Layout,
    identity: &Identity,
    abandon: Abandon,
) -> Result<usize, DiskError> {
    let copies = Copies::read(storage)?;
    let dirty = match copies.newest_good() {
        Some(saved) if !saved.identity.is_volatile() => log::count(storage, saved),
        _ => Ok(0),
    };
    let lost = match (dirty, abandon) {
        (Ok(0), _) => 0,
        (Ok(blocks), Abandon::Nothing) => return Err(DiskError::Dirty(blocks)),
        (Err(error), Abandon::Nothing) => return Err(error),
        (dirty, Abandon::Dirty) => dirty.unwrap_or(0),
    };
    copies.replace(storage, &copies.empty(layout, identity)?)?;
    Ok(lost)
}

fn open_on(storage: &impl Storage, layout: &Layout, identity: &Identity) -> Result<Started, DiskError> {
    let copies = Copies::read(storage)?;
    let Some(saved) = copies.best()? else {
        require_blank(storage)?;
        return begin(storage, &copies, &copies.empty(layout, identity)?, Opened::New);
    };
    saved.require(layout, storage.bytes().map_err(failed("ask for its size"))?)?;
    if saved.log_id.is_some() && !saved.identity.is_volatile() {
        return open_dirty(storage, &copies, saved, identity);
    }
    if let Some(reason) = why_cold(saved, identity)? {
        let empty = copies.empty(layout, identity)?;
        return begin(storage, &copies, &empty, Opened::Cold { reason });
    }
    saved.identity.compare(identity)?;
    let entries = entries::read(storage, saved)?;
    let mut next = saved.next(false, None);
    next.layout = *layout;
    let entries = renumbered(entries, &saved.layout, layout);
    begin(storage, &copies, &next, opened(saved, identity, entries))
}

/// A cache in use where nothing is dirty.
fn begin(
    storage: &impl Storage,
    copies: &Copies,
    superblock: &Superblock,
    opened: Opened,
) -> Result<Started, DiskError> {
    copies.replace(storage, superblock)?;
    Ok(Started {
        opened,
        dirty: Vec::new(),
        log: None,
        cache_id: superblock.seal.id,
    })
}

/// A cache of this backing and no other, whose dirty blocks are not lost, whatever became of the others.
fn open_dirty(
    storage: &impl Storage,
    copies: &Copies,
    saved: &Superblock,
    identity: &Identity,
) -> Result<Started, DiskError> {
    let replayed = log::replay(storage, saved)?;
    let is_same = match saved.clean {
        true => saved.identity.compare(identity),
        false => saved.identity.same_backing(identity),
    };
    is_same.map_err(|difference| DiskError::DirtyBacking {
        blocks: replayed.dirty.len(),
        difference,
    })?;
    let opened = match saved.clean {
        true => opened_with(storage, saved, identity, &replayed.dirty)?,
        false => Opened::Cold {
            reason: "was not stopped cleanly",
        },
    };
    let log = log::go_on(storage, copies, saved, &replayed)?;
    Ok(Started {
        opened,
        dirty: replayed.dirty,
        log,
        cache_id: saved.seal.id,
    })
}

/// What was saved beside what is dirty. If its list is damaged, that is no reason to keep what is dirty from its backing.
fn opened_with(
    storage: &impl Storage,
    saved: &Superblock,
    identity: &Identity,
    dirty: &[LogEntry],
) -> Result<Opened, DiskError> {
    let entries = match entries::read(storage, saved) {
        Err(DiskError::Entry { .. }) => {
            return Ok(Opened::Cold {
                reason: "has a damaged list of blocks",
            });
        }
        entries => entries?,
    };
    if let Some(entry) = dirty.iter().find(|entry| !is_listed(&entries, entry)) {
        return Err(DiskError::Contradiction(entry.slot));
    }
    Ok(opened(saved, identity, entries))
}

fn is_listed(entries: &[SavedEntry], dirty: &LogEntry) -> bool {
    let at = entries.binary_search_by_key(&dirty.slot, |entry| entry.slot);
    at.is_ok_and(|at| {
        entries[at].block == u64::from(dirty.block) && entries[at].valid & dirty.dirty == dirty.dirty
    })
}

fn opened(saved: &Superblock, identity: &Identity, entries: Vec<SavedEntry>) -> Opened {
    match saved.identity.unproven(identity) {
        None => Opened::Warm(entries),
        Some(reason) => Opened::Unproven { entries, reason },
    }
}

/// The entries by the slots of a layout whose data starts later; those before that are lost.
fn renumbered(entries: Vec<SavedEntry>, from: &Layout, to: &Layout) -> Vec<SavedEntry> {
    let moved = to.data_offset.saturating_sub(from.data_offset) / u64::from(to.block_bytes);
    let moved = u32::try_from(moved).unwrap_or(u32::MAX);
    let slot = |entry: &SavedEntry| entry.slot.checked_sub(moved).filter(|&slot| slot < to.slots);
    let entries = entries.into_iter();
    entries
        .filter_map(|entry| slot(&entry).map(|slot| SavedEntry { slot, ..entry }))
        .collect()
}

/// Why the cache, of this backing or of none that still is, has nothing of use.
fn why_cold(saved: &Superblock, identity: &Identity) -> Result<Option<&'static str>, DiskError> {
    if saved.identity.is_volatile() {
        return Ok(Some("cached memory, which is gone"));
    }
    if saved.clean {
        return Ok(None);
    }
    saved.identity.same_backing(identity)?;
    Ok(Some("was not stopped cleanly"))
}

fn resume_on(storage: &impl Storage, layout: &Layout) -> Result<Option<(Vec<LogEntry>, Log)>, DiskError> {
    let copies = Copies::read(storage)?;
    let saved = copies.best()?.ok_or(DiskError::Superseded)?;
    if saved.clean || saved.layout != *layout {
        return Err(DiskError::Superseded);
    }
    if saved.log_id.is_none() {
        return Ok(None);
    }
    let replayed = log::replay(storage, saved)?;
    let log = log::go_on(storage, &copies, saved, &replayed)?;
    Ok(log.map(|log| (replayed.dirty, log)))
}

fn mark_dirty_on(storage: &impl Storage, layout: &Layout) -> Result<Log, DiskError> {
    let copies = Copies::read(storage)?;
    let found = in_use(&copies, layout, None).filter(|found| found.log_id.is_none());
    let found = found.ok_or(DiskError::Superseded)?;
    let mut log = Log::new(layout.log(), log::new_seal(found)?);
    log::checkpoint(storage, &mut log, &[])?;
    copies.replace(storage, &found.next(false, Some(log.seal().log_id)))?;
    Ok(log)
}

fn clear_dirty_on(storage: &impl Storage, layout: &Layout, log: &Log) -> Result<(), DiskError> {
    let copies = Copies::read(storage)?;
    let found = in_use(&copies, layout, Some(log)).ok_or(DiskError::Superseded)?;
    copies.replace(storage, &found.next(false, None))
}

fn settle_on(
    storage: &impl Storage,
    layout: &Layout,
    dirty: Vec<LogEntry>,
) -> Result<Option<Log>, DiskError> {
    storage.sync().map_err(failed("flush its dirty blocks"))?;
    let copies = Copies::read(storage)?;
    let saved = copies
        .best()?
        .filter(|saved| !saved.clean && saved.layout == *layout);
    let saved = saved.ok_or(DiskError::Superseded)?;
    let replayed = log::replay(storage, saved)?;
    log::go_on(storage, &copies, saved, &Replayed { dirty, ..replayed })
}

fn save_on(
    storage: &impl Storage,
    layout: &Layout,
    identity: &Identity,
    log: Option<&Log>,
    entries: impl Iterator<Item = SavedEntry>,
) -> Result<(), DiskError> {
    let log_id = log.map(|log| log.seal().log_id);
    let mut superblock = require_in_use(storage, layout, identity, log)?.next(true, log_id);
    superblock.identity = identity.clone();
    superblock.in_use = entries::write(storage, layout, &superblock.seal, entries)?;
    storage.sync().map_err(failed("write its list of blocks"))?;
    Copies::read(storage)?.replace(storage, &superblock)
}

/// What the device's superblock says. If that is not what the server wrote, both copies are written anew: entries are
/// never changed below a copy that calls them clean.
fn require_in_use(
    storage: &impl Storage,
    layout: &Layout,
    identity: &Identity,
    log: Option<&Log>,
) -> Result<Superblock, DiskError> {
    let copies = Copies::read(storage)?;
    if let Some(found) = in_use(&copies, layout, log) {
        return Ok(found.clone());
    }
    let mut anew = copies.empty(layout, identity)?;
    if let Some(LogSeal { cache_id, log_id }) = log.map(Log::seal) {
        anew.seal.id = cache_id;
        anew.log_id = Some(log_id);
    }
    copies.replace(storage, &anew)?;
    Ok(anew)
}

/// The superblock, if both copies say that the cache is in use, and with this log. Without one, a log that there is has
/// nothing to say.
fn in_use<'a>(copies: &'a Copies, layout: &Layout, log: Option<&Log>) -> Option<&'a Superblock> {
    let is_it = |copy: &Superblock| !copy.clean && copy.layout == *layout;
    let is_logged = |copy: &Superblock| log.is_none_or(|log| copy.log_seal() == Some(log.seal()));
    let found = copies.newest_good()?;
    copies
        .both(|copy| is_it(copy) && is_logged(copy))
        .then_some(found)
}

/// How far from the start other formats keep what tells them (btrfs 64 KiB, ZFS 16 KiB, ISO 9660 32 KiB).
const OTHERS_START: u64 = 128 << 10;
/// The same from the end (GPT, md, firmware RAID).
const OTHERS_END: u64 = 64 << 10;

/// `Ok` if nothing is where anybody keeps what tells their data.
fn require_blank(storage: &impl Storage) -> Result<(), DiskError> {
    let what = "look what is on it";
    let bytes = storage.bytes().map_err(failed(what))?;
    let whole = bytes - bytes % layout::PAGE;
    let mut buffer = Aligned::new(aligned::PAGE);
    let start = (0..OTHERS_START.min(whole)).step_by(aligned::PAGE);
    let end = (whole.saturating_sub(OTHERS_END)..whole).step_by(aligned::PAGE);
    for at in start.chain(end) {
        storage.read(&mut buffer, at).map_err(failed(what))?;
        if buffer.iter().any(|&byte| byte != 0) {
            return Err(DiskError::Foreign);
        }
    }
    Ok(())
}
