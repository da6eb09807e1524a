//! Histograms of latencies and sizes, in buckets of powers of two.

use crate::{Op, Verdict};

/// A request from its issue to its completion.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Issue {
    /// When it was issued, in nanoseconds of the kernel's monotonic clock; 0: no request is in flight.
    pub time: u64,
    /// Its verdict. Padded, so that BPF reads and writes it as a word.
    pub verdict: u64,
}

/// Latencies of the requests of one operation and verdict, on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latency {
    /// Bucket `i` counts requests that took at least `1 << i` nanoseconds and less than twice that. The last bucket has
    /// no upper limit, the first one counts 0 too.
    pub log2_ns: [u64; Self::BUCKETS],
    /// Nanoseconds of all of them.
    pub sum_ns: u64,
}

impl Latency {
    /// Number of buckets. The last one starts at nine minutes.
    pub const BUCKETS: usize = 40;
    /// Words of this type; the last one is `sum_ns`.
    pub const WORDS: usize = Self::BUCKETS + 1;
}

/// Latencies of one operation on one CPU, from issue to completion, by verdict.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latencies {
    /// Requests without a verdict: the kernel did not run the classifier for them.
    pub none: Latency,
    /// Requests to pass through.
    pub passthrough: Latency,
    /// Requests to serve from the cache.
    pub hit: Latency,
    /// Requests to drop.
    pub drop: Latency,
    /// Requests for the slow path.
    pub slow: Latency,
    /// The operation, so that a dump labels each entry.
    pub op: Op,
}

impl Latencies {
    /// Words of this type, including `op`. Those of a verdict begin at its number times [`Latency::WORDS`].
    pub const WORDS: usize = Verdict::COUNT * Latency::WORDS + 1;
}

/// Sizes of the requests of one operation on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Bucket `i` counts requests of at least `1 << i` bytes and less than twice that. Those without data, such as a
    /// flush, are in none.
    pub log2_bytes: [u64; Self::BUCKETS],
    /// Bytes of all of them.
    pub sum_bytes: u64,
    /// The operation, so that a dump labels each entry.
    pub op: Op,
}

impl Sizes {
    /// Number of buckets: a request has less than 4 GiB.
    pub const BUCKETS: usize = 32;
    /// Words of this type, including `op`.
    pub const WORDS: usize = Self::BUCKETS + 2;
}

/// The bucket of a value: its binary logarithm, rounded down; 0 for 0. BPF has no instruction for it.
#[must_use]
#[inline(always)]
pub const fn log2(mut value: u64) -> u32 {
    let mut log = 0;
    let mut shift = 32;
    while shift != 0 {
        if value >> shift != 0 {
            value >>= shift;
            log += shift;
        }
        shift /= 2;
    }
    log
}
