//! One server's life: clients, the cleaner and the mover, step by step.

use std::collections::HashMap;
use std::time::Duration;

use ublk_bpf_abi::Priority;

use super::devices::Content;
use super::{BLOCK, BLOCKS, Omission, UNIT, UNITS, USED, World};
use crate::cache::clean::{CleanIo, Cleaner, Want};
use crate::cache::log::LOG_BUFFER;
use crate::cache::{
    BackEnd, BackWrite, Cache, Change, ChangeStart, CommitIo, CommitNext, CommitTicket, Mode, Mover, MoverIo,
    Scope, WriteClaim,
};

/// A client's request, at one of its steps.
pub(super) enum Step {
    Start,
    Back(BackWrite, u64),
    Through(Change, u64),
    Committing(CommitTicket, Scope),
    Leading(CommitTicket, Scope, CommitIo),
    FlushingBacking(u64),
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum What {
    Write(Option<Mode>),
    Zero,
    Flush,
}

pub(super) struct Op {
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
    pub(super) fn range(&self) -> (u64, u64) {
        (self.first * UNIT, self.units * UNIT)
    }
}

/// One server's life.
pub(super) struct Life<'w, 'c, 'm> {
    pub(super) world: &'w mut World,
    pub(super) cache: &'c Cache<'m>,
    pub(super) mover: Mover<'c, 'm>,
    pub(super) cleaner: Cleaner<'c, 'm>,
    pub(super) ops: Vec<Op>,
    /// Operations of the cleaner and the mover in flight, with their buffers.
    pub(super) cleaning: Vec<CleanIo>,
    pub(super) buffers: HashMap<usize, Vec<Content>>,
    pub(super) moving: Vec<MoverIo>,
    pub(super) staging: HashMap<u16, Vec<Content>>,
    pub(super) now: Duration,
}

impl Life<'_, '_, '_> {
    pub(super) fn begin(&mut self) {
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
    pub(super) fn step(&mut self, op: &mut Op) -> bool {
        let (offset, length) = op.range();
        op.step = match std::mem::replace(&mut op.step, Step::Start) {
            Step::Start => {
                let start = match op.what {
                    What::Flush => {
                        if self.world.omits(Omission::Commit) {
                            return self.committed(op);
                        }
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
                if self.world.omits(Omission::CommitAfterDurableWrite) {
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

    pub(super) fn carry_out(&mut self, io: CommitIo) {
        match io {
            CommitIo::Flush if self.world.omits(Omission::FlushOfData) => {}
            CommitIo::Flush => self.world.cache.flush(),
            CommitIo::Record { offset, length } => {
                let bytes = self.cache.record_bytes(length as usize);
                let is_durable = !self.world.omits(Omission::DurableRecord);
                self.world.write_pages(offset, &bytes, is_durable);
            }
        }
    }

    /// What the operation needed of the slots is durable. Returns whether it is acknowledged.
    pub(super) fn committed(&mut self, op: &mut Op) -> bool {
        let is_flush = op.what == What::Flush && !self.world.omits(Omission::FlushOfBacking);
        match self.cache.owed_to_backing().filter(|_| is_flush) {
            Some(owed) => {
                op.step = Step::FlushingBacking(owed);
                false
            }
            None => self.acknowledge(op),
        }
    }

    pub(super) fn acknowledge(&mut self, op: &Op) -> bool {
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
    pub(super) fn clean(&mut self) {
        if self.cleaning.is_empty() || self.world.random.one_in(2) {
            let want = if self.world.random.one_in(2) {
                Want::All
            } else {
                Want::Urgent
            };
            self.cleaning.extend(self.cleaner.next(want, self.now));
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
                if !self.world.omits(Omission::FlushOfCleaned) {
                    self.world.backing.flush();
                }
                0
            }
        };
        let next = self.cleaner.done(io, result.cast_signed());
        self.cleaning.extend(next);
    }

    /// The mover fills, evicts, and provides free slots.
    pub(super) fn move_blocks(&mut self) {
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
            other => unreachable!("{other:?}: nothing is verified, and the cleaner is another one"),
        };
        self.moving.extend(next);
    }

    pub(super) fn checkpoint(&mut self) {
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
    pub(super) fn read(&self, unit: u64) -> u64 {
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
    pub(super) fn check(&self, least: &[u64], when: &str) -> Vec<u64> {
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

    pub(super) fn run(&mut self, steps: u64) {
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
    pub(super) fn lead(&mut self, mut io: CommitIo) {
        loop {
            self.carry_out(io);
            match self.cache.commit_done(io, Ok(())).expect("it succeeded") {
                CommitNext::Lead(next) => io = next,
                CommitNext::Done | CommitNext::Wait => return,
            }
        }
    }
}
