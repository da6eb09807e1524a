//! The simulated cache device, and what servers leave on it.

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ublk_bpf_abi::{BlockState, CacheCounters, IndexEntry, regions};

use super::bug::Bug;
use super::pattern::Writer;
use super::world::{CacheWorld, World};
use super::{Check, index};
use ublk_bpf::cache::{Cache, Mover, MoverIo, PromoteLimits, Resident, Rest, Shape, Trust, surviving};

/// Servers of a run with a cache: each has a cache of its own.
const MAX_SERVERS: usize = 512;

/// Offset of the first slot: after what a real device keeps in front of it.
const DATA_OFFSET: u64 = 1 << 20;

/// What a sector of a slot or of a staging buffer holds: its writer, and where. `None`: unknown.
type Copied = Option<(Writer, u64)>;

/// What outlives servers: the maps, and room for each server's cache.
#[derive(Debug)]
pub(super) struct Maps {
    index: Vec<AtomicU64>,
    heat: Vec<AtomicU64>,
}

impl Maps {
    pub(super) fn new(world: &World) -> Self {
        let blocks = world.cache.map_or(0, |cache| world.cache_blocks(&cache));
        let words = |n: u64| (0..n).map(|_| AtomicU64::new(0)).collect();
        Self {
            index: words(blocks),
            heat: words(blocks.div_ceil(8)),
        }
    }
}

/// Room for the caches of a run's servers.
pub(super) fn places<'w>(world: &World) -> Vec<OnceCell<Cache<'w>>> {
    let places = world.cache.map_or(0, |_| MAX_SERVERS);
    (0..places).map(|_| OnceCell::new()).collect()
}

/// How a server begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// With nothing in the cache.
    Cold,
    /// With what the last one saved as it stopped, and what is known of the backing device since.
    Saved(Vec<Resident>, Trust),
    /// With the index that the last one left.
    Left,
}

/// An operation of the mover that is out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fill {
    pub(super) effect: MoverIo,
    pub(super) again: u8,
}

/// The cache of the present server, and the device that it is on.
#[derive(Debug)]
pub(super) struct Side<'w> {
    pub(super) of: CacheWorld,
    pub(super) maps: &'w Maps,
    pub(super) places: &'w [OnceCell<Cache<'w>>],
    pub(super) servers: usize,
    pub(super) cache: &'w Cache<'w>,
    pub(super) mover: Mover<'w, 'w>,
    /// Sectors of the cache device, from the first slot on.
    pub(super) device: Vec<Copied>,
    /// Every operation on the device fails from now on.
    pub(super) is_broken: bool,
    pub(super) staging: Vec<Vec<Copied>>,
    pub(super) fills: Vec<Fill>,
    /// Verifications under way: job and slot.
    pub(super) verifying: Vec<(u16, u32)>,
    /// Results that the mover was not told yet.
    pub(super) done: VecDeque<(u16, i32)>,
    /// The mover sleeps, until it is woken or until then.
    pub(super) sleeps: Option<Rest>,
    pub(super) is_stopping: bool,
    /// What movers that are gone counted.
    pub(super) counters: CacheCounters,
}

impl<'w> Side<'w> {
    pub(super) fn new(world: &World, maps: &'w Maps, places: &'w [OnceCell<Cache<'w>>]) -> Option<Self> {
        let of = world.cache?;
        let cache = Self::new_cache(world, &of, maps, places.first()?);
        let sectors = index(u64::from(of.slots) << (of.shift - 9));
        Some(Self {
            of,
            maps,
            places,
            servers: 1,
            cache,
            mover: Self::new_mover(&of, cache),
            device: vec![None; sectors],
            is_broken: false,
            staging: Vec::new(),
            fills: Vec::new(),
            verifying: Vec::new(),
            done: VecDeque::new(),
            sleeps: None,
            is_stopping: false,
            counters: CacheCounters::default(),
        })
    }

    pub(super) fn new_cache(
        world: &World,
        of: &CacheWorld,
        maps: &'w Maps,
        place: &'w OnceCell<Cache<'w>>,
    ) -> &'w Cache<'w> {
        let shape = Shape {
            shift: of.shift,
            capacity: world.sectors(),
            slots: of.slots,
            data_offset: DATA_OFFSET,
            mode: of.mode,
        };
        place.get_or_init(|| Cache::new(shape, &maps.index, &maps.heat))
    }

    pub(super) fn new_mover(of: &CacheWorld, cache: &'w Cache<'w>) -> Mover<'w, 'w> {
        let limits = PromoteLimits { rate: of.rate };
        Mover::new(cache, of.algorithm, limits, CacheCounters::default())
    }

    /// Whether there may be another server.
    pub(super) const fn has_room(&self) -> bool {
        // The last stop takes one more.
        self.servers + 2 < self.places.len()
    }

    /// What was promoted so far.
    pub(super) fn counters(&self) -> CacheCounters {
        let mut counters = self.counters;
        counters.add(self.mover.counters());
        counters
    }

    /// The index as the classifier sees it.
    pub(super) fn entry(&self, sector: u64) -> IndexEntry {
        let word = self.word(sector);
        IndexEntry(word.map_or(0, |word| word.load(Ordering::SeqCst)))
    }

    fn word(&self, sector: u64) -> Option<&'w AtomicU64> {
        self.maps.index.get(index(sector >> (self.of.shift - 9)))
    }

