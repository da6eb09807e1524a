//! The state that the queues and the mover share.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use ublk_bpf_abi::{IndexEntry, Priority, REGIONS, SECTOR_SIZE, WriteMode, regions};

use super::blocks::{Blocks, granule};
use super::commit::Commits;
use super::evict::Algorithm;
use super::free::FreeSlots;
use super::hints::{Arriving, Hinted};
use super::mover::PromoteLimits;
use super::tenants::Tenants;
use super::times::ServiceTimes;
use super::waiters::QueueSet;
use super::writeback::Writeback;
use crate::errno::Errno;

/// What a write does to the cached block that it touches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Updates it: the data is copied once and written to both devices from the copy.
    #[default]
    WriteThrough,
    /// Invalidates it: the data is written to the backing device alone, without a copy.
    WriteAround,
    /// Writes the slot alone, without a copy. The backing device gets the data later.
    WriteBack,
}

impl Mode {
    /// Its name, as users write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::WriteThrough => "write-through",
            Self::WriteAround => "write-around",
            Self::WriteBack => "write-back",
        }
    }
}

impl From<WriteMode> for Mode {
    fn from(mode: WriteMode) -> Self {
        match mode {
            WriteMode::Back => Self::WriteBack,
            WriteMode::Through => Self::WriteThrough,
            WriteMode::Around => Self::WriteAround,
        }
    }
}

/// The layout of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Log2 of the bytes of a block: 12 to 20.
    pub shift: u32,
    /// Sectors of the device. Its last block may be partial.
    pub capacity: u64,
    /// Number of slots: 1 to [`IndexEntry::MAX_SLOTS`].
    pub slots: u32,
    /// Byte offset of the first slot on the cache device.
    pub data_offset: u64,
    /// How writes treat cached blocks.
    pub mode: Mode,
}

impl Shape {
    /// The byte offset of the end of the last slot on the cache device.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.data_offset + ((self.slots as u64) << self.shift)
    }
}

/// A pin of a slot, which [`Cache::end_read`] releases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the slot stays pinned until the pin is released"]
pub struct SlotPin(pub(super) u32);

/// A write's claim of the regions that it touches, in the slot of its block. [`Cache::end_change`] releases it.
///
/// Until then reads of these regions bypass the cache, and no fill or other write has them. So the write needs its claim
/// even if nothing of it [goes to the slot](Self::stores).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the regions stay claimed until the change has ended"]
pub struct WriteClaim {
    pin: SlotPin,
    /// Those that the slot can serve once it has the data.
    becomes_valid: u16,
}

impl WriteClaim {
    /// Whether all data of the write goes to the slot, after the backing device. Otherwise none does: the cache is written
    /// around, or the write covers a part of invalid regions only, which are not read in for it.
    #[must_use]
    pub const fn stores(self) -> bool {
        self.becomes_valid != 0
    }

    /// The slot, for [`Cache::slot_delta`].
    pub const fn pin(self) -> SlotPin {
        self.pin
    }
}

/// What [`Cache::start_write`] and [`Cache::start_discard`] marked; [`Cache::end_change`] removes the marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the blocks cannot be filled until the change has ended"]
pub struct Change {
    /// The claim of a write of a present block. Without one, the blocks are absent until the change has ended, and remain so.
    pub claim: Option<WriteClaim>,
    /// Present blocks that were invalidated.
    pub invalidated: u32,
}

/// Why the cache was detached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CacheFailure {
    /// Its device failed.
    #[error("{during} the cache device failed with {errno}")]
    Device {
        /// The operation: `reading`, `writing`.
        during: &'static str,
        /// Its error.
        errno: Errno,
    },
    /// A command asked for it.
    #[error("`ublk-bpf cache detach` asked for it")]
    Asked,
}

/// The cache of one device. `index` and `heat` are the maps that the classifier reads.
#[derive(Debug)]
pub struct Cache<'m> {
    shape: Shape,
    pub(super) blocks: Blocks<'m>,
    pub(super) heat: &'m [AtomicU64],
    pub(super) free: FreeSlots,
    pub(super) hints: Arriving,
    pub(super) mover_sleeps: AtomicBool,
    /// Requests that arrived, by which the mover decays heat.
    pub(super) requests: AtomicU64,
    pub(super) writeback: Writeback,
    pub(super) commits: Commits,
    pub(super) tenants: Tenants<'m>,
    /// The place in [`Algorithm::ALL`] of the algorithm that the mover is to take, plus one; 0: it keeps its own.
    eviction: AtomicU8,
    failure: OnceLock<CacheFailure>,
    /// Whether `failure` is unset, for the price of one load.
    is_attached: AtomicBool,
}

