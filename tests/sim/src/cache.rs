//! The simulated cache device, and the promoter as one more actor beside the queues.

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ublk_bpf_abi::{BlockState, CacheCounters, IndexEntry, Priority};

use super::bug::Bug;
use super::fault::Fault;
use super::pattern::Writer;
use super::sim::Sim;
use super::world::{CacheWorld, World};
use super::{Check, index};
use ublk_bpf::cache::{Cache, Effect, Limits, Promoter, Rest, Shape, surviving};

/// Servers of a run with a cache: each has a cache of its own.
const MOST_SERVERS: usize = 512;

/// Where the first slot is: behind what a real device has there.
const DATA_OFFSET: u64 = 1 << 20;

/// What a sector of a slot or of a staging buffer holds: who wrote it, and where. `None`: nobody knows.
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
    let places = world.cache.map_or(0, |_| MOST_SERVERS);
    (0..places).map(|_| OnceCell::new()).collect()
}

/// How a server begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// With nothing in the cache.
    Cold,
    /// With what the last one saved as it stopped.
    Saved(Vec<(u32, u32, Priority)>),
    /// With the index that the last one left.
    Left,
}

/// An operation of the promoter that is out.
#[derive(Clone, Copy, Debug)]
struct Fill {
    effect: Effect,
    again: u8,
}

