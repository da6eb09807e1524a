//! The counters of a device's classifier and server, read from their pinned maps.
//!
//! Nothing here needs the server: the maps exist as long as the device, even after its server died.

mod amount;
mod classified;
mod histograms;
mod line;
mod live;
mod overview;
mod read;
mod recording;
mod savings;
mod shadow;
mod table;
mod why;
mod words;

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use ublk_bpf_abi::{CacheCounters, Op, Reason, ServerCounters, Verdict};

pub use amount::{amount, duration};
pub use histograms::{Histogram, Histograms, LatencyOf, SizeOf};
pub use line::TraceLine;
pub use live::{Ended, Live, RequestFilter};
pub use read::{program, stats};
pub use recording::{Recorded, Recording, RecordingError, Summary};
pub use savings::Savings;
pub use shadow::{OpCompared, ShadowStats, WantsCached};
pub use table::Table;
pub use why::{Cached, ExplainedBlock, PolicyAnswer, SectorRange, Why, WhyError, why};

use crate::policy::{Observe, ReasonNames};

/// Version of the JSON form of [`Stats`]. New fields do not change it; it changes when a field disappears or its meaning
/// changes.
pub const SCHEMA: u32 = 1;

/// Everything counted for one device. The names of its fields, as JSON has them, are stable.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stats {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The device's disk, such as `ublkb0`.
    pub disk: String,
    /// What BPF programs count of its requests.
    pub observe: Observe,
    /// The kernel's statistics of the classifier.
    pub classifier: ProgramStats,
    /// The same for the policy, if one replaces the default one.
    pub policy: Option<ProgramStats>,
    /// The classifier's decisions for each operation since the device was created.
    pub decisions: Vec<OpDecisions>,
    /// The server's counters since the device was created, all queues together.
    pub server: ServerStats,
    /// The same for each queue.
    pub queues: Vec<ServerStats>,
    /// The counters of the cache; none if the device has no cache.
    pub cache: Option<CacheStats>,
    /// How often the policy decided for each reason of its own, by the reason's number, without those that never
    /// occurred.
    pub codes: BTreeMap<u8, u64>,
    /// The present policy's names for its own reasons.
    pub code_names: ReasonNames,
    /// What a shadow policy answers, if there is one.
    pub shadow: Option<ShadowStats>,
    /// What the cache saved and cost since the device was created; none without a cache.
    pub savings: Option<Savings>,
    /// Latencies and sizes since the device was created, if they are counted.
    pub histograms: Option<Histograms>,
    /// The last interval, if there is an earlier reading.
    pub interval: Option<Interval>,
    /// The run time of the classifier with the policy in it, if it was measured.
    pub run_time: Option<RunTime>,
}

/// What happened between two readings.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// Its length.
    pub seconds: f64,
    /// The requests of each operation that were classified in it.
    pub requests: Vec<OpRequests>,
    /// What the cache saved and cost in it.
    pub savings: Option<Savings>,
    /// Latencies and sizes in it.
    pub histograms: Option<Histograms>,
}

/// Requests of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct OpRequests {
    /// The operation.
    #[serde(serialize_with = "op_name")]
    pub op: Op,
    /// Requests.
    pub requests: u64,
    /// Sectors of these requests.
    pub sectors: u64,
    /// The requests by verdict, in the order of [`VERDICTS`].
    #[serde(serialize_with = "by_verdict")]
    pub verdicts: [u64; VERDICTS.len()],
}

impl OpRequests {
    /// Those since the start.
    const fn of(decisions: &OpDecisions) -> Self {
        Self {
            op: decisions.op,
            requests: decisions.requests,
            sectors: decisions.sectors,
            verdicts: decisions.verdicts,
        }
    }

    fn between(before: &OpDecisions, after: &OpDecisions) -> Self {
        let verdict = |at: usize| after.verdicts[at].wrapping_sub(before.verdicts[at]);
        Self {
            op: after.op,
            requests: after.requests.wrapping_sub(before.requests),
            sectors: after.sectors.wrapping_sub(before.sectors),
            verdicts: std::array::from_fn(verdict),
        }
    }
}

