//! One server's life: clients, the mover and operations in flight, step by step.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::clients::{Op, used};
use super::devices::{Content, EMPTY, Io, Late, Place, Side};
use super::{BLOCK, BLOCKS, End, Point, SLOTS, UNIT, UNITS, World};
use crate::cache::evict::Algorithm;
use crate::cache::{Cache, CacheFailure, CleanLimits, Mode, Mover, MoverIo, PromoteLimits, Survivors, Trust};
use crate::errno::Errno;
use ublk_bpf_abi::CacheCounters;

/// Steps in which a server that is stopped has written everything back, by far.
const MOST_STEPS: u64 = 100_000;
/// Requests in flight at most.
const MOST_OPS: usize = 6;

/// One server's life.
pub(super) struct Life<'w, 'c, 'm> {
    pub(super) world: &'w mut World,
    pub(super) cache: &'c Cache<'m>,
    pub(super) mover: Mover<'c, 'm>,
    pub(super) ops: Vec<Op>,
    /// Operations of the mover in flight, and its buffers.
    pub(super) moving: Vec<(MoverIo, Io)>,
    pub(super) buffers: Vec<Content>,
    pub(super) now: Duration,
    /// One in so many operations on the cache device, and on the backing device, fails; 0: none.
    fails: [u64; 2],
    /// One has failed in this life.
    pub(super) has_failed: bool,
    /// It is to stop, and how far it is with that.
    stopping: Option<Point>,
    /// The mover has seldom a turn, so that the log fills up.
    is_mover_slow: bool,
}

impl<'w, 'c, 'm> Life<'w, 'c, 'm> {
    /// A server that has found these.
    pub(super) fn new(world: &'w mut World, cache: &'c Cache<'m>, survivors: Survivors) -> Self {
        let random = &mut world.random;
        let limits = CleanLimits {
            low: random.below(SLOTS.into()) as u32,
            high: 1 + random.below(SLOTS.into()) as u32,
            rate: random.one_in(4).then(|| BLOCK << random.below(4)),
        };
        let mut fails = || match random.below(16) {
            0 => 3,
            1 => 24,
            _ => 0,
        };
        let fails = [fails(), fails()];
        let is_mover_slow = random.one_in(8);
        let rate = PromoteLimits { rate: None };
        let mover = Mover::new(cache, Algorithm::Clock, rate, CacheCounters::default());
        let mut mover = mover.with_writeback(limits);
        mover.restore_dirty(survivors.dirty);
        mover.restore(survivors.clean, Trust::ToVerify);
        let buffers = vec![EMPTY; usize::from(mover.buffers()) * (BLOCK / UNIT) as usize];
        Self {
            world,
            cache,
            mover,
            ops: Vec::new(),
            moving: Vec::new(),
            buffers,
            now: Duration::ZERO,
            fails,
            has_failed: false,
            stopping: None,
            is_mover_slow,
        }
    }

    /// Serves until the end.
    pub(super) fn run(mut self) -> End {
        // Half of the lives are short, so that many crashes are early.
        let most = if self.world.random.one_in(2) { 150 } else { 2200 };
        let steps = 5 + self.world.random.below(most);
        for _ in 0..steps {
            self.step();
        }
        // Where most can go wrong.
        if self.world.random.one_in(3) {
            self.go_on_to_a_record();
        }
        if self.world.random.one_in(12) && self.stop().is_some() {
            return End::Stop;
        }
        self.crash()
    }

    /// Until a record is being written, unless that takes long.
    fn go_on_to_a_record(&mut self) {
        for _ in 0..100 {
            let is_led = self.ops.iter().any(|op| op.point() == Point::CommitRecord);
            if is_led
                || self
                    .moving
                    .iter()
                    .any(|(io, _)| matches!(io, MoverIo::StoreRecord { .. }))
            {
                return;
            }
            self.step();
        }
    }

    fn crash(self) -> End {
        let Self {
            world,
            ops,
            moving,
            mover,
            stopping,
            cache,
            ..
        } = self;
        let is_full = cache.writeback.is_log_full.load(Ordering::SeqCst);
        let full = is_full.then_some(Point::LogFull);
        let of_ops = ops.iter().map(Op::point);
        let points = of_ops.chain(moving.iter().map(|(io, _)| super::mover::point(&mover, io)));
        let points: Vec<Point> = points.chain(stopping).chain(full).collect();
        let ios = ops.into_iter().filter_map(|op| op.io);
        let ios = ios.chain(moving.into_iter().map(|(_, io)| io));
        let late: Vec<Late> = ios.flat_map(|io| io.left_behind(&mut world.random)).collect();
        world.crash(late, points.into_iter())
    }