/// The cache of the present server, and the device that it is on.
#[derive(Debug)]
pub(super) struct Side<'w> {
    of: CacheWorld,
    maps: &'w Maps,
    places: &'w [OnceCell<Cache<'w>>],
    servers: usize,
    pub(super) cache: &'w Cache<'w>,
    promoter: Promoter<'w, 'w>,
    /// Sectors of the cache device, from the first slot on.
    device: Vec<Copied>,
    /// Every operation on the device fails from now on.
    pub(super) is_broken: bool,
    staging: Vec<Vec<Copied>>,
    fills: Vec<Fill>,
    /// Results that the promoter was not told yet.
    done: VecDeque<(u16, i32)>,
    /// The promoter sleeps, until it is woken or until then.
    sleeps: Option<Rest>,
    is_stopping: bool,
    /// What promoters that are gone counted.
    counters: CacheCounters,
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
            promoter: Self::new_promoter(&of, cache),
            device: vec![None; sectors],
            is_broken: false,
            staging: Vec::new(),
            fills: Vec::new(),
            done: VecDeque::new(),
            sleeps: None,
            is_stopping: false,
            counters: CacheCounters::default(),
        })
    }

    fn new_cache(
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

    fn new_promoter(of: &CacheWorld, cache: &'w Cache<'w>) -> Promoter<'w, 'w> {
        let limits = Limits { rate: of.rate };
        Promoter::new(cache, of.algorithm, limits, CacheCounters::default())
    }

    /// Whether there may be another server.
    pub(super) const fn has_room(&self) -> bool {
        // The last stop takes one more.
        self.servers + 2 < self.places.len()
    }

    /// What was promoted so far.
    pub(super) fn counters(&self) -> CacheCounters {
        let mut counters = self.counters;
        counters.add(self.promoter.counters());
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
    fn sector_of(&self, offset: u64) -> Option<usize> {
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

    /// Whether the promoter is writing to one of these bytes.
    pub(super) fn is_filling(&self, range: (u64, u64)) -> bool {
        self.fills.iter().any(|fill| {
            matches!(fill.effect, Effect::Store { offset, len, .. } if overlap(range, (offset, len.into())))
        })
    }

    /// Something that the promoter sleeps for has come.
    pub(super) fn wake(&mut self) {
        self.sleeps = None;
    }

    /// No promotion is begun any more. Whether all have ended.
    pub(super) fn stop(&mut self) -> Result<bool, String> {
        if !self.is_stopping {
            self.check_sleep()?;
            self.promoter.stop();
            self.is_stopping = true;
        }
        if !self.promoter.is_idle() {
            return Ok(false);
        }
        // It may have to leave the cache still.
        if let Ok(effect) = self.promoter.poll(Duration::ZERO) {
            return Err(format!("the promoter began {effect:?} after it was stopped"));
        }
        if self.cache.failure().is_some() && self.has_blocks() {
            return Err("the device failed, and blocks are in the cache".into());
        }
        Ok(true)
    }

    /// The queues have ended, so everything was said: the promoter sleeps only if it has nothing to do.
    fn check_sleep(&mut self) -> Check {
        if self.sleeps != Some(Rest::UntilWoken) || !self.promoter.is_idle() {
            return Ok(());
        }
        if self.cache.failure().is_some() && self.has_blocks() {
            return Err("the device failed, and the promoter was not woken".into());
        }
        match self.promoter.poll(Duration::MAX) {
            Ok(effect) => Err(format!("the promoter was not woken for {effect:?}")),
            Err(_) => Ok(()),
        }
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
    pub(super) fn saved(&self) -> Start {
        let residents = self.promoter.residents();
        Start::Saved(
            residents
                .map(|(slot, block, priority, _)| (slot, block, priority))
                .collect(),
        )
    }

    /// What is in a slot must be what the backing device has, wherever nobody writes.
    fn check(&self, world: &World, backing: impl Fn(usize) -> Writer) -> Check {
        for (word, block) in self.maps.index.iter().zip(0_u64..) {
            let entry = IndexEntry(word.load(Ordering::SeqCst));
            if !entry.is_present() || entry.writers() > 0 {
                continue;
            }
            let slot_start = DATA_OFFSET + (u64::from(entry.slot()) << self.of.shift);
            let first = block * self.block_sectors();
            for sector in first..(first + self.block_sectors()).min(world.sectors()) {
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

impl Sim<'_> {
    /// The promoter does something, or something happens to it.
    pub(super) fn promote(&mut self) -> Check {
        match self.rng.below(4) {
            0 => self.begin_fills(),
            1 => self.tell_promoter(),
            _ => {
                self.carry_out_fill();
                Ok(())
            }
        }
    }

    fn begin_fills(&mut self) -> Check {
        let now = Duration::from_millis(self.now);
        for _ in 0..=self.rng.below(4) {
            let Some(side) = &mut self.cache else {
                return Ok(());
            };
            match side.sleeps {
                Some(Rest::UntilWoken) => return Ok(()),
                Some(Rest::Until(then)) if now < then => return Ok(()),
                _ => {}
            }
            match side.promoter.poll(now) {
                Ok(effect) => self.issue_fill(effect)?,
                Err(rest) => side.sleeps = Some(rest),
            }
        }
        Ok(())
    }

    /// The promoter is told of the result of an operation.
    fn tell_promoter(&mut self) -> Check {
        let next = self.cache.as_mut().and_then(|side| {
            let (job, result) = side.done.pop_front()?;
            side.wake();
            side.promoter.done(job, result)
        });
        next.map_or(Ok(()), |effect| self.issue_fill(effect))
    }

    fn issue_fill(&mut self, effect: Effect) -> Check {
        let in_use = self.machines_on_cache();
        let Some(side) = &mut self.cache else {
            return Ok(());
        };
        let (job, skip, len) = parts(&effect);
        if side.fills.iter().any(|fill| parts(&fill.effect).0 == job) {
            return Err(format!("two operations on one staging buffer: {effect:?}"));
        }
        if job >= side.promoter.jobs() || len == 0 || u64::from(skip + len) > side.block_sectors() * 512 {
            return Err(format!("outside the staging buffers: {effect:?}"));
        }
        if let Effect::Store { offset, len, .. } = effect {
            let range = (offset, u64::from(len));
            if side.sector_of(offset).is_none() || side.is_filling(range) {
                return Err(format!("in no slot, or in one that is being filled: {effect:?}"));
            }
            if in_use.iter().any(|&used| overlap(used, range)) {
                return Err(format!("a slot is filled that is in use: {effect:?}"));
            }
        }
        self.issued += 1;
        side.fills.push(Fill { effect, again: 0 });
        Ok(())
    }

    /// What machines read and write on the cache device now.
    fn machines_on_cache(&self) -> Vec<(u64, u64)> {
        let queues = std::iter::once(&self.queue).chain(&self.others);
        let ops = queues.flat_map(|queue| &queue.ops);
        ops.filter_map(|op| super::backend::cache_range(&op.io)).collect()
    }

    /// Some operation of the promoter that is out is carried out.
    fn carry_out_fill(&mut self) {
        let rate = self.world.io_faults;
        let Some(side) = &mut self.cache else {
            return;
        };
        if side.fills.is_empty() {
            return;
        }
        let chosen = self.rng.index(side.fills.len());
        let fill = side.fills.swap_remove(chosen);
        let (job, _, len) = parts(&fill.effect);
        let is_store = matches!(fill.effect, Effect::Store { .. });
        let fails = if is_store {
            side.is_broken || self.rng.chance(rate / 8) && self.rng.chance(20)
        } else {
            self.rng.chance(rate / 8)
        };
        let mut moved = len;
        let mut result = len.cast_signed();
        if fails {
            self.counts.hit(if is_store {
                Fault::CacheError
            } else {
                Fault::FillError
            });
            moved = self.rng.below32(len + 1);
            result = self.rng.pick(&[-5, -28, 0, i32::MAX]);
        } else if self.rng.chance(rate / 2) && fill.again == 0 {
            self.counts.hit(Fault::FillAgain);
            (moved, result) = (0, self.rng.pick(&[-11, -4]));
        } else if self.rng.chance(rate / 2) {
            self.counts.hit(Fault::ShortFill);
            moved = 1 + self.rng.below32(len);
            result = moved.cast_signed();
        }
        self.copy(&fill.effect, moved);
        if let Some(side) = &mut self.cache {
            side.done.push_back((job, result));
        }
    }

    /// The first `moved` bytes of an operation of the promoter.
    fn copy(&mut self, effect: &Effect, moved: u32) {
        let Some(side) = &mut self.cache else {
            return;
        };
        let (job, skip, _) = parts(effect);
        let buffers = usize::from(job) + 1;
        if side.staging.len() < buffers {
            let block = index(side.block_sectors());
            side.staging.resize(buffers, vec![None; block]);
        }
        // Of a sector that was moved in part, nobody knows what it holds.
        for i in 0..u64::from(moved.div_ceil(512)) {
            let is_whole = (i + 1) * 512 <= u64::from(moved);
            let staged = index(u64::from(skip / 512) + i);
            match *effect {
                Effect::Load { offset, .. } => {
                    let sector = offset / 512 + i;
                    side.staging[usize::from(job)][staged] =
                        is_whole.then(|| (self.disk.read(index(sector)), sector));
                }
                Effect::Store { offset, .. } => {
                    let content = side.staging[usize::from(job)][staged].filter(|_| is_whole);
                    side.write(offset + i * 512, content);
                }
            }
        }
    }

    /// What the promoter of a dead server had in flight happens, or not, or in part.
    pub(super) fn fills_of_the_dead(&mut self) {
        let fills = self.cache.as_mut().map(|side| std::mem::take(&mut side.fills));
        for fill in fills.unwrap_or_default() {
            let moved = self.rng.below32(parts(&fill.effect).2 + 1);
            self.copy(&fill.effect, moved);
        }
    }

    /// Perhaps the cache device fails for good, or is another after all.
    pub(super) fn maybe_break(&mut self) {
        let rate = u64::from(self.world.io_faults);
        let breaks = self.rng.below(500_000) < rate;
        if let Some(side) = &mut self.cache
            && breaks
            && !side.is_broken
        {
            side.is_broken = true;
            self.counts.hit(Fault::CacheBroken);
        }
    }

    /// Whatever nobody writes is the same on both devices. After a failure, nothing is left in the cache.
    pub(super) fn check_cache(&self) -> Check {
        self.cache.as_ref().map_or(Ok(()), |side| {
            side.check(self.world, |sector| self.disk.read(sector))
        })
    }

    /// A new server has a cache of its own.
    pub(super) fn new_cache(&mut self, start: Start) -> Check {
        let Some(side) = &mut self.cache else {
            return Ok(());
        };
        let saved = match start {
            Start::Cold if self.bug == Some(Bug::TrustAfterPowerCut) => trusted(side, self.bug),
            Start::Cold => Vec::new(),
            Start::Saved(saved) => saved,
            Start::Left => trusted(side, self.bug),
        };
        side.counters.add(side.promoter.counters());
        side.counters.used = 0;
        let place = &side.places[side.servers];
        side.servers += 1;
        side.cache = Side::new_cache(self.world, &side.of, side.maps, place);
        side.promoter = Side::new_promoter(&side.of, side.cache);
        side.cache.clear();
        side.fills.clear();
        side.done.clear();
        side.staging.clear();
        side.is_broken = false;
        side.sleeps = None;
        side.is_stopping = false;
        let count = u32::try_from(saved.len()).unwrap_or(u32::MAX);
        let restored = side.promoter.restore(saved);
        if restored != count {
            return Err(format!("of {count} blocks {restored} were put back"));
        }
        Ok(())
    }
}

/// What is believed of the index that was left.
fn trusted(side: &Side<'_>, bug: Option<Bug>) -> Vec<(u32, u32, Priority)> {
    if bug == Some(Bug::TrustUnfinished) {
        for word in &side.maps.index {
            let entry = IndexEntry(word.load(Ordering::SeqCst));
            if entry.state() != Some(BlockState::Absent) {
                word.store(
                    IndexEntry::new(BlockState::Present, entry.slot()).0,
                    Ordering::SeqCst,
                );
            }
        }
    }
    let found = surviving(&side.maps.index, side.of.slots);
    found
        .into_iter()
        .map(|(slot, block)| (slot, block, Priority::Normal))
        .collect()
}

/// Staging buffer, where in it, and how much.
const fn parts(effect: &Effect) -> (u16, u32, u32) {
    match *effect {
        Effect::Load { job, skip, len, .. } | Effect::Store { job, skip, len, .. } => (job, skip, len),
    }
}

/// Whether two ranges, each a start and a length, have a byte in common.
pub(super) const fn overlap(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 < b.0 + b.1 && b.0 < a.0 + a.1
}
