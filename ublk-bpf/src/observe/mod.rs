//! What a device's classifier and server count, read from their pinned maps by whoever has the right to.
//!
//! Nothing here asks the server: the maps are there while the device lives, and after its server died.

mod read;
mod table;

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use ublk_bpf_abi::{CacheCounters, Op, Reason, ServerCounters, Verdict};

pub use read::{cache_stats, program, stats};
pub use table::Table;

/// Everything counted for one device. The names of its fields, as JSON has them, are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// The device's disk, such as `ublkb0`.
    pub disk: String,
    /// What the kernel counts about the classifier.
    pub classifier: ProgramStats,
    /// The same of the policy, if there is one in place of the default one.
    pub policy: Option<ProgramStats>,
    /// What the classifier decided, for each operation, since the device was made.
    pub decisions: Vec<OpDecisions>,
    /// What the server did since the device was made, all queues together.
    pub server: ServerStats,
    /// The same for each queue.
    pub queues: Vec<ServerStats>,
    /// What was done to keep the cache filled; none if the device has none.
    pub cache: Option<CacheStats>,
    /// How often the policy decided for each reason of its own, by the reason's number; those that never happened are
    /// left out.
    pub codes: BTreeMap<u8, u64>,
    /// How long the classifier ran with the policy in it, where that was measured.
    pub run_time: Option<RunTime>,
}

/// How long the classifier ran within a time. The policy runs in it: the kernel counts the two as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RunTime {
    /// Times that it was run: for requests of every disk, of which it leaves those of others after a few instructions.
    pub runs: u64,
    /// Nanoseconds that a run took on average; none without a run.
    pub mean_ns: Option<u64>,
}

impl RunTime {
    /// What was counted between two looks at the classifier.
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

/// What the kernel counts about a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ProgramStats {
    /// The program's id for `bpftool prog show id`.
    pub id: u32,
    /// Requests of any disk for which the kernel did not run the program, because it already ran on their CPU. How
    /// many of this device's tags came without a verdict for it is the server's `verdict_missing`.
    pub recursion_misses: u64,
    /// Times it was run; counted only while the sysctl `kernel.bpf_stats_enabled` is 1.
    pub runs: u64,
    /// Nanoseconds spent in it; counted only as `runs` is.
    pub run_time_ns: u64,
    /// Instructions that the verifier went through.
    pub verified_instructions: u32,
}

/// What the classifier decided about the requests of one operation, summed over CPUs.
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
            disk: "ublkb3".to_owned(),
            classifier: program,
            policy: None,
            decisions: decisions.to_vec(),
            server,
            queues: vec![server],
            cache: None,
            codes: BTreeMap::new(),
            run_time: None,
        }
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
}
