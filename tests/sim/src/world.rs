//! What a run of the simulator is made of.

use super::rng::Rng;
use ublk_bpf::cache::Mode;
use ublk_bpf::cache::evict::Algorithm;
use ublk_bpf::queue::{Backing, Capabilities, QueueConfig};

/// A cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheWorld {
    /// Log2 of the bytes of a cache block.
    pub shift: u32,
    /// Slots.
    pub slots: u32,
    /// What becomes of a block that is written.
    pub mode: Mode,
    /// How room is made.
    pub algorithm: Algorithm,
    /// Bytes that may be promoted in a thousand steps.
    pub rate: Option<u64>,
    /// Reads whose policy wants their block promoted, in a thousand.
    pub promote: u16,
    /// Those of them that fill it themselves, in a thousand.
    pub fill: u16,
    /// Buffers for that.
    pub fill_buffers: u16,
    /// Times in a thousand that an operation of such a fill is carried out when it might be.
    pub fill_pace: u16,
}

/// The device, the queue, and how often which kind of fault is injected (times in a thousand chances).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct World {
    /// Hardware queues: 1 or 2.
    pub queues: u8,
    /// Tags of a queue.
    pub depth: u16,
    /// Bytes of a logical block.
    pub logical_block: u32,
    /// Logical blocks of the device.
    pub blocks: u16,
    /// Most logical blocks of a read or write.
    pub most_blocks: u16,
    /// Staging buffers.
    pub staging_buffers: u16,
    /// Logical blocks of each.
    pub staging_blocks: u16,
    /// Tags that fit into a FETCH command's buffer.
    pub fetch_room: u16,
    /// What the backing can do.
    pub backing: Backing,
    /// The device may not be changed.
    pub read_only: bool,
    /// The policy may lose data.
    pub lossy: bool,
    /// The device holds data from the start.
    pub prefilled: bool,
    /// Log2 of the bytes of a block of the map of what was written.
    pub written_shift: u32,
    /// Requests that a dead server had are issued again; otherwise they fail.
    pub reissue: bool,
    /// Faults of backend operations and user copy.
    pub io_faults: u16,
    /// Faults of FETCH.
    pub fetch_faults: u16,
    /// Faults of COMMIT.
    pub commit_faults: u16,
    /// Faults of registration.
    pub register_faults: u16,
    /// Verdicts that are missing, stale, garbage or hostile.
    pub verdict_faults: u16,
    /// Requests that no block layer would send.
    pub bad_requests: u16,
    /// Stops, kills and power failures, in a hundred thousand steps.
    pub ends: u16,
    /// A cache before the backing, which is storage.
    pub cache: Option<CacheWorld>,
}

impl World {
    /// Any world.
    #[must_use]
    pub fn random(seed: u64) -> Self {
        let rng = &mut Rng::new(seed);
        // Every fourth world has no fault but those of its policy, or none at all.
        let calm = rng.chance(250);
        let mut rate = |rates: &[u16]| if calm { 0 } else { rng.pick(rates) };
        let io_faults = rate(&[0, 5, 50, 300]);
        let fetch_faults = rate(&[0, 10, 200]);
        let commit_faults = rate(&[0, 2, 50]);
        let register_faults = rate(&[0, 20, 500]);
        let bad_requests = rate(&[0, 5, 50]);
        let ends = rate(&[0, 10, 100, 1000]);
        let most_blocks = rng.pick(&[1, 4, 16, 40]);
        let mut world = Self {
            queues: 1,
            depth: rng.pick(&[1, 2, 3, 8, 32, 128, 300]),
            logical_block: rng.pick(&[512, 512, 512, 1024, 4096]),
            blocks: rng.pick(&[41, 64, 300]),
            most_blocks,
            staging_buffers: rng.pick(&[1, 2, 8]),
            staging_blocks: rng.pick(&[1, 2, 5, 64]),
            fetch_room: rng.pick(&[1, 2, 16, 128, 1024]),
            backing: Self::random_backing(rng),
            read_only: rng.chance(30),
            lossy: rng.chance(150),
            prefilled: rng.chance(500),
            written_shift: rng.pick(&[9, 12, 16]),
            reissue: rng.chance(700),
            io_faults,
            fetch_faults,
            commit_faults,
            register_faults,
            verdict_faults: rng.pick(&[0, 20, 500]),
            bad_requests,
            ends,
            cache: None,
        };
        world.queues = rng.pick(&[1, 1, 2]);
        if world.storage().is_some() && rng.chance(250) {
            let mode = rng.pick(&[Mode::WriteThrough, Mode::WriteAround]);
            let algorithm = rng.pick(&[Algorithm::Clock, Algorithm::Adaptive]);
            world.cache = Some(world.random_cache(rng, mode, algorithm));
        }
        world
    }