impl Interval {
    /// The difference of two readings of the same device, `seconds` apart.
    #[must_use]
    pub fn between(before: &Stats, after: &Stats, seconds: f64) -> Self {
        let pairs = after.decisions.iter().zip(&before.decisions);
        Self {
            seconds,
            requests: pairs
                .map(|(after, before)| OpRequests::between(before, after))
                .collect(),
            savings: after
                .savings
                .zip(before.savings)
                .map(|(after, before)| after.since(&before)),
            histograms: after
                .histograms
                .as_ref()
                .zip(before.histograms.as_ref())
                .map(|(after, before)| after.since(before)),
        }
    }
}

/// The classifier's run time within a period. It includes the policy's: the kernel does not separate the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RunTime {
    /// Runs, for requests of every disk. For other disks it returns after a few instructions.
    pub runs: u64,
    /// Mean time of a run in nanoseconds; none without a run.
    pub mean_ns: Option<u64>,
}

impl RunTime {
    /// The difference of two readings.
    #[must_use]
    pub fn between(before: ProgramStats, after: ProgramStats) -> Self {
        let runs = after.runs.wrapping_sub(before.runs);
        Self {
            runs,
            mean_ns: after
                .run_time_ns
                .wrapping_sub(before.run_time_ns)
                .checked_div(runs),
        }
    }
}

/// The kernel's statistics of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ProgramStats {
    /// The program's id for `bpftool prog show id`.
    pub id: u32,
    /// Requests of any disk for which the kernel did not run the program, because it already ran on their CPU. The
    /// server's `verdict_missing` counts those of this device.
    pub recursion_misses: u64,
    /// Times it was run; counted only while the sysctl `kernel.bpf_stats_enabled` is 1.
    pub runs: u64,
    /// Nanoseconds spent in it; counted only as `runs` is.
    pub run_time_ns: u64,
    /// Instructions that the verifier processed.
    pub verified_instructions: u32,
}

/// The classifier's decisions about the requests of one operation, summed over CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct OpDecisions {
    /// The operation.
    #[serde(serialize_with = "op_name")]
    pub op: Op,
    /// Requests that were classified.
    pub requests: u64,
    /// Sectors of these requests.
    pub sectors: u64,
    /// The requests by verdict, in the order of [`VERDICTS`].
    #[serde(serialize_with = "by_verdict")]
    pub verdicts: [u64; VERDICTS.len()],
    /// The requests by reason, in the order of [`Reason::ALL`].
    #[serde(serialize_with = "by_reason")]
    pub reasons: [u64; Reason::COUNT],
}

/// The verdicts that are counted: all but the empty one.
pub const VERDICTS: [Verdict; Verdict::COUNT - 1] =
    [Verdict::Passthrough, Verdict::Hit, Verdict::Drop, Verdict::Slow];

/// [`ServerCounters`] as an object of names and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerStats(pub ServerCounters);

impl Serialize for ServerStats {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        by_name(ServerCounters::FIELDS, &self.0.values(), serializer)
    }
}

/// [`CacheCounters`] as an object of names and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats(pub CacheCounters);

impl Serialize for CacheStats {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        by_name(CacheCounters::FIELDS, &self.0.values(), serializer)
    }
}

fn by_name<S: Serializer>(fields: &[(&str, &str)], values: &[u64], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(fields.iter().map(|(name, _)| name).zip(values))
}

fn op_name<S: Serializer>(op: &Op, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(op.name())
}

fn by_verdict<S: Serializer>(counts: &[u64; VERDICTS.len()], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(VERDICTS.iter().map(|verdict| verdict.name()).zip(counts))
}

