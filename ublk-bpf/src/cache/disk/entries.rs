//! The list of what is in the slots: 16 bytes a slot.

use std::iter::Peekable;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::DiskError;
use super::layout::{ENTRY, Layout, PAGE};
use super::storage::{Storage, failed};
use super::superblock::{Seal, Superblock, WHOLE_BLOCKS};
use crate::sys::aligned::{self, Aligned};

/// A slot in use, as it is saved and found again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedEntry {
    /// Which slot: below the layout's number of them.
    pub slot: u32,
    /// Which block of the backing it holds, in units of cache blocks from its start.
    pub block: u64,
    /// The policy's word on how long it is to stay.
    pub priority: u8,
    /// How much it was used.
    pub heat: u8,
    /// Which regions of the block it holds, one bit for each sixteenth; at least one.
    pub valid: u16,
}

/// What is read or written at once: slots, in whole pages.
const AT_ONCE: u32 = 1 << 16;

/// An entry on the disk, little endian. Version 1 had eight bytes for the block's number, of which the last two were always
/// zero: its blocks are valid as a whole.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    block: U32,
    block_high: U16,
    /// Regions that the slot does not hold.
    invalid: U16,
    priority: u8,
    heat: u8,
    state: u8,
    reserved: u8,
    crc: U32,
}

const _: () = assert!(size_of::<Raw>() as u64 == ENTRY && (AT_ONCE as u64 * ENTRY).is_multiple_of(PAGE));

/// The states of a slot. A free one has zeroes in its other fields.
const FREE: u8 = 0;
const IN_USE: u8 = 1;

/// Reads the slots in use, in ascending order, and believes nothing: every slot has its seal, every block is of the
/// backing and in one slot only, and there are as many as the superblock says.
pub(super) fn read(storage: &impl Storage, of: &Superblock) -> Result<Vec<SavedEntry>, DiskError> {
    let crc = seed(&of.seal);
    let blocks = of.layout.blocks_of(of.identity.bytes());
    let mut entries = Vec::new();
    for_each_chunk(&of.layout, |first, slots, offset, buffer| {
        storage
            .read(buffer, offset)
            .map_err(failed("read its list of blocks"))?;
        for (slot, raw) in (first..first + slots).zip(raws(buffer)) {
            let entry = raw.parse(crc, slot, blocks).and_then(|entry| match entry {
                Some(entry) if of.version == WHOLE_BLOCKS && entry.valid != u16::MAX => Err("unknown values"),
                entry => Ok(entry),
            });
            entries.extend(entry.map_err(|what| DiskError::Entry { slot, what })?);
        }
        Ok(())
    })?;
    if let Some(slot) = first_twice(&entries) {
        return Err(DiskError::Entry {
            slot,
            what: "a block in two slots",
        });
    }
    if entries.len() != of.in_use as usize {
        return Err(DiskError::Entry {
            slot: 0,
            what: "another number of blocks in use than was saved",
        });
    }
    Ok(entries)
}

/// Writes an entry for every slot of the layout, and says how many are in use. Nothing is durable yet.
pub(super) fn write(
    storage: &impl Storage,
    layout: &Layout,
    seal: &Seal,
    entries: impl Iterator<Item = SavedEntry>,
) -> Result<u32, DiskError> {
    let crc = seed(seal);
    let mut entries = entries.peekable();
    let mut in_use = 0;
    for_each_chunk(layout, |first, slots, offset, buffer| {
        buffer.fill(0);
        for (slot, raw) in (first..first + slots).zip(raws_mut(buffer)) {
            let entry = entries.next_if(|entry| entry.slot == slot);
            in_use += u32::from(entry.is_some());
            *raw = Raw::new(crc, slot, entry);
        }
        storage
            .write(buffer, offset)
            .map_err(failed("write its list of blocks"))
    })?;
    require_end(&mut entries)?;
    Ok(in_use)
}

