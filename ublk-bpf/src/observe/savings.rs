//! What a cache saves of the backing device's work, and what it costs.

use serde::Serialize;
use ublk_bpf_abi::{Op, SECTOR_SIZE};

use super::Stats;

/// What a cache did in a period. The names of its fields, as JSON has them, are stable.
///
/// Without the cache, every read of the device would be one of the backing device. Writes are not compared: a cache
/// that holds clean data neither saves nor adds any to the backing device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Savings {
    /// Reads of the device.
    pub reads: u64,
    /// Bytes of these reads.
    pub read_bytes: u64,
    /// Reads served by the cache device alone.
    pub hits: u64,
    /// Bytes read from the cache device, those of [split](ublk_bpf_abi::ServerCounters::hits_split) reads included.
    pub hit_bytes: u64,
    /// Hits in all reads, 0 to 1; none without a read.
    pub hit_ratio: Option<f64>,
    /// The same in bytes.
    pub hit_ratio_bytes: Option<f64>,
    /// Reads of the backing device that filled the cache with the data of a miss.
    pub fills: u64,
    /// Misses served by a read of the backing device that another miss had begun.
    pub waited: u64,
    /// Blocks that the mover read from the backing device and brought into the cache.
    pub promoted: u64,
    /// Blocks that came in again not long after they were evicted.
    pub ghosts: u64,
    /// Reads of the backing device that the cache saved, less those that it added; negative: it added more. Promotions
    /// that came to nothing, because the block was written meanwhile, are counted in bytes only.
    pub backing_reads_saved: i64,
    /// The same in bytes.
    pub backing_bytes_saved: i64,
    /// Bytes written to the cache device.
    pub cache_bytes_written: u64,
}

impl Savings {
    /// Since the device was created; none for a device without a cache.
    #[must_use]
    pub fn of(stats: &Stats) -> Option<Self> {
        let cache = stats.cache?.0;
        let server = &stats.server.0;
        let reads = stats.decisions.iter().find(|of| of.op == Op::Read)?;
        // A fill serves the miss that began it; other misses waited.
        let waited = server.filled.saturating_sub(server.fills);
        let saved = server.hit_bytes.wrapping_add(server.filled_bytes);
        let added = server.fill_bytes.wrapping_add(cache.staged_bytes);
        let savings = Self {
            reads: reads.requests,
            read_bytes: reads.sectors.wrapping_mul(SECTOR_SIZE),
            hits: server.hits,
            hit_bytes: server.hit_bytes,
            fills: server.fills,
            waited,
            promoted: cache.promoted,
            ghosts: cache.ghosts,
            backing_reads_saved: difference(server.hits.wrapping_add(waited), cache.promoted),
            backing_bytes_saved: difference(saved, added),
            cache_bytes_written: added.wrapping_add(server.cache_write_bytes),
            ..Self::default()
        };
        Some(savings.with_ratios())
    }

    /// Since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let since = |of: fn(&Self) -> u64| of(self).wrapping_sub(of(before));
        let signed = |of: fn(&Self) -> i64| of(self).wrapping_sub(of(before));
        let savings = Self {
            reads: since(|of| of.reads),
            read_bytes: since(|of| of.read_bytes),
            hits: since(|of| of.hits),
            hit_bytes: since(|of| of.hit_bytes),
            fills: since(|of| of.fills),
            waited: since(|of| of.waited),
            promoted: since(|of| of.promoted),
            ghosts: since(|of| of.ghosts),
            backing_reads_saved: signed(|of| of.backing_reads_saved),
            backing_bytes_saved: signed(|of| of.backing_bytes_saved),
            cache_bytes_written: since(|of| of.cache_bytes_written),
            ..Self::default()
        };
        savings.with_ratios()
    }

    /// Whether the backing device has more to do with the cache than without: more reads, and more bytes.
    #[must_use]
    pub const fn is_loss(&self) -> bool {
        self.backing_reads_saved < 0 && self.backing_bytes_saved < 0
    }

    fn with_ratios(self) -> Self {
        Self {
            hit_ratio: ratio(self.hits, self.reads),
            hit_ratio_bytes: ratio(self.hit_bytes, self.read_bytes),
            ..self
        }
    }
}

/// The counters are read one after the other, so a part may be ahead of its whole.
#[expect(clippy::cast_precision_loss, reason = "a ratio, printed with three digits")]
fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole != 0).then(|| part.min(whole) as f64 / whole as f64)
}

fn difference(more: u64, less: u64) -> i64 {
    more.wrapping_sub(less).cast_signed()
}

#[cfg(test)]
mod tests {
    use ublk_bpf_abi::{CacheCounters, ServerCounters};

    use super::super::tests::sample;
    use super::super::{CacheStats, ServerStats};
    use super::*;

    /// Ten reads of 4 KiB, of which four were hits and three shared a fill of a block of 64 KiB.
    fn cached() -> Stats {
        Stats {
            server: ServerStats(ServerCounters {
                hits: 4,
                hit_bytes: 4 * 4096,
                fills: 1,
                fill_bytes: 65536,
                filled: 3,
                filled_bytes: 3 * 4096,
                cache_write_bytes: 8192,
                ..Default::default()
            }),
            cache: Some(CacheStats(CacheCounters {
                promoted: 2,
                staged_bytes: 2 * 65536,
                ..Default::default()
            })),
            ..sample()
        }
    }

    #[test]
    fn what_the_cache_adds_is_taken_off_what_it_saves() {
        let savings = Savings::of(&cached()).expect("a cache");
        assert_eq!(
            (savings.hit_ratio, savings.hit_ratio_bytes),
            (Some(0.4), Some(0.4))
        );
        assert_eq!(savings.waited, 2);
        assert_eq!(savings.backing_reads_saved, 4 + 2 - 2);
        assert_eq!(savings.backing_bytes_saved, 7 * 4096 - 3 * 65536);
        assert_eq!(savings.cache_bytes_written, 3 * 65536 + 8192);
        assert!(!savings.is_loss(), "fewer reads, more bytes");
        assert_eq!(Savings::of(&sample()), None);
    }

    #[test]
    fn a_period_has_its_own_ratios() {
        let before = Savings::of(&cached()).expect("a cache");
        let mut stats = cached();
        stats.server.0.hits += 1;
        stats.server.0.hit_bytes += 4096;
        stats.decisions[0].requests += 2;
        stats.decisions[0].sectors += 16;
        let now = Savings::of(&stats).expect("a cache");
        let period = now.since(&before);
        assert_eq!((period.hit_ratio, period.hit_ratio_bytes), (Some(0.5), Some(0.5)));
        assert_eq!(
            (period.backing_reads_saved, period.backing_bytes_saved),
            (1, 4096)
        );
        assert_eq!(period.promoted, 0);
        assert_eq!(now.since(&now).hit_ratio, None);
    }
}
