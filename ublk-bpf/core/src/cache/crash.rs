//! Write-back under power cuts and kills: the real cache, log and cleaner on two devices with volatile caches, which lose any
//! of their writes that were not flushed. Clients, the cleaner, the mover and recovery take turns step by step, at random.
//!
//! A *unit* is half a region. Its content is the number of the write that it is from, 0 at first.

#![expect(clippy::cast_possible_truncation, reason = "all numbers are small")]

mod devices;
mod life;

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use ublk_bpf_abi::{CacheCounters, SECTOR_SIZE};

use self::devices::{Content, Device, Pages, Random};
use self::life::Life;
use super::clean::Cleaner;
use super::evict::Algorithm;
use super::log::{LOG_BUFFER, LOG_PAGE, Log, LogEntry, LogLayout, LogSeal, replay};
use super::*;

const SHIFT: u32 = 16;
const BLOCK: u64 = 1 << SHIFT;
const UNIT: u64 = BLOCK / 32;
const BLOCKS: u64 = 4;
const UNITS: u64 = BLOCKS * 32;
const SLOTS: u32 = 3;
/// Units that clients use of each block: few, so that they meet.
const USED: u64 = 6;
/// Where the log is on the cache device: behind all slots.
const LOG: u64 = 1 << 30;

/// A step that is left out, which some crash must show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Omission {
    /// The flush of the cache device before a record.
    FlushOfData,
    /// The record's FUA.
    DurableRecord,
    /// The commit of a FLUSH.
    Commit,
    /// The commit after a durable write to the backing device, whose region the log may call dirty.
    CommitAfterDurableWrite,
    /// The flush of the backing device that a FLUSH owes to writes that passed through.
    FlushOfBacking,
    /// The flush of the backing device before what was cleaned is clean.
    FlushOfCleaned,
    /// The flush of the backing device that an earlier server may owe.
    OwedByTheDead,
    /// The index and the dirty regions that a killed server has left: the log alone is believed.
    Survivors,
}

/// What survives everything, and what clients may expect.
struct World {
    random: Random,
    cache: Device,
    backing: Device,
    /// The log id in the superblock.
    seal: LogSeal,
    /// By unit: the last write that began, the last that was acknowledged, and the last that must survive a power cut.
    issued: Vec<u64>,
    acknowledged: Vec<u64>,
    flushed: Vec<u64>,
    /// A write of the unit is in flight.
    locked: Vec<bool>,
    writes: u64,
    omission: Option<Omission>,
    crashes: u64,
    steps: u64,
}

fn layout() -> LogLayout {
    LogLayout::new(0, SLOTS, 8)
}

const fn seal(log_id: u64) -> LogSeal {
    LogSeal {
        cache_id: [7; 16],
        log_id,
    }
}

impl World {
    fn new(seed: u64, omission: Option<Omission>) -> Self {
        let units = UNITS as usize;
        let mut world = Self {
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            cache: Device::default(),
            backing: Device::default(),
            seal: seal(1),
            issued: vec![0; units],
            acknowledged: vec![0; units],
            flushed: vec![0; units],
            locked: vec![false; units],
            writes: 0,
            omission,
            crashes: 0,
            steps: 0,
        };
        let mut log = Log::new(layout(), world.seal);
        world.checkpoint(&mut log, &[], 0);
        world
    }

    fn omits(&self, omission: Omission) -> bool {
        self.omission == Some(omission)
    }

    fn write_pages(&mut self, offset: u64, bytes: &[u8], is_durable: bool) {
        for (at, page) in (offset..).step_by(LOG_PAGE).zip(bytes.chunks(LOG_PAGE)) {
            self.cache.write(LOG + at, Content::Page(page.into()), is_durable);
        }
    }

    /// Writes a checkpoint of these. `crash_in`: so many steps of it are done, then the machine crashes; 0: none.
    /// Returns whether it is complete.
    fn checkpoint(&mut self, log: &mut Log, dirty: &[LogEntry], crash_in: u64) -> bool {
        let mut buffer = vec![0; LOG_BUFFER];
        let mut checkpoint = log.begin_checkpoint();
        let mut entries = dirty.iter().copied();
        while let Some(placed) = checkpoint.append(&mut entries, &mut buffer) {
            self.write_pages(placed.offset, &buffer[..placed.length], false);
        }
        if crash_in == 1 {
            return false;
        }
        self.cache.flush();
        if crash_in == 2 {
            return false;
        }
        let placed = checkpoint.head(&mut buffer);
        self.write_pages(placed.offset, &buffer[..placed.length], true);
        log.end_checkpoint(&checkpoint);
        if crash_in == 3 {
            return false;
        }
        self.seal = log.seal();
        true
    }
}

fn words(count: u64) -> Vec<AtomicU64> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