/// What was not met on the way through the slots is out of order, or of no slot.
fn require_end(entries: &mut Peekable<impl Iterator<Item = SavedEntry>>) -> Result<(), DiskError> {
    entries
        .peek()
        .map_or(Ok(()), |entry| Err(DiskError::Unsaveable(entry.slot)))
}

/// Calls `each` with the first slot, the number of slots, the offset and a buffer of whole pages for their entries.
fn for_each_chunk(
    layout: &Layout,
    mut each: impl FnMut(u32, u32, u64, &mut [u8]) -> Result<(), DiskError>,
) -> Result<(), DiskError> {
    let bytes = |slots: u32| (slots as usize * size_of::<Raw>()).next_multiple_of(aligned::PAGE);
    let mut buffer = Aligned::new(bytes(layout.slots.min(AT_ONCE)));
    let mut first = 0;
    while first < layout.slots {
        let slots = AT_ONCE.min(layout.slots - first);
        let offset = layout.entries_offset + u64::from(first) * ENTRY;
        each(first, slots, offset, &mut buffer[..bytes(slots)])?;
        first += slots;
    }
    Ok(())
}

/// A slot, other than the first, whose block an earlier slot has too.
fn first_twice(entries: &[SavedEntry]) -> Option<u32> {
    let mut sorted: Vec<(u64, u32)> = entries.iter().map(|entry| (entry.block, entry.slot)).collect();
    sorted.sort_unstable();
    let twice = sorted.windows(2).filter(|two| two[0].0 == two[1].0);
    twice.map(|two| two[1].1).min()
}

fn raws(buffer: &[u8]) -> &[Raw] {
    <[Raw]>::ref_from_bytes(buffer).unwrap_or_default()
}

fn raws_mut(buffer: &mut [u8]) -> &mut [Raw] {
    <[Raw]>::mut_from_bytes(buffer).unwrap_or_default()
}

/// The checksum of the seal, which every entry's checksum goes on from.
fn seed(seal: &Seal) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&seal.id), &seal.generation.to_le_bytes())
}

impl Raw {
    fn new(seed: u32, slot: u32, entry: Option<SavedEntry>) -> Self {
        let mut raw = Self::new_zeroed();
        if let Some(entry) = entry {
            raw.state = IN_USE;
            let [block @ .., _, _] = entry.block.to_le_bytes();
            let [low @ .., high, highest] = block;
            (raw.block, raw.block_high) = (low.into(), [high, highest].into());
            raw.invalid = (!entry.valid).into();
            raw.priority = entry.priority;
            raw.heat = entry.heat;
        }
        raw.crc = raw.checksum(seed, slot).into();
        raw
    }

    /// Goes on from the seal's over the slot and the other fields.
    fn checksum(&self, seed: u32, slot: u32) -> u32 {
        let bytes = self.as_bytes();
        let crc = crc32c::crc32c_append(seed, &slot.to_le_bytes());
        crc32c::crc32c_append(crc, &bytes[..bytes.len() - size_of::<U32>()])
    }

    fn parse(&self, seed: u32, slot: u32, blocks: u64) -> Result<Option<SavedEntry>, &'static str> {
        if self.crc.get() != self.checksum(seed, slot) {
            return Err("wrong checksum");
        }
        let entry = match self.state {
            FREE => None,
            IN_USE => Some(SavedEntry {
                slot,
                block: u64::from(self.block.get()) | u64::from(self.block_high.get()) << 32,
                valid: !self.invalid.get(),
                priority: self.priority,
                heat: self.heat,
            }),
            _ => return Err("impossible state"),
        };
        if entry.is_some_and(|entry| entry.block >= blocks) {
            return Err("a block beyond the backing's end");
        }
        if entry.is_some_and(|entry| entry.valid == 0) {
            return Err("a block of which nothing is cached");
        }
        // What says the same when written again has nothing in it that was not understood.
        if Self::new(seed, slot, entry).as_bytes() != self.as_bytes() {
            return Err("unknown values");
        }
        Ok(entry)
    }
}
