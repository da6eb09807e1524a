//! The state that the queues and the mover share.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_queue::ArrayQueue;
use ublk_bpf_abi::{IndexEntry, Priority, SECTOR_SIZE, regions};

use super::slots::SlotTable;
use crate::errno::Errno;

/// Capacity of the hint queue. Hints beyond it are dropped: hot blocks are hinted again.
const MAX_HINTS: usize = 4096;

/// What a write does to the cached block that it touches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Updates it: the data is copied once and written to both devices from the copy.
    #[default]
    WriteThrough,
    /// Invalidates it: the data is written to the backing device alone, without a copy.
    WriteAround,
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

/// A pin of a slot, which [`Cache::end_read`] or [`Cache::end_change`] releases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the slot stays pinned until the pin is released"]
pub struct SlotPin(u32);

/// What [`Cache::begin_write`] and [`Cache::begin_discard`] marked; [`Cache::end_change`] removes the marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the blocks cannot be filled until the change has ended"]
pub struct Change {
    /// The slot to write too, after the backing device.
    pub pin: Option<SlotPin>,
    /// Blocks that were invalidated.
    pub invalidated: u32,
}

/// Why the cache was detached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{during} the cache device failed with {errno}")]
pub struct CacheFailure {
    /// The operation: `reading`, `writing`.
    pub during: &'static str,
    /// Its error.
    pub errno: Errno,
}

