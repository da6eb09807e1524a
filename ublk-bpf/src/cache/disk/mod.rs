//! What a cache device holds: its format, version 2.
//!
//! | where | what |
//! |---|---|
//! | 0 | the superblock, copy A: 4 KiB, CRC-32C |
//! | 4096 | the same, copy B |
//! | 8192 | an entry of 16 bytes for every slot, each with a CRC-32C that is sealed with the save it belongs to |
//! | [`Layout::data_offset`] | the slots' data, a cache block each |
//!
//! Version 1 differs in its entries, which have no mask of the regions that a slot holds: its blocks are cached as a whole.
//! It is read, and what is written is of version 2.
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
//! The seal covers what this order cannot: a device that loses a write which it said was durable. Entries of an older
//! save then fail their checksum, and are refused.

mod entries;
mod error;
pub mod inspect;
mod layout;
mod storage;
mod superblock;
#[cfg(test)]
mod tests;

use std::fs::File;

use storage::{Storage, failed};
use superblock::{Copies, Superblock};
use ublk_bpf_abi::REGIONS;

use crate::backend::fingerprint::{Identity, scatter};
use crate::sys::aligned::{self, Aligned};

pub use entries::SavedEntry;
pub use error::DiskError;
pub use layout::Layout;

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

/// Takes the cache device into use for the backing `identity`, which must be as it was found at the start, before
/// anything is written to it. From the return on the device says that it is in use.
///
/// `file` is open for reading and writing, with direct I/O or without. Who wants to compare some slots with the backing
/// ([`sample_matches`]) does so with what this returns; if that refuses, the next start is cold.
///
/// # Errors
/// One line for everything else than these outcomes: other data, another version, damage, another
/// backing, a backing that was changed meanwhile, other blocks, another size. Nothing was written then.
pub fn open(file: &File, layout: &Layout, identity: &Identity) -> Result<Opened, DiskError> {
    open_on(file, layout, identity)
}

/// Saves what the slots hold, in ascending order of slots, and says that the cache was stopped in good order. Whatever
/// was written to slots and backing must be complete; `identity` is that of the backing after its fsync.
///
/// # Errors
/// If an entry's slot is out of order or the device fails: then the next start is cold. The blocks are checked when they
/// are read.
pub fn save(
    file: &File,
    layout: &Layout,
    identity: &Identity,
    entries: impl Iterator<Item = SavedEntry>,
) -> Result<(), DiskError> {
    save_on(file, layout, identity, entries)
}

/// Makes the device an empty cache in use, whatever is on it.
///
/// # Errors
/// If the device fails.
pub fn reset(file: &File, layout: &Layout, identity: &Identity) -> Result<(), DiskError> {
    let copies = Copies::read(file)?;
    copies.replace(file, &copies.empty(layout, identity)?)
}

fn open_on(storage: &impl Storage, layout: &Layout, identity: &Identity) -> Result<Opened, DiskError> {
    let copies = Copies::read(storage)?;
    let Some(saved) = copies.best()? else {
        require_blank(storage)?;
        copies.replace(storage, &copies.empty(layout, identity)?)?;
        return Ok(Opened::New);
    };
    saved.require(layout)?;
    if let Some(reason) = why_cold(saved, identity)? {
        copies.replace(storage, &copies.empty(layout, identity)?)?;
        return Ok(Opened::Cold { reason });
    }
    saved.identity.compare(identity)?;
    let entries = entries::read(storage, saved)?;
    copies.replace(storage, &saved.next(false))?;
    Ok(match saved.identity.unproven(identity) {
        None => Opened::Warm(entries),
        Some(reason) => Opened::Unproven { entries, reason },
    })
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

fn save_on(
    storage: &impl Storage,
    layout: &Layout,
    identity: &Identity,
    entries: impl Iterator<Item = SavedEntry>,
) -> Result<(), DiskError> {
    let mut superblock = in_use(storage, layout, identity)?.next(true);
    superblock.identity = identity.clone();
    superblock.in_use = entries::write(storage, layout, &superblock.seal, entries)?;
    storage.sync().map_err(failed("write its list of blocks"))?;
    Copies::read(storage)?.replace(storage, &superblock)
}

/// What the device's superblock says. If that is not what [`open`] wrote, both copies are written anew: entries are
/// never changed below a copy that calls them clean.
fn in_use(storage: &impl Storage, layout: &Layout, identity: &Identity) -> Result<Superblock, DiskError> {
    let copies = Copies::read(storage)?;
    match copies.best() {
        Ok(Some(found)) if copies.both(|copy| !copy.clean && copy.layout == *layout) => Ok(found.clone()),
        _ => {
            let empty = copies.empty(layout, identity)?;
            copies.replace(storage, &empty)?;
            Ok(empty)
        }
    }
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

/// Compares up to `n` of the slots in use, as far as they are valid, with the backing of `capacity_bytes`: always the same ones of
/// the same entries, spread over all. Nothing may write to either meanwhile.
///
/// # Errors
/// At the first one that is not what the backing has, and if one cannot be read.
pub fn sample_matches(
    cache: &File,
    backing: &File,
    layout: &Layout,
    entries: &[SavedEntry],
    capacity_bytes: u64,
    n: usize,
) -> Result<(), DiskError> {
    let block_bytes = layout.block_bytes as usize;
    let (mut cached, mut backed) = (Aligned::new(block_bytes), Aligned::new(block_bytes));
    for entry in sampled(entries, n) {
        let at = entry.block * u64::from(layout.block_bytes);
        // The last block may be shorter. Its slot is not.
        let len = capacity_bytes.saturating_sub(at).min(layout.block_bytes.into());
        let backed = &mut backed[..usize::try_from(len).unwrap_or(block_bytes)];
        backing
            .read(backed, at)
            .map_err(failed("read the backing to compare with it"))?;
        cache
            .read(&mut cached, layout.data_of(entry.slot))
            .map_err(failed("read a slot"))?;
        if !is_same_where_valid(entry.valid, block_bytes, &cached, backed) {
            return Err(DiskError::Stale {
                block: entry.block,
                slot: entry.slot,
            });
        }
    }
    Ok(())
}

/// Whether the valid regions of a block are the same, up to the backing's end.
fn is_same_where_valid(valid: u16, block_bytes: usize, cached: &[u8], backed: &[u8]) -> bool {
    let regions = REGIONS as usize;
    let size = block_bytes / regions;
    (0..regions)
        .filter(|region| valid >> region & 1 == 1)
        .all(|region| {
            let end = ((region + 1) * size).min(backed.len());
            let start = (region * size).min(end);
            cached[start..end] == backed[start..end]
        })
}

/// One of each of `n` equal parts, at a place that looks random; all of them if there are no more.
fn sampled(entries: &[SavedEntry], n: usize) -> impl Iterator<Item = &SavedEntry> {
    let n = n.min(entries.len());
    (0..n).map(move |part| {
        let (from, to) = (part * entries.len() / n, (part + 1) * entries.len() / n);
        &entries[from + usize::try_from(scatter(part as u64)).unwrap_or(0) % (to - from)]
    })
}
