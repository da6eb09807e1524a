//! The result of a trace.

use core::fmt;
use std::collections::BTreeMap;

use crate::{Decision, Reason, Request, Verdict};

/// What a policy did with the requests of a trace, counted after the block layer split them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Reads served by the cache.
    pub hits: u64,
    /// Reads served by the backing device.
    pub misses: u64,
    /// Blocks promoted into the cache.
    pub promoted: u64,
    /// Blocks evicted to make room.
    pub evicted: u64,
    /// Writes that ended in the cache alone.
    pub absorbed: u64,
    /// Decisions by reason.
    pub reasons: BTreeMap<Reason, u64>,
    /// Decisions by the policy's own reasons.
    pub codes: BTreeMap<u8, u64>,
    /// Reads of each task, by pid.
    pub tasks: BTreeMap<u32, Share>,
}

/// Reads of one task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Reads served by the cache.
    pub hits: u64,
    /// Reads served by the backing device.
    pub misses: u64,
}

impl Share {
    /// Hits divided by reads, 0 to 1; 0 if there were no reads.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "no trace has 2^52 requests")]
    pub fn hit_ratio(&self) -> f64 {
        self.hits as f64 / (self.hits + self.misses).max(1) as f64
    }
}

impl Report {
    /// Hits divided by reads, 0 to 1; 0 if there were no reads.
    #[must_use]
    pub fn hit_ratio(&self) -> f64 {
        let (hits, misses) = (self.hits, self.misses);
        Share { hits, misses }.hit_ratio()
    }

    /// Hit ratio of one task, 0 to 1.
    ///
    /// # Panics
    ///
    /// If the task read nothing.
    #[must_use]
    pub fn hit_ratio_of(&self, pid: u32) -> f64 {
        let Some(share) = self.tasks.get(&pid) else {
            panic!("no read of task {pid} in {self}");
        };
        share.hit_ratio()
    }

    /// Decisions with this reason.
    #[must_use]
    pub fn by_reason(&self, reason: Reason) -> u64 {
        self.reasons.get(&reason).copied().unwrap_or(0)
    }

    /// Decisions with this reason of the policy's own.
    #[must_use]
    pub fn by_code(&self, code: u8) -> u64 {
        self.codes.get(&code).copied().unwrap_or(0)
    }

    /// Counts a request.
    pub(super) fn request(&mut self, pid: u32, request: &Request, decision: Decision, is_hit: bool) {
        *self.reasons.entry(decision.reason).or_default() += 1;
        if decision.code != 0 {
            *self.codes.entry(decision.code).or_default() += 1;
        }
        if !request.is_read() || decision.verdict == Verdict::Drop {
            return;
        }
        let share = self.tasks.entry(pid).or_default();
        for (hits, misses) in [
            (&mut self.hits, &mut self.misses),
            (&mut share.hits, &mut share.misses),
        ] {
            *(if is_hit { hits } else { misses }) += 1;
        }
    }
}

/// One line for all tasks and one per task, for assertion messages.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ratio = self.hit_ratio() * 100.0;
        write!(f, "{} hits, {} misses ({ratio:.1} %), ", self.hits, self.misses)?;
        write!(f, "{} promoted, {} evicted", self.promoted, self.evicted)?;
        if self.absorbed > 0 {
            write!(f, ", {} absorbed", self.absorbed)?;
        }
        for (reason, count) in &self.reasons {
            write!(f, ", {} {count}", reason.name())?;
        }
        for (code, count) in &self.codes {
            write!(f, ", code {code} {count}")?;
        }
        for (pid, share) in &self.tasks {
            let ratio = share.hit_ratio() * 100.0;
            write!(
                f,
                "\ntask {pid}: {} hits, {} misses ({ratio:.1} %)",
                share.hits, share.misses
            )?;
        }
        Ok(())
    }
}