/// The cache of one device. `index` and `heat` are the maps that the classifier reads.
#[derive(Debug)]
pub struct Cache<'m> {
    shape: Shape,
    pub(super) index: &'m [AtomicU64],
    pub(super) heat: &'m [AtomicU64],
    pub(super) slots: SlotTable,
    pub(super) hints: ArrayQueue<u64>,
    pub(super) mover_sleeps: AtomicBool,
    /// Requests that arrived, by which the mover decays heat.
    pub(super) requests: AtomicU64,
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
            index,
            heat,
            slots: SlotTable::new(shape.slots),
            hints: ArrayQueue::new(MAX_HINTS),
            mover_sleeps: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            failure: OnceLock::new(),
            is_attached: AtomicBool::new(true),
        }
    }

    /// Its layout.
    #[must_use]
    pub const fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Clears the index: no block is cached, no write is in flight.
    pub fn clear(&self) {
        self.index.iter().for_each(|word| word.store(0, Ordering::SeqCst));
    }

    /// Restores the heat of a block that an earlier server saved, unless the map, which is newer, has more.
    pub fn remember_heat(&self, block: u64, heat: u8) {
        if let Ok(block) = u32::try_from(block)
            && self.heat(block) < heat
        {
            self.set_heat(block, heat);
        }
    }

    /// Pins the slot for a read of `length` bytes (not 0) at `offset`, if the slot can serve all of it.
    #[inline(always)]
    #[must_use]
    pub fn begin_read(&self, offset: u64, length: u64) -> Option<SlotPin> {
        let block = self.one_block(offset, length)?;
        if !self.is_attached.load(Ordering::Relaxed) {
            return None;
        }
        let word = self.index.get(block as usize)?;
        let entry = IndexEntry(word.load(Ordering::SeqCst));
        if !self.serves(entry, offset, length) || !self.slots.pin(entry.slot(), block) {
            return None;
        }
        // A change before the pin is seen by this second load; a later one finds the pin.
        let now = IndexEntry(word.load(Ordering::SeqCst));
        if now == entry || (now.slot() == entry.slot() && self.serves(now, offset, length)) {
            return Some(SlotPin(entry.slot()));
        }
        self.slots.unpin(entry.slot());
        None
    }

    /// The read has completed.
    #[inline]
    pub fn end_read(&self, pin: SlotPin) {
        self.slots.unpin(pin.0);
    }

    /// Marks a write of `length` bytes (not 0) at `offset`. Call it before the write is issued to either device.
    pub fn begin_write(&self, offset: u64, length: u64) -> Change {
        let through = self.shape.mode == Mode::WriteThrough && self.is_attached.load(Ordering::Relaxed);
        let pin = through
            .then(|| self.begin_write_through(offset, length))
            .flatten();
        match pin {
            Some(_) => Change { pin, invalidated: 0 },
            None => self.begin_discard(offset, length),
        }
    }

    /// Marks a discard or write-zeroes of this range and invalidates its blocks. Call it before the operation is issued.
    /// `length` is not 0.
    pub fn begin_discard(&self, offset: u64, length: u64) -> Change {
        let mut invalidated = 0;
        for word in self.words(offset, length) {
            let before = update(word, |entry| {
                debug_assert!(entry.writers() < IndexEntry::MAX_WRITERS);
                entry.invalidated().with_writers(entry.writers() + 1, 0)
            });
            invalidated += u32::from(before.is_present());
        }
        Change {
            pin: None,
            invalidated,
        }
    }

    /// Ends a change of this range that began with this pin. `is_good`: a pinned slot has all of its data.
    pub fn end_change(&self, offset: u64, length: u64, pin: Option<SlotPin>, is_good: bool) {
        let regions = self.regions(offset, length);
        for word in self.words(offset, length) {
            update(word, |entry| {
                let writers = entry.writers().saturating_sub(1);
                match pin {
                    // An invalidated block is not filled while a write of it is in flight, so a present one is in its old slot.
                    Some(SlotPin(slot)) if entry.is_present() && entry.slot() == slot => {
                        if is_good {
                            entry.with_writers(writers, entry.writing() & !regions)
                        } else {
                            entry.invalidated().with_writers(writers, 0)
                        }
                    }
                    _ => entry.with_writers(writers, entry.writing()),
                }
            });
        }
        if let Some(SlotPin(slot)) = pin {
            self.slots.unpin(slot);
        }
    }

    /// Offset of the slot from its block: add it, wrapping, to a position on the backing device.
    #[inline]
    #[must_use]
    pub fn slot_delta(&self, pin: SlotPin, offset: u64) -> u64 {
        let block_start = offset & !(self.block_bytes() - 1);
        self.slot_offset(pin.0).wrapping_sub(block_start)
    }

    /// Requests promotion of the block at `offset`. Returns whether the hint was queued.
    pub fn hint(&self, offset: u64, priority: Priority) -> bool {
        let hint = (offset >> self.shape.shift) << 2 | priority as u64;
        self.is_attached.load(Ordering::Relaxed) && self.hints.push(hint).is_ok()
    }

    /// Whether the mover sleeps and must be woken for a hint. True once for each sleep.
    #[inline]
    #[must_use]
    pub fn must_wake(&self) -> bool {
        self.mover_sleeps.load(Ordering::SeqCst) && self.mover_sleeps.swap(false, Ordering::SeqCst)
    }

    /// Counts requests that arrived.
    #[inline]
    pub fn count_requests(&self, requests: u64) {
        self.requests.fetch_add(requests, Ordering::Relaxed);
    }

    /// Detaches the cache after its device failed: no I/O to it is started from now on. Keeps the first cause.
    #[cold]
    pub fn detach(&self, failure: CacheFailure) {
        self.is_attached.store(false, Ordering::SeqCst);
        let _ = self.failure.set(failure);
        // Wake the mover, which empties the index.
        self.mover_sleeps.store(true, Ordering::SeqCst);
    }

    /// Why the cache was detached, if it was.
    #[inline]
    #[must_use]
    pub fn failure(&self) -> Option<&CacheFailure> {
        self.failure.get()
    }

    pub(super) const fn block_bytes(&self) -> u64 {
        1 << self.shape.shift
    }

    fn begin_write_through(&self, offset: u64, length: u64) -> Option<SlotPin> {
        let block = self.one_block(offset, length)?;
        let regions = self.regions(offset, length);
        let word = self.index.get(block as usize)?;
        loop {
            let entry = IndexEntry(word.load(Ordering::SeqCst));
            if !entry.serves(regions) || entry.writers() >= IndexEntry::MAX_WRITERS {
                return None;
            }
            // Pin before the mark: once that is set, the slot is written even if the block is invalidated.
            if !self.slots.pin(entry.slot(), block) {
                return None;
            }
            let marked = entry.with_writers(entry.writers() + 1, entry.writing() | regions);
            let swapped = word.compare_exchange(entry.0, marked.0, Ordering::SeqCst, Ordering::SeqCst);
            if swapped.is_ok() {
                return Some(SlotPin(entry.slot()));
            }
            self.slots.unpin(entry.slot());
        }
    }

    /// Whether the entry's slot may serve a read of this range. Mostly, no write is in flight.
    #[inline]
    fn serves(&self, entry: IndexEntry, offset: u64, length: u64) -> bool {
        entry.is_present() && (entry.writing() == 0 || entry.serves(self.regions(offset, length)))
    }

    /// The block of a range that is within one block.
    #[inline]
    fn one_block(&self, offset: u64, length: u64) -> Option<u32> {
        let block = offset >> self.shape.shift;
        let last = (offset + (length - 1)) >> self.shape.shift;
        u32::try_from(block).ok().filter(|_| block == last)
    }

    /// The regions of its block that a range touches.
    fn regions(&self, offset: u64, length: u64) -> u16 {
        let sectors = u32::try_from(length / SECTOR_SIZE).unwrap_or(u32::MAX);
        regions(self.shape.shift, offset / SECTOR_SIZE, sectors)
    }

    /// The index words of the blocks that a range touches.
    fn words(&self, offset: u64, length: u64) -> &[AtomicU64] {
        let index = |offset: u64| usize::try_from(offset >> self.shape.shift).unwrap_or(usize::MAX);
        let (first, last) = (index(offset), index(offset + (length - 1)));
        self.index.get(first..=last).unwrap_or_default()
    }
}

