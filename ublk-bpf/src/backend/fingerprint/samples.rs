//! A checksum over samples of a file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::sys::aligned::Aligned;

/// Bytes that are read at either end.
pub(super) const END: u64 = 64 << 10;
/// Bytes of a sample between the ends.
const SAMPLE: u64 = 4096;
/// Samples between the ends.
const SAMPLES: u64 = 64;

/// The CRC-32C of both ends and of the samples between them. `bytes` is whole logical blocks.
pub(super) fn samples(file: &File, bytes: u64) -> io::Result<u32> {
    let mut crc = 0;
    let mut buffer = Aligned::new(64 << 10);
    for (at, len) in sampled_ranges(bytes) {
        let into = &mut buffer[..len];
        file.read_exact_at(into, at)?;
        crc = crc32c::crc32c_append(crc, into);
    }
    Ok(crc)
}

/// Offsets and lengths of what is sampled: aligned to a logical block of at most 4 KiB if `bytes` is.
pub(super) fn sampled_ranges(bytes: u64) -> Vec<(u64, usize)> {
    let len = |len: u64| usize::try_from(len).unwrap_or(usize::MAX);
    if bytes <= 2 * END {
        // All of it.
        let first = bytes.min(END);
        return vec![(0, len(first)), (first, len(bytes - first))];
    }
    // One in each of equal parts of what is between the ends, at a place that looks random and is always the same.
    let part = (bytes - 2 * END) / SAMPLES / SAMPLE;
    let between = (0..SAMPLES).filter(|_| part > 0).map(|at| {
        let inside = scatter(at) % part;
        (END + (at * part + inside) * SAMPLE, len(SAMPLE))
    });
    let ends = [(0, len(END)), (bytes - END, len(END))];
    ends.into_iter().chain(between).collect()
}

/// A number that looks random, of a number (the SplitMix64 finaliser).
pub(crate) const fn scatter(of: u64) -> u64 {
    let x = of.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
