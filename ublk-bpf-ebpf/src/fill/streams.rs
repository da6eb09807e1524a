//! Sequential runs, whichever task or queue they come from.

use ublk_bpf_policy::{Array, Request, map};

/// Runs that are known at a time. Two that meet in a place break one, nothing else.
const STREAMS: u32 = 256;

map! {
    /// The runs of reads, each in the place of the sector where it continues.
    pub(crate) static READS: Streams = "streams";
    /// Those of writes that may go around the cache.
    pub(crate) static WRITES: Streams = "write_streams";
}

/// Runs by the sector where they continue.
type Streams = Array<Stream, { STREAMS as usize }>;

/// A run of requests, each starting where the previous one ended.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Stream {
    /// The sector where it continues. 0: none does.
    next: u64,
    /// The sector where it began.
    start: u64,
    /// The block of the latest request.
    block: u64,
}

/// A request's position in its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    /// Length of the run so far, this request included, in sectors.
    pub(crate) sectors: u64,
    /// The previous request of the run was in the same block: this one is the same visit.
    pub(crate) is_same_visit: bool,
}

/// Adds a request to its run.
#[inline(always)]
pub(crate) fn track(streams: &Streams, request: &Request) -> Position {
    let known = streams.get(place(request.sector));
    let known = known.filter(|stream| stream.next == request.sector && stream.next > 0);
    let start = known.map_or(request.sector, |stream| stream.start);
    let stream = Stream {
        next: request.end(),
        start,
        block: request.block,
    };
    streams.set(place(request.end()), &stream);
    Position {
        sectors: request.end() - start,
        is_same_visit: known.is_some_and(|stream| stream.block == request.block),
    }
}

#[inline(always)]
const fn place(sector: u64) -> u32 {
    (sector.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u32 % STREAMS
}
