//! Reads what a cache device holds, and changes nothing.

use std::fs::File;

use serde::Serialize;
use ublk_bpf_abi::REGIONS;

use super::storage::{Storage, failed};
use super::superblock::{Copies, Found, Superblock};
use super::{DiskError, SavedEntry, entries, log};
use crate::backend::fingerprint::Uuid;
use crate::cache::log::LogEntry;

/// What is on a cache device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// The version of the format.
    pub version: u32,
    /// Whether it was stopped in good order. If not, it is in use now, or its server died.
    pub clean: bool,
    /// Bytes of a cache block.
    pub block_bytes: u32,
    /// How many slots there are.
    pub slots: u32,
    /// How many of them are in use; unknown while it is not clean, or if the entries are damaged.
    pub in_use: Option<u32>,
    /// How many of these hold a part of their block only; unknown likewise.
    pub in_part: Option<u32>,
    /// What the backing has yet to get; `None` if there is no log, or it is damaged.
    pub dirty: Option<Dirty>,
    /// Where the slots' data starts, in bytes.
    pub data_offset: u64,
    /// The cache's random id, written as a UUID.
    pub cache_id: String,
    /// The backing, in words.
    pub backing: String,
    /// The backing's capacity in bytes.
    pub backing_bytes: u64,
    /// How often the superblock was changed.
    pub generation: u64,
    /// The health of the superblock's copies, A and B: "good", or what is wrong.
    pub copies: [String; 2],
    /// What is damaged, in words, or missing; `None` if nothing is.
    pub damage: Option<String>,
}

/// Dirty blocks, by what the log says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dirty {
    /// How many blocks have dirty regions.
    pub blocks: usize,
    /// Bytes of these regions.
    pub bytes: u64,
    /// The number of the checkpoint that the log goes on from.
    pub checkpoint: u64,
    /// Pages of the log since that.
    pub log_pages: u64,
    /// How many ranges of the backing that is.
    pub ranges: usize,
    /// The first [`RANGES`] of them: offset and length in bytes.
    pub first: Vec<(u64, u64)>,
}

/// How many ranges are listed.
pub const RANGES: usize = 16;

fn dirty(storage: &File, saved: &Superblock) -> Result<Option<Dirty>, DiskError> {
    if saved.log_id.is_none() {
        return Ok(None);
    }
    let found = log::replay(storage, saved)?;
    let ranges = ranges(&found.dirty, saved.layout.block_bytes);
    Ok(Some(Dirty {
        blocks: found.dirty.len(),
        bytes: ranges.iter().map(|(_, bytes)| bytes).sum(),
        checkpoint: found.previous.head.checkpoint,
        log_pages: found.previous.blocks(),
        ranges: ranges.len(),
        first: ranges.into_iter().take(RANGES).collect(),
    }))
}

/// The dirty regions in the backing's order, those that touch as one: offset and length in bytes.
fn ranges(dirty: &[LogEntry], block_bytes: u32) -> Vec<(u64, u64)> {
    let region = u64::from(block_bytes / REGIONS);
    let mut by_block: Vec<&LogEntry> = dirty.iter().collect();
    by_block.sort_unstable_by_key(|entry| entry.block);
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for entry in by_block {
        for at in (0..REGIONS).filter(|at| entry.dirty >> at & 1 == 1) {
            let start = u64::from(entry.block) * u64::from(block_bytes) + u64::from(at) * region;
            match ranges.last_mut() {
                Some((from, length)) if *from + *length == start => *length += region,
                _ => ranges.push((start, region)),
            }
        }
    }
    ranges
}

/// Reads the superblock's copies and, if they say clean, the entries.
///
/// # Errors
/// If there is no usable superblock: the device holds other data, is of another version or damaged, or fails.
/// A blank device is `Ok(None)`.
pub fn inspect(file: &File) -> Result<Option<Inspection>, DiskError> {
    let copies = Copies::read(file)?;
    let Some(superblock) = copies.best()? else {
        super::require_blank(file)?;
        return Ok(None);
    };
    let damage = shortage(file, superblock)?;
    let (entries, damage) = match damage {
        Some(_) => (None, damage),
        None => slots_in_use(file, superblock)?,
    };
    let (dirty, damage) = match (dirty(file, superblock), damage) {
        (Ok(dirty), damage) => (dirty, damage),
        (Err(error @ DiskError::System { .. }), None) => return Err(error),
        (Err(error), damage) => (None, damage.or_else(|| Some(error.to_string()))),
    };
    let count = |is_meant: fn(&&SavedEntry) -> bool| {
        let count = entries.as_ref()?.iter().filter(is_meant).count();
        u32::try_from(count).ok()
    };
    let damage = damage.or_else(|| damaged_copy(&copies));
    Ok(Some(Inspection {
        version: superblock.version,
        clean: superblock.clean,
        block_bytes: superblock.layout.block_bytes,
        slots: superblock.layout.slots,
        in_use: count(|_| true),
        in_part: count(|entry| entry.valid != u16::MAX),
        dirty,
        data_offset: superblock.layout.data_offset,
        cache_id: Uuid(superblock.seal.id).to_string(),
        backing: superblock.identity.to_string(),
        backing_bytes: superblock.identity.bytes(),
        generation: superblock.seal.generation,
        copies: copies.found().each_ref().map(ToString::to_string),
        damage,
    }))
}

/// A device that lost its end.
pub(super) fn shortage(file: &File, superblock: &Superblock) -> Result<Option<String>, DiskError> {
    let bytes = file.bytes().map_err(failed("ask for its size"))?;
    let end = superblock.layout.end();
    Ok((bytes < end).then(|| format!("its device has {bytes} bytes, and its slots end at {end}")))
}

fn slots_in_use(
    file: &File,
    superblock: &Superblock,
) -> Result<(Option<Vec<SavedEntry>>, Option<String>), DiskError> {
    if !superblock.clean {
        return Ok((None, None));
    }
    match entries::read(file, superblock) {
        Ok(entries) => Ok((Some(entries), None)),
        Err(error @ DiskError::Entry { .. }) => Ok((None, Some(error.to_string()))),
        Err(error) => Err(error),
    }
}

fn damaged_copy(copies: &Copies) -> Option<String> {
    let names = ["A", "B"];
    let (name, found) = names
        .into_iter()
        .zip(copies.found())
        .find(|(_, found)| !matches!(found, Found::Good(_)))?;
    Some(format!(
        "copy {name} of its superblock is damaged ({found}); the other one serves, and the next start mends it"
    ))
}
