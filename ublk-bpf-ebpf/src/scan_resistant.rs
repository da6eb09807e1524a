//! Policy `scan-resistant`: a block comes into the cache when it is read a second time, and long sequential runs go
//! past the cache.
//!
//! A run is what one task reads, or writes, with each request beginning where its last one ended. One that is longer
//! than its cut-off neither promotes nor warms what it passes over, and is not served from the cache but where a block
//! is hot: sequential I/O is what the backing device is good at. A run's requests within one block are one visit of
//! it and counted once, however small they are.
//!
//! The cut-offs are entry 0 of the map `cutoffs`, in bytes; 0 stands for the default.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use ublk_bpf_policy::{Array, Decision, Op, Priority, Reason, Request, Verdict, current, map, policy};

/// How often a block was read before the read that promotes it: the second read does.
const PROMOTE_HEAT: u32 = 1;
/// A block of so much heat is one that others than a scan read.
const HOT: u32 = 2;
/// Where a run of reads gets too long for the cache: a few read-ahead windows.
const READ_CUTOFF: u64 = 4 << 20;
/// The same for writes: what is written in one go is seldom read soon.
const WRITE_CUTOFF: u64 = 1 << 20;
/// Runs that are followed at a time. Two tasks that share a place break each other's runs and nothing else.
const RUNS: u32 = 256;

map! {
    /// What operators may change.
    static CUTOFFS: Array<Cutoffs, 1> = "cutoffs";
    /// The runs, by task and direction.
    static RUN: Array<Run, { RUNS as usize }> = "runs";
}

/// The longest runs that concern the cache.
#[repr(C)]
#[derive(Clone, Copy)]
struct Cutoffs {
    /// Of reads, in bytes. 0: [`READ_CUTOFF`].
    read_bytes: u64,
    /// Of writes, in bytes. 0: [`WRITE_CUTOFF`].
    write_bytes: u64,
}

/// A run of requests, each of which begins where the one before it ended.
#[repr(C)]
#[derive(Clone, Copy)]
struct Run {
    /// The sector where the next one begins.
    next: u64,
    /// Sectors so far.
    sectors: u64,
    /// The block of the last request.
    block: u64,
}

/// What a request is in its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    /// Bytes of the run, with this request's.
    bytes: u64,
    /// It goes on where the request before it ended.
    goes_on: bool,
    /// It goes on in the block of the request before it.
    is_same_visit: bool,
}

