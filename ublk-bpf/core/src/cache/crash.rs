//! Write-back under power cuts and kills: the real cache, log and cleaner on two devices with volatile caches, which lose any
//! of their writes that were not flushed. Clients, the cleaner, the mover and recovery take turns step by step, at random.
//!
//! A *unit* is half a region. Its content is the number of the write that it is from, 0 at first.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use ublk_bpf_abi::{CacheCounters, Priority, SECTOR_SIZE};

use super::clean::{CleanIo, Cleaner, Want};
use super::evict::Algorithm;
use super::log::{LOG_BUFFER, LOG_PAGE, Log, LogEntry, LogLayout, LogSeal, ReadPages, replay};
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

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A unit's content, or a page of the log.
#[derive(Clone, Debug, PartialEq)]
enum Content {
    Unit(u64),
    Page(Rc<[u8]>),
}

/// A device with a volatile cache, by byte offset.
#[derive(Default)]
struct Device {
    durable: HashMap<u64, Content>,
    pending: Vec<(u64, Content)>,
}

impl Device {
    fn read(&self, at: u64) -> Content {
        let pending = self.pending.iter().rev().find(|(place, _)| *place == at);
        let found = pending
            .map(|(_, content)| content)
            .or_else(|| self.durable.get(&at));
        found.cloned().unwrap_or(Content::Unit(0))
    }

    fn write(&mut self, at: u64, content: Content, is_durable: bool) {
        if is_durable {
            self.pending.retain(|(place, _)| *place != at);
            self.durable.insert(at, content);
        } else {
            self.pending.push((at, content));
        }
    }

    /// Makes the first `count` pending writes durable.
    fn flush(&mut self) {
        for (at, content) in self.pending.drain(..) {
            self.durable.insert(at, content);
        }
    }

    /// Each place has what is durable, or any write since.
    fn lose_power(&mut self, random: &mut Random) {
        for (at, content) in std::mem::take(&mut self.pending) {
            if random.one_in(2) {
                self.durable.insert(at, content);
            }
        }
    }
}

struct Pages<'d>(&'d Device, Vec<u8>);

impl ReadPages for Pages<'_> {
    type Error = ();

    fn page(&mut self, offset: u64) -> Result<&[u8], ()> {
        self.1 = match self.0.read(LOG + offset) {
            Content::Page(page) => page.to_vec(),
            Content::Unit(_) => vec![0; LOG_PAGE],
        };
        Ok(&self.1)
    }
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
    fn new(seed: u64) -> Self {
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
            crashes: 0,
            steps: 0,
        };
        let mut log = Log::new(layout(), world.seal);
        world.checkpoint(&mut log, &[], 0);
        world
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

/// A client's request, at one of its steps.
enum Step {
    Start,
    Back(BackWrite, u64),
    Through(Change, u64),
    Committing(CommitTicket, Scope),
    Leading(CommitTicket, Scope, CommitIo),
    FlushingBacking(u64),
}

#[derive(Clone, Copy, PartialEq)]
enum What {
    Write(Option<Mode>),
    Zero,
    Flush,
}

struct Op {
    what: What,
    first: u64,
    units: u64,
    is_durable: bool,
    version: u64,
    step: Step,
    /// For a flush: what was acknowledged when it began.
    covers: Vec<u64>,
}

impl Op {
    fn range(&self) -> (u64, u64) {
        (self.first * UNIT, self.units * UNIT)
    }
}

/// One server's life.
struct Life<'w, 'c, 'm> {
    world: &'w mut World,
    cache: &'c Cache<'m>,
    mover: Mover<'c, 'm>,
    cleaner: Cleaner<'c, 'm>,
    ops: Vec<Op>,
    /// Operations of the cleaner and the mover in flight, with their buffers.
    cleaning: Vec<CleanIo>,
    buffers: HashMap<usize, Vec<Content>>,
    moving: Vec<MoverIo>,
    staging: HashMap<u16, Vec<Content>>,
    now: Duration,
}