/// Lives, each ended by a power cut or a kill, until so many crashes.
fn run(seed: u64, crashes: u64, omission: Option<Omission>) -> World {
    let mut world = World::new(seed, omission);
    // The maps are lost.
    let mut is_fresh = true;
    let mut maps = (Maps::of(BLOCKS), words(SLOTS.into()));
    while world.crashes < crashes {
        if is_fresh {
            maps = (Maps::of(BLOCKS), words(SLOTS.into()));
        }
        let shape = Shape {
            shift: SHIFT,
            capacity: BLOCKS * BLOCK / SECTOR_SIZE,
            slots: SLOTS,
            data_offset: 0,
            mode: Mode::WriteBack,
        };
        let replayed = replay(
            &mut Pages(&world.cache, Vec::new()),
            &layout(),
            &world.seal,
            BLOCKS,
        );
        let replayed = replayed.expect("no crash damages the log");
        let survivors = if is_fresh || world.omits(Omission::Survivors) {
            let of = |entry: &LogEntry| DirtyBlock {
                slot: entry.slot,
                block: entry.block,
                dirty: entry.dirty,
                logged: entry.dirty,
            };
            replayed.dirty.iter().map(of).collect()
        } else {
            surviving(&maps.0.index, &maps.1, SLOTS, &replayed.dirty)
                .expect("a sound index")
                .dirty
        };
        let mut log = replayed
            .previous
            .successor(seal(world.seal.log_id + 1 + world.crashes));
        let crash_in = if world.random.one_in(4) {
            1 + world.random.below(3)
        } else {
            0
        };
        if !world.checkpoint(&mut log, &replayed.dirty, crash_in) {
            // A start that is killed leaves no device, and so no maps; a recovery leaves those that it found.
            is_fresh |= crash(&mut world);
            continue;
        }
        let cache = Cache::new(shape, &maps.0.index, &maps.0.heat).with_writeback(&maps.1);
        cache.set_log(log, false);
        if !world.omits(Omission::OwedByTheDead) {
            cache.assume_passed();
        }
        let limits = PromoteLimits { rate: None };
        let mut mover = Mover::new(&cache, Algorithm::Clock, limits, CacheCounters::default());
        mover.restore_dirty(survivors);
        let least = if is_fresh {
            world.flushed.clone()
        } else {
            world.acknowledged.clone()
        };
        world.locked.fill(false);
        let mut life = Life {
            cleaner: Cleaner::new(&cache),
            cache: &cache,
            mover,
            world: &mut world,
            ops: Vec::new(),
            cleaning: Vec::new(),
            buffers: HashMap::new(),
            moving: Vec::new(),
            staging: HashMap::new(),
            now: Duration::ZERO,
        };
        let found = life.check(
            &least,
            if is_fresh {
                "after a power cut"
            } else {
                "after a kill"
            },
        );
        if is_fresh {
            life.world.flushed.clone_from(&found);
        }
        life.world.acknowledged.clone_from(&found);
        life.world.issued.clone_from(&found);
        let steps = 5 + life.world.random.below(200);
        life.run(steps);
        drop(life);
        is_fresh = crash(&mut world);
    }
    world
}

/// The server is killed, or the machine loses its power. Returns which.
fn crash(world: &mut World) -> bool {
    world.crashes += 1;
    let is_power = world.random.one_in(2);
    if is_power {
        world.cache.lose_power(&mut world.random);
        world.backing.lose_power(&mut world.random);
    }
    is_power
}

/// Many lives of many worlds, or of the one in `SIM_SEED`.
#[test]
fn no_crash_loses_what_was_promised() {
    let seed: Option<u64> = std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut crashes = 0;
    for seed in seed.map_or(0..5000, |seed| seed..seed + 1) {
        let world = std::panic::catch_unwind(|| run(seed, 20, None));
        crashes += world.unwrap_or_else(|_| panic!("SIM_SEED={seed}")).crashes;
    }
    assert!(seed.is_some() || crashes >= 100_000);
}

#[test]
fn a_crash_shows_each_step_that_is_left_out() {
    // Not a line for each of them.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let all = [
        Omission::FlushOfData,
        Omission::DurableRecord,
        Omission::Commit,
        Omission::CommitAfterDurableWrite,
        Omission::FlushOfBacking,
        Omission::FlushOfCleaned,
        Omission::OwedByTheDead,
        Omission::Survivors,
    ];
    let is_found = |&omission: &Omission| {
        (0..5000).any(|seed| std::panic::catch_unwind(|| run(seed, 20, Some(omission))).is_err())
    };
    let missed: Vec<_> = all.iter().filter(|omission| !is_found(omission)).collect();
    std::panic::set_hook(hook);
    assert!(missed.is_empty(), "{missed:?}");
}