fn by_reason<S: Serializer>(counts: &[u64; Reason::COUNT], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(Reason::ALL.iter().map(|reason| reason.name()).zip(counts))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> Stats {
        let decisions = Op::ALL.map(|op| {
            let requests = if op == Op::Read { 10 } else { 0 };
            OpDecisions {
                op,
                requests,
                sectors: requests * 8,
                verdicts: [requests, 0, 0, 0],
                reasons: [requests, 0, 0, 0, 0, 0, 0, 0],
            }
        });
        let program = ProgramStats {
            id: 7,
            recursion_misses: 1,
            runs: 0,
            run_time_ns: 0,
            verified_instructions: 200,
        };
        let server = ServerStats(ServerCounters {
            arrived: 11,
            completed: 11,
            verdict_missing: 1,
            ..Default::default()
        });
        Stats {
            schema: SCHEMA,
            disk: "ublkb3".to_owned(),
            observe: Observe::Counters,
            classifier: program,
            policy: None,
            decisions: decisions.to_vec(),
            server,
            queues: vec![server],
            cache: None,
            codes: BTreeMap::new(),
            code_names: ReasonNames::new(),
            shadow: None,
            savings: None,
            histograms: None,
            interval: None,
            run_time: None,
        }
    }

    #[test]
    fn an_interval_is_the_difference_of_two_readings() {
        let (before, mut after) = (sample(), sample());
        after.decisions[0].requests += 5;
        after.decisions[0].sectors += 40;
        after.decisions[0].verdicts[0] += 5;
        let interval = Interval::between(&before, &after, 1.0);
        let read = OpRequests {
            op: Op::Read,
            requests: 5,
            sectors: 40,
            verdicts: [5, 0, 0, 0],
        };
        assert_eq!(interval.requests[0], read);
        assert!(interval.requests[1..].iter().all(|of| of.requests == 0));
        assert_eq!(interval.savings, None);
    }

    #[test]
    fn a_run_time_is_a_mean() {
        let at = |runs, run_time_ns| ProgramStats {
            runs,
            run_time_ns,
            ..sample().classifier
        };
        let mean = |before, after| RunTime::between(before, after).mean_ns;
        assert_eq!(mean(at(10, 1000), at(14, 1600)), Some(150));
        assert_eq!(mean(at(10, 1000), at(10, 1000)), None);
    }

    #[test]
    fn json_has_names_for_everything() {
        let json = serde_json::to_value(sample()).unwrap();
        assert_eq!(json["decisions"][0]["op"], "read");
        assert_eq!(json["decisions"][0]["verdicts"]["passthrough"], 10);
        assert_eq!(json["decisions"][0]["reasons"]["default"], 10);
        assert_eq!(json["server"]["verdict_missing"], 1);
        assert_eq!(json["queues"][0]["arrived"], 11);
        assert_eq!(json["classifier"]["recursion_misses"], 1);
        assert!(json["policy"].is_null());
    }

    /// Every key below a value, but not the names of counters, verdicts and reasons.
    fn keys(json: &serde_json::Value, found: &mut Vec<String>) {
        const NAMED: [&str; 7] = [
            "server",
            "queues",
            "cache",
            "verdicts",
            "reasons",
            "codes",
            "code_names",
        ];
        for value in json.as_array().into_iter().flatten() {
            keys(value, found);
        }
        for (key, value) in json.as_object().into_iter().flatten() {
            found.push(key.clone());
            if !NAMED.contains(&key.as_str()) {
                keys(value, found);
            }
        }
    }

    /// A device with everything that can be counted.
    pub(crate) fn full() -> Stats {
        let histogram = |bucket: usize, count: u64, sum: u64| {
            let mut buckets = vec![0; 40];
            buckets[bucket] = count;
            Histogram { buckets, sum }
        };
        let histograms = Histograms {
            latencies: vec![LatencyOf {
                op: Op::Read,
                verdict: Verdict::Hit,
                ns: histogram(14, 4, 80_000),
            }],
            sizes: vec![SizeOf {
                op: Op::Read,
                bytes: histogram(12, 3, 24576),
            }],
            skipped: 0,
        };
        Stats {
            observe: Observe::Full,
            cache: Some(CacheStats::default()),
            savings: Some(Savings::default()),
            histograms: Some(histograms),
            codes: BTreeMap::from([(7, 1)]),
            run_time: Some(RunTime {
                runs: 0,
                mean_ns: None,
            }),
            ..sample()
        }
    }

    #[test]
    fn the_manual_names_every_field_of_the_json_form() {
        const PAGE: &str = include_str!("../../../docs/observability.md");
        let mut full = full();
        full.interval = Some(Interval::between(&full, &full, 1.0));
        let mut found = Vec::new();
        keys(&serde_json::to_value(&full).unwrap(), &mut found);
        assert!(found.len() > 40, "{found:?}");
        for key in found {
            assert!(PAGE.contains(&format!("`{key}`")), "{key}");
        }
        assert!(PAGE.contains(&format!("`schema` is its version, now {SCHEMA}:")));
    }
}
