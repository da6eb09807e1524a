//! Policy `scan-resistant`: promotes a block on its second read; long sequential runs bypass the cache.
//!
//! A run is a sequence of reads, or of writes, by one task in which each request starts where the previous one ended. A
//! run longer than its cutoff does not promote blocks or count in their heat, and only hot blocks of it are served from
//! the cache: backing devices are good at sequential I/O. The requests of a run within one block are one visit and
//! count once, however small they are. A large write of a long run goes around a cache that writes back.
//!
//! The cutoffs are entry 0 of the map `cutoffs`, in bytes; 0 selects the default.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

mod bulk;

use ublk_bpf_policy::{Array, Decision, Op, Priority, Reason, Request, Verdict, current, map, policy};

/// Heat at which a read promotes its block: the second read does.
const PROMOTE_HEAT: u32 = 1;
/// Heat of a block that is read by more than a scan.
const HOT: u32 = 2;
/// Default cutoff for reads, in bytes: a few read-ahead windows.
const READ_CUTOFF: u64 = 4 << 20;
/// Default cutoff for writes, in bytes: bulk writes are seldom read back soon.
const WRITE_CUTOFF: u64 = bulk::LONG_WRITE << 9;
/// Number of runs tracked at a time. Two tasks that share an entry break each other's runs, nothing else.
const RUNS: u32 = 256;

map! {
    /// The cutoffs, which operators can set.
    static CUTOFFS: Array<Cutoffs, 1> = "cutoffs";
    /// The runs, by task and direction.
    static RUN: Array<SequentialRun, { RUNS as usize }> = "runs";
}

/// Maximum length of runs that use the cache.
#[repr(C)]
#[derive(Clone, Copy)]
struct Cutoffs {
    /// For reads, in bytes. 0: [`READ_CUTOFF`].
    read_bytes: u64,
    /// For writes, in bytes. 0: [`WRITE_CUTOFF`].
    write_bytes: u64,
}

/// A run of requests, each starting where the previous one ended.
#[repr(C)]
#[derive(Clone, Copy)]
struct SequentialRun {
    /// The sector where the next request of the run starts.
    next: u64,
    /// Sectors so far.
    sectors: u64,
    /// The block of the latest request.
    block: u64,
}

/// The position of a request in its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RunPosition {
    /// Length of the run in bytes, including this request.
    bytes: u64,
    /// The request starts where the previous one ended.
    is_sequential: bool,
    /// It also is in the same block as the previous one.
    is_same_visit: bool,
}

impl SequentialRun {
    #[inline(always)]
    fn track(&mut self, request: &Request) -> RunPosition {
        let is_sequential = self.next == request.sector && self.sectors > 0;
        let is_same_visit = is_sequential && self.block == request.block;
        let before = if is_sequential { self.sectors } else { 0 };
        *self = Self {
            next: request.end(),
            sectors: before + u64::from(request.nr_sectors),
            block: request.block,
        };
        RunPosition {
            bytes: self.sectors << 9,
            is_sequential,
            is_same_visit,
        }
    }
}

fn decide(request: &Request) -> Decision {
    match request.op() {
        Op::Read => read(request),
        Op::Write => write(request),
        _ => Decision::pass(),
    }
}

fn read(request: &Request) -> Decision {
    let position = track(request);
    let is_long = is_long(position, READ_CUTOFF, |cutoffs| cutoffs.read_bytes);
    if is_long && !(request.is_cached() && request.heat >= HOT) {
        return Decision::new(Verdict::Passthrough, Reason::Sequential).cold();
    }
    let decision = if request.is_cached() {
        Decision::hit()
    } else if request.heat >= PROMOTE_HEAT && !position.is_same_visit {
        Decision::pass().promote(Priority::Normal)
    } else {
        Decision::pass()
    };
    if is_long || position.is_same_visit {
        decision.cold()
    } else {
        decision
    }
}

fn write(request: &Request) -> Decision {
    let position = track(request);
    if is_long(position, WRITE_CUTOFF, |cutoffs| cutoffs.write_bytes) {
        let decision = Decision::new(Verdict::Passthrough, Reason::Sequential);
        return if bulk::may_go_around(request) {
            decision.around()
        } else {
            decision
        };
    }
    if request.heat >= HOT && !request.is_cached() {
        return Decision::pass().promote(Priority::Normal);
    }
    Decision::pass()
}

/// Adds the request to its task's run.
#[inline(always)]
fn track(request: &Request) -> RunPosition {
    let run = (current::pid() * 2 + u32::from(request.is_write())) % RUNS;
    let alone = RunPosition {
        bytes: 0,
        is_sequential: false,
        is_same_visit: false,
    };
    RUN.update(run, |run| run.track(request)).unwrap_or(alone)
}

/// Whether the run exceeds its cutoff. The cutoff is looked up only for runs.
#[inline(always)]
fn is_long(position: RunPosition, default: u64, configured: impl FnOnce(Cutoffs) -> u64) -> bool {
    if !position.is_sequential {
        return false;
    }
    match CUTOFFS.get(0).map_or(0, configured) {
        0 => position.bytes > default,
        cutoff => position.bytes > cutoff,
    }
}

policy!(decide);

#[cfg(test)]
mod tests {
    use super::*;
    use ublk_bpf_policy::{CacheState, cache, current::Task, maps, request_flags, testkit};

    const BLOCK: u32 = 128;

    fn reset() {
        maps::clear();
        current::set(Task::new(1, "reader", 0));
    }

    /// A request for a 64 KiB block, or part of it.
    fn request(op: Op, sector: u64, nr_sectors: u32, heat: u32, flags: u32) -> Request {
        Request {
            block: sector / u64::from(BLOCK),
            heat,
            flags,
            ..Request::new(op, sector, nr_sectors)
        }
    }

