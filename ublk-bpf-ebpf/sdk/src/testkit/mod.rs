//! Runs a policy on the host against a trace of requests and a model of the cache, and reports the result.
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
//! The model is simpler than the server: promotion is immediate and not rate-limited, and eviction is a single CLOCK.
//! Use it to test what a policy decides, not for exact hit ratios.

mod cache;
mod report;
mod trace;

use crate::{Decision, Op, Priority, Request, SECTOR_SIZE, Verdict, current, hint, request_flags};
use cache::CacheModel;
pub use report::{Report, Share};
pub use trace::{Trace, ZIPF_SECTORS};

pub use crate::current::Task;
pub use crate::maps::clear as clear_maps;

/// A policy and the model of a device.
pub struct Kit {
    decide: Box<dyn Fn(&Request) -> Decision>,
    block_sectors: u64,
    write_around: bool,
    cache: CacheModel,
}

impl Kit {
    /// A policy on a device with a write-through cache of 1024 blocks of 64 KiB.
    #[must_use]
    pub fn new(decide: impl Fn(&Request) -> Decision + 'static) -> Self {
        Self {
            decide: Box::new(decide),
            block_sectors: (64 << 10) / SECTOR_SIZE,
            write_around: false,
            cache: CacheModel::new(1024),
        }
    }

    /// Sets the cache size in blocks and empties the cache. 0: the device has no cache.
    #[must_use]
    pub fn cache_blocks(mut self, blocks: usize) -> Self {
        self.cache = CacheModel::new(blocks);
        self
    }

    /// Sets the cache block size in bytes: a power of two from 4 KiB to 1 MiB.
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
        self.block_sectors = bytes / SECTOR_SIZE;
        self
    }

    /// Makes writes invalidate cached blocks instead of updating them.
    #[must_use]
    pub fn write_around(mut self) -> Self {
        self.write_around = true;
        self
    }

    /// Runs a trace and returns a report. The cache keeps its contents for the next run, so a first run can warm it up.
    ///
    /// # Panics
    ///
    /// If the policy returns an invalid decision, such as a code without [`Reason::User`](crate::Reason::User).
    pub fn run(&mut self, trace: &Trace) -> Report {
        let mut report = Report::default();
        for (task, request) in trace.requests() {
            current::set(*task);
            for part in split(request, self.block_sectors) {
                self.request(task.pid, part, &mut report);
            }
        }
        report
    }

    /// Whether the block of this sector is cached.
    #[must_use]
    pub fn is_cached(&self, sector: u64) -> bool {
        self.priority_of(sector).is_some()
    }

    /// The priority of the block of this sector, if it is cached.
    #[must_use]
    pub fn priority_of(&self, sector: u64) -> Option<Priority> {
        self.cache.priority(sector / self.block_sectors)
    }

    /// The heat of the block of this sector.
    #[must_use]
    pub fn heat_of(&self, sector: u64) -> u32 {
        self.cache.heat(sector / self.block_sectors)
    }

    fn request(&mut self, pid: u32, mut request: Request, report: &mut Report) {
        request.block = request.sector / self.block_sectors;
        request.heat = self.cache.heat(request.block);
        let is_cached = self.cache.priority(request.block).is_some();
        if is_cached {
            request.flags |= request_flags::CACHED;
        }
        let decision = (self.decide)(&request);
        assert!(
            Decision::is_answer(decision.pack()),
            "invalid decision {decision:?} for {request:?}"
        );
        report.decided(decision);
        if request.is_read() {
            self.read(pid, &request, decision, report);
        } else {
            self.change(&request);
        }
        if decision.hints & (hint::PROMOTE | hint::FILL) != 0 && request.nr_sectors > 0 {
            let before = self.cache.evicted;
            if self.cache.promote(request.block, priority(decision)) {
                report.promoted += 1;
            }
            report.evicted += self.cache.evicted - before;
        }
    }

    fn read(&mut self, pid: u32, request: &Request, decision: Decision, report: &mut Report) {
        let counts = decision.hints & hint::COLD == 0;
        if counts {
            self.cache.warm(request.block);
        }
        let is_hit = decision.verdict == Verdict::Hit && request.is_cached();
        if is_hit && counts {
            self.cache.reference(request.block);
        }
        if decision.verdict != Verdict::Drop {
            report.read(pid, is_hit);
        }
    }

    /// Applies a request other than a read to the cached blocks.
    fn change(&mut self, request: &Request) {
        let invalidates = match request.op() {
            Op::Write => self.write_around,
            Op::Discard | Op::WriteZeroes => request.nr_sectors > 0,
            Op::Read | Op::Flush | Op::Other => false,
        };
        if invalidates {
            let last = (request.end() - 1) / self.block_sectors;
            (request.block..=last).for_each(|block| self.cache.invalidate(block));
        }
    }
}

/// The priority that a decision asks for.
fn priority(decision: Decision) -> Priority {
    let number = (decision.hints & hint::PRIORITY) >> hint::PRIORITY_SHIFT;
    Priority::ALL[usize::from(number)]
}

/// Splits a request as the block layer does: reads and writes end at cache block boundaries.
fn split(request: &Request, block_sectors: u64) -> impl Iterator<Item = Request> {
    let whole = *request;
    let is_split = whole.is_read() || whole.is_write();
    let mut sector = whole.sector;
    let mut done = false;
    core::iter::from_fn(move || {
        if done {
            return None;
        }
        let rest = whole.end().saturating_sub(sector);
        let to_edge = block_sectors - sector % block_sectors;
        let sectors = if is_split { rest.min(to_edge) } else { rest };
        let part = Request {
            sector,
            nr_sectors: u32::try_from(sectors).unwrap_or(u32::MAX),
            ..whole
        };
        done = sectors == rest;
        sector += sectors;
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Reason;

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
        let parts: Vec<_> = split(&Request::new(Op::Read, 100, 200), 128)
            .map(|part| (part.sector, part.nr_sectors))
            .collect();
        assert_eq!(parts, [(100, 28), (128, 128), (256, 44)]);
        let discard = Request::new(Op::Discard, 100, 2000);
        assert_eq!(split(&discard, 128).collect::<Vec<_>>(), [discard]);
        let flush = Request::new(Op::Flush, u64::MAX, 0);
        assert_eq!(split(&flush, 128).collect::<Vec<_>>(), [flush]);
    }

    #[test]
    fn a_second_read_hits_and_a_discard_invalidates() {
        let mut kit = Kit::new(greedy).cache_blocks(4);
        let report = kit.run(&Trace::new().read(0, 128).read(8, 8).flush());
        assert_eq!((report.hits, report.misses, report.promoted), (1, 1, 1));
        assert_eq!(kit.heat_of(0), 2);
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
