//! A trace as a device with a cache sees it: split at block boundaries.

use std::ops::Range;

use ublk_bpf_abi::Op;

use super::trace::{Trace, TraceRequest};

/// Log2 of the sectors of a chunk: 1 MiB, the largest cache block. Chunks that no request touches are left out of the
/// device that is replayed, so that its maps are as large as the trace and not as the device that was traced.
const CHUNK_SHIFT: u32 = 11;

/// The chunks that reads and writes touch, in order. A chunk's place here is its place on the replayed device.
#[derive(Debug)]
struct Chunks(Vec<u64>);

impl Chunks {
    fn of(trace: &Trace) -> Self {
        let mut chunks: Vec<u64> = Vec::new();
        for request in trace.requests().iter().filter(|request| request.has_data()) {
            let touched = request.sector >> CHUNK_SHIFT..=(request.end() - 1) >> CHUNK_SHIFT;
            if chunks.last() != Some(touched.end()) {
                chunks.extend(touched);
            }
        }
        chunks.sort_unstable();
        chunks.dedup();
        Self(chunks)
    }

    /// Where the first touched chunk from here on is.
    fn place(&self, chunk: u64) -> u64 {
        self.0.partition_point(|&touched| touched < chunk) as u64
    }

    /// The sector on the replayed device; that of the next chunk if this one was left out.
    fn sector(&self, sector: u64) -> u64 {
        let chunk = sector >> CHUNK_SHIFT;
        let place = self.place(chunk);
        let is_there = self.0.get(usize::try_from(place).unwrap_or(usize::MAX)) == Some(&chunk);
        let within = if is_there {
            sector & ((1 << CHUNK_SHIFT) - 1)
        } else {
            0
        };
        (place << CHUNK_SHIFT) + within
    }
}

/// A request, or the part of it that is in one cache block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// First sector on the traced device.
    pub sector: u64,
    /// Length in sectors.
    pub nr_sectors: u32,
    /// The request, as an index of [`Trace::requests`].
    pub request: u32,
    /// First block on the replayed device that it touches.
    pub block: u32,
    /// How many it touches: 1 for a read or write, 0 for a flush.
    pub blocks: u32,
}

/// The parts of a trace's requests for one block size.
#[derive(Debug)]
pub struct Stream {
    /// Log2 of the bytes of a cache block.
    pub shift: u32,
    /// The parts, in order.
    pub parts: Vec<Part>,
    /// Blocks of the replayed device.
    pub blocks: u32,
    /// Different blocks that are read.
    pub working_set: u32,
}

/// A trace touches more blocks than a cache can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the trace touches {0} blocks of this size, more than 2^32: take larger blocks")]
pub struct TooManyBlocks(u64);

impl Stream {
    /// Splits reads and writes at blocks of `1 << shift` bytes, as `chunk_sectors` makes the block layer do.
    ///
    /// # Errors
    /// If the trace touches too many of them.
    pub fn new(trace: &Trace, shift: u32) -> Result<Self, TooManyBlocks> {
        let chunks = Chunks::of(trace);
        let blocks = (chunks.0.len() as u64) << (CHUNK_SHIFT + 9 - shift);
        let mut stream = Self {
            shift,
            parts: Vec::with_capacity(trace.requests().len()),
            blocks: u32::try_from(blocks).map_err(|_| TooManyBlocks(blocks))?,
            working_set: 0,
        };
        for (number, request) in (0..).zip(trace.requests()) {
            stream.add(number, request, &chunks);
        }
        stream.working_set = stream.count_read_blocks(trace);
        Ok(stream)
    }

    fn add(&mut self, number: u32, request: &TraceRequest, chunks: &Chunks) {
        let block_sectors = 1u64 << (self.shift - 9);
        let block_of = |sector| u32::try_from(chunks.sector(sector) / block_sectors).unwrap_or(u32::MAX);
        if !request.has_data() {
            let range = if request.nr_sectors == 0 {
                0..0
            } else {
                block_of(request.sector)
                    ..u32::try_from(chunks.sector(request.end()).div_ceil(block_sectors)).unwrap_or(u32::MAX)
            };
            self.parts.push(Part {
                sector: request.sector,
                nr_sectors: request.nr_sectors,
                request: number,
                block: range.start,
                blocks: range.end.saturating_sub(range.start),
            });
            return;
        }
        for range in split(request.sector..request.end(), block_sectors) {
            self.parts.push(Part {
                sector: range.start,
                nr_sectors: u32::try_from(range.end - range.start).unwrap_or(u32::MAX),
                request: number,
                block: block_of(range.start),
                blocks: 1,
            });
        }
    }

    fn count_read_blocks(&self, trace: &Trace) -> u32 {
        let mut is_read = vec![false; self.blocks as usize];
        for part in &self.parts {
            if trace.requests()[part.request as usize].op == Op::Read {
                is_read[part.block as usize] = true;
            }
        }
        let count = is_read.iter().filter(|&&is_read| is_read).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }
}

/// Splits a range of sectors at multiples of `block_sectors`.
pub fn split(range: Range<u64>, block_sectors: u64) -> impl Iterator<Item = Range<u64>> {
    let mut start = range.start;
    std::iter::from_fn(move || {
        if start >= range.end {
            return None;
        }
        let end = range.end.min((start / block_sectors + 1) * block_sectors);
        Some(std::mem::replace(&mut start, end)..end)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(requests: &[(Op, u64, u32)]) -> Trace {
        let mut trace = Trace::default();
        for &(op, sector, nr_sectors) in requests {
            trace.push(TraceRequest::new(op, sector, nr_sectors)).unwrap();
        }
        trace
    }

    fn parts(requests: &[(Op, u64, u32)]) -> Vec<(u64, u32, u32, u32)> {
        let stream = Stream::new(&trace(requests), 16).unwrap();
        let parts = stream.parts.iter();
        parts
            .map(|part| (part.sector, part.nr_sectors, part.block, part.blocks))
            .collect()
    }

    #[test]
    fn reads_and_writes_are_split_at_block_boundaries() {
        let found = parts(&[(Op::Read, 100, 200)]);
        assert_eq!(found, [(100, 28, 0, 1), (128, 128, 1, 1), (256, 44, 2, 1)]);
        assert_eq!(parts(&[(Op::Flush, 0, 0)]), [(0, 0, 0, 0)]);
    }

    #[test]
    fn the_device_has_only_what_is_touched() {
        let far = 1 << 40;
        let requests = [(Op::Write, far + 2047, 2), (Op::Read, 128, 8)];
        assert_eq!(
            parts(&requests),
            [(far + 2047, 1, 31, 1), (far + 2048, 1, 32, 1), (128, 8, 1, 1)]
        );
        let stream = Stream::new(&trace(&requests), 16).unwrap();
        assert_eq!((stream.blocks, stream.working_set), (48, 1));
    }

    #[test]
    fn a_discard_is_of_the_blocks_that_are_there() {
        let read = (Op::Read, 4096, 8);
        let discard = |sector, sectors| parts(&[read, (Op::Discard, sector, sectors)])[1];
        assert_eq!(discard(0, 1 << 20), (0, 1 << 20, 0, 16));
        assert_eq!(discard(4096 + 130, 8).2, 1);
        assert_eq!(discard(1 << 20, 8).3, 0);
    }
}