    /// Any world with a cache of this kind, with little activity that does not concern the cache.
    #[must_use]
    pub fn cached(seed: u64, mode: Mode, algorithm: Algorithm) -> Self {
        let rng = &mut Rng::new(seed ^ 0xcac4e);
        let mut world = Self {
            queues: rng.pick(&[1, 2, 2]),
            depth: rng.pick(&[2, 8, 32]),
            blocks: rng.pick(&[64, 300, 300, 1000]),
            backing: Backing::Storage(Capabilities {
                volatile_cache: rng.chance(600),
                discard: true,
                write_zeroes: true,
            }),
            read_only: false,
            lossy: false,
            register_faults: rng.pick(&[0, 20, 200]),
            verdict_faults: rng.pick(&[0, 20, 300]),
            ends: rng.pick(&[0, 10, 100, 300]),
            ..Self::random(seed)
        };
        world.cache = Some(world.random_cache(rng, mode, algorithm));
        world
    }

    fn random_cache(&self, rng: &mut Rng, mode: Mode, algorithm: Algorithm) -> CacheWorld {
        let mut cache = CacheWorld {
            shift: rng.pick(&[12, 12, 13, 14, 16]),
            slots: 1,
            mode,
            algorithm,
            rate: rng.pick(&[None, None, Some(1 << 20), Some(1 << 17)]),
            promote: rng.pick(&[100, 500, 1000]),
            fill: rng.pick(&[0, 500, 1000]),
            fill_buffers: rng.pick(&[1, 2, 8, 64]),
            fill_pace: rng.pick(&[1000, 1000, 30]),
        };
        let part = rng.pick(&[5, 20, 50, 50]);
        cache.slots = u32::try_from(self.cache_blocks(&cache) * part / 100)
            .unwrap_or(1)
            .max(1);
        cache
    }

    fn random_backing(rng: &mut Rng) -> Backing {
        if rng.chance(60) {
            return Backing::Null {
                filled: rng.chance(700),
            };
        }
        Backing::Storage(Capabilities {
            volatile_cache: rng.chance(600),
            discard: rng.chance(800),
            write_zeroes: rng.chance(800),
        })
    }

    /// Sectors of the device.
    pub(super) fn sectors(&self) -> u64 {
        u64::from(self.blocks) * self.block_sectors()
    }

    /// Cache blocks of the device.
    pub(super) fn cache_blocks(&self, cache: &CacheWorld) -> u64 {
        self.sectors().div_ceil(1 << (cache.shift - 9))
    }

    /// Sectors of a logical block.
    pub(super) const fn block_sectors(&self) -> u64 {
        self.logical_block as u64 / 512
    }

    /// Whether the backing keeps bytes, and how.
    pub(super) const fn storage(&self) -> Option<Capabilities> {
        match self.backing {
            Backing::Null { .. } => None,
            Backing::Storage(storage) => Some(storage),
        }
    }

    /// Whether completed writes may be lost by a power failure.
    pub(super) fn volatile_cache(&self) -> bool {
        self.storage().is_some_and(|storage| storage.volatile_cache)
    }

    /// What the machine is made for.
    pub(super) fn config(&self) -> QueueConfig {
        QueueConfig {
            depth: self.depth,
            staging_buffers: self.staging_buffers,
            staging_bytes: u32::from(self.staging_blocks) * self.logical_block,
            fill_buffers: self.cache.map_or(0, |cache| cache.fill_buffers),
            capacity: self.sectors(),
            logical_block: self.logical_block,
            read_only: self.read_only,
            lossy: self.lossy,
            backing: self.backing,
        }
    }
}
