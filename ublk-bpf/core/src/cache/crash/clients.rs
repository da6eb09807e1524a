//! Clients: requests, and what a queue does for them.

use super::devices::{Content, Io, Place, Random, Side};
use super::life::{Life, version};
use super::recovery::log_pages;
use super::{BLOCK, BLOCKS, Omission, Point, UNIT, USED, World};
use crate::cache::{
    BackEnd, BackWrite, Change, ChangeStart, CommitIo, CommitNext, CommitTicket, Mode, Scope, SlotPin,
    WriteClaim,
};
use crate::errno::Errno;

#[derive(Clone, Copy, Debug, PartialEq)]
enum What {
    Read,
    Write(Option<Mode>),
    Zero,
    /// A discard that changes nothing.
    Drop,
    Flush,
}

/// What the clients of a world do most.
pub(super) struct Taste {
    kinds: [u64; 8],
    /// One in so many changes is to be durable.
    durable: u64,
}

impl Taste {
    pub(super) fn new(random: &mut Random) -> Self {
        Self {
            kinds: [3, 1, 3, 3, 3, 3, 4, 12].map(|usual| usual * [1, 1, 4, 8][random.below(4) as usize]),
            durable: [3, 8, 30][random.below(3) as usize],
        }
    }

    fn of(&self, random: &mut Random) -> usize {
        let mut at = random.below(self.kinds.iter().sum());
        let kind = self.kinds.iter().position(|&weight| {
            let is_it = at < weight;
            at = at.saturating_sub(weight);
            is_it
        });
        kind.unwrap_or(0)
    }
}

/// Where a request is.
#[derive(Debug)]
enum Step {
    Start,
    Read(Option<SlotPin>),
    Back(BackWrite),
    /// The slot has failed it.
    BackAround(BackWrite),
    Through(Change),
    ThroughSlot(Change),
    Commit(CommitTicket, Scope),
    Lead(CommitTicket, Scope, CommitIo),
    FlushBacking(u64),
}

/// A client's request.
pub(super) struct Op {
    what: What,
    first: u64,
    units: u64,
    is_durable: bool,
    version: u64,
    step: Step,
    pub(super) io: Option<Io>,
    /// Nothing happens before its queue is woken.
    pub(super) waits: bool,
    /// One of its operations has failed, or what it waits for is known to.
    has_failed: bool,
    /// What was acknowledged when it began: of its units, or for a flush of all.
    covers: Vec<u64>,
    /// For a flush: what had been issued, and what of that could be found.
    found: (Vec<u64>, Vec<u64>),
}

/// What becomes of a request.
enum Next {
    GoesOn,
    Answered,
    Failed,
}

/// A unit of a block that clients use.
pub(super) fn used(random: &mut Random) -> u64 {
    let at = random.below(USED);
    if random.one_in(2) {
        at
    } else {
        BLOCK / UNIT - USED + at
    }
}

impl Op {
    pub(super) fn flush(world: &mut World) -> Self {
        world.counts.requests += 1;
        Self {
            what: What::Flush,
            first: 0,
            units: 0,
            is_durable: false,
            version: 0,
            step: Step::Start,
            io: None,
            waits: false,
            has_failed: false,
            covers: world.acknowledged.clone(),
            found: (world.issued.clone(), world.most.clone()),
        }
    }

    /// One that begins now, unless it meets another one.
    fn random(world: &mut World) -> Option<Self> {
        let random = &mut world.random;
        let what = match world.taste.of(random) {
            0 => What::Zero,
            1 => What::Drop,
            2 => return Some(Self::flush(world)),
            3 => What::Read,
            4 => What::Write(Some(Mode::WriteThrough)),
            5 => What::Write(Some(Mode::WriteAround)),
            6 => What::Write(None),
            _ => What::Write(Some(Mode::WriteBack)),
        };
        let at = used(random);
        let end = if at < USED { USED } else { BLOCK / UNIT };
        let units = (1 + random.below(4)).min(end - at);
        let block = random.below(BLOCKS);
        let (first, units) = match what {
            // Whole blocks, more than one at times.
            What::Zero | What::Drop => (block * 32, 32 * (1 + random.below(2)).min(BLOCKS - block)),
            _ => (block * 32 + at, units),
        };
        let is_durable = random.one_in(world.taste.durable);
        let places = first as usize..(first + units) as usize;
        let changes = matches!(what, What::Write(_) | What::Zero);
        if changes && world.locked[places.clone()].iter().any(|&locked| locked) {
            return None;
        }
        world.counts.requests += 1;
        if changes {
            world.writes += 1;
            world.locked[places.clone()].fill(true);
            world.issued[places.clone()].fill(world.writes);
            world.most[places.clone()].fill(world.writes);
        }
        Some(Self {
            what,
            first,
            units,
            is_durable: is_durable && changes,
            version: world.writes,
            step: Step::Start,
            io: None,
            waits: false,
            has_failed: false,
            covers: world.acknowledged[places].to_vec(),
            found: (Vec::new(), Vec::new()),
        })
    }

