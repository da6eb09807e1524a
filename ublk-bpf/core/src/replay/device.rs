//! The replayed device: the server's cache and mover in virtual time, in front of devices that hold no data.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ublk_bpf_abi::{
    CacheCounters, CacheState, Decision, Extent, IndexEntry, Op, Priority, Request, Verdict, hint, regions,
    request_flags,
};

use super::counts::Counts;
use super::stream::split;
use crate::cache::evict::Algorithm;
use crate::cache::{
    BackEnd, Cache, ChangeStart, CleanLimits, CommitNext, Fill, FillStart, HEAT_LIMIT, Hinted, Maps, Mode,
    Mover, MoverIo, PromoteLimits, Resident, Rest, Scope, WriteClaim, fill_buffers,
};

/// How long the mover sleeps at most, as the server's driver has it, and what was written to slots stays without a commit.
const TICK: Duration = Duration::from_secs(1);
/// Percentage of the slots that may be dirty, as the server has it by default.
const DIRTY_HIGH: u8 = 50;
/// How often a change starts again after the mover has cleaned its blocks.
const MAX_STARTS: u32 = 8;

/// What a policy is asked with.
pub type Decide<'d> = &'d mut dyn FnMut(&Request, CacheState) -> Decision;

/// How a device is set up, beside the shape of its cache.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// The eviction algorithm.
    pub eviction: Algorithm,
    /// Limits of promotion.
    pub limits: PromoteLimits,
    /// From the start of a promotion until its block can be hit.
    pub latency: Duration,
}

/// A request, or the part of it that is in one block, and where it is.
#[derive(Clone, Copy, Debug)]
pub struct PlacedRequest {
    /// As the policy sees it, but for its heat and whether it is cached.
    pub request: Request,
    /// First block that it touches on the device.
    pub block: u32,
    /// How many: 1 for a read or write.
    pub blocks: u32,
}

/// A read of the backing for a fill.
#[derive(Clone, Copy, Debug)]
enum Load {
    /// Of a job of the mover, and its result.
    Job(u16, i32),
    /// With a read that missed.
    Fill(Fill),
}

/// A device with a cache, whose requests are issued one after the other. Each ends at once; promotions take their time.
#[derive(Debug)]
pub struct ReplayDevice<'c, 'm> {
    cache: &'c Cache<'m>,
    maps: &'m Maps,
    mover: Mover<'c, 'm>,
    latency: Duration,
    /// Reads of the backing for fills, and when each completes. All take as long, so they end in order.
    in_flight: VecDeque<(Duration, Load)>,
    /// When something is due for the mover.
    due: Option<Duration>,
    /// When it is polled at the latest.
    tick: Duration,
    /// When it commits what nothing else has.
    commit_at: Duration,
    /// When the last request was issued.
    now: Duration,
    counts: Counts,
}

impl<'c, 'm> ReplayDevice<'c, 'm> {
    /// A device at time 0, with an empty cache whose maps are `maps`.
    #[must_use]
    pub fn new(cache: &'c Cache<'m>, maps: &'m Maps, pace: Pace) -> Self {
        let mut mover = Mover::new(cache, pace.eviction, pace.limits, CacheCounters::default());
        if cache.has_writeback() {
            mover = mover.with_writeback(CleanLimits::of(cache.shape().slots, DIRTY_HIGH));
        }
        let mut device = Self {
            cache,
            maps,
            mover,
            latency: pace.latency,
            in_flight: VecDeque::new(),
            due: None,
            tick: Duration::ZERO,
            commit_at: TICK,
            now: Duration::ZERO,
            counts: Counts::default(),
        };
        device.run_mover(Duration::ZERO);
        device
    }