impl Run {
    #[inline(always)]
    fn follow(&mut self, request: &Request) -> Step {
        let goes_on = self.next == request.sector && self.sectors > 0;
        let is_same_visit = goes_on && self.block == request.block;
        let before = if goes_on { self.sectors } else { 0 };
        *self = Self {
            next: request.end(),
            sectors: before + u64::from(request.nr_sectors),
            block: request.block,
        };
        Step {
            bytes: self.sectors << 9,
            goes_on,
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
    let step = follow(request);
    let is_long = is_long(step, READ_CUTOFF, |cutoffs| cutoffs.read_bytes);
    if is_long && !(request.is_cached() && request.heat >= HOT) {
        return Decision::new(Verdict::Passthrough, Reason::Sequential).cold();
    }
    let decision = if request.is_cached() {
        Decision::hit()
    } else if request.heat >= PROMOTE_HEAT && !step.is_same_visit {
        Decision::pass().promote(Priority::Normal)
    } else {
        Decision::pass()
    };
    if is_long || step.is_same_visit {
        decision.cold()
    } else {
        decision
    }
}

fn write(request: &Request) -> Decision {
    let step = follow(request);
    if is_long(step, WRITE_CUTOFF, |cutoffs| cutoffs.write_bytes) {
        return Decision::new(Verdict::Passthrough, Reason::Sequential);
    }
    if request.heat >= HOT && !request.is_cached() {
        return Decision::pass().promote(Priority::Normal);
    }
    Decision::pass()
}

/// Notes the request in its task's run.
#[inline(always)]
fn follow(request: &Request) -> Step {
    let run = (current::pid() * 2 + u32::from(request.is_write())) % RUNS;
    let alone = Step {
        bytes: 0,
        goes_on: false,
        is_same_visit: false,
    };
    RUN.update(run, |run| run.follow(request)).unwrap_or(alone)
}

/// Whether the run is longer than its cut-off, which is looked up only for what is a run.
#[inline(always)]
fn is_long(step: Step, default: u64, chosen: impl FnOnce(Cutoffs) -> u64) -> bool {
    if !step.goes_on {
        return false;
    }
    match CUTOFFS.get(0).map_or(0, chosen) {
        0 => step.bytes > default,
        cutoff => step.bytes > cutoff,
    }
}

policy!(decide);

#[cfg(test)]
mod tests {
    use super::*;
    use ublk_bpf_policy::{current::Task, maps, request_flags, testkit};

    const BLOCK: u32 = 128;

    fn begin() {
        maps::clear();
        current::set(Task::new(1, "reader", 0));
    }

    /// A request of a block of 64 KiB, or of a part of it.
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

    /// Reads or writes so many blocks from block 1 on and gives how many went past the cache.
    fn bypassed(op: Op, blocks: u64) -> usize {
        let run = (1..=blocks).map(|block| decide(&request(op, block * 128, BLOCK, 0, 0)));
        run.filter(|decision| decision.reason == Reason::Sequential)
            .count()
    }

    #[test]
    fn the_second_read_promotes() {
        begin();
        assert_eq!(read(1280, 0), Decision::pass());
        assert_eq!(read(1280, 1), Decision::pass().promote(Priority::Normal));
        let cached = request(Op::Read, 1280, BLOCK, 2, request_flags::CACHED);
        assert_eq!(decide(&cached), Decision::hit());
    }

    #[test]
    fn a_visit_in_small_pieces_counts_once() {
        begin();
        let piece = |n: u64| decide(&request(Op::Read, 1280 + 32 * n, 32, 1, 0));
        assert_eq!(piece(0), Decision::pass().promote(Priority::Normal));
        assert_eq!(piece(1), Decision::pass().cold());
        assert_eq!(piece(3), Decision::pass().promote(Priority::Normal), "a jump");
    }

    #[test]
    fn a_long_run_goes_past_the_cache() {
        begin();
        assert_eq!(bypassed(Op::Read, 64), 0, "4 MiB");
        assert_eq!(bypassed(Op::Read, 80), 16);
        assert_eq!(bypassed(Op::Write, 16), 0, "1 MiB");
        assert_eq!(bypassed(Op::Write, 24), 8);
        assert_eq!(
            read(81 * 128, 5),
            Decision::new(Verdict::Passthrough, Reason::Sequential).cold(),
            "however hot, if it is not cached"
        );
    }

    #[test]
    fn what_is_hot_is_a_hit_in_a_long_run_too() {
        begin();
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
    fn a_scan_leaves_the_cache_as_it_is() {
        use testkit::{Kit, Trace};
        begin();
        let load = |seed| {
            Trace::new()
                .as_task(1, "database", 0)
                .zipf(seed, 0.99, 4096, 20_000)
        };
        // Three times the device, in requests of 16 KiB: what a scan's every block would be promoted by.
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
        begin();
        bypassed(Op::Read, 64);
        current::set(Task::new(2, "other", 0));
        assert_eq!(read(9000, 0), Decision::pass());
        current::set(Task::new(1, "reader", 0));
        assert_eq!(read(65 * 128, 0).reason, Reason::Sequential);
    }

    #[test]
    fn cutoffs_are_the_operators() {
        begin();
        let cutoffs = Cutoffs {
            read_bytes: 1 << 20,
            write_bytes: u64::MAX,
        };
        assert!(CUTOFFS.set(0, &cutoffs));
        assert_eq!(bypassed(Op::Read, 24), 8);
        assert_eq!(bypassed(Op::Write, 100), 0);
    }

    #[test]
    fn a_short_write_of_a_hot_block_promotes() {
        begin();
        let write = |heat| decide(&request(Op::Write, 1280, 8, heat, 0));
        assert_eq!(write(HOT), Decision::pass().promote(Priority::Normal));
        assert_eq!(write(HOT - 1), Decision::pass());
        assert_eq!(decide(&request(Op::Discard, 1280, 8, HOT, 0)), Decision::pass());
    }
}
