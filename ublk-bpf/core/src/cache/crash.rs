//! Write-back under power cuts and kills: the real cache, log, mover and recovery on two devices with volatile caches, which
//! lose any of their writes that were not flushed. Clients, the mover and operations in flight take turns step by step, at
//! random. What a killed server had in flight happens still, until its successor takes over.
//!
//! A *unit* is half a region. Its content is the number of the write that it is from, 0 at first.

#![expect(clippy::cast_possible_truncation, reason = "all numbers are small")]
#![expect(
    clippy::print_stdout,
    reason = "a run says what it did, and at which seed it found an omission"
)]

mod clients;
mod devices;
mod life;
mod mover;
mod recovery;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use ublk_bpf_abi::SECTOR_SIZE;

use self::clients::Taste;
use self::devices::{Devices, Late, Random};
use self::life::Life;
use self::recovery::Memory;
use super::log::{LogLayout, LogSeal};
use super::seam::{self, Rule};
use super::*;

const SHIFT: u32 = 16;
const BLOCK: u64 = 1 << SHIFT;
const UNIT: u64 = BLOCK / 32;
const BLOCKS: u64 = 4;
const UNITS: u64 = BLOCKS * 32;
const SLOTS: u32 = 3;
const SLOT_UNITS: u64 = SLOTS as u64 * 32;
/// Units that clients use at each end of a block: few, so that they meet. The last adjoin the next block's first.
const USED: u64 = 4;
/// Where the log is on the cache device: behind all slots.
const LOG: u64 = 1 << 30;

/// Crashes of a world.
const CRASHES: u64 = 20;
/// Worlds of a run.
const WORLDS: u64 = 5000;

/// A step that is left out, which some crash must show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Omission {
    /// A rule that the cache itself keeps.
    Left(Rule),
    /// The flush of the cache device before a record.
    FlushOfData,
    /// The record's FUA.
    DurableRecord,
    /// The flush of the cache device before a checkpoint counts, with which a successor makes durable what it has found.
    FlushOfCheckpoint,
    /// The commit of a FLUSH.
    Commit,
    /// The commit after a durable write to the backing device, whose region the log may call dirty.
    CommitAfterDurableWrite,
    /// The flush of the backing device that a FLUSH owes to writes that passed through.
    FlushOfBacking,
    /// What is owed is so until the flush has ended, not until it begins.
    OwedUntilFlushed,
    /// The flush of the backing device before what was cleaned is clean.
    FlushOfCleaned,
    /// The flush of the backing device that an earlier server may owe.
    OwedByTheDead,
    /// The index and the dirty regions that a killed server has left: the log alone is believed.
    Survivors,
    /// The superblock says that there is a log before anything is dirty.
    DirtySuperblock,
    /// A successor waits until no write of the killed server can happen.
    WaitForTheDead,
}

impl Omission {
    const ALL: [Self; 26] = [
        Self::Left(Rule::SnapshotFirst),
        Self::Left(Rule::CleanIsRecorded),
        Self::Left(Rule::CleanComesFirst),
        Self::Left(Rule::OwnRegionsAreWhole),
        Self::Left(Rule::OwnEntryIsLast),
        Self::Left(Rule::StickyDirty),
        Self::Left(Rule::DiscardsWait),
        Self::Left(Rule::SameGeneration),
        Self::Left(Rule::HeldByLog),
        Self::Left(Rule::HeldByRecord),
        Self::Left(Rule::HoldsAreForgotten),
        Self::Left(Rule::DirtyFirst),
        Self::Left(Rule::DirtyWhenWritten),
        Self::Left(Rule::OneCopy),
        Self::FlushOfData,
        Self::DurableRecord,
        Self::FlushOfCheckpoint,
        Self::Commit,
        Self::CommitAfterDurableWrite,
        Self::FlushOfBacking,
        Self::OwedUntilFlushed,
        Self::FlushOfCleaned,
        Self::OwedByTheDead,
        Self::Survivors,
        Self::DirtySuperblock,
        Self::WaitForTheDead,
    ];
}

