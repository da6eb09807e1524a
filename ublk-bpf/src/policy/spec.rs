//! What a classifier is for, and the shapes of its maps.

use serde::{Deserialize, Serialize};
use ublk_bpf_abi::{ABI_VERSION, Config};

use super::offsets::KernelLayout;
use super::pin::Disk;
use crate::cache::HEAT_LIMIT;

/// The device of a classifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassifierSpec {
    /// Its disk.
    pub disk: Disk,
    /// Hardware queues that the device really has.
    pub queues: u16,
    /// Tags in each queue.
    pub depth: u16,
    /// The map of blocks that hold data, if the server knows them for its backing device.
    pub written: Option<WrittenSpec>,
    /// The maps of its cache, if it has one.
    pub cache: Option<CacheSpec>,
    /// What is counted of its requests.
    pub observe: Observe,
}

/// What BPF programs count of a device's requests. It costs time of every request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Observe {
    /// Nothing.
    Off,
    /// The decisions of the policy.
    #[default]
    Counters,
    /// These, and histograms of the requests' latencies and sizes.
    Full,
}

impl Observe {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Off, Self::Counters, Self::Full];

    /// Whether this is the default, which records omit.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The shape of the maps of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSpec {
    /// A block's size in bytes as a power of two, 12 to 20.
    pub shift: u32,
    /// Blocks of the device.
    pub blocks: u32,
    /// Slots of the cache.
    pub slots: u32,
    /// The same if writes may end in them; else 0.
    pub dirty_slots: u32,
}

impl CacheSpec {
    /// The maps of a device of `sectors` sectors in blocks of `1 << shift` bytes; none if it has 2^32 blocks or more.
    #[must_use]
    pub fn for_device(sectors: u64, shift: u32) -> Option<Self> {
        debug_assert!((12..=20).contains(&shift));
        let blocks = u32::try_from(sectors.div_ceil(1 << (shift - 9))).ok()?;
        Some(Self {
            shift,
            blocks,
            slots: 0,
            dirty_slots: 0,
        })
    }

    /// The same for a cache of so many slots.
    #[must_use]
    pub const fn with_slots(self, slots: u32) -> Self {
        Self { slots, ..self }
    }

    /// The same with write-back.
    #[must_use]
    pub const fn with_writeback(self) -> Self {
        Self {
            dirty_slots: self.slots,
            ..self
        }
    }

    /// Words that have a byte for each slot.
    pub(super) fn tenant_words(self) -> u32 {
        self.slots.div_ceil(8).max(1)
    }

    pub(super) fn heat_words(self) -> u32 {
        self.blocks.div_ceil(HEAT_BLOCKS)
    }
}

/// Blocks whose heat is in one word.
const HEAT_BLOCKS: u32 = 8;

/// The shape of the map of blocks that may hold data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrittenSpec {
    /// A block's size in bytes as a power of two, 12 to 30.
    pub shift: u32,
    /// 64-bit words, one bit for each block of the device.
    pub words: u32,
}

impl WrittenSpec {
    /// The map of a device of `sectors` sectors in blocks of `1 << shift` bytes; none if the map would have more
    /// than 2^32 words.
    #[must_use]
    pub fn for_device(sectors: u64, shift: u32) -> Option<Self> {
        debug_assert!((12..=30).contains(&shift));
        let blocks = sectors.div_ceil(1 << (shift - 9));
        Some(Self {
            shift,
            words: u32::try_from(blocks.div_ceil(64).max(1)).ok()?,
        })
    }
}

impl ClassifierSpec {
    pub(super) fn config(&self, layout: &KernelLayout) -> Config {
        Config {
            disk_name: self.disk.name_words(),
            abi_version: ABI_VERSION,
            depth: self.depth.into(),
            written_shift: self.written.map_or(0, |written| written.shift),
            flag_masks: layout.flag_masks,
            any_flag: layout.flag_masks.iter().fold(0, |all, mask| all | mask),
            queues: self.queues.into(),
            cache_shift: self.cache.map_or(0, |cache| cache.shift),
            heat_limit: HEAT_LIMIT,
            uncounted: u32::from(self.observe == Observe::Off),
        }
    }

    pub(super) fn slots(&self) -> u32 {
        u32::from(self.queues) * u32::from(self.depth)
    }

    pub(super) fn written_words(&self) -> u32 {
        self.written.map_or(1, |written| written.words)
    }

    pub(super) fn index_entries(&self) -> u32 {
        self.cache.map_or(1, |cache| cache.blocks)
    }

    pub(super) fn tenant_words(&self) -> u32 {
        self.cache.map_or(1, CacheSpec::tenant_words)
    }

    pub(super) fn dirty_entries(&self) -> u32 {
        self.cache.map_or(1, |cache| cache.dirty_slots.max(1))
    }

    pub(super) fn heat_words(&self) -> u32 {
        self.cache.map_or(1, CacheSpec::heat_words)
    }
}
