//! Runs a policy on the host against a trace of requests, in front of the server's own cache, and reports the result.
//!
//! ```
//! use ublk_bpf_policy::testkit::{Kit, Trace};
//! use ublk_bpf_policy::{Decision, Priority, Request};
//!
//! fn decide(request: &Request) -> Decision {
//!     match request {
//!         request if !request.is_read() => Decision::pass(),
//!         request if request.is_cached() => Decision::hit(),
//!         _ => Decision::pass().promote(Priority::Normal),
//!     }
//! }
//!
//! const DATABASE: u32 = 10;
//! let trace = Trace::new().as_task(DATABASE, "postgres", 1).zipf(7, 0.99, 1000, 10_000);
//! let report = Kit::new(decide).cache_blocks(100).run(&trace);
//! assert!(report.hit_ratio_of(DATABASE) > 0.5, "{report}");
//! ```
//!
//! The cache, the mover and the eviction are the server's code, as in `ublk-bpf replay`. The trace has no times: there
//! are 10,000 requests a second, and a promotion takes no time unless [`Kit::promote_latency`] says otherwise.

mod places;
mod report;
mod trace;

use std::time::Duration;

use ublk_bpf_abi::regions;
use ublk_bpf_core::cache::{Mode, PromoteLimits, Shape};
use ublk_bpf_core::replay::{Counts, DEFAULT_RATE, OwnedDevice, Pace, PlacedRequest, split};

use self::places::Places;
use crate::{CacheState, Decision, Priority, Request, SECTOR_SIZE, cache, current};

pub use self::report::{Report, Share};
pub use self::trace::{Trace, ZIPF_SECTORS};
pub use crate::current::Task;
pub use crate::maps::clear as clear_maps;
pub use ublk_bpf_core::cache::evict::Algorithm;

/// From one request to the next.
const INTERVAL: Duration = Duration::from_nanos(1_000_000_000 / DEFAULT_RATE);

/// A policy and a device.
pub struct Kit {
    decide: Box<dyn Fn(&Request) -> Decision>,
    shape: Shape,
    pace: Pace,
    places: Places,
    /// None of a device without a cache, and before the first run.
    device: Option<OwnedDevice>,
    now: Duration,
}

impl Kit {
    /// A policy on a device with a write-through cache of 1024 blocks of 64 KiB, with the server's defaults.
    #[must_use]
    pub fn new(decide: impl Fn(&Request) -> Decision + 'static) -> Self {
        let shape = Shape {
            shift: 16,
            capacity: 0,
            slots: 1024,
            data_offset: 0,
            mode: Mode::WriteThrough,
        };
        Self {
            decide: Box::new(decide),
            shape,
            pace: Pace {
                eviction: Algorithm::default(),
                limits: PromoteLimits { rate: None },
                latency: Duration::ZERO,
            },
            places: Places::new(shape.shift),
            device: None,
            now: Duration::ZERO,
        }
    }

    /// Sets the cache size in blocks and empties the cache. 0: the device has no cache.
    ///
    /// # Panics
    ///
    /// If the cache would be larger than 2^32 blocks.
    #[must_use]
    pub fn cache_blocks(mut self, blocks: usize) -> Self {
        let Ok(slots) = u32::try_from(blocks) else {
            panic!("a cache has at most 2^32 blocks, not {blocks}");
        };
        self.shape.slots = slots;
        self.emptied()
    }

    /// Sets the cache block size in bytes, a power of two from 4 KiB to 1 MiB, and empties the cache.
    ///
    /// # Panics
    ///
    /// If the size is anything else.
    #[must_use]
    pub fn block_size(mut self, bytes: u64) -> Self {
        assert!(
            bytes.is_power_of_two() && (4 << 10..=1 << 20).contains(&bytes),
            "a cache block is a power of two from 4 KiB to 1 MiB, not {bytes} bytes"
        );
        self.shape.shift = bytes.trailing_zeros();
        self.emptied()
    }

