//! Policy `frugal`: serves cached blocks from the cache, and fills with each miss what that reads in any case.
//!
//! For a backing that is bound by bytes: one that is metered, or that reads in sequence faster than a cache saves. A miss
//! fills the regions (sixteenths of a block) that it touches and no others, which reads more than the request wants only
//! at its two ends, and nothing if these are the regions' own. Whether filling pays is measured on a sample of the blocks:
//! when that is hit less than once in sixteen fills, or saves less than the ends cost, only the sample is filled.
//!
//! Blocks of a run longer than 4 MiB that were seldom read before are evicted first. The reads of a run within one block
//! are one visit and count once in its heat.
//!
//! Where the cache writes back, large writes of a run longer than 1 MiB go around it.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

mod fill;

use ublk_bpf_policy::{Decision, Extent, Request, policy};

/// Base-two logarithm of the sectors of the largest block there is.
const LARGEST: u32 = 11;
/// Base-two logarithm of the sectors that a fill has at least: 4 KiB.
const GRANULE: u32 = 3;

#[inline(always)]
fn decide(request: &Request) -> Decision {
    fill::decide(request, Extent::Request, extra)
}

/// Sectors of the regions that the request touches, less its own.
#[inline(always)]
const fn extra(request: &Request) -> u64 {
    let region = 1
        << match block_shift(request) - 4 {
            small if small < GRANULE => GRANULE,
            shift => shift,
        };
    let first = request.sector / region * region;
    let end = request.end().next_multiple_of(region);
    end - first - request.nr_sectors as u64
}

/// Base-two logarithm of a block's sectors. What the first block tells is that they are at most the largest.
#[inline(always)]
const fn block_shift(request: &Request) -> u32 {
    match request.sector.checked_div(request.block) {
        Some(about) => (about | 16).ilog2(),
        None => LARGEST,
    }
}

policy!(decide);

#[cfg(test)]
mod tests {
    use super::*;
    use ublk_bpf_policy::{Op, Priority, Verdict, maps};

    fn miss(shift: u32, block: u64, first: u64, nr_sectors: u32) -> Request {
        Request {
            block,
            ..Request::new(Op::Read, (block << shift) + first, nr_sectors)
        }
    }

    #[test]
    fn what_a_fill_reads_beyond_the_request_is_known() {
        for block in [1, 2, 1000, 1 << 31] {
            assert_eq!(extra(&miss(7, block, 0, 8)), 0, "64K blocks, 4K regions");
            assert_eq!(extra(&miss(7, block, 127, 1)), 7);
            assert_eq!(extra(&miss(7, block, 7, 16)), 8);
            assert_eq!(extra(&miss(11, block, 2040, 8)), 120, "1M blocks, 64K regions");
            assert_eq!(
                extra(&miss(4, block, 3, 5)),
                3,
                "8K blocks, whose regions are filled by eight"
            );
            assert_eq!(extra(&miss(3, block, 0, 8)), 0, "4K blocks");
        }
        assert_eq!(extra(&miss(7, 0, 0, 8)), 120, "as if in the largest block");
    }

    #[test]
    fn it_fills_what_the_request_reads_while_that_saves_more_than_its_ends_cost() {
        maps::clear();
        let fill = Decision::pass().fill(Extent::Request, Priority::Normal);
        assert_eq!(decide(&miss(7, 10, 0, 8)), fill);
        let crooked = |n: u64| decide(&miss(7, n * 1000, 1, 8));
        let filled = (0..16_000).filter(|&n| crooked(n) == fill).count();
        assert!(filled < 3000, "{filled} of 16000, of which the cache served none");
        let not = Decision::coded(Verdict::Passthrough, fill::DOES_NOT_PAY);
        assert!(
            (0..16)
                .map(|n| decide(&miss(7, 5000 + n, 0, 8)))
                .any(|decision| decision == not)
        );
    }
}
