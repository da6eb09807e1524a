//! What a replay counts.

/// What happened on a device. A read or write is counted once for each cache block that it touches, as it is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    /// Reads.
    pub reads: u64,
    /// Bytes of these.
    pub read_bytes: u64,
    /// Reads that needed no read of the backing of their own.
    pub hits: u64,
    /// Bytes that the cache served, those of reads that it served in part included.
    pub hit_bytes: u64,
    /// Hits that waited for the fill of another read.
    pub waited: u64,
    /// Fills with reads that missed.
    pub fills: u64,
    /// Reads of the backing, those of promotions included.
    pub backing_reads: u64,
    /// Bytes of these.
    pub backing_bytes: u64,
    /// Writes. Each goes to the backing, with and without a cache, unless it is absorbed.
    pub writes: u64,
    /// Bytes of these.
    pub write_bytes: u64,
    /// Writes that ended in the cache alone.
    pub absorbed: u64,
    /// Bytes of these.
    pub absorbed_bytes: u64,
    /// Writes that were to end in the cache, and did not.
    pub downgraded: u64,
    /// Writes of the backing that cleaned what was dirty.
    pub cleaned: u64,
    /// Bytes of these.
    pub cleaned_bytes: u64,
    /// Bytes that fills wrote to the cache.
    pub filled_bytes: u64,
    /// Bytes that writes updated in the cache.
    pub updated_bytes: u64,
    /// Cached blocks that writes and discards invalidated.
    pub invalidated: u64,
    /// Hints that the mover got.
    pub hinted: u64,
    /// Hints that were dropped.
    pub hints_dropped: u64,
    /// Blocks promoted into the cache.
    pub promoted: u64,
    /// Blocks evicted to make room.
    pub evicted: u64,
    /// Fills and promotions that a write overtook.
    pub overtaken: u64,
    /// Read requests, before they were split.
    pub read_requests: u64,
    /// Read requests that the cache served in full.
    pub hit_requests: u64,
}

/// A part of a whole, 0 to 1 and beyond; 0 of nothing.
#[expect(clippy::cast_precision_loss, reason = "no trace has 2^52 bytes")]
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

impl Counts {
    /// Part of the read requests that the cache served in full.
    #[must_use]
    pub fn hit_ratio(&self) -> f64 {
        ratio(self.hit_requests, self.read_requests)
    }

    /// Part of the reads, counted once for each block, that the cache served.
    #[must_use]
    pub fn block_hit_ratio(&self) -> f64 {
        ratio(self.hits, self.reads)
    }

    /// Part of the bytes read that the cache served.
    #[must_use]
    pub fn byte_hit_ratio(&self) -> f64 {
        ratio(self.hit_bytes, self.read_bytes)
    }

    /// Reads of the backing, in relation to those without a cache.
    #[must_use]
    pub fn backing_ios(&self) -> f64 {
        ratio(self.backing_reads, self.reads)
    }

    /// Bytes read from the backing, in relation to those without a cache.
    #[must_use]
    pub fn backing_traffic(&self) -> f64 {
        ratio(self.backing_bytes, self.read_bytes)
    }

    /// Bytes written to the cache for each byte that it served.
    #[must_use]
    pub fn wear(&self) -> f64 {
        let written = self.filled_bytes + self.updated_bytes + self.absorbed_bytes;
        ratio(written, self.hit_bytes)
    }
}
