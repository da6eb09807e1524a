//! Replays a trace in one configuration.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ublk_bpf_abi::{CacheState, Decision, Request, SECTOR_SIZE};

use super::counts::Counts;
use super::device::{Pace, PlacedRequest, ReplayDevice};
use super::owned;
use super::stream::{Part, Stream};
use super::trace::{Task, Trace};
use crate::cache::evict::Algorithm;
use crate::cache::{Mode, PromoteLimits, Shape};

/// A policy: the decision for a request that this task submits to a device whose cache is in this state.
pub type PolicyFn<'p> = &'p mut dyn FnMut(&Task, &Request, CacheState) -> Decision;

/// A configuration of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Setup {
    /// Blocks that the cache holds, at least 1.
    pub slots: u32,
    /// The eviction algorithm.
    pub eviction: Algorithm,
    /// What a write does to the cached block that it touches.
    pub mode: Mode,
    /// Bytes a second that are promoted at most; `None`: no limit.
    pub promote_limit: Option<u64>,
    /// From the start of a promotion until its block can be hit.
    pub promote_latency: Duration,
}

/// Parts between two reports of progress.
const STEP: usize = 1 << 14;

/// Replays the trace from an empty cache. `stream` is of this trace and has the block size. Adds the parts that are done
/// to `progress`.
pub fn replay(
    trace: &Trace,
    stream: &Stream,
    setup: &Setup,
    policy: PolicyFn<'_>,
    progress: &AtomicU64,
) -> Counts {
    let shape = Shape {
        shift: stream.shift,
        capacity: (u64::from(stream.blocks) << stream.shift) / SECTOR_SIZE,
        slots: setup.slots,
        data_offset: 0,
        mode: setup.mode,
    };
    let maps = owned::maps(&shape);
    let cache = owned::cache(shape, &maps);
    let pace = Pace {
        eviction: setup.eviction,
        limits: PromoteLimits {
            rate: setup.promote_limit,
        },
        latency: setup.promote_latency,
    };
    let mut device = ReplayDevice::new(&cache, &maps, pace);
    let mut whole = Requests::default();
    for parts in stream.parts.chunks(STEP) {
        for part in parts {
            let request = &trace.requests()[part.request as usize];
            let task = &trace.tasks()[request.task as usize];
            let now = Duration::from_nanos(request.time_ns);
            let placed = placed(part, stream.shift, request);
            let (_, is_hit) = device.issue(now, placed, &mut |request, state| policy(task, request, state));
            if placed.request.is_read() {
                whole.count(part.request, is_hit);
            }
        }
        progress.fetch_add(parts.len() as u64, Ordering::Relaxed);
    }
    whole.end();
    Counts {
        read_requests: whole.reads,
        hit_requests: whole.hits,
        ..device.counts()
    }
}

fn placed(part: &Part, shift: u32, of: &super::trace::TraceRequest) -> PlacedRequest {
    PlacedRequest {
        request: Request {
            flags: of.flags,
            ioprio: of.ioprio.into(),
            block: part.sector >> (shift - 9),
            ..Request::new(of.op, part.sector, part.nr_sectors)
        },
        block: part.block,
        blocks: part.blocks,
    }
}

/// Counts the requests all of whose parts hit.
#[derive(Default)]
struct Requests {
    reads: u64,
    hits: u64,
    /// The request whose parts are coming, and whether all of them hit so far.
    current: Option<(u32, bool)>,
}

impl Requests {
    fn count(&mut self, request: u32, is_hit: bool) {
        match &mut self.current {
            Some((current, all_hit)) if *current == request => *all_hit &= is_hit,
            _ => {
                self.end();
                self.current = Some((request, is_hit));
            }
        }
    }

    fn end(&mut self) {
        if let Some((_, all_hit)) = self.current.take() {
            self.reads += 1;
            self.hits += u64::from(all_hit);
        }
    }
}