impl<'m> Cache<'m> {
    /// An empty cache. `index` may have stale entries until [`clear`](Self::clear) is called.
    ///
    /// # Panics
    /// If the maps are too small for the shape, or the number of slots is out of range.
    #[must_use]
    pub fn new(shape: Shape, index: &'m [AtomicU64], heat: &'m [AtomicU64]) -> Self {
        let blocks = shape.capacity.div_ceil(1 << (shape.shift - 9));
        assert!(index.len() as u64 >= blocks && heat.len() as u64 * 8 >= blocks);
        assert!((1..=IndexEntry::MAX_SLOTS).contains(&shape.slots));
        Self {
            shape,
            blocks: Blocks::new(index, shape.slots, granule(shape.shift)),
            heat,
            free: FreeSlots::new(shape.slots),
            hints: Arriving::new(),
            mover_sleeps: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            writeback: Writeback::new(shape.mode),
            commits: Commits::new(),
            tenants: Tenants::default(),
            eviction: AtomicU8::new(0),
            failure: OnceLock::new(),
            is_attached: AtomicBool::new(true),
        }
    }

    /// The same with write-back. `dirty` is the map that says of each slot what is dirty, for its successor as well.
    ///
    /// # Panics
    /// If the map is too small for the shape.
    #[must_use]
    pub fn with_writeback(mut self, dirty: &'m [AtomicU64]) -> Self {
        assert!(dirty.len() >= self.shape.slots as usize);
        self.blocks = self.blocks.with_dirty(dirty);
        self.writeback.times = ServiceTimes::new();
        self.free = FreeSlots::for_writes(self.shape.slots);
        self.free.is_wanted.store(true, Ordering::Relaxed);
        self
    }

    /// Its layout.
    #[must_use]
    pub const fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Clears the index and the heat, for a cache that starts with nothing on maps that were in use: the heat of a block
    /// that has left says what became of it in the cache that it left.
    pub fn reset(&self) {
        self.clear();
        self.heat.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }

    /// The same with write-back: nothing is dirty.
    pub fn forget_all(&self) {
        self.reset();
        self.blocks.dirty.clear();
    }

    /// Clears the index: no block is cached, no write is in flight. The heat stays, for the blocks that are restored.
    pub fn clear(&self) {
        self.blocks
            .index
            .iter()
            .for_each(|word| word.store(0, Ordering::SeqCst));
    }

    /// Restores the heat of a block that an earlier server saved, unless the map, which is newer, has more.
    pub(super) fn remember_heat(&self, block: u32, heat: u8) {
        if self.heat(block) < heat {
            self.set_heat(block, heat);
        }
    }

    /// Pins the slot for a read of `length` bytes (not 0) at `offset`, if the slot can serve all of it.
    #[inline(always)]
    #[must_use]
    pub fn begin_read(&self, offset: u64, length: u64) -> Option<SlotPin> {
        let block = self.one_block(offset, length)?;
        // Without a cache, only the slot has what is dirty.
        if !self.is_attached.load(Ordering::Relaxed) && !self.blocks.entry(block).is_dirty() {
            return None;
        }
        let slot = self.blocks.begin_read(block, || self.regions(offset, length))?;
        Some(SlotPin(slot))
    }

    /// The same if the slot can serve some regions of the block that the range touches. Returns these as well, at least
    /// one bit: the parts of the range in them are read from the slot, the others from the backing device.
    #[must_use]
    pub fn begin_split_read(&self, offset: u64, length: u64) -> Option<(SlotPin, u16)> {
        let block = self.one_block(offset, length)?;
        if !self.is_attached.load(Ordering::Relaxed) && !self.blocks.entry(block).is_dirty() {
            return None;
        }
        let (slot, readable) = self
            .blocks
            .begin_split_read(block, self.regions(offset, length))?;
        Some((SlotPin(slot), readable))
    }

    /// The read has completed.
    #[inline]
    pub fn end_read(&self, pin: SlotPin) {
        self.blocks.slots.unpin(pin.0);
    }