    /// The word of a block.
    pub(super) fn maps_word(&self, block: u64) -> Option<&'w AtomicU64> {
        self.maps.index.get(index(block))
    }

    /// The words of the blocks that a range of sectors touches.
    pub(super) fn words(&self, sectors: &std::ops::Range<usize>) -> &'w [AtomicU64] {
        let block = |sector: usize| sector >> (self.of.shift - 9);
        let last = block(sectors.end.saturating_sub(1));
        self.maps
            .index
            .get(block(sectors.start)..=last)
            .unwrap_or_default()
    }

    /// The classifier counts a read.
    pub(super) fn count_heat(&self, sector: u64) {
        let block = index(sector >> (self.of.shift - 9));
        if let Some(word) = self.maps.heat.get(block / 8) {
            let mut bytes = word.load(Ordering::Relaxed).to_le_bytes();
            bytes[block % 8] = bytes[block % 8].saturating_add(1);
            word.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
        }
    }

    /// Sectors of a cache block.
    pub(super) const fn block_sectors(&self) -> u64 {
        1 << (self.of.shift - 9)
    }

    /// Where a position on the cache device is on the backing device, for a request within one block; `None`: in no slot.
    pub(super) fn backing_offset(&self, offset: u64, request_sector: u64) -> Option<u64> {
        let in_block = (1 << self.of.shift) - 1;
        self.sector_of(offset)?;
        Some(((request_sector * 512) & !in_block) + (offset & in_block))
    }

    /// Which sector of the slots a position is at.
    pub(super) fn sector_of(&self, offset: u64) -> Option<usize> {
        let sector = index(offset.checked_sub(DATA_OFFSET)? / 512);
        (sector < self.device.len()).then_some(sector)
    }

    /// What a sector from `offset` on holds.
    pub(super) fn read(&self, offset: u64) -> Copied {
        self.device[self.sector_of(offset)?]
    }

    /// A sector is written.
    pub(super) fn write(&mut self, offset: u64, content: Copied) {
        if let Some(sector) = self.sector_of(offset) {
            self.device[sector] = content;
        }
    }

    /// Whether a sector from `offset` on holds what this writer left in that sector of the backing device.
    pub(super) fn holds(&self, offset: u64, writer: Option<Writer>, sector: u64) -> bool {
        match (self.read(offset), writer) {
            (Some((0, _)), Some(0)) => true,
            (Some(has), Some(writer)) => has == (writer, sector),
            _ => false,
        }
    }

    /// The slot that a position is in.
    pub(super) fn slot_of(&self, offset: u64) -> u32 {
        u32::try_from(offset.saturating_sub(DATA_OFFSET) >> self.of.shift).unwrap_or(u32::MAX)
    }

    /// Whether two staging buffers hold the same. What is unknown is never the same.
    pub(super) fn is_same(&self, one: u16, other: u16, len: u32) -> bool {
        let sectors = len as usize / 512;
        let buffer = |buffer: u16| &self.staging[usize::from(buffer)][..sectors];
        let is_same = |one: Copied, other: Copied| match (one, other) {
            (Some((0, _)), Some((0, _))) => true,
            (Some(one), Some(other)) => one == other,
            _ => false,
        };
        buffer(one)
            .iter()
            .zip(buffer(other))
            .all(|(&one, &other)| is_same(one, other))
    }

    /// Whether the block of an entry is being verified.
    pub(super) fn is_verifying(&self, entry: IndexEntry) -> bool {
        entry.is_present() && self.verifying.iter().any(|&(_, slot)| slot == entry.slot())
    }

    /// Whether the mover is writing to one of these bytes.
    pub(super) fn is_filling(&self, range: (u64, u64)) -> bool {
        self.fills.iter().any(|fill| {
            matches!(fill.effect, MoverIo::Store { offset, len, .. } if overlap(range, (offset, len.into())))
        })
    }

    /// Something that the mover sleeps for has come.
    pub(super) fn wake(&mut self) {
        self.sleeps = None;
    }

    /// Promotion has stopped. Whether all fills have ended.
    pub(super) fn stop(&mut self) -> Result<bool, String> {
        if !self.is_stopping {
            self.check_sleep()?;
            self.mover.stop();
            self.is_stopping = true;
        }
        if !self.mover.is_idle() {
            return Ok(false);
        }
        // It may still have to leave the cache.
        if let Ok(effect) = self.mover.poll(Duration::ZERO) {
            return Err(format!("the mover began {effect:?} after it was stopped"));
        }
        if self.cache.failure().is_some() && self.has_blocks() {
            return Err("the device failed, and blocks are in the cache".into());
        }
        Ok(true)
    }

    /// The queues have ended, so everything was said: the mover sleeps only if it has nothing to do.
    fn check_sleep(&mut self) -> Check {
        if self.sleeps != Some(Rest::UntilWoken) || !self.mover.is_idle() {
            return Ok(());
        }
        if self.cache.failure().is_some() && self.has_blocks() {
            return Err("the device failed, and the mover was not woken".into());
        }
        match self.mover.poll(Duration::MAX) {
            Ok(effect) => Err(format!("the mover was not woken for {effect:?}")),
            Err(_) => Ok(()),
        }
    }

    /// Whether the heat of a block is not 0.
    pub(super) fn has_heat(&self) -> bool {
        let mut words = self.maps.heat.iter();
        words.any(|word| word.load(Ordering::Relaxed) != 0)
    }

    fn has_blocks(&self) -> bool {
        let mut entries = self
            .maps
            .index
            .iter()
            .map(|word| IndexEntry(word.load(Ordering::SeqCst)));
        entries.any(IndexEntry::is_present)
    }

    /// What is saved at a clean stop.
    pub(super) fn saved(&self) -> Vec<Resident> {
        self.mover.residents().collect()
    }

    /// Whether some of the device is valid in the block's slot.
    pub(super) fn has_valid(&self, world: &World, of: &Resident) -> bool {
        let first = u64::from(of.block) * self.block_sectors();
        let sectors = first..(first + self.block_sectors()).min(world.sectors());
        sectors
            .into_iter()
            .any(|sector| of.valid & regions(self.of.shift, sector, 1) != 0)
    }

    /// What can be read from a slot must be what the backing device has.
    pub(super) fn check(&self, world: &World, backing: impl Fn(usize) -> Writer) -> Check {
        for (word, block) in self.maps.index.iter().zip(0_u64..) {
            let entry = IndexEntry(word.load(Ordering::SeqCst));
            if !entry.is_present() {
                continue;
            }
            let slot_start = DATA_OFFSET + (u64::from(entry.slot()) << self.of.shift);
            let first = block * self.block_sectors();
            for sector in first..(first + self.block_sectors()).min(world.sectors()) {
                if !entry.serves(regions(self.of.shift, sector, 1)) {
                    continue;
                }
                let has = self.read(slot_start + (sector - first) * 512);
                let should = backing(index(sector));
                let is_same =
                    has == Some((should, sector)) || (should == 0 && has.is_some_and(|has| has.0 == 0));
                if !is_same {
                    return Err(format!(
                        "slot {} has of sector {sector} what is {has:?}'s, and the backing what is {should}'s",
                        entry.slot()
                    ));
                }
            }
        }
        Ok(())
    }
}

/// What is believed of the index that was left.
pub(super) fn trusted(side: &Side<'_>, bug: Option<Bug>) -> Vec<Resident> {
    if bug == Some(Bug::TrustUnfinished) {
        for word in &side.maps.index {
            let entry = IndexEntry(word.load(Ordering::SeqCst));
            if entry.state() != BlockState::Absent {
                word.store(
                    IndexEntry::new(BlockState::Present, entry.slot()).0,
                    Ordering::SeqCst,
                );
            }
        }
    }
    surviving(&side.maps.index, &[], side.of.slots, &[])
        .expect("nothing is dirty")
        .clean
}

/// Whether two ranges, each a start and a length, have a byte in common.
pub(super) const fn overlap(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 < b.0 + b.1 && b.0 < a.0 + a.1
}
