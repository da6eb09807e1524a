//! Where the blocks of a trace are on the kit's device, which has room only for those that are touched.

use std::collections::HashMap;

use crate::{Request, SECTOR_SIZE};

/// Sectors of a chunk: 1 MiB, the largest cache block.
const CHUNK: u64 = (1 << 20) / SECTOR_SIZE;
/// Log2 of the blocks that there is room for.
const BLOCKS: u32 = 20;

/// The chunks that were touched, in the order in which they were.
pub(super) struct Places {
    /// Log2 of the bytes of a block.
    shift: u32,
    chunks: HashMap<u64, u32>,
}

impl Places {
    pub(super) fn new(shift: u32) -> Self {
        let chunks = HashMap::new();
        Self { shift, chunks }
    }

    /// Sectors of the device.
    pub(super) const fn sectors(&self) -> u64 {
        (1 << (BLOCKS + self.shift)) / SECTOR_SIZE
    }

    /// The block of a sector, if its chunk was touched.
    pub(super) fn find(&self, sector: u64) -> Option<u32> {
        let place = *self.chunks.get(&(sector / CHUNK))?;
        Some(self.block(place, sector))
    }

    /// The block of a sector in the chunk at `place`.
    fn block(&self, place: u32, sector: u64) -> u32 {
        let within = (sector % CHUNK * SECTOR_SIZE) >> self.shift;
        (place << (20 - self.shift)) + u32::try_from(within).unwrap_or(0)
    }

    /// The blocks that a request touches, as ranges: first block and number. A read or write, which is within one block,
    /// gets its place; of a discard, what was touched before counts.
    pub(super) fn ranges(&mut self, request: &Request) -> Vec<(u32, u32)> {
        if request.nr_sectors == 0 {
            return Vec::new();
        }
        if request.is_read() || request.is_write() {
            return vec![(self.touch(request.sector), 1)];
        }
        let (first, last) = (request.sector / CHUNK, (request.end() - 1) / CHUNK);
        let mut touched: Vec<_> = self
            .chunks
            .iter()
            .filter(|(chunk, _)| (first..=last).contains(chunk))
            .collect();
        touched.sort_unstable();
        let ranges = touched.into_iter().map(|(&chunk, &place)| {
            let start = request.sector.max(chunk * CHUNK);
            let end = request.end().min((chunk + 1) * CHUNK) - 1;
            let (first, last) = (self.block(place, start), self.block(place, end));
            (first, last - first + 1)
        });
        ranges.collect()
    }

    fn touch(&mut self, sector: u64) -> u32 {
        let next = u32::try_from(self.chunks.len()).unwrap_or(u32::MAX);
        let place = *self.chunks.entry(sector / CHUNK).or_insert(next);
        assert!(
            place < 1 << (BLOCKS + self.shift - 20),
            "the traces of a kit touch at most 2^{BLOCKS} cache blocks"
        );
        self.block(place, sector)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Op;

    #[test]
    fn a_discard_touches_what_is_there() {
        let mut places = Places::new(16);
        let far = 1 << 40;
        assert_eq!(places.ranges(&Request::new(Op::Read, far, 8)), [(0, 1)]);
        assert_eq!(places.ranges(&Request::new(Op::Write, 2048 + 130, 8)), [(17, 1)]);
        let discard = Request::new(Op::Discard, 2048 + 128, u32::MAX);
        assert_eq!(places.ranges(&discard), [(17, 15)]);
        assert_eq!((places.find(far + 128), places.find(0)), (Some(1), None));
    }
}
