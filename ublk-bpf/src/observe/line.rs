//! A request as a line, and as JSON.

use std::fmt;

use serde::Serialize;

use super::amount::duration;
use super::live::Ended;
use super::words::{hint_words, reason_word, task_name};
use crate::trace::TracedRequest;

/// A request in words. The names of its fields, as JSON has them, are stable.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TraceLine {
    /// Seconds since the start of the recording.
    pub seconds: f64,
    /// The task's name, as text.
    pub task: String,
    /// Its thread.
    pub pid: u32,
    /// Its process.
    pub tgid: u32,
    /// Its cgroup's number.
    pub cgroup: u64,
    /// The operation.
    pub op: &'static str,
    /// First sector; none for a request without sectors.
    pub sector: Option<u64>,
    /// Length in sectors.
    pub nr_sectors: u32,
    /// What the policy advised.
    pub verdict: &'static str,
    /// Why.
    pub reason: String,
    /// The hints, in words.
    pub hints: Vec<String>,
    /// Nanoseconds from its issue to its end, where they were measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ns: Option<u64>,
    /// Whether it ended with an error, where its end was seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<bool>,
}

impl TraceLine {
    /// A request of a trace, whose end is not known.
    #[must_use]
    pub fn new(request: &TracedRequest) -> Self {
        Self {
            seconds: seconds(request.time_ns),
            task: task_name(&request.comm),
            pid: request.pid,
            tgid: request.tgid,
            cgroup: request.cgroup_id,
            op: request.op.name(),
            sector: (request.nr_sectors != 0).then_some(request.sector),
            nr_sectors: request.nr_sectors,
            verdict: request.verdict.name(),
            reason: reason_word(request.reason, 0),
            hints: hint_words(request.hints),
            latency_ns: None,
            failed: None,
        }
    }

    /// A request that has ended.
    #[must_use]
    pub fn ended(ended: &Ended) -> Self {
        Self {
            latency_ns: Some(ended.latency_ns),
            failed: Some(ended.failed),
            ..Self::new(&ended.request)
        }
    }

    /// The names of the columns, as wide as a line's.
    #[must_use]
    pub fn header() -> String {
        format!(
            "{:>11} {:<15} {:>7} {:>8} {:<7} {:>12} {:>6} {:>10}  DECISION",
            "TIME", "TASK", "PID", "CGROUP", "OP", "SECTOR", "LENGTH", "LATENCY"
        )
    }
}

impl fmt::Display for TraceLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sector = self.sector.map_or("-".to_owned(), |sector| sector.to_string());
        let latency = self.latency_ns.map_or("-".to_owned(), duration);
        write!(
            f,
            "{:>11.6} {:<15} {:>7} {:>8} {:<7} {sector:>12} {:>6} {latency:>10}  {} ({}",
            self.seconds,
            self.task,
            self.pid,
            self.cgroup,
            self.op,
            self.nr_sectors,
            self.verdict,
            self.reason
        )?;
        for hint in &self.hints {
            write!(f, ", {hint}")?;
        }
        f.write_str(if self.failed == Some(true) {
            ") FAILED"
        } else {
            ")"
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "printed with microseconds")]
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use ublk_bpf_abi::{Decision, Extent, Op, Priority, Reason, Verdict};

    use super::*;

    fn request() -> TracedRequest {
        let mut comm = [0; 16];
        comm[..5].copy_from_slice(b"fio\x1b2");
        TracedRequest {
            time_ns: 1_500_000_000,
            verdict: Verdict::Passthrough,
            reason: Reason::Default,
            hints: Decision::pass().fill(Extent::Block, Priority::Normal).hints,
            pid: 12,
            tgid: 11,
            cgroup_id: 99,
            comm,
            ..TracedRequest::new(Op::Read, 4096, 8)
        }
    }

    #[test]
    fn a_request_is_a_line() {
        let line = TraceLine {
            latency_ns: Some(81_250),
            failed: Some(true),
            ..TraceLine::new(&request())
        };
        let text = line.to_string();
        let expected = "   1.500000 fio\u{fffd}2                12       99 read            4096      8    81.2 us  \
            passthrough (default, fill block normal) FAILED";
        assert_eq!(text, expected);
        let at = TraceLine::header().find("DECISION");
        assert_eq!(
            at,
            Some(text.replace('\u{fffd}', "?").find("passthrough").unwrap())
        );
    }
}