    /// Writes everything back and stops. `None`: it crashes on the way.
    fn stop(&mut self) -> Option<()> {
        self.stopping = Some(Point::Drain);
        self.fails = [0; 2];
        self.mover.drain();
        self.finish(|life| life.ops.is_empty() && life.cache.dirty_slots() == 0)?;
        self.mover.stop();
        self.finish(|life| life.moving.is_empty() && life.mover.is_idle())?;
        self.ops.push(Op::flush(self.world));
        self.finish(|life| life.ops.is_empty())?;
        for unit in 0..UNITS as usize {
            let found = self.on_backing(unit as u64);
            let (least, most) = (self.world.acknowledged[unit], self.world.most[unit]);
            assert!(
                (least..=most).contains(&found),
                "drained: unit {unit} has write {found} on the backing device, and may have {least} to {most}"
            );
        }
        self.stopping = Some(Point::CleanSuperblock);
        if self.world.random.one_in(8) {
            return None;
        }
        self.world.superblock = None;
        self.world.counts.stops += 1;
        // Nothing is to be lost any more.
        self.world.lose_power();
        Some(())
    }

    /// Goes on until that is so.
    fn finish(&mut self, is_done: impl Fn(&Self) -> bool) -> Option<()> {
        for _ in 0..MOST_STEPS {
            if is_done(self) {
                return Some(());
            }
            if self.world.random.one_in(1000) {
                return None;
            }
            self.step();
        }
        let points: Vec<Point> = self.ops.iter().map(Op::point).collect();
        panic!(
            "it does not come to an end: {points:?}, {} slots are dirty, {:?} in flight",
            self.cache.dirty_slots(),
            self.moving.iter().map(|(io, _)| io).collect::<Vec<_>>()
        );
    }

    fn step(&mut self) {
        match self.world.random.below(16) {
            0..4 if self.ops.len() < MOST_OPS && self.stopping.is_none() => self.begin(),
            4..6 if !self.is_mover_slow || self.stopping.is_some() || self.world.random.one_in(32) => {
                self.poll_mover();
            }
            6..10 if !self.moving.is_empty() => self.advance_mover(),
            10 if self.world.random.one_in(2) => self.look(),
            11 if self.world.random.one_in(8) => self.change_settings(),
            _ => self.advance_op(),
        }
        self.world.late_one();
        if self.cache.take_woken().contains(0) {
            self.ops.iter_mut().for_each(|op| op.waits = false);
        }
    }

    /// A user changes how writes end.
    fn change_settings(&mut self) {
        let random = &mut self.world.random;
        let mode = [Mode::WriteBack, Mode::WriteThrough, Mode::WriteAround][random.below(3) as usize];
        self.cache.set_mode(mode);
        self.cache
            .set_dirty_limit(random.below(1 + u64::from(SLOTS)) as u32);
    }

    /// An operation is issued, and may fail.
    pub(super) fn issue(&mut self, mut io: Io) -> Io {
        for (side, fails) in [Side::Cache, Side::Backing].into_iter().zip(self.fails) {
            if fails != 0 && io.is_on(side) && self.world.random.one_in(fails) {
                io.fails = Some(side);
                self.has_failed = true;
            }
        }
        io
    }

    /// Something of an operation happens. Returns its end.
    pub(super) fn advance(&mut self, io: &mut Io) -> Option<Result<(), Side>> {
        let end = io.advance(&mut self.world.devices, &mut self.world.random)?;
        self.world.counts.operations += 1;
        self.world.counts.errors += u64::from(end.is_err());
        Some(end)
    }

    pub(super) fn detach(&self) {
        let (during, errno) = ("testing", Errno::EIO);
        self.cache.detach(CacheFailure::Device { during, errno });
    }

    fn on_backing(&self, unit: u64) -> u64 {
        version(&self.world.devices.read(Place::at(Side::Backing, unit * UNIT)))
    }

    /// What a read of a unit finds.
    fn read(&self, unit: u64) -> u64 {
        let offset = unit * UNIT;
        let Some(pin) = self.cache.begin_read(offset, UNIT) else {
            return self.on_backing(unit);
        };
        let at = offset.wrapping_add(self.cache.slot_delta(pin, offset));
        self.cache.end_read(pin);
        version(&self.world.devices.read(Place::at(Side::Cache, at)))
    }

    /// A unit has what it may have. What a write that failed has left stays so once it was seen.
    fn look(&mut self) {
        let unit = self.world.random.below(BLOCKS) * BLOCK / UNIT + used(&mut self.world.random);
        let found = self.read(unit);
        let world = &mut *self.world;
        let at = unit as usize;
        let (least, most) = (world.acknowledged[at], world.most[at]);
        assert!(
            (least..=most).contains(&found),
            "unit {unit} reads as write {found}, and may be {least} to {most}"
        );
        if !world.locked[at] {
            (world.acknowledged[at], world.most[at]) = (found, found);
        }
    }

    /// Every unit has what it may have, by these bounds.
    pub(super) fn check(&self, least: &[u64], after: End) -> Vec<u64> {
        (0..UNITS)
            .map(|unit| {
                let found = self.read(unit);
                let most = match after {
                    End::Power => &self.world.issued,
                    End::Kill | End::Stop => &self.world.most,
                };
                let (least, most) = (least[unit as usize], most[unit as usize]);
                assert!(
                    (least..=most).contains(&found),
                    "after {after:?}: unit {unit} has write {found}, and may have {least} to {most}"
                );
                found
            })
            .collect()
    }
}

/// The write that a unit is from.
pub(super) fn version(content: &Content) -> u64 {
    match *content {
        Content::Unit(version) => version,
        Content::Page(_) => panic!("a unit has a page of the log"),
    }
}