    /// Marks a write of `length` bytes (not 0) at `offset` that ends on the backing device. Call it before the write is issued
    /// to either device. `None`: a dirty block is in its way ([`start_write`](Self::start_write) says what to do).
    pub(super) fn mark_write(&self, offset: u64, length: u64, mode: Mode) -> Option<Change> {
        let claim = self
            .is_attached
            .load(Ordering::Relaxed)
            .then(|| self.claim_write(offset, length, mode))
            .flatten();
        match claim {
            Some(_) => Some(Change {
                claim,
                invalidated: 0,
            }),
            None => self.mark_discard(offset, length),
        }
    }

    /// Marks a discard or write-zeroes of this range and invalidates its blocks. `length` is not 0. `None`: a block of it is
    /// dirty, and nothing is marked.
    pub(super) fn mark_discard(&self, offset: u64, length: u64) -> Option<Change> {
        let words = self.words(offset, length);
        let mut invalidated = 0;
        for (done, word) in words.iter().enumerate() {
            let Some(was_present) = Blocks::begin_discard(word) else {
                words[..done].iter().for_each(Blocks::end_discard);
                return None;
            };
            invalidated += u32::from(was_present);
        }
        Some(Change {
            claim: None,
            invalidated,
        })
    }

    /// Ends a change of this range that began with this claim. `is_good`: a slot that the claim [stores
    /// to](WriteClaim::stores) has all of its data.
    pub fn end_change(&self, offset: u64, length: u64, claim: Option<WriteClaim>, is_good: bool) {
        let Some(claim) = claim else {
            self.words(offset, length).iter().for_each(Blocks::end_discard);
            return;
        };
        let Some(block) = self.one_block(offset, length) else {
            debug_assert!(false, "a claim of two blocks");
            return;
        };
        let valid = if is_good { claim.becomes_valid } else { 0 };
        let regions = self.regions(offset, length);
        self.blocks
            .end_write(block, claim.pin.0, (regions, valid), self.regions_of(block));
    }

    /// Offset of the slot from its block: add it, wrapping, to a position on the backing device.
    #[inline]
    #[must_use]
    pub fn slot_delta(&self, pin: SlotPin, offset: u64) -> u64 {
        let block_start = offset & !(self.block_bytes() - 1);
        self.slot_offset(pin.0).wrapping_sub(block_start)
    }

    /// Limits promotion anew. The mover follows at its next poll, with what may be promoted in a second to begin with.
    pub fn limit_promotion(&self, limits: PromoteLimits) {
        self.free.limit(limits.rate);
    }

    /// Evicts by another algorithm from the mover's next poll on.
    pub fn evict_by(&self, algorithm: Algorithm) {
        self.eviction.store(algorithm as u8 + 1, Ordering::Relaxed);
    }

    /// The algorithm that was asked for since this was last called.
    pub(super) fn take_eviction(&self) -> Option<Algorithm> {
        if self.eviction.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let asked = self.eviction.swap(0, Ordering::Relaxed);
        Algorithm::ALL.into_iter().find(|&of| of as u8 + 1 == asked)
    }

    /// Requests promotion of the block at `offset`.
    pub fn hint(&self, offset: u64, priority: Priority) -> Hinted {
        self.hint_for(offset, priority, 0)
    }

    /// The same for a tenant, whose slot it becomes; 0: no tenant.
    pub fn hint_for(&self, offset: u64, priority: Priority, tenant: u8) -> Hinted {
        if !self.is_attached.load(Ordering::Relaxed) {
            return Hinted::Refused;
        }
        // As if it were promoted already: many hints may wait, and policies are to see what is coming.
        self.tenants.reserve(tenant);
        let block = offset >> self.shape.shift;
        match self.hints.push(block, priority, tenant) {
            None => Hinted::Queued,
            Some(displaced) => {
                self.tenants.unreserve(displaced);
                Hinted::Displaced
            }
        }
    }

    /// Whether the mover sleeps and must be woken, for a hint or for what requests wait for. True once for each sleep.
    #[inline]
    #[must_use]
    pub fn must_wake(&self) -> bool {
        let rests = &self.writeback.mover_rests;
        self.mover_sleeps.load(Ordering::SeqCst) && self.mover_sleeps.swap(false, Ordering::SeqCst)
            || rests.load(Ordering::SeqCst) && self.has_waiting() && rests.swap(false, Ordering::SeqCst)
    }

    /// Takes the queues that wait for a claim that was released, by whichever thread: the caller wakes them. Each queue asks
    /// whenever it has ended changes or fills, or has begun some.
    pub fn take_woken(&self) -> QueueSet {
        self.blocks.waiters.take()
    }