    /// Makes writes invalidate cached blocks instead of updating them, and empties the cache.
    #[must_use]
    pub fn write_around(mut self) -> Self {
        self.shape.mode = Mode::WriteAround;
        self.emptied()
    }

    /// Lets writes end in the cache alone unless the policy says otherwise, and empties the cache. The mover cleans as that
    /// of the server does by default.
    #[must_use]
    pub fn write_back(mut self) -> Self {
        self.shape.mode = Mode::WriteBack;
        self.emptied()
    }

    /// Sets the eviction algorithm and empties the cache.
    #[must_use]
    pub fn eviction(mut self, algorithm: Algorithm) -> Self {
        self.pace.eviction = algorithm;
        self.emptied()
    }

    /// Sets how long a promotion takes, and empties the cache.
    #[must_use]
    pub fn promote_latency(mut self, latency: Duration) -> Self {
        self.pace.latency = latency;
        self.emptied()
    }

    /// Limits promotion to this many bytes a second, and empties the cache.
    #[must_use]
    pub fn promote_limit(mut self, bytes: u64) -> Self {
        self.pace.limits.rate = Some(bytes);
        self.emptied()
    }

    fn emptied(mut self) -> Self {
        self.places = Places::new(self.shape.shift);
        self.device = None;
        self
    }

    /// Runs a trace and returns a report. The cache keeps its contents for the next run, so a first run can warm it up.
    ///
    /// # Panics
    ///
    /// If the policy returns an invalid decision, such as a code without [`Reason::User`](crate::Reason::User), or the
    /// traces of this kit touch more than 2^20 cache blocks.
    pub fn run(&mut self, trace: &Trace) -> Report {
        if self.device.is_none() && self.shape.slots > 0 {
            self.now = Duration::ZERO;
            let shape = Shape {
                capacity: self.places.sectors(),
                ..self.shape
            };
            self.device = Some(OwnedDevice::new(shape, self.pace));
        }
        let before = self.moved();
        let mut report = Report::default();
        for (task, request) in trace.requests() {
            current::set(*task);
            self.now += INTERVAL;
            for part in parts(request, self.block_sectors()) {
                self.issue(task.pid, part, &mut report);
            }
        }
        let after = self.moved();
        report.promoted = after.promoted - before.promoted;
        report.evicted = after.evicted - before.evicted;
        report.absorbed = after.absorbed - before.absorbed;
        report
    }

    /// Whether this sector is cached.
    #[must_use]
    pub fn is_cached(&self, sector: u64) -> bool {
        self.priority_of(sector).is_some()
    }

    /// Whether the cache has data of this sector that the backing device lacks.
    #[must_use]
    pub fn is_dirty(&self, sector: u64) -> bool {
        let (Some(block), Some(device)) = (self.places.find(sector), &self.device) else {
            return false;
        };
        let within = sector % self.block_sectors();
        device.with(|device| device.is_dirty(block, within..within + 1))
    }

    /// The priority of the block of this sector, if the sector is cached.
    #[must_use]
    pub fn priority_of(&self, sector: u64) -> Option<Priority> {
        let wanted = self.places.find(sector)?;
        self.device.as_ref()?.with(|device| {
            let mut residents = device.residents();
            let region = regions(self.shape.shift, sector, 1);
            residents.find_map(|of| (of.block == wanted && of.valid & region != 0).then_some(of.priority))
        })
    }

    /// The heat of the block of this sector.
    #[must_use]
    pub fn heat_of(&self, sector: u64) -> u32 {
        let (Some(block), Some(device)) = (self.places.find(sector), &self.device) else {
            return 0;
        };
        device.with(|device| device.heat(block)).into()
    }

    const fn block_sectors(&self) -> u64 {
        (1 << self.shape.shift) / SECTOR_SIZE
    }

    /// What happened on the device so far.
    fn moved(&self) -> Counts {
        self.device.as_ref().map(OwnedDevice::counts).unwrap_or_default()
    }

