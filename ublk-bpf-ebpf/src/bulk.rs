//! Large sequential writes, which go around a cache that writes back: the backing is good at them, and in the cache they
//! would take the place of what is written again, and be written twice.

use ublk_bpf_policy::{Request, cache_view};

cache_view! {
    static CACHE;
}

/// Length of a run of writes that goes around the cache, in sectors: 1 MiB.
pub(crate) const LONG_WRITE: u64 = (1 << 20) >> 9;
/// Length of a large write, in sectors: 32 KiB.
const LARGE: u32 = (32 << 10) >> 9;
/// Heat of a block that is read by more than a scan.
const HOT: u32 = 2;

/// Whether a write may go around the cache if it is part of a long run: it is large, nobody reads its block often, and
/// nothing of that is dirty. Not one with FUA either: a log, which is written in sequence too, is waited for.
#[inline(always)]
pub(crate) fn may_go_around(request: &Request) -> bool {
    is_large(request) && request.heat < HOT && !request.is_dirty() && !request.is_fua() && CACHE.writes_back()
}

/// Whether a write is large, or as large as it can be: the block layer splits writes at the ends of cache blocks.
#[inline(always)]
const fn is_large(request: &Request) -> bool {
    request.nr_sectors >= LARGE || is_whole_block(request)
}

/// Whether it begins with its block and is as long. Only of the first few blocks may it be said wrongly.
#[inline(always)]
const fn is_whole_block(request: &Request) -> bool {
    request.block != 0 && request.block.wrapping_mul(request.nr_sectors as u64) == request.sector
}