    /// Counts requests that arrived.
    #[inline]
    pub fn count_requests(&self, requests: u64) {
        self.requests.fetch_add(requests, Ordering::Relaxed);
    }

    /// Detaches the cache after its device failed: no I/O to it is started from now on. Keeps the first cause. The caller
    /// wakes [all that wait](Self::take_woken).
    #[cold]
    pub fn detach(&self, failure: CacheFailure) {
        self.is_attached.store(false, Ordering::SeqCst);
        let _ = self.failure.set(failure);
        // No fill is waited for: a thread that died may have held its claim.
        self.blocks.waiters.wake_all();
        // Wake the mover, which empties the index.
        self.mover_sleeps.store(true, Ordering::SeqCst);
    }

    /// Why the cache was detached, if it was.
    #[inline]
    #[must_use]
    pub fn failure(&self) -> Option<&CacheFailure> {
        self.failure.get()
    }

    /// Bytes of a region.
    pub(super) const fn region_bytes(&self) -> u64 {
        self.block_bytes() / REGIONS as u64
    }

    pub(super) fn is_attached(&self) -> bool {
        self.is_attached.load(Ordering::SeqCst)
    }

    pub(super) const fn block_bytes(&self) -> u64 {
        1 << self.shape.shift
    }

    fn claim_write(&self, offset: u64, length: u64, mode: Mode) -> Option<WriteClaim> {
        let block = self.one_block(offset, length)?;
        let regions = self.regions(offset, length);
        let (slot, invalid) = self.blocks.begin_write(block, regions)?;
        let becomes_valid = match mode {
            // What is left of an invalid region would be missing.
            Mode::WriteThrough | Mode::WriteBack => regions & (self.whole_regions(offset, length) | !invalid),
            Mode::WriteAround => 0,
        };
        Some(WriteClaim {
            pin: SlotPin(slot),
            becomes_valid,
        })
    }

    /// The block of a range that is within one block.
    #[inline]
    pub(super) fn one_block(&self, offset: u64, length: u64) -> Option<u32> {
        let block = offset >> self.shape.shift;
        let last = (offset + (length - 1)) >> self.shape.shift;
        u32::try_from(block).ok().filter(|_| block == last)
    }

    /// The regions of its block that a range touches.
    pub(super) fn regions(&self, offset: u64, length: u64) -> u16 {
        let sectors = u32::try_from(length / SECTOR_SIZE).unwrap_or(u32::MAX);
        regions(self.shape.shift, offset / SECTOR_SIZE, sectors)
    }

    /// The regions of its block that a range covers whole. The last one ends with the device.
    pub(super) fn whole_regions(&self, offset: u64, length: u64) -> u16 {
        let in_block = self.block_bytes() - 1;
        let size = self.region_bytes();
        let is_last = offset + length >= self.shape.capacity * SECTOR_SIZE;
        let first = (offset & in_block).div_ceil(size);
        let end = (offset & in_block) + length;
        let end = if is_last { end.div_ceil(size) } else { end / size };
        let below = |region: u64| (1_u32 << region.min(16)) - 1;
        u16::try_from(below(end) & !below(first)).unwrap_or(0)
    }

    /// The regions that a block has: fewer than 16 if the device ends in it, none beyond its end.
    pub(super) fn regions_of(&self, block: u32) -> u16 {
        match self.length_of(block) {
            0 => 0,
            length => self.regions(self.block_offset(block), length.into()),
        }
    }

    /// The index words of the blocks that a range touches.
    pub(super) fn words(&self, offset: u64, length: u64) -> &[AtomicU64] {
        let index = |offset: u64| usize::try_from(offset >> self.shape.shift).unwrap_or(usize::MAX);
        let (first, last) = (index(offset), index(offset + (length - 1)));
        self.blocks.index.get(first..=last).unwrap_or_default()
    }
}

#[cfg(test)]
impl Cache<'_> {
    /// A write of a cache that nothing of is dirty.
    pub(super) fn marked_write(&self, offset: u64, length: u64) -> Change {
        self.mark_write(offset, length, self.mode())
            .expect("nothing is dirty")
    }

    /// A discard, likewise.
    pub(super) fn marked_discard(&self, offset: u64, length: u64) -> Change {
        self.mark_discard(offset, length).expect("nothing is dirty")
    }
}

#[cfg(test)]
mod tests;
