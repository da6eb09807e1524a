//! The classifier's maps as memory of the server.
//!
//! Any process that may open the maps may write them, so their contents are untrusted integers.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ublk_bpf_abi::{CacheCounters, CacheState, ServerCounters, TENANTS, TakenVerdict, VerdictSlot, map};

use super::error::PolicyError;
use super::spec::CacheSpec;
use super::state::StateMap;
use crate::sys::bpf::MapWords;

const SLOT_WORDS: usize = size_of::<VerdictSlot>() / size_of::<u64>();
const COUNTER_WORDS: usize = size_of::<ServerCounters>() / size_of::<u64>();

fn map_words(fd: BorrowedFd<'_>, map: &'static str, words: usize) -> Result<Arc<MapWords>, PolicyError> {
    let words = MapWords::map(fd, words).map_err(|source| PolicyError::Map { map, source })?;
    Ok(Arc::new(words))
}

/// The verdicts of every queue.
#[derive(Clone, Debug)]
pub struct Verdicts {
    words: Arc<MapWords>,
    depth: u16,
}

impl Verdicts {
    pub(super) fn map(fd: BorrowedFd<'_>, queues: u16, depth: u16) -> Result<Self, PolicyError> {
        let slots = usize::from(queues) * usize::from(depth);
        Ok(Self {
            words: map_words(fd, map::VERDICTS, slots * SLOT_WORDS)?,
            depth,
        })
    }

    /// Clears every verdict: those of an earlier server do not apply to the requests of this one.
    pub fn clear(&self) {
        for slot in self.words.as_slice().chunks_exact(SLOT_WORDS) {
            slot[0].store(0, Ordering::Relaxed);
        }
    }

    /// The verdicts of one queue, for the thread that serves it.
    ///
    /// # Panics
    ///
    /// If the device has no such queue.
    #[must_use]
    pub fn queue(&self, qid: u16) -> QueueVerdicts<'_> {
        let depth = usize::from(self.depth);
        let (slots, _) = self.words.as_slice().as_chunks();
        let slots = slots
            .get(usize::from(qid) * depth..)
            .and_then(|slots| slots.get(..depth));
        let Some(slots) = slots else {
            panic!("no queue {qid}");
        };
        QueueVerdicts { slots }
    }
}

/// The verdicts of one queue's tags.
#[derive(Clone, Copy, Debug)]
pub struct QueueVerdicts<'a> {
    slots: &'a [[AtomicU64; SLOT_WORDS]],
}

impl QueueVerdicts<'_> {
    /// Takes the verdict of a tag that has arrived: reads its slot and clears it.
    ///
    /// Between a tag's arrival and its commit only the server accesses its slot: the classifier ran for the request
    /// before the kernel delivered the tag, and the ring's completion orders the two. So relaxed accesses suffice.
    ///
    /// # Panics
    ///
    /// If the queue has no such tag.
    #[inline]
    #[must_use]
    pub fn take(&self, tag: u16) -> TakenVerdict {
        let [head, place] = &self.slots[usize::from(tag)];
        let taken = TakenVerdict {
            head: head.load(Ordering::Relaxed),
            place: place.load(Ordering::Relaxed),
        };
        head.store(0, Ordering::Relaxed);
        taken
    }
}

/// The server's counters, one entry for each queue.
#[derive(Clone, Debug)]
pub struct DeviceCounters {
    words: Arc<MapWords>,
}

impl DeviceCounters {
    pub(super) fn map(fd: BorrowedFd<'_>, queues: u16) -> Result<Self, PolicyError> {
        Ok(Self {
            words: map_words(fd, map::SERVER, usize::from(queues) * COUNTER_WORDS)?,
        })
    }

    /// The counters of one queue, for the thread that serves it.
    ///
    /// # Panics
    ///
    /// If the device has no such queue.
    #[must_use]
    pub fn queue(&self, qid: u16) -> QueueCounters {
        let first = usize::from(qid) * COUNTER_WORDS;
        assert!(
            first + COUNTER_WORDS <= self.words.as_slice().len(),
            "no queue {qid}"
        );
        QueueCounters {
            words: Arc::clone(&self.words),
            first,
        }
    }
}

/// The published counters of one queue.
#[derive(Debug)]
pub struct QueueCounters {
    words: Arc<MapWords>,
    first: usize,
}

impl QueueCounters {
    /// Publishes the counts in the map.
    #[inline]
    pub fn publish(&self, counters: &ServerCounters) {
        self.words.store(self.first, counters.words());
    }

