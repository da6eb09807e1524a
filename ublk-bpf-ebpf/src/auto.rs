//! Policy `auto`: serves cached blocks from the cache, and fills the whole block with each miss, as long as that pays.
//!
//! For a backing that is bound by the number of its reads: a disk, or a volume behind a network. A miss reads the whole
//! block at once, so the misses are all the reads that the backing sees. Whether that pays is measured on a sample of
//! the blocks: while the sample is hit less than once in sixteen fills, only the sample is filled.
//!
//! Blocks of a run longer than 4 MiB that were seldom read before are evicted first. The reads of a run within one block
//! are one visit and count once in its heat.
//!
//! Where the cache writes back, large writes of a run longer than 1 MiB go around it.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

mod fill;

use ublk_bpf_policy::{Decision, Extent, Request, policy};

#[inline(always)]
fn decide(request: &Request) -> Decision {
    fill::decide(request, Extent::Block, |_| 0)
}

policy!(decide);

#[cfg(test)]
mod tests {
    use super::*;
    use ublk_bpf_policy::{Op, Priority, Reason, Verdict, maps, request_flags, testkit};

    const BLOCK: u64 = 128;

    fn miss(sector: u64, heat: u32) -> Request {
        Request {
            block: sector / BLOCK,
            heat,
            ..Request::new(Op::Read, sector, 16)
        }
    }

    #[test]
    fn a_read_hits_or_fills_its_block() {
        maps::clear();
        let normal = Decision::pass().fill(Extent::Block, Priority::Normal);
        assert_eq!(decide(&miss(1280, 0)), normal);
        let partly = Request {
            flags: request_flags::PARTLY_CACHED,
            ..miss(2560, 1)
        };
        assert_eq!(decide(&partly), normal);
        let cached = Request {
            flags: request_flags::CACHED,
            ..miss(3840, 1)
        };
        assert_eq!(decide(&cached), Decision::hit());
        assert_eq!(decide(&Request::new(Op::Write, 1280, 16)), Decision::pass());
    }

    #[test]
    fn the_reads_of_a_run_in_a_block_are_one_visit() {
        maps::clear();
        let normal = Decision::pass().fill(Extent::Block, Priority::Normal);
        assert_eq!(decide(&miss(1280, 0)), normal);
        assert_eq!(decide(&miss(1296, 1)), normal.cold());
        assert_eq!(decide(&miss(1280, 1)), normal, "a jump");
        let blocks = (20..30).map(|block| decide(&miss(block * BLOCK + 112, 0)));
        assert!(blocks.into_iter().all(|decision| decision == normal));
        assert_eq!(decide(&miss(30 * BLOCK, 0)), normal, "the next block");
    }

    #[test]
    fn a_long_run_is_evicted_first_unless_it_is_read_often() {
        maps::clear();
        let low = Decision::pass().fill(Extent::Block, Priority::Low);
        let run = (1000..1100).map(|block| {
            let whole = Request {
                nr_sectors: 128,
                ..miss(block * BLOCK, 0)
            };
            decide(&whole)
        });
        assert_eq!(run.filter(|&decision| decision == low).count(), 100 - 64);
        let hot = decide(&miss(1100 * BLOCK, 2));
        assert_eq!(hot, Decision::pass().fill(Extent::Block, Priority::Normal));
    }

    #[test]
    fn what_does_not_pay_is_tried_on_a_sample() {
        maps::clear();
        let mut filled = 0;
        for n in 0..160_000 {
            let decision = decide(&miss(n * 1000 * BLOCK, 0));
            let not = Decision::coded(Verdict::Passthrough, fill::DOES_NOT_PAY);
            filled += u32::from(decision != not);
        }
        assert!((9_000..13_000).contains(&filled), "{filled} of 160000");
    }

    #[test]
    fn large_writes_of_a_long_run_go_around_a_cache_that_writes_back() {
        maps::clear();
        let mut kit = testkit::Kit::new(decide).cache_blocks(1000).write_back();
        let run = |first: u64, sectors: u32| {
            let writes = (0..(4 << 20) / (u64::from(sectors) << 9)).map(|n| first + n * u64::from(sectors));
            writes.fold(testkit::Trace::new(), |trace, sector| {
                trace.write(sector, sectors)
            })
        };
        let report = kit.run(&run(BLOCK, 128));
        assert_eq!((report.absorbed, report.by_reason(Reason::Sequential)), (16, 48));
        let report = kit.run(&run(1 << 20, 256));
        assert_eq!(
            (report.absorbed, report.by_reason(Reason::Sequential)),
            (16, 48),
            "split"
        );
        let report = kit.run(&run(2 << 20, 16));
        assert_eq!(report.absorbed, 512, "small ones");
        let report = kit.run(&run(BLOCK, 128));
        assert_eq!(report.absorbed, 16, "what is dirty, and no more");
        let mut through = testkit::Kit::new(decide).cache_blocks(1000);
        let report = through.run(&run(BLOCK, 128));
        assert_eq!(report.by_reason(Reason::Default), 64);
    }

    #[test]
    fn in_small_blocks_a_whole_block_is_large() {
        maps::clear();
        let kit = testkit::Kit::new(decide).cache_blocks(4000).block_size(4096);
        let report = kit
            .write_back()
            .run(&testkit::Trace::new().sequential_writes(1024, 8192));
        assert_eq!(
            (report.absorbed, report.by_reason(Reason::Sequential)),
            (256, 768)
        );
    }

    #[test]
    fn a_cache_fills_with_what_is_read_and_keeps_it() {
        maps::clear();
        let load = testkit::Trace::new().zipf(1, 0.99, 4096, 40_000);
        let report = testkit::Kit::new(decide).cache_blocks(400).run(&load);
        assert!(report.hit_ratio() > 0.65, "{report}");
    }
}