    /// What happened so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mover = self.mover.counters();
        Counts {
            promoted: mover.promoted,
            evicted: mover.evicted,
            overtaken: self.counts.overtaken + mover.overtaken,
            ..self.counts
        }
    }

    /// The blocks in the cache.
    pub fn residents(&self) -> impl Iterator<Item = Resident> + '_ {
        self.mover.residents()
    }

    /// Reads of a block, decayed.
    #[must_use]
    pub fn heat(&self, block: u32) -> u8 {
        let word = self.maps.heat[block as usize / 8].load(Ordering::Relaxed);
        word.to_le_bytes()[block as usize % 8]
    }

    /// Whether some sectors (not none) of a block are dirty.
    #[must_use]
    pub fn is_dirty(&self, block: u32, sectors: Range<u64>) -> bool {
        let first = u64::from(block) << self.cache.shape().shift;
        let length = (sectors.end - sectors.start) << 9;
        self.cache.is_dirty(first + (sectors.start << 9), length)
    }

    /// A request that is issued at `now`, which is not before the one before it. Returns the policy's decision, and
    /// whether it is a read that the cache served.
    pub fn issue(
        &mut self,
        now: Duration,
        mut placed: PlacedRequest,
        decide: Decide<'_>,
    ) -> (Decision, bool) {
        self.now = now;
        while let Some(due) = self.due.filter(|&due| due <= now) {
            self.run_mover(due);
        }
        if self.tick <= now {
            self.run_mover(now);
        }
        let decision = self.classify(&mut placed, decide);
        self.cache.count_requests(1);
        let request = &placed.request;
        let is_hit = match request.op() {
            Op::Read => self.read(now, &placed, decision),
            Op::Write => self.write(&placed, decision),
            Op::Discard | Op::WriteZeroes => {
                self.discard(placed.block, placed.blocks);
                false
            }
            Op::Flush | Op::Other => false,
        };
        if request.op() == Op::Flush || request.is_fua() {
            self.commit();
        }
        if decision.hints & hint::PROMOTE != 0 && request.nr_sectors > 0 && placed.blocks > 0 {
            self.hint(placed.block, hint::priority(decision.hints));
        }
        if self.cache.must_wake() || self.is_due(now) {
            self.run_mover(now);
        }
        (decision, is_hit)
    }

    /// What the classifier does: looks the block up, asks the policy, counts the read.
    fn classify(&self, placed: &mut PlacedRequest, decide: Decide<'_>) -> Decision {
        let request = &mut placed.request;
        let state = self.cache.state();
        if placed.blocks == 0 {
            return checked(decide(request, state));
        }
        let entry = IndexEntry(self.maps.index[placed.block as usize].load(Ordering::Relaxed));
        let touched = regions(self.cache.shape().shift, request.sector, request.nr_sectors);
        if entry.serves(touched) {
            request.flags |= request_flags::CACHED;
        } else if entry.is_present() {
            request.flags |= request_flags::PARTLY_CACHED;
        }
        if entry.is_dirty() {
            request.flags |= request_flags::DIRTY;
        }
        request.heat = self.heat(placed.block).into();
        let decision = checked(decide(request, state));
        if request.is_read() && decision.hints & hint::COLD == 0 && request.heat < HEAT_LIMIT {
            let place = placed.block % 8 * 8;
            self.maps.heat[placed.block as usize / 8].fetch_add(1 << place, Ordering::Relaxed);
        }
        decision
    }

    /// What the queue does with a read. Returns whether it needed no read of the backing of its own.
    fn read(&mut self, now: Duration, placed: &PlacedRequest, decision: Decision) -> bool {
        let (offset, length) = self.range(placed);
        self.counts.reads += 1;
        self.counts.read_bytes += length;
        let extent = hint::extent(decision.hints);
        // What is dirty is nowhere else.
        let looks =
            decision.verdict == Verdict::Hit || extent.is_some() || self.cache.may_be_dirty(offset, length);
        if looks && let Some(pin) = self.cache.begin_read(offset, length) {
            self.cache.end_read(pin);
            return self.hit(length);
        }
        if let Some(extent) = extent {
            let priority = hint::priority(decision.hints);
            match self.begin_fill(offset, length, extent, priority) {
                FillStart::Begun(fill) => {
                    if self.cache.is_short_of_slots() && self.cache.must_wake() {
                        self.due_at(now);
                    }
                    self.fill(now, fill, offset, length);
                    return false;
                }
                FillStart::Busy => {
                    self.counts.waited += 1;
                    return self.hit(length);
                }
                FillStart::Readable => return self.hit(length),
                FillStart::Later if extent != Extent::Block => {
                    if self.cache.must_wake() {
                        self.due_at(now);
                    }
                }
                FillStart::Later => self.hint(placed.block, priority),
                FillStart::Refused => {}
            }
        }
        let split = looks
            .then(|| self.cache.begin_split_read(offset, length))
            .flatten();
        match split {
            Some((pin, readable)) => {
                self.cache.end_read(pin);
                self.split(placed, readable);
            }
            None => self.load(length),
        }
        false
    }

    /// Begins a fill if a buffer is free for it.
    fn begin_fill(&self, offset: u64, length: u64, extent: Extent, priority: Priority) -> FillStart {
        let filling = self
            .in_flight
            .iter()
            .filter(|(_, load)| matches!(load, Load::Fill(_)));
        if filling.count() < usize::from(fill_buffers(self.cache.shape().shift)) {
            return self.cache.begin_fill(offset, length, extent, priority);
        }
        if self.cache.wait_for_fill(offset, length, 0) {
            FillStart::Busy
        } else {
            FillStart::Later
        }
    }

    fn hit(&mut self, length: u64) -> bool {
        self.counts.hits += 1;
        self.counts.hit_bytes += length;
        true
    }

    /// Reads from the backing.
    fn load(&mut self, bytes: u64) {
        self.counts.backing_reads += 1;
        self.counts.backing_bytes += bytes;
    }

    /// A read of these bytes begins a fill. What the fill does not cover comes from the cache.
    fn fill(&mut self, now: Duration, fill: Fill, offset: u64, length: u64) {
        let filled = fill.offset..fill.offset + u64::from(fill.length);
        let covered = filled
            .end
            .min(offset + length)
            .saturating_sub(filled.start.max(offset));
        self.counts.hit_bytes += length - covered;
        self.counts.fills += 1;
        self.load(fill.length.into());
        if self.latency.is_zero() {
            self.end_fill(&fill, now);
        } else {
            self.await_load(now, Load::Fill(fill));
        }
    }

    fn end_fill(&mut self, fill: &Fill, now: Duration) {
        self.counts.filled_bytes += u64::from(fill.length);
        let end = self.cache.end_fill(fill, true);
        self.counts.overtaken += u64::from(!end.is_published);
        if end.wants_mover && self.cache.must_wake() {
            self.due_at(now);
        }
    }

    /// A read of which the slot has only these regions: the others come from the backing, one read for each run.
    fn split(&mut self, placed: &PlacedRequest, readable: u16) {
        let shift = self.cache.shape().shift;
        let region_sectors = 1u64 << (shift - 4 - 9);
        let first = placed.request.sector & ((1 << (shift - 9)) - 1);
        let mut was_cached = true;
        for sectors in split(
            first..first + u64::from(placed.request.nr_sectors),
            region_sectors,
        ) {
            let is_cached = readable >> (sectors.start / region_sectors) & 1 == 1;
            let bytes = (sectors.end - sectors.start) << 9;
            if is_cached {
                self.counts.hit_bytes += bytes;
            } else {
                self.counts.backing_bytes += bytes;
                self.counts.backing_reads += u64::from(was_cached);
            }
            was_cached = is_cached;
        }
    }

    fn write(&mut self, placed: &PlacedRequest, decision: Decision) -> bool {
        let (offset, length) = self.range(placed);
        self.counts.writes += 1;
        self.counts.write_bytes += length;
        let mode = hint::write_mode(decision.hints).map(Mode::from);
        match self.start(|cache| cache.start_write(offset, length, mode)) {
            ChangeStart::Back(write) => {
                self.counts.absorbed += 1;
                self.counts.absorbed_bytes += length;
                if self.cache.end_back(offset, length, write, BackEnd::Stored) && self.cache.must_wake() {
                    self.due_at(self.now);
                }
            }
            ChangeStart::Marked(change, downgrade) => {
                self.counts.downgraded += u64::from(downgrade.is_some());
                self.counts.invalidated += u64::from(change.invalidated);
                if change.claim.is_some_and(WriteClaim::stores) {
                    self.counts.updated_bytes += length;
                }
                self.cache.end_change(offset, length, change.claim, true);
            }
            ChangeStart::Wait | ChangeStart::Stuck => unreachable!("cleaning neither fails nor lasts"),
        }
        false
    }

    /// Invalidates blocks, as a discard of them does.
    pub fn discard(&mut self, block: u32, blocks: u32) {
        let shift = self.cache.shape().shift;
        let (offset, length) = (u64::from(block) << shift, u64::from(blocks) << shift);
        if length > 0
            && let ChangeStart::Marked(change, _) = self.start(|cache| cache.start_discard(offset, length))
        {
            self.counts.invalidated += u64::from(change.invalidated);
            self.cache.end_change(offset, length, None, true);
        }
    }

    /// Starts a change, once the mover has cleaned what is in its way.
    fn start(&mut self, start: impl Fn(&Cache<'_>) -> ChangeStart) -> ChangeStart {
        for _ in 0..MAX_STARTS {
            let started = start(self.cache);
            if started != ChangeStart::Wait {
                return started;
            }
            self.run_mover(self.now);
        }
        ChangeStart::Wait
    }

    /// Makes what was written to slots durable, and lets go of those that are clean.
    fn commit(&self) {
        let mut next = self.cache.commit(self.cache.begin_flush(), Scope::All, 0);
        while let CommitNext::Lead(io) = next {
            next = self.cache.commit_done(io, Ok(())).unwrap_or(CommitNext::Done);
        }
    }

    fn hint(&mut self, block: u32, priority: Priority) {
        let offset = u64::from(block) << self.cache.shape().shift;
        let hinted = self.cache.hint(offset, priority);
        self.counts.hinted += u64::from(hinted != Hinted::Refused);
        self.counts.hints_dropped += u64::from(hinted != Hinted::Queued);
    }

    /// Where a read or write is on the device, in bytes.
    fn range(&self, placed: &PlacedRequest) -> (u64, u64) {
        let shift = self.cache.shape().shift;
        let within = (placed.request.sector << 9) & ((1 << shift) - 1);
        let length = u64::from(placed.request.nr_sectors) << 9;
        ((u64::from(placed.block) << shift) + within, length)
    }

    /// What the mover's driver does at `now`: passes on what completed, and executes what it asks for.
    fn run_mover(&mut self, now: Duration) {
        while let Some(&(_, load)) = self.in_flight.front().filter(|(end, _)| *end <= now) {
            self.in_flight.pop_front();
            match load {
                Load::Job(job, result) => self.completed(job, result),
                Load::Fill(fill) => self.end_fill(&fill, now),
            }
        }
        if self.commit_at <= now {
            self.commit_at = now + TICK;
            self.commit();
        }
        let rest = loop {
            match self.mover.poll(now) {
                Ok(io) => self.execute(io, now),
                Err(rest) => break rest,
            }
        };
        self.tick = now + TICK;
        self.due = self.in_flight.front().map(|(end, _)| *end);
        if let Rest::Until(then) = rest {
            self.due_at(then);
        }
    }

    fn is_due(&self, now: Duration) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    /// The mover is to be run at this time, if not before.
    fn due_at(&mut self, time: Duration) {
        self.due = Some(self.due.map_or(time, |due| due.min(time)));
    }

    /// A load takes the latency.
    fn await_load(&mut self, now: Duration, load: Load) {
        let end = now + self.latency;
        self.in_flight.push_back((end, load));
        self.due_at(end);
    }

    /// A read of the backing takes the latency, everything else no time.
    fn execute(&mut self, io: MoverIo, now: Duration) {
        let (job, result) = self.carry_out(io);
        if matches!(io, MoverIo::Load { .. }) && !self.latency.is_zero() {
            self.await_load(now, Load::Job(job, result));
        } else {
            self.completed(job, result);
        }
    }

    /// An operation of a job is done, and so are those that follow it.
    fn completed(&mut self, job: u16, result: i32) {
        let mut next = self.mover.done(job, result);
        while let Some(io) = next {
            let (job, result) = self.carry_out(io);
            next = self.mover.done(job, result);
        }
    }

    /// Counts an operation of the mover. Returns its job and its result.
    fn carry_out(&mut self, io: MoverIo) -> (u16, i32) {
        match io {
            MoverIo::Load { job, len, .. } => {
                self.load(len.into());
                (job, len.cast_signed())
            }
            MoverIo::Store { job, len, .. } => {
                self.counts.filled_bytes += u64::from(len);
                (job, len.cast_signed())
            }
            MoverIo::LoadSlot { job, len, .. } => (job, len.cast_signed()),
            MoverIo::StoreBacking { job, len, .. } => {
                self.counts.cleaned += 1;
                self.counts.cleaned_bytes += u64::from(len);
                (job, len.cast_signed())
            }
            MoverIo::FlushBacking { job } | MoverIo::FlushCache { job } => (job, 0),
            MoverIo::StoreRecord { .. } | MoverIo::StorePages { .. } | MoverIo::Compare { .. } => {
                unreachable!("a replay has no log, and nothing to verify")
            }
        }
    }
}

/// As the classifier does with the answer of a policy.
fn checked(decision: Decision) -> Decision {
    if Decision::is_answer(decision.pack()) {
        decision
    } else {
        Decision::BAD_ANSWER
    }
}
