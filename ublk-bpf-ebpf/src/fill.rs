//! What `auto` and `frugal` have in common: each read that misses fills its block, as long as that pays.

#[path = "bulk.rs"]
mod bulk;
mod streams;
mod trial;

use ublk_bpf_policy::{Decision, Extent, Priority, Reason, Request, Verdict};

use trial::Trial;

/// Length of a run that passes through the cache, in sectors: 4 MiB.
const LONG_RUN: u64 = (4 << 20) >> 9;
/// Heat of a block that is read by more than a scan.
const HOT: u32 = 2;
/// The policies' own reason for a miss that is not filled: filling does not pay now.
pub(crate) const DOES_NOT_PAY: u8 = 1;

/// The decision on a request. `extra` is how many sectors a fill of `extent` reads that the request does not want, as far
/// as these cost anything.
#[inline(always)]
pub(crate) fn decide(request: &Request, extent: Extent, extra: impl FnOnce(&Request) -> u64) -> Decision {
    if request.is_write() {
        return write(request);
    }
    if !request.is_read() {
        return Decision::pass();
    }
    let position = streams::track(&streams::READS, request);
    let decision = if request.is_cached() {
        trial::hit(request);
        Decision::hit()
    } else {
        miss(request, position.sectors, extent, extra(request))
    };
    if position.is_same_visit {
        decision.cold()
    } else {
        decision
    }
}

/// Long runs of large writes go around a cache that writes back.
#[inline(always)]
fn write(request: &Request) -> Decision {
    if bulk::may_go_around(request) && streams::track(&streams::WRITES, request).sectors > bulk::LONG_WRITE {
        return Decision::new(Verdict::Passthrough, Reason::Sequential).around();
    }
    Decision::pass()
}

#[inline(always)]
fn miss(request: &Request, run: u64, extent: Extent, extra: u64) -> Decision {
    if trial::samples(request.block) || Trial::now().pays(extra) {
        trial::fill(request, extra);
        let is_scan = run > LONG_RUN && request.heat < HOT;
        let priority = if is_scan { Priority::Low } else { Priority::Normal };
        Decision::pass().fill(extent, priority)
    } else if request.is_partly_cached() {
        Decision::hit()
    } else {
        Decision::coded(Verdict::Passthrough, DOES_NOT_PAY)
    }
}