impl Life<'_, '_, '_> {
    fn begin(&mut self) {
        let random = &mut self.world.random;
        let what = match random.below(16) {
            0 => What::Zero,
            1..4 => What::Flush,
            4..6 => What::Write(Some(Mode::WriteThrough)),
            6..8 => What::Write(Some(Mode::WriteAround)),
            _ => What::Write(Some(Mode::WriteBack)),
        };
        let at = random.below(USED);
        let units = (1 + random.below(4)).min(USED - at);
        let first = random.below(BLOCKS) * 32 + at;
        let is_durable = random.one_in(8);
        let (first, units) = match what {
            What::Flush => (0, 0),
            // Whole blocks, more than one at times.
            What::Zero => {
                let block = first / 32;
                (block * 32, 32 * (1 + random.below(2)).min(BLOCKS - block))
            }
            What::Write(_) => (first, units),
        };
        let places = first as usize..(first + units) as usize;
        if self.world.locked[places.clone()].iter().any(|&locked| locked) {
            return;
        }
        self.world.locked[places.clone()].fill(true);
        self.world.writes += 1;
        let version = self.world.writes;
        self.world.issued[places].fill(version);
        let covers = if what == What::Flush {
            self.world.acknowledged.clone()
        } else {
            Vec::new()
        };
        self.ops.push(Op {
            what,
            first,
            units,
            is_durable: is_durable && what != What::Flush,
            version,
            step: Step::Start,
            covers,
        });
    }

    /// One step of an operation. Returns whether it is acknowledged.
    fn step(&mut self, op: &mut Op) -> bool {
        let (offset, length) = op.range();
        op.step = match std::mem::replace(&mut op.step, Step::Start) {
            Step::Start => {
                let start = match op.what {
                    What::Flush => {
                        let ticket = self.cache.begin_flush();
                        op.step = Step::Committing(ticket, Scope::All);
                        return false;
                    }
                    What::Write(mode) => self.cache.start_write(offset, length, mode),
                    What::Zero => self.cache.start_discard(offset, length),
                };
                match start {
                    ChangeStart::Back(write) => Step::Back(write, 0),
                    ChangeStart::Marked(change, _) => Step::Through(change, 0),
                    ChangeStart::Wait => {
                        // It is woken, or looks again.
                        let _ = self.cache.wait_to_change(offset, length, 0);
                        Step::Start
                    }
                    ChangeStart::Stuck => panic!("no device fails"),
                }
            }
            Step::Back(write, done) if done < op.units => {
                let at = offset.wrapping_add(self.cache.slot_delta(write.pin(), offset)) + done * UNIT;
                self.world
                    .cache
                    .write(at, Content::Unit(op.version), op.is_durable);
                Step::Back(write, done + 1)
            }
            Step::Back(write, _) => {
                self.cache.end_back(offset, length, write, BackEnd::Stored);
                if !op.is_durable {
                    return self.acknowledge(op);
                }
                Step::Committing(self.cache.begin_flush(), Scope::Write { offset, length })
            }
            Step::Through(change, done) if done < op.units => {
                self.world
                    .backing
                    .write(offset + done * UNIT, Content::Unit(op.version), op.is_durable);
                Step::Through(change, done + 1)
            }
            Step::Through(change, done)
                if change.claim.is_some_and(WriteClaim::stores) && done < 2 * op.units =>
            {
                let pin = change.claim.expect("there is one").pin();
                let at = offset.wrapping_add(self.cache.slot_delta(pin, offset)) + (done - op.units) * UNIT;
                self.world.cache.write(at, Content::Unit(op.version), false);
                Step::Through(change, done + 1)
            }
            Step::Through(change, _) => {
                self.cache.count_passed();
                self.cache.end_change(offset, length, change.claim, true);
                if !op.is_durable {
                    return self.acknowledge(op);
                }
                Step::Committing(self.cache.begin_flush(), Scope::All)
            }
            Step::Committing(ticket, scope) => match self.cache.commit(ticket, scope, 0) {
                CommitNext::Done => return self.committed(op),
                CommitNext::Lead(io) => Step::Leading(ticket, scope, io),
                CommitNext::Wait => Step::Committing(ticket, scope),
            },
            Step::Leading(ticket, scope, io) => {
                self.carry_out(io);
                match self.cache.commit_done(io, Ok(())).expect("it succeeded") {
                    CommitNext::Done => return self.committed(op),
                    CommitNext::Lead(io) => Step::Leading(ticket, scope, io),
                    CommitNext::Wait => Step::Committing(ticket, scope),
                }
            }
            Step::FlushingBacking(owed) => {
                self.world.backing.flush();
                self.cache.backing_flushed(owed);
                return self.acknowledge(op);
            }
        };
        false
    }

    fn carry_out(&mut self, io: CommitIo) {
        match io {
            CommitIo::Flush => self.world.cache.flush(),
            CommitIo::Record { offset, length } => {
                let bytes = self.cache.record_bytes(length as usize);
                self.world.write_pages(offset, &bytes, true);
            }
        }
    }

    /// What the operation needed of the slots is durable. Returns whether it is acknowledged.
    fn committed(&mut self, op: &mut Op) -> bool {
        match self.cache.owed_to_backing().filter(|_| op.what == What::Flush) {
            Some(owed) => {
                op.step = Step::FlushingBacking(owed);
                false
            }
            None => self.acknowledge(op),
        }
    }

    fn acknowledge(&mut self, op: &Op) -> bool {
        let world = &mut *self.world;
        for unit in op.first as usize..(op.first + op.units) as usize {
            world.acknowledged[unit] = op.version;
            world.locked[unit] = false;
            if op.is_durable {
                world.flushed[unit] = op.version;
            }
        }
        for (unit, &covered) in op.covers.iter().enumerate() {
            world.flushed[unit] = world.flushed[unit].max(covered);
        }
        true
    }

    /// The cleaner does something.
    fn clean(&mut self) {
        if self.cleaning.is_empty() || self.world.random.one_in(2) {
            let want = if self.world.random.one_in(2) {
                Want::All
            } else {
                Want::Urgent
            };
            self.cleaning.extend(self.cleaner.next(want));
            return;
        }
        let at = self.world.random.below(self.cleaning.len() as u64) as usize;
        let io = self.cleaning.swap_remove(at);
        let result = match io {
            CleanIo::Load { copy, offset, len } => {
                let units =
                    (0..u64::from(len) / UNIT).map(|unit| self.world.cache.read(offset + unit * UNIT));
                self.buffers.insert(copy, units.collect());
                len
            }
            CleanIo::Store { copy, offset, len } => {
                for (unit, content) in (0..).zip(self.buffers.remove(&copy).expect("it was loaded")) {
                    self.world.backing.write(offset + unit * UNIT, content, false);
                }
                len
            }
            CleanIo::Flush => {
                self.world.backing.flush();
                0
            }
        };
        let next = self.cleaner.done(io, result.cast_signed());
        self.cleaning.extend(next);
    }

    /// The mover fills, evicts, and provides free slots.
    fn move_blocks(&mut self) {
        self.now += Duration::from_millis(10);
        if self.world.random.one_in(3) {
            let block = self.world.random.below(BLOCKS);
            self.cache.hint(block * BLOCK, Priority::Normal);
        }
        if let Ok(io) = self.mover.poll(self.now) {
            self.moving.push(io);
        }
        let Some(io) = self.moving.pop() else { return };
        let next = match io {
            MoverIo::Load { job, offset, len, .. } => {
                let units =
                    (0..u64::from(len) / UNIT).map(|unit| self.world.backing.read(offset + unit * UNIT));
                let units = units.collect();
                self.staging.insert(job, units);
                self.mover.done(job, len.cast_signed())
            }
            MoverIo::Store { job, offset, len, .. } => {
                let units = self.staging.remove(&job).expect("it was loaded");
                for (unit, content) in (0..).zip(units) {
                    self.world.cache.write(offset + unit * UNIT, content, false);
                }
                self.mover.done(job, len.cast_signed())
            }
            MoverIo::LoadSlot { .. } | MoverIo::Compare { .. } => unreachable!("nothing is verified"),
        };
        self.moving.extend(next);
    }

    fn checkpoint(&mut self) {
        if let Some(mut checkpoint) = self
            .cache
            .wants_checkpoint()
            .then(|| self.cache.begin_checkpoint())
            .flatten()
        {
            let mut buffer = vec![0; LOG_BUFFER];
            let mut entries = self.cache.checkpoint_entries(0);
            while let Some(placed) = checkpoint.append(&mut entries, &mut buffer) {
                self.world
                    .write_pages(placed.offset, &buffer[..placed.length], false);
            }
            self.world.cache.flush();
            let placed = checkpoint.head(&mut buffer);
            self.world
                .write_pages(placed.offset, &buffer[..placed.length], true);
            self.cache.end_checkpoint(&checkpoint);
        }
    }

    /// What a read of a unit finds.
    fn read(&self, unit: u64) -> u64 {
        let offset = unit * UNIT;
        let content = match self.cache.begin_read(offset, UNIT) {
            Some(pin) => {
                let at = offset.wrapping_add(self.cache.slot_delta(pin, offset));
                self.cache.end_read(pin);
                self.world.cache.read(at)
            }
            None => self.world.backing.read(offset),
        };
        match content {
            Content::Unit(version) => version,
            Content::Page(_) => panic!("a unit has a page of the log"),
        }
    }

    /// Every unit has what it may have, by these bounds.
    fn check(&self, least: &[u64], when: &str) -> Vec<u64> {
        (0..UNITS)
            .map(|unit| {
                let found = self.read(unit);
                let (least, most) = (least[unit as usize], self.world.issued[unit as usize]);
                assert!(
                    (least..=most).contains(&found),
                    "{when}: unit {unit} has write {found}, and may have {least} to {most}"
                );
                found
            })
            .collect()
    }

    fn run(&mut self, steps: u64) {
        for _ in 0..steps {
            self.world.steps += 1;
            match self.world.random.below(16) {
                0..4 if self.ops.len() < 6 => self.begin(),
                0..2 => self.move_blocks(),
                2..6 => self.clean(),
                6 => self.checkpoint(),
                7 => {
                    if let Some(io) = self.cache.autocommit() {
                        self.lead(io);
                    }
                }
                8 => {
                    let unit = self.world.random.below(UNITS);
                    let found = self.read(unit);
                    let least = self.world.acknowledged[unit as usize];
                    let most = self.world.issued[unit as usize];
                    assert!(
                        (least..=most).contains(&found),
                        "unit {unit} reads as write {found}, and may be {least} to {most}"
                    );
                }
                _ if !self.ops.is_empty() => {
                    let at = self.world.random.below(self.ops.len() as u64) as usize;
                    let mut op = self.ops.swap_remove(at);
                    if !self.step(&mut op) {
                        self.ops.push(op);
                    }
                }
                _ => {}
            }
        }
    }

    /// The mover commits.
    fn lead(&mut self, mut io: CommitIo) {
        loop {
            self.carry_out(io);
            match self.cache.commit_done(io, Ok(())).expect("it succeeded") {
                CommitNext::Lead(next) => io = next,
                CommitNext::Done | CommitNext::Wait => return,
            }
        }
    }
}

fn words(count: u64) -> Vec<AtomicU64> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

/// Lives, each ended by a power cut or a kill, until so many crashes.
fn run(seed: u64, crashes: u64) -> World {
    let mut world = World::new(seed);
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
        let survivors = if is_fresh {
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
        cache.assume_passed();
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

#[test]
fn no_crash_loses_what_was_promised() {
    let seeds = std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = seeds.map_or(0..2000, |seed| seed..seed + 1);
    let mut total = (0, 0);
    for seed in seeds {
        let run = std::panic::catch_unwind(|| run(seed, 20));
        let world = run.unwrap_or_else(|_| panic!("SIM_SEED={seed}"));
        total = (total.0 + world.crashes, total.1 + world.steps);
    }
    println!("{} crashes in {} steps", total.0, total.1);
}