/// Changes a word atomically, and returns its previous entry.
pub(super) fn update(word: &AtomicU64, change: impl Fn(IndexEntry) -> IndexEntry) -> IndexEntry {
    let mut found = word.load(Ordering::SeqCst);
    loop {
        let changed = change(IndexEntry(found)).0;
        match word.compare_exchange_weak(found, changed, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(before) => return IndexEntry(before),
            Err(now) => found = now,
        }
    }
}

#[cfg(test)]
mod tests {
    use ublk_bpf_abi::BlockState;

    use super::*;
    use crate::cache::Maps;
    use crate::cache::Trust;

    const SHIFT: u32 = 16;
    const BLOCK: u64 = 1 << SHIFT;

    /// A cache of four slots that has block 3 in slot 2.
    fn cache_of(maps: &Maps, mode: Mode) -> Cache<'_> {
        let shape = Shape {
            shift: SHIFT,
            capacity: 16 * BLOCK / SECTOR_SIZE,
            slots: 4,
            data_offset: 0,
            mode,
        };
        let cache = Cache::new(shape, &maps.index, &maps.heat);
        cache.slots.give(2, 3);
        assert!(cache.begin_fill(3, 2) && cache.begin_read(3 * BLOCK, 512).is_none() && cache.end_fill(3, 2));
        cache
    }

    #[test]
    fn a_read_of_a_present_block_pins_its_slot() {
        let maps = Maps::of(16);
        let cache = cache_of(&maps, Mode::WriteThrough);
        let pin = cache.begin_read(3 * BLOCK + 4096, 4096).unwrap();
        assert_eq!(
            cache.slot_delta(pin, 3 * BLOCK + 4096).wrapping_add(3 * BLOCK),
            2 * BLOCK
        );
        assert!(
            cache.evict(3, 2) && !cache.slots.take(2),
            "gone, but still in use"
        );
        assert_eq!(cache.begin_read(3 * BLOCK, 512), None);
        cache.end_read(pin);
        assert!(cache.slots.take(2));
        assert_eq!(cache.begin_read(4 * BLOCK, 512), None);
    }

    #[test]
    fn a_read_beyond_one_block_is_no_hit() {
        let maps = Maps::of(16);
        assert_eq!(
            cache_of(&maps, Mode::WriteThrough).begin_read(4 * BLOCK - 512, 1024),
            None
        );
    }

    #[test]
    fn a_scribbled_index_finds_no_other_blocks_slot() {
        let maps = Maps::of(16);
        let cache = cache_of(&maps, Mode::WriteThrough);
        for slot in [2, 3, 4, IndexEntry::MAX_SLOTS - 1] {
            maps.index[5].store(IndexEntry::new(BlockState::Present, slot).0, Ordering::SeqCst);
            assert_eq!(cache.begin_read(5 * BLOCK, 512), None);
            assert_eq!(cache.begin_write(5 * BLOCK, 512).pin, None);
            assert!(!cache.slots.is_pinned(2));
        }
    }

    #[test]
    fn a_write_through_hides_its_regions_until_its_end() {
        let maps = Maps::of(16);
        let cache = cache_of(&maps, Mode::WriteThrough);
        let change = cache.begin_write(3 * BLOCK, 4096);
        assert!(change.pin.is_some());
        assert_eq!(cache.begin_read(3 * BLOCK + 512, 512), None, "where it writes");
        cache.end_read(cache.begin_read(3 * BLOCK + 8192, 512).expect("elsewhere"));
        assert!(!cache.evict(3, 2), "in use");
        cache.end_change(3 * BLOCK, 4096, change.pin, true);
        assert!(cache.begin_read(3 * BLOCK + 512, 512).is_some());
    }

    #[test]
    fn overlapping_writes_empty_the_block_and_others_do_not() {
        let maps = Maps::of(16);
        let cache = cache_of(&maps, Mode::WriteThrough);
        let first = cache.begin_write(3 * BLOCK, 4096);
        let beside = cache.begin_write(3 * BLOCK + 4096, 4096);
        assert!(beside.pin.is_some());
        let over = cache.begin_write(3 * BLOCK + 2048, 4096);
        assert_eq!((over.pin, over.invalidated), (None, 1));
        assert!(!cache.begin_fill(3, 1) && !cache.slots.take(2), "somebody writes");
        cache.end_change(3 * BLOCK, 4096, first.pin, true);
        cache.end_change(3 * BLOCK + 2048, 4096, over.pin, true);
        cache.end_change(3 * BLOCK + 4096, 4096, beside.pin, true);
        assert_eq!(cache.entry(3), IndexEntry::ABSENT);
        assert!(cache.slots.take(2));
    }

    #[test]
    fn a_write_that_failed_empties_its_block() {
        let maps = Maps::of(16);
        let cache = cache_of(&maps, Mode::WriteThrough);
        let change = cache.begin_write(3 * BLOCK, 4096);
        cache.end_change(3 * BLOCK, 4096, change.pin, false);
        assert_eq!(cache.entry(3), IndexEntry::ABSENT);
    }

    #[test]
    fn a_write_overtakes_a_fill() {
        let maps = Maps::of(16);
        for mode in [Mode::WriteThrough, Mode::WriteAround] {
            let cache = cache_of(&maps, mode);
            cache.slots.give(0, 9);
            assert!(cache.begin_fill(9, 0));
            let change = cache.begin_write(9 * BLOCK, 512);
            assert_eq!((change.pin, change.invalidated), (None, 0));
            assert!(!cache.end_fill(9, 0), "what was read may be old");
            cache.end_change(9 * BLOCK, 512, None, true);
            assert!(!cache.end_fill(9, 0));
            assert!(cache.evict(3, 2));
        }
    }

    #[test]
    fn a_write_around_and_a_discard_empty_what_they_touch() {
        let maps = Maps::of(16);
        let cache = cache_of(&maps, Mode::WriteAround);
        let change = cache.begin_write(3 * BLOCK, 512);
        assert_eq!((change.pin, change.invalidated), (None, 1));
        cache.end_change(3 * BLOCK, 512, None, true);
        assert!(cache.slots.take(2));
        cache.slots.give(2, 3);
        assert!(cache.restore(3, 2, Trust::Proven));
        let change = cache.begin_discard(BLOCK, 4 * BLOCK);
        assert_eq!(change.invalidated, 1);
        for block in 1..5 {
            assert!(!cache.begin_fill(block, 0), "block {block} is being discarded");
        }
        cache.end_change(BLOCK, 4 * BLOCK, None, true);
        assert!(cache.index.iter().all(|word| word.load(Ordering::SeqCst) == 0));
    }

    #[test]
    fn a_detached_cache_serves_nothing_and_forgets_what_is_written() {
        let maps = Maps::of(16);
        let cache = cache_of(&maps, Mode::WriteThrough);
        let failure = CacheFailure {
            during: "reading",
            errno: Errno::EIO,
        };
        cache.detach(failure);
        assert_eq!(cache.begin_read(3 * BLOCK, 512), None);
        let change = cache.begin_write(3 * BLOCK, 512);
        assert_eq!((change.pin, change.invalidated), (None, 1));
        assert!(!cache.hint(0, Priority::Normal));
        assert_eq!(cache.failure(), Some(&failure));
    }

    #[test]
    fn heat_is_a_byte_for_each_block_and_is_halved() {
        let maps = Maps::of(16);
        let cache = cache_of(&maps, Mode::WriteThrough);
        cache.set_heat(9, 255);
        cache.set_heat(10, 3);
        assert!(cache.halve_heat(0, 9));
        assert_eq!([8, 9, 10, 11].map(|block| cache.heat(block)), [0, 127, 1, 0]);
    }

    #[test]
    fn what_an_earlier_server_knew_of_heat_cools_nothing() {
        let maps = Maps::of(16);
        let cache = cache_of(&maps, Mode::WriteThrough);
        cache.remember_heat(9, 7);
        assert_eq!(cache.heat(9), 7);
        cache.remember_heat(9, 0);
        assert_eq!(cache.heat(9), 7, "the map outlived that server, and knows better");
    }
}