/// What something was at when it was cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Point {
    Waiting,
    Read,
    SlotWrite,
    SlotWriteFailed,
    ThroughBacking,
    ThroughSlot,
    CommitWait,
    LogFull,
    CommitFlush,
    CommitRecord,
    FlushBacking,
    FillLoad,
    FillStore,
    SlotLoad,
    CopyStore,
    CopyFlush,
    MoverCommitFlush,
    MoverCommitRecord,
    CheckpointPages,
    CheckpointFlush,
    CheckpointHead,
    RecoveryPages,
    RecoveryFlush,
    RecoveryHead,
    RecoverySuperblock,
    Drain,
    CleanSuperblock,
}

impl Point {
    const ALL: [Self; 27] = [
        Self::Waiting,
        Self::Read,
        Self::SlotWrite,
        Self::SlotWriteFailed,
        Self::ThroughBacking,
        Self::ThroughSlot,
        Self::CommitWait,
        Self::LogFull,
        Self::CommitFlush,
        Self::CommitRecord,
        Self::FlushBacking,
        Self::FillLoad,
        Self::FillStore,
        Self::SlotLoad,
        Self::CopyStore,
        Self::CopyFlush,
        Self::MoverCommitFlush,
        Self::MoverCommitRecord,
        Self::CheckpointPages,
        Self::CheckpointFlush,
        Self::CheckpointHead,
        Self::RecoveryPages,
        Self::RecoveryFlush,
        Self::RecoveryHead,
        Self::RecoverySuperblock,
        Self::Drain,
        Self::CleanSuperblock,
    ];
}

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Power,
    Kill,
    /// Everything was written back, and the superblock says so.
    Stop,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    crashes: u64,
    requests: u64,
    /// Operations on the devices.
    operations: u64,
    /// Those that failed.
    errors: u64,
    stops: u64,
}

/// What survives everything, and what clients may expect.
struct World {
    random: Random,
    taste: Taste,
    devices: Devices,
    /// The log in the superblock; none if nothing is dirty.
    superblock: Option<LogSeal>,
    log_ids: u64,
    /// What a killed server has in flight still.
    late: Vec<Late>,
    /// By unit: the last write that began, the last that was acknowledged, and the last that must survive a power cut.
    issued: Vec<u64>,
    acknowledged: Vec<u64>,
    flushed: Vec<u64>,
    /// The last write that a read may find: a write that has failed and was not found is issued, and stays away.
    most: Vec<u64>,
    /// A write of the unit is in flight.
    locked: Vec<bool>,
    writes: u64,
    omission: Option<Omission>,
    counts: Counts,
    points: BTreeSet<(End, Point)>,
    is_volatile: bool,
}

fn layout() -> LogLayout {
    LogLayout::new(LOG, SLOTS, 8)
}

impl World {
    fn new(seed: u64, omission: Option<Omission>) -> Self {
        let units = UNITS as usize;
        let is_volatile = !seed.is_multiple_of(8);
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        Self {
            taste: Taste::new(&mut random),
            random,
            devices: Devices::new(&layout(), is_volatile),
            superblock: None,
            log_ids: 0,
            late: Vec::new(),
            issued: vec![0; units],
            acknowledged: vec![0; units],
            flushed: vec![0; units],
            most: vec![0; units],
            locked: vec![false; units],
            writes: 0,
            omission,
            counts: Counts::default(),
            points: BTreeSet::new(),
            is_volatile,
        }
    }

    fn omits(&self, omission: Omission) -> bool {
        self.omission == Some(omission)
    }

    /// The server is killed, or the machine loses its power, while these were in flight.
    fn crash(&mut self, late: Vec<Late>, points: impl Iterator<Item = Point>) -> End {
        self.counts.crashes += 1;
        let end = match self.random.one_in(2) {
            true => End::Power,
            false => End::Kill,
        };
        self.points.extend(points.map(|point| (end, point)));
        self.late.extend(late);
        if end == End::Power || !self.omits(Omission::WaitForTheDead) {
            self.end_of_the_dead();
        }
        if end == End::Power {
            self.lose_power();
        }
        end
    }

    fn lose_power(&mut self) {
        self.devices.cache.lose_power(&mut self.random);
        self.devices.backing.lose_power(&mut self.random);
    }

    /// What the dead have in flight happens.
    fn end_of_the_dead(&mut self) {
        while let Some(late) = self.random.take(&mut self.late) {
            late.happen(&mut self.devices);
        }
    }
}

