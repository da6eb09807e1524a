//! Histograms of latencies and sizes, summed over the CPUs.

use serde::ser::SerializeStruct as _;
use serde::{Serialize, Serializer};
use ublk_bpf_abi::{Op, Verdict};

/// The histograms of a device. The names of its fields, as JSON has them, are stable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Histograms {
    /// From a request's issue to its completion, in nanoseconds; only operations and verdicts that occurred.
    pub latencies: Vec<LatencyOf>,
    /// In bytes; only operations that occurred with data.
    pub sizes: Vec<SizeOf>,
    /// Issues and completions of requests of any disk that the programs did not see, because they already ran on their
    /// CPU. A request of this device among them is not in the histograms.
    pub skipped: u64,
}

/// Latencies of requests of an operation and a verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LatencyOf {
    /// The operation.
    #[serde(serialize_with = "super::op_name")]
    pub op: Op,
    /// The verdict; [`Verdict::None`] for requests that were not classified.
    #[serde(serialize_with = "verdict_name")]
    pub verdict: Verdict,
    /// Nanoseconds.
    #[serde(flatten)]
    pub ns: Histogram,
}

/// Sizes of requests of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SizeOf {
    /// The operation.
    #[serde(serialize_with = "super::op_name")]
    pub op: Op,
    /// Bytes.
    #[serde(flatten)]
    pub bytes: Histogram,
}

fn verdict_name<S: Serializer>(verdict: &Verdict, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(verdict.name())
}

impl Histograms {
    /// What was counted since `before`. An operation or verdict that did not occur since is not in it.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let latency = |of: &LatencyOf| {
            let same = |earlier: &&LatencyOf| (earlier.op, earlier.verdict) == (of.op, of.verdict);
            let ns = of.ns.since(before.latencies.iter().find(same).map(|of| &of.ns))?;
            Some(LatencyOf { ns, ..*of })
        };
        let size = |of: &SizeOf| {
            let earlier = before.sizes.iter().find(|earlier| earlier.op == of.op);
            let bytes = of.bytes.since(earlier.map(|of| &of.bytes))?;
            Some(SizeOf { bytes, ..*of })
        };
        Self {
            latencies: self.latencies.iter().filter_map(latency).collect(),
            sizes: self.sizes.iter().filter_map(size).collect(),
            skipped: self.skipped.wrapping_sub(before.skipped),
        }
    }
}

/// Counts in buckets of powers of two: bucket `i` has values from `1 << i` to below `1 << (i + 1)`. The first one has 0 too,
/// the last one has no upper limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// The counts.
    pub buckets: Vec<u64>,
    /// The sum of all values.
    pub sum: u64,
}

impl Histogram {
    /// Values that were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        // Wrapping: other processes may have written anything to the map.
        self.buckets.iter().fold(0, |sum, count| sum.wrapping_add(*count))
    }

    /// An estimate of the value below which this part of all values is, 0 to 1; none if there is no value. Like
    /// Prometheus's `histogram_quantile`, it takes a bucket's values as evenly spread, so it is in the same bucket as the
    /// exact value.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate"
    )]
    pub fn quantile(&self, part: f64) -> Option<u64> {
        let rank = (self.count() as f64 * part).max(1.0);
        let mut below = 0.0;
        for (bucket, &count) in (0..).zip(&self.buckets) {
            let count = count as f64;
            if count > 0.0 && below + count >= rank {
                let first = 2_f64.powi(bucket);
                return Some((first + first * (rank - below) / count) as u64);
            }
            below += count;
        }
        None
    }

    /// What was counted since `before`; none if nothing was.
    fn since(&self, before: Option<&Self>) -> Option<Self> {
        let Some(before) = before else {
            return Some(self.clone());
        };
        let pairs = self.buckets.iter().zip(&before.buckets);
        let since = Self {
            buckets: pairs.map(|(now, then)| now.wrapping_sub(*then)).collect(),
            sum: self.sum.wrapping_sub(before.sum),
        };
        (since.count() != 0).then_some(since)
    }
}

impl Serialize for Histogram {
    /// `count`, `sum`, the estimates `p50`, `p90`, `p99` and `p999`, and `buckets`: the first value of each that has any,
    /// and its count.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let buckets: Vec<(u64, u64)> = (0..)
            .zip(&self.buckets)
            .filter(|(_, count)| **count != 0)
            .map(|(bucket, count)| (1 << bucket, *count))
            .collect();
        let mut object = serializer.serialize_struct("Histogram", 7)?;
        object.serialize_field("count", &self.count())?;
        object.serialize_field("sum", &self.sum)?;
        object.serialize_field("p50", &self.quantile(0.5))?;
        object.serialize_field("p90", &self.quantile(0.9))?;
        object.serialize_field("p99", &self.quantile(0.99))?;
        object.serialize_field("p999", &self.quantile(0.999))?;
        object.serialize_field("buckets", &buckets)?;
        object.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(counts: &[(usize, u64)]) -> Histogram {
        let mut buckets = vec![0; 40];
        for &(bucket, count) in counts {
            buckets[bucket] = count;
        }
        Histogram { buckets, sum: 1 }
    }

    #[test]
    fn a_quantile_is_in_the_bucket_of_the_exact_value() {
        let of = histogram(&[(10, 50), (12, 49), (20, 1)]);
        let bucket = |part| of.quantile(part).map(|value| (value - 1).ilog2());
        assert_eq!(bucket(0.0), Some(10));
        assert_eq!(bucket(0.5), Some(10));
        assert_eq!(bucket(0.51), Some(12));
        assert_eq!(bucket(0.99), Some(12));
        assert_eq!(bucket(0.999), Some(20));
        assert_eq!(of.quantile(0.25), Some(1024 + 512));
        assert_eq!(Histogram::default().quantile(0.5), None);
    }

    #[test]
    fn a_difference_has_only_what_happened() {
        let of = |op, verdict, counts| LatencyOf {
            op,
            verdict,
            ns: histogram(counts),
        };
        let before = Histograms {
            latencies: vec![of(Op::Read, Verdict::Hit, &[(10, 5)])],
            skipped: 1,
            ..Histograms::default()
        };
        let mut after = before.clone();
        assert_eq!(after.since(&before), Histograms::default());
        after.latencies[0].ns.buckets[11] += 2;
        after.latencies.push(of(Op::Write, Verdict::Slow, &[(9, 1)]));
        let since = after.since(&before);
        assert_eq!(since.latencies.len(), 2);
        assert_eq!(since.latencies[0].ns.buckets, histogram(&[(11, 2)]).buckets);
        assert_eq!(since.latencies[1], after.latencies[1]);
        assert_eq!(since.skipped, 0);
    }

    #[test]
    fn json_has_the_buckets_that_have_counts() {
        let of = LatencyOf {
            op: Op::Read,
            verdict: Verdict::Hit,
            ns: histogram(&[(10, 4), (39, 1)]),
        };
        let json = serde_json::to_value(of).unwrap();
        assert_eq!((&json["op"], &json["verdict"]), (&"read".into(), &"hit".into()));
        assert_eq!(json["count"], 5);
        assert_eq!(json["buckets"], serde_json::json!([[1024, 4], [1_u64 << 39, 1]]));
    }
}