    fn issue(&mut self, pid: u32, mut request: Request, report: &mut Report) {
        let decide = &self.decide;
        let mut decide = |request: &Request, state| {
            cache::set(state);
            let decision = decide(request);
            assert!(
                Decision::is_answer(decision.pack()),
                "invalid decision {decision:?} for {request:?}"
            );
            decision
        };
        let Some(device) = &mut self.device else {
            let decision = decide(&request, CacheState::default());
            report.request(pid, &request, decision, false);
            return;
        };
        request.block = request.sector / ((1 << self.shape.shift) / SECTOR_SIZE);
        let ranges = self.places.ranges(&request);
        let (block, blocks) = ranges.first().copied().unwrap_or((0, 0));
        let placed = PlacedRequest {
            request,
            block,
            blocks,
        };
        let (decision, is_hit) = device.with_mut(|device| {
            let answer = device.issue(self.now, placed, &mut decide);
            for &(block, blocks) in ranges.iter().skip(1) {
                device.discard(block, blocks);
            }
            answer
        });
        report.request(pid, &request, decision, is_hit);
    }
}

/// Splits a request as the block layer does: reads and writes end at cache block boundaries.
fn parts(request: &Request, block_sectors: u64) -> Vec<Request> {
    let whole = *request;
    if !(whole.is_read() || whole.is_write()) {
        return vec![whole];
    }
    let parts = split(whole.sector..whole.end(), block_sectors);
    let parts = parts.map(|range| Request {
        sector: range.start,
        nr_sectors: u32::try_from(range.end - range.start).unwrap_or(u32::MAX),
        ..whole
    });
    parts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Op, Reason, cache_view};

    cache_view! {
        static CACHE;
    }

    fn greedy(request: &Request) -> Decision {
        if request.is_cached() && request.is_read() {
            Decision::hit()
        } else if request.is_read() {
            Decision::pass().promote(Priority::Normal)
        } else {
            Decision::pass()
        }
    }

    #[test]
    fn requests_are_split_at_block_boundaries() {
        let found = parts(&Request::new(Op::Read, 100, 200), 128);
        let found: Vec<_> = found.iter().map(|part| (part.sector, part.nr_sectors)).collect();
        assert_eq!(found, [(100, 28), (128, 128), (256, 44)]);
        let discard = Request::new(Op::Discard, 100, 2000);
        assert_eq!(parts(&discard, 128), [discard]);
        let flush = Request::new(Op::Flush, u64::MAX, 0);
        assert_eq!(parts(&flush, 128), [flush]);
    }

    #[test]
    fn a_second_read_hits_and_a_discard_invalidates() {
        let mut kit = Kit::new(greedy).cache_blocks(4);
        let report = kit.run(&Trace::new().read(0, 128).read(8, 8).flush());
        assert_eq!((report.hits, report.misses, report.promoted), (1, 1, 1));
        assert!(kit.heat_of(0) > 0);
        assert!(kit.is_cached(127) && !kit.is_cached(128));
        kit.run(&Trace::new().discard(64, 8));
        assert!(!kit.is_cached(0));
    }

    #[test]
    fn writes_go_through_the_cache_or_around_it() {
        let trace = Trace::new().read(0, 8).write(0, 8);
        for (mut kit, stays) in [(Kit::new(greedy), true), (Kit::new(greedy).write_around(), false)] {
            kit.run(&trace);
            assert_eq!(kit.is_cached(0), stays);
        }
    }

    /// The first sector of a request says where it ends.
    fn by_place(request: &Request) -> Decision {
        let decision = greedy(request);
        match request.sector >> 20 {
            1 => decision.back(),
            2 => decision.through(),
            3 => decision.around(),
            _ => decision,
        }
    }

    #[test]
    fn a_write_ends_where_the_policy_says() {
        let kits = [
            (Kit::new(by_place).write_back(), [true, true, false, false]),
            (Kit::new(by_place), [false; 4]),
            (Kit::new(by_place).write_around(), [false; 4]),
        ];
        for (mut kit, ends_in_cache) in kits {
            for (place, expected) in (0..).zip(ends_in_cache) {
                let sector = place << 20;
                let report = kit.run(&Trace::new().write(sector, 8).flush());
                assert_eq!(
                    (report.absorbed, kit.is_dirty(sector)),
                    (u64::from(expected), expected)
                );
                assert!(!kit.is_dirty(sector + 8), "another region");
            }
        }
    }

    #[test]
    fn what_is_dirty_is_seen_and_stays_where_it_is() {
        use std::cell::RefCell;
        use std::rc::Rc;
        let seen = Rc::new(RefCell::new(Vec::new()));
        let log = Rc::clone(&seen);
        let decide = move |request: &Request| {
            let share = (CACHE.writes_back(), CACHE.dirty_per_mille());
            log.borrow_mut()
                .push((request.is_dirty(), request.is_cached(), share));
            // The first write ends in the cache, and what follows of it does so nevertheless.
            if request.is_dirty() {
                Decision::pass().around()
            } else {
                Decision::pass()
            }
        };
        let mut kit = Kit::new(decide).cache_blocks(100).write_back();
        let trace = Trace::new()
            .write(0, 8)
            .write(0, 8)
            .read(0, 8)
            .read(8, 8)
            .read(128, 8);
        let report = kit.run(&trace);
        assert_eq!((report.absorbed, report.hits), (2, 1), "{report}");
        let share = |per_mille| (true, per_mille);
        assert_eq!(
            *seen.borrow(),
            [
                (false, false, share(0)),
                (true, true, share(10)),
                (true, true, share(10)),
                (true, false, share(10)),
                (false, false, share(10)),
            ]
        );
    }

    #[test]
    fn the_mover_cleans_what_is_beyond_the_limit() {
        let mut kit = Kit::new(greedy).cache_blocks(100).write_back();
        // A slot that was cleaned is free for another block once a commit has said so.
        let rounds = (0..20).fold(Trace::new(), |trace, round| {
            trace.sequential_writes(round * 50 * 128, 50 * 128).flush()
        });
        let report = kit.run(&rounds);
        assert!(report.absorbed > 200, "{report}");
        let dirty = (0..1000).filter(|block| kit.is_dirty(block * 128)).count();
        assert!(dirty <= 50, "{dirty}");
        // A discard waits until its blocks are clean.
        kit.run(&Trace::new().discard(0, 1000 * 128));
        assert!((0..1000).all(|block| !kit.is_dirty(block * 128)));
    }

    #[test]
    fn popular_blocks_stay_cached() {
        let mut kit = Kit::new(greedy).cache_blocks(100);
        let load = Trace::new().as_task(1, "db", 0).zipf(1, 0.99, 1000, 20_000);
        kit.run(&load);
        let report = kit.run(&load);
        assert!(report.hit_ratio_of(1) > 0.6, "{report}");
        assert_eq!(report.promoted, report.evicted, "the cache is full");
    }

    #[test]
    fn tasks_are_counted_separately() {
        let database = Trace::new().as_task(1, "db", 0).read(0, 8).read(0, 8);
        let backup = Trace::new().as_task(2, "tar", 0).sequential(1 << 20, 2048);
        let report = Kit::new(greedy).run(&database.interleave(backup));
        assert!((report.hit_ratio_of(1) - 0.5).abs() < f64::EPSILON);
        assert!(report.hit_ratio_of(2).abs() < f64::EPSILON);
        assert_eq!(report.misses, 1 + 16, "1 MiB in blocks of 64 KiB");
        assert_eq!(report.by_reason(Reason::Cached), 1);
    }

    #[test]
    #[should_panic(expected = "invalid decision")]
    fn an_invalid_decision_panics() {
        let decide = |_: &Request| Decision {
            code: 1,
            ..Decision::pass()
        };
        Kit::new(decide).run(&Trace::new().read(0, 8));
    }
}