/// Lives, each ended by a power cut, a kill or a stop, until so many crashes.
fn run(seed: u64, omission: Option<Omission>) -> World {
    let rule = match omission {
        Some(Omission::Left(rule)) => Some(rule),
        _ => None,
    };
    let most_entries = if seed % 4 < 2 { 1 } else { usize::MAX };
    seam::leave_out(rule, most_entries);
    let mut world = World::new(seed, omission);
    let mut memory = Memory::new();
    let mut end = End::Stop;
    while world.counts.crashes < CRASHES {
        end = live(&mut world, &mut memory, end);
    }
    seam::leave_out(None, usize::MAX);
    world
}

/// One server's life, after one that ended so.
fn live(world: &mut World, memory: &mut Memory, last: End) -> End {
    if last != End::Kill {
        *memory = Memory::new();
    }
    let started = match recovery::start(world, memory, last) {
        Ok(started) => started,
        // A start that is killed leaves no device, and so no maps; a recovery leaves those that it found.
        Err(End::Kill) if last == End::Kill => return End::Kill,
        Err(_) => return End::Power,
    };
    let shape = Shape {
        shift: SHIFT,
        capacity: BLOCKS * BLOCK / SECTOR_SIZE,
        slots: SLOTS,
        data_offset: 0,
        mode: Mode::WriteBack,
    };
    let cache = Cache::new(shape, &memory.0.index, &memory.0.heat).with_writeback(&memory.1);
    cache.set_log(started.log, !world.is_volatile);
    if !world.omits(Omission::OwedByTheDead) {
        cache.assume_passed();
    }
    let least = match last {
        End::Power => world.flushed.clone(),
        End::Kill | End::Stop => world.acknowledged.clone(),
    };
    let life = Life::new(world, &cache, started.survivors);
    let found = life.check(&least, last);
    life.world.locked.fill(false);
    if last != End::Kill {
        life.world.flushed.clone_from(&found);
    }
    life.world.acknowledged.clone_from(&found);
    life.world.issued.clone_from(&found);
    life.world.most.clone_from(&found);
    life.run()
}

/// Worlds of a run, or the one in `SIM_SEED`.
fn seeds() -> std::ops::Range<u64> {
    let seed: Option<u64> = std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse().ok());
    seed.map_or(0..WORLDS, |seed| seed..seed + 1)
}

#[test]
fn no_crash_loses_what_was_promised() {
    let mut counts = Counts::default();
    let mut points = BTreeSet::new();
    for seed in seeds() {
        let world = catch_unwind(|| run(seed, None)).unwrap_or_else(|_| panic!("SIM_SEED={seed}"));
        let of = world.counts;
        counts = Counts {
            crashes: counts.crashes + of.crashes,
            requests: counts.requests + of.requests,
            operations: counts.operations + of.operations,
            errors: counts.errors + of.errors,
            stops: counts.stops + of.stops,
        };
        points.extend(world.points);
    }
    println!("{counts:?}, {} kinds of crash points: {points:?}", points.len());
    if seeds().count() == 1 {
        return;
    }
    assert!(counts.crashes >= 100_000 && counts.operations >= 10_000_000);
    assert!(counts.stops >= 1000 && counts.errors >= 10_000);
    let wanted = [End::Power, End::Kill]
        .into_iter()
        .flat_map(|end| Point::ALL.map(|point| (end, point)));
    // A full log is rare: a crash of either kind will do.
    let is_full = points.iter().any(|(_, point)| *point == Point::LogFull);
    let is_met = |at: &(End, Point)| points.contains(at) || (at.1 == Point::LogFull && is_full);
    let missed: Vec<_> = wanted.filter(|at| !is_met(at)).collect();
    assert!(missed.is_empty(), "no crash at {missed:?}");
}

#[test]
fn a_crash_shows_each_step_that_is_left_out() {
    // Not a line for each of them.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for omission in Omission::ALL {
        let start = std::time::Instant::now();
        let found = (0..WORLDS).find_map(|seed| {
            let payload = catch_unwind(AssertUnwindSafe(|| run(seed, Some(omission)))).err()?;
            let what = payload.downcast_ref::<String>().cloned();
            Some((seed, what.unwrap_or_default()))
        });
        let took: Duration = start.elapsed();
        match found {
            Some((seed, what)) => println!("{omission:?}: seed {seed}, {took:?}: {what}"),
            None => missed.push(omission),
        }
    }
    std::panic::set_hook(hook);
    assert!(missed.is_empty(), "{missed:?}");
}