    /// The published counts: those of the previous server, for a server that recovers the device.
    #[must_use]
    pub fn published(&self) -> ServerCounters {
        let mut values = [0; COUNTER_WORDS];
        for (value, word) in values.iter_mut().zip(self.words()) {
            *value = word.load(Ordering::Relaxed);
        }
        ServerCounters::from_values(values)
    }

    #[inline]
    fn words(&self) -> &[AtomicU64] {
        &self.words.as_slice()[self.first..self.first + COUNTER_WORDS]
    }
}

/// The map of blocks that may hold data: bit `b % 64` of word `b / 64` for block `b`.
#[derive(Clone, Debug)]
pub struct WrittenMap {
    words: Arc<MapWords>,
    shift: u32,
}

impl WrittenMap {
    pub(super) fn map(fd: BorrowedFd<'_>, words: u32, shift: u32) -> Result<Self, PolicyError> {
        Ok(Self {
            words: map_words(fd, map::WRITTEN, words as usize)?,
            shift,
        })
    }

    /// The words; bits of blocks beyond the device's end are never read.
    #[inline]
    #[must_use]
    pub fn words(&self) -> &[AtomicU64] {
        self.words.as_slice()
    }

    /// A block's size in bytes, as a power of two.
    #[must_use]
    pub fn shift(&self) -> u32 {
        self.shift
    }
}

/// The maps of a cache that the classifier and the server share.
#[derive(Clone, Debug)]
pub struct CacheMaps {
    index: Arc<MapWords>,
    heat: Arc<MapWords>,
    /// With write-back.
    dirty: Option<Arc<MapWords>>,
    tenants: Arc<MapWords>,
    usage: Arc<MapWords>,
    counters: Arc<MapWords>,
    state: StateMap,
}

impl CacheMaps {
    pub(super) fn map(
        of: CacheSpec,
        [index, heat, dirty, tenants, usage, counters]: [BorrowedFd<'_>; 6],
        state: StateMap,
    ) -> Result<Self, PolicyError> {
        let dirty = || map_words(dirty, map::DIRTY, of.dirty_slots as usize);
        Ok(Self {
            state,
            index: map_words(index, map::INDEX, of.blocks as usize)?,
            heat: map_words(heat, map::HEAT, of.heat_words() as usize)?,
            dirty: (of.dirty_slots != 0).then(dirty).transpose()?,
            tenants: map_words(tenants, map::TENANTS, of.tenant_words() as usize)?,
            usage: map_words(usage, map::USAGE, TENANTS as usize)?,
            counters: map_words(
                counters,
                map::CACHE,
                size_of::<CacheCounters>() / size_of::<u64>(),
            )?,
        })
    }

    /// An [`IndexEntry`](ublk_bpf_abi::IndexEntry) for each block of the device.
    #[must_use]
    pub fn index(&self) -> &[AtomicU64] {
        self.index.as_slice()
    }

    /// A byte for each block, eight to a word.
    #[must_use]
    pub fn heat(&self) -> &[AtomicU64] {
        self.heat.as_slice()
    }

    /// A [`DirtyEntry`](ublk_bpf_abi::DirtyEntry) for each slot, or nothing without write-back.
    #[must_use]
    pub fn dirty(&self) -> &[AtomicU64] {
        self.dirty.as_ref().map_or(&[], |dirty| dirty.as_slice())
    }

    /// A byte for each slot, eight to a word: the tenant that it is accounted to.
    #[must_use]
    pub fn tenants(&self) -> &[AtomicU64] {
        self.tenants.as_slice()
    }

    /// The slots of each tenant.
    #[must_use]
    pub fn usage(&self) -> &[AtomicU64] {
        self.usage.as_slice()
    }

    /// Tells policies of the cache as a whole.
    pub fn publish_state(&self, state: CacheState) {
        self.state.publish(state);
    }

    /// Publishes the counts in the map.
    pub fn publish(&self, counters: &CacheCounters) {
        for (word, value) in self.counters.as_slice().iter().zip(counters.values()) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// The published counts: those of the previous server, for a server that recovers the device.
    #[must_use]
    pub fn published(&self) -> CacheCounters {
        let mut values = [0; CacheCounters::FIELDS.len()];
        for (value, word) in values.iter_mut().zip(self.counters.as_slice()) {
            *value = word.load(Ordering::Relaxed);
        }
        CacheCounters::from_values(values)
    }
}