    fn read(sector: u64, heat: u32) -> Decision {
        decide(&request(Op::Read, sector, BLOCK, heat, 0))
    }

    /// Reads or writes `blocks` blocks from block 1 on; returns how many bypassed the cache.
    fn bypassed(op: Op, blocks: u64) -> usize {
        let run = (1..=blocks).map(|block| decide(&request(op, block * 128, BLOCK, 0, 0)));
        run.filter(|decision| decision.reason == Reason::Sequential)
            .count()
    }

    #[test]
    fn the_second_read_promotes() {
        reset();
        assert_eq!(read(1280, 0), Decision::pass());
        assert_eq!(read(1280, 1), Decision::pass().promote(Priority::Normal));
        let cached = request(Op::Read, 1280, BLOCK, 2, request_flags::CACHED);
        assert_eq!(decide(&cached), Decision::hit());
    }

    #[test]
    fn a_visit_in_small_pieces_counts_once() {
        reset();
        let piece = |n: u64| decide(&request(Op::Read, 1280 + 32 * n, 32, 1, 0));
        assert_eq!(piece(0), Decision::pass().promote(Priority::Normal));
        assert_eq!(piece(1), Decision::pass().cold());
        assert_eq!(piece(3), Decision::pass().promote(Priority::Normal), "a jump");
    }

    #[test]
    fn a_long_run_bypasses_the_cache() {
        reset();
        assert_eq!(bypassed(Op::Read, 64), 0, "4 MiB");
        assert_eq!(bypassed(Op::Read, 80), 16);
        assert_eq!(bypassed(Op::Write, 16), 0, "1 MiB");
        assert_eq!(bypassed(Op::Write, 24), 8);
        assert_eq!(
            read(81 * 128, 5),
            Decision::new(Verdict::Passthrough, Reason::Sequential).cold(),
            "even if hot, when it is not cached"
        );
    }

    #[test]
    fn a_hot_block_hits_even_in_a_long_run() {
        reset();
        bypassed(Op::Read, 80);
        let cached = |block: u64, heat| {
            decide(&request(
                Op::Read,
                block * 128,
                BLOCK,
                heat,
                request_flags::CACHED,
            ))
        };
        assert_eq!(cached(81, HOT - 1).reason, Reason::Sequential);
        assert_eq!(cached(82, HOT), Decision::hit().cold());
    }

    #[test]
    fn a_scan_does_not_pollute_the_cache() {
        use testkit::{Kit, Trace};
        reset();
        let load = |seed| {
            Trace::new()
                .as_task(1, "database", 0)
                .zipf(seed, 0.99, 4096, 20_000)
        };
        // Three passes over the device in 16 KiB requests, which would promote every block without scan resistance.
        let pass = || (0..4096 * 4).fold(Trace::new().as_task(2, "scan", 0), |t, n| t.read(n * 32, 32));
        let scan = pass().then(pass()).then(pass());
        let mut kit = Kit::new(decide).cache_blocks(400);
        kit.run(&load(1));
        let alone = kit.run(&load(2)).hit_ratio_of(1);
        let report = kit.run(&load(3).interleave(scan));
        assert!(alone > 0.6, "{alone}");
        assert!(
            report.hit_ratio_of(1) > alone - 0.02,
            "{alone} alone, then {report}"
        );
    }

    #[test]
    fn each_task_has_its_own_run() {
        reset();
        bypassed(Op::Read, 64);
        current::set(Task::new(2, "other", 0));
        assert_eq!(read(9000, 0), Decision::pass());
        current::set(Task::new(1, "reader", 0));
        assert_eq!(read(65 * 128, 0).reason, Reason::Sequential);
    }

    #[test]
    fn operators_can_set_the_cutoffs() {
        reset();
        let cutoffs = Cutoffs {
            read_bytes: 1 << 20,
            write_bytes: u64::MAX,
        };
        assert!(CUTOFFS.set(0, &cutoffs));
        assert_eq!(bypassed(Op::Read, 24), 8);
        assert_eq!(bypassed(Op::Write, 100), 0);
    }

    #[test]
    fn large_writes_of_a_long_run_go_around_a_cache_that_writes_back() {
        reset();
        let run = |first: u64, sectors: u32| {
            let writes = (0..(4 << 20) / (u64::from(sectors) << 9)).map(move |n| {
                let sector = first + n * u64::from(sectors);
                decide(&request(Op::Write, sector, sectors, 0, 0))
            });
            let around = Decision::new(Verdict::Passthrough, Reason::Sequential).around();
            writes.filter(|&decision| decision == around).count()
        };
        assert_eq!(run(0, BLOCK), 0, "writes go through");
        cache::set(CacheState {
            dirty_per_mille: 0,
            writes_back: 1,
        });
        assert_eq!(run(1 << 20, BLOCK), 64 - 16);
        assert_eq!(run(2 << 20, 16), 0, "small ones");
        let dirty = request(Op::Write, 3 << 20, BLOCK, 0, request_flags::DIRTY);
        assert!((0..100).all(|_| decide(&dirty) == Decision::pass()));
    }

    #[test]
    fn a_short_write_of_a_hot_block_promotes() {
        reset();
        let write = |heat| decide(&request(Op::Write, 1280, 8, heat, 0));
        assert_eq!(write(HOT), Decision::pass().promote(Priority::Normal));
        assert_eq!(write(HOT - 1), Decision::pass());
        assert_eq!(decide(&request(Op::Discard, 1280, 8, HOT, 0)), Decision::pass());
    }
}
