//! What filling returns, measured on a sample: one block in sixteen, which is filled whatever comes of it. While the
//! sample does not pay, other blocks are not filled.

use ublk_bpf_policy::{Array, Request, map};

/// Fills that are remembered: with so many, all counts are halved.
const MEMORY: u64 = 512;
/// Fills before the counts mean something.
const ENOUGH: u64 = 64;
/// Fills that a hit has to pay for: what a hit saves is a read of the backing, which takes much longer than a write to
/// the cache, and wears nothing out.
const FILLS_A_HIT: u64 = 16;

map! {
    /// The counts.
    static TRIAL: Array<Trial, 1> = "trial";
}

/// What was filled in the sample, and what it returned.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Trial {
    fills: u64,
    hits: u64,
    /// Sectors read from the backing for fills beyond those that the requests wanted.
    extra: u64,
    /// Sectors that were read from the cache.
    saved: u64,
}

impl Trial {
    /// The counts now.
    #[inline(always)]
    pub(crate) fn now() -> Self {
        TRIAL.get(0).unwrap_or_default()
    }

    /// Whether a fill that reads so many sectors more than its request wants is likely to pay: the sample was hit often
    /// enough for what its fills wrote to the cache and, if there are any, did not read more from the backing than that
    /// saved.
    #[inline(always)]
    pub(crate) const fn pays(self, extra: u64) -> bool {
        let in_requests = self.hits * FILLS_A_HIT >= self.fills;
        let in_bytes = extra == 0 || self.saved >= self.extra;
        self.fills < ENOUGH || (in_requests && in_bytes)
    }

    #[inline(always)]
    const fn decayed(self) -> Self {
        if self.fills < MEMORY {
            return self;
        }
        Self {
            fills: self.fills / 2,
            hits: self.hits / 2,
            extra: self.extra / 2,
            saved: self.saved / 2,
        }
    }
}

/// Whether the block is in the sample.
#[inline(always)]
pub(crate) const fn samples(block: u64) -> bool {
    block.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60 == 0
}

/// Counts a read that the cache serves.
#[inline(always)]
pub(crate) fn hit(request: &Request) {
    if samples(request.block) {
        TRIAL.update(0, |trial| {
            trial.hits += 1;
            trial.saved += u64::from(request.nr_sectors);
        });
    }
}

/// Counts a fill that reads so many sectors more than the request wants.
#[inline(always)]
pub(crate) fn fill(request: &Request, extra: u64) {
    if samples(request.block) {
        TRIAL.update(0, |trial| {
            trial.fills += 1;
            trial.extra += extra;
            *trial = trial.decayed();
        });
    }
}