    const fn range(&self) -> (u64, u64) {
        (self.first * UNIT, self.units * UNIT)
    }

    fn all_units(&self) -> std::ops::Range<usize> {
        self.first as usize..(self.first + self.units) as usize
    }

    /// Its data, for a device where its first unit is at `offset`.
    fn writes(&self, side: Side, offset: u64, is_durable: bool) -> Io {
        let places = (0..self.units).map(|unit| Place::at(side, offset + unit * UNIT));
        Io::write(
            places.map(|place| (place, Content::Unit(self.version))),
            is_durable,
        )
    }

    pub(super) const fn point(&self) -> Point {
        match self.step {
            Step::Start => Point::Waiting,
            Step::Read(_) => Point::Read,
            Step::Back(_) => Point::SlotWrite,
            Step::BackAround(_) => Point::SlotWriteFailed,
            Step::Through(_) => Point::ThroughBacking,
            Step::ThroughSlot(_) => Point::ThroughSlot,
            Step::Commit(..) => Point::CommitWait,
            Step::Lead(_, _, CommitIo::Flush) => Point::CommitFlush,
            Step::Lead(_, _, CommitIo::Record { .. }) => Point::CommitRecord,
            Step::FlushBacking(_) => Point::FlushBacking,
        }
    }
}

impl Life<'_, '_, '_> {
    /// A request arrives.
    pub(super) fn begin(&mut self) {
        self.ops.extend(Op::random(self.world));
        self.cache.count_requests(1);
    }

    /// Some request goes on.
    pub(super) fn advance_op(&mut self) {
        let Some(mut op) = self.world.random.take(&mut self.ops) else {
            return;
        };
        let next = match op.io.as_mut() {
            _ if op.waits => Next::GoesOn,
            None => self.start(&mut op),
            Some(io) => match self.advance(io) {
                None => Next::GoesOn,
                Some(end) => {
                    let read = op.io.take().map_or(Vec::new(), |io| io.read);
                    self.ended(&mut op, end, &read)
                }
            },
        };
        match next {
            Next::GoesOn => self.ops.push(op),
            Next::Answered => self.acknowledge(&op),
            Next::Failed => {
                assert!(
                    op.has_failed,
                    "{:?} fails, and none of its operations has",
                    op.what
                );
                self.unlock(&op);
            }
        }
    }

    fn unlock(&mut self, op: &Op) {
        if matches!(op.what, What::Write(_) | What::Zero) {
            self.world.locked[op.all_units()].fill(false);
        }
    }

    fn acknowledge(&mut self, op: &Op) {
        self.unlock(op);
        let world = &mut *self.world;
        match op.what {
            What::Write(_) | What::Zero => {
                world.acknowledged[op.all_units()].fill(op.version);
                if op.is_durable {
                    world.flushed[op.all_units()].fill(op.version);
                }
            }
            What::Flush => {
                for (unit, &covered) in op.covers.iter().enumerate() {
                    world.flushed[unit] = covered.max(world.flushed[unit]);
                    // What had failed and was not there does not come back either.
                    if world.issued[unit] == op.found.0[unit] {
                        world.issued[unit] = op.found.1[unit];
                    }
                }
            }
            What::Read | What::Drop => {}
        }
    }

    fn go_on(&mut self, op: &mut Op, step: Step, io: Io) -> Next {
        op.step = step;
        op.io = Some(self.issue(io));
        Next::GoesOn
    }

    /// A request without an operation in flight goes on.
    fn start(&mut self, op: &mut Op) -> Next {
        if let Step::Commit(ticket, scope) = op.step {
            return self.commit(op, ticket, scope);
        }
        let (offset, length) = op.range();
        let start = match op.what {
            What::Flush if self.world.omits(Omission::Commit) => return self.committed(op),
            What::Flush => return self.begin_commit(op, Scope::All),
            What::Read => match self.start_read(op) {
                Ok(io) => return self.go_on_reading(op, io),
                Err(start) => start,
            },
            What::Write(mode) => self.cache.start_write(offset, length, mode),
            What::Zero | What::Drop => self.cache.start_discard(offset, length),
        };
        match start {
            ChangeStart::Marked(change, _) if op.what == What::Drop => {
                self.cache.end_change(offset, length, change.claim, true);
                Next::Answered
            }
            // What is dirty may stay.
            _ if op.what == What::Drop => Next::Answered,
            ChangeStart::Marked(_, _) if op.what == What::Read => {
                let places = (0..op.units).map(|unit| Place::at(Side::Backing, offset + unit * UNIT));
                self.go_on(op, Step::Read(None), Io::read(places))
            }
            ChangeStart::Back(write) => {
                let at = offset.wrapping_add(self.cache.slot_delta(write.pin(), offset));
                let io = op.writes(Side::Cache, at, op.is_durable);
                self.go_on(op, Step::Back(write), io)
            }
            ChangeStart::Marked(change, _) => {
                let io = op.writes(Side::Backing, offset, op.is_durable);
                self.go_on(op, Step::Through(change), io)
            }
            ChangeStart::Wait => {
                op.waits = self.cache.wait_to_change(offset, length, 0);
                Next::GoesOn
            }
            ChangeStart::Stuck => {
                op.has_failed = self.has_failed;
                Next::Failed
            }
        }
    }

    /// A read of the slot, or of both devices; or how it begins on the backing device alone.
    fn start_read(&mut self, op: &Op) -> Result<(Option<SlotPin>, Io), ChangeStart> {
        let (offset, length) = op.range();
        let whole = self.cache.begin_read(offset, length).map(|pin| (pin, u16::MAX));
        let Some((pin, readable)) = whole.or_else(|| self.cache.begin_split_read(offset, length)) else {
            return Err(self.cache.start_beside_dirty(offset, length));
        };
        let delta = self.cache.slot_delta(pin, offset);
        let places = (op.first..op.first + op.units).map(|unit| match readable >> (unit % 32 / 2) & 1 {
            1 => Place::at(Side::Cache, (unit * UNIT).wrapping_add(delta)),
            _ => Place::at(Side::Backing, unit * UNIT),
        });
        Ok((Some(pin), Io::read(places)))
    }

    fn go_on_reading(&mut self, op: &mut Op, (pin, io): (Option<SlotPin>, Io)) -> Next {
        self.go_on(op, Step::Read(pin), io)
    }

    /// The operation of a request has ended.
    fn ended(&mut self, op: &mut Op, end: Result<(), Side>, read: &[Content]) -> Next {
        let (offset, length) = op.range();
        let is_good = end.is_ok();
        op.has_failed |= !is_good;
        let is_write = matches!(op.step, Step::Back(_) | Step::ThroughSlot(_) | Step::Lead(..));
        if end == Err(Side::Cache) && is_write {
            self.detach();
        }
        match std::mem::replace(&mut op.step, Step::Start) {
            Step::Start | Step::Commit(..) => unreachable!("nothing was in flight"),
            Step::Read(pin) => self.end_read(op, pin, end, read),
            Step::Back(write) if !is_good && write.may_go_around() => {
                let io = op.writes(Side::Backing, offset, op.is_durable);
                self.go_on(op, Step::BackAround(write), io)
            }
            Step::Back(write) => {
                let end = if is_good { BackEnd::Stored } else { BackEnd::Failed };
                self.cache.end_back(offset, length, write, end);
                self.changed(op, is_good, Scope::Write { offset, length })
            }
            Step::BackAround(write) => {
                let end = match is_good {
                    true => BackEnd::WrittenAround,
                    false => BackEnd::Failed,
                };
                self.cache.end_back(offset, length, write, end);
                self.changed(op, is_good, Scope::All)
            }
            Step::Through(change) if is_good && change.claim.is_some_and(WriteClaim::stores) => {
                let pin = change.claim.expect("there is one").pin();
                let at = offset.wrapping_add(self.cache.slot_delta(pin, offset));
                let io = op.writes(Side::Cache, at, false);
                self.go_on(op, Step::ThroughSlot(change), io)
            }
            Step::Through(change) => self.end_through(op, change, (is_good, is_good)),
            Step::ThroughSlot(change) => self.end_through(op, change, (true, is_good)),
            Step::Lead(ticket, scope, io) => {
                let result = if is_good { Ok(()) } else { Err(Errno::EIO) };
                match self.cache.commit_done(io, result) {
                    Ok(next) => self.commit_next(op, (ticket, scope), next),
                    Err(_) => Next::Failed,
                }
            }
            Step::FlushBacking(owed) if is_good => {
                self.cache.backing_flushed(owed);
                Next::Answered
            }
            Step::FlushBacking(_) => Next::Failed,
        }
    }

    /// A write that passed through has ended: whether it has succeeded, and whether the slot has it as well.
    fn end_through(&mut self, op: &mut Op, change: Change, (is_good, is_stored): (bool, bool)) -> Next {
        let (offset, length) = op.range();
        self.cache.count_passed();
        self.cache.end_change(offset, length, change.claim, is_stored);
        if self.world.omits(Omission::CommitAfterDurableWrite) && is_good {
            return Next::Answered;
        }
        self.changed(op, is_good, Scope::All)
    }

    fn changed(&mut self, op: &mut Op, is_good: bool, scope: Scope) -> Next {
        match is_good {
            false => Next::Failed,
            true if op.is_durable => self.begin_commit(op, scope),
            true => Next::Answered,
        }
    }

    fn end_read(&self, op: &Op, pin: Option<SlotPin>, end: Result<(), Side>, read: &[Content]) -> Next {
        let (offset, length) = op.range();
        if end == Err(Side::Cache) {
            self.detach();
        }
        let is_dirty = self.cache.is_dirty(offset, length);
        if let Some(pin) = pin {
            self.cache.end_read(pin);
        }
        match end {
            Ok(()) => {}
            // It starts again without the slot, unless only that has it.
            Err(Side::Cache) if !is_dirty => return Next::GoesOn,
            Err(_) => return Next::Failed,
        }
        for ((unit, found), &least) in op.all_units().zip(read).zip(&op.covers) {
            let (found, most) = (version(found), self.world.most[unit]);
            assert!(
                (least..=most).contains(&found),
                "a read of unit {unit} has found write {found}, and may {least} to {most}"
            );
        }
        Next::Answered
    }

    fn begin_commit(&self, op: &mut Op, scope: Scope) -> Next {
        op.step = Step::Commit(self.cache.begin_flush(), scope);
        Next::GoesOn
    }

    fn commit(&mut self, op: &mut Op, ticket: CommitTicket, scope: Scope) -> Next {
        let next = self.cache.commit(ticket, scope, 0);
        self.commit_next(op, (ticket, scope), next)
    }

    fn commit_next(&mut self, op: &mut Op, (ticket, scope): (CommitTicket, Scope), next: CommitNext) -> Next {
        match next {
            CommitNext::Done => self.committed(op),
            CommitNext::Lead(io) => {
                let operation = self.commit_io(io);
                self.go_on(op, Step::Lead(ticket, scope, io), operation)
            }
            CommitNext::Wait => {
                op.step = Step::Commit(ticket, scope);
                op.waits = true;
                Next::GoesOn
            }
        }
    }

    /// An operation of a commit.
    pub(super) fn commit_io(&mut self, io: CommitIo) -> Io {
        match io {
            CommitIo::Flush if self.world.omits(Omission::FlushOfData) => Io::nothing(),
            CommitIo::Flush => Io::flush(&mut self.world.devices, Side::Cache),
            CommitIo::Record { offset, length } => {
                let bytes = self.cache.record_bytes(length as usize);
                let is_durable = !self.world.omits(Omission::DurableRecord);
                Io::write(log_pages(offset, &bytes), is_durable)
            }
        }
    }

    /// What a request needed of the slots is durable.
    fn committed(&mut self, op: &mut Op) -> Next {
        let is_flush = op.what == What::Flush && !self.world.omits(Omission::FlushOfBacking);
        let Some(owed) = self.cache.owed_to_backing().filter(|_| is_flush) else {
            return Next::Answered;
        };
        if self.world.omits(Omission::OwedUntilFlushed) {
            self.cache.backing_flushed(owed);
        }
        let io = Io::flush(&mut self.world.devices, Side::Backing);
        self.go_on(op, Step::FlushBacking(owed), io)
    }
}
