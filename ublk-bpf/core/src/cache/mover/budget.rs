//! The rate limit of promotion.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::cache::free::FreeSlots;

/// A token bucket of bytes: filled at the rate, it holds those of a second, but at least one block. The tokens are in the
/// [`Cache`](crate::cache::Cache), where the fills of queues take theirs too. Each fill may overdraw the bucket, which
/// delays the next one.
#[derive(Debug)]
pub(super) struct Budget<'c> {
    /// What the rest is computed from; [`FreeSlots::rate`] may be another one by now.
    rate: Option<u64>,
    /// The least that the bucket holds.
    block: u64,
    most: i64,
    free: &'c FreeSlots,
    /// When the tokens were computed.
    at: Duration,
}

impl<'c> Budget<'c> {
    pub(super) fn new(rate: Option<u64>, block: u64, free: &'c FreeSlots) -> Self {
        free.limit(rate);
        let mut budget = Self {
            rate,
            block,
            most: 0,
            free,
            at: Duration::ZERO,
        };
        budget.fill();
        budget
    }

    /// Begins with a full bucket of the present rate.
    fn fill(&mut self) {
        self.most = match self.rate {
            // Less than what stands for no limit.
            Some(rate) => i64::try_from(rate.max(self.block)).unwrap_or(i64::MAX - 1),
            None => i64::MAX,
        };
        self.free.budget.store(self.most, Ordering::Relaxed);
        // When half is spent, the limit is likely to be reached.
        let scarce = self.rate.map_or(0, |_| self.most / 2);
        self.free.scarce.store(scarce, Ordering::Relaxed);
    }

    /// When something may be spent again; `None`: now.
    pub(super) fn exhausted_until(&mut self, now: Duration) -> Option<Duration> {
        let rate = self.free.rate();
        if rate != self.rate {
            (self.rate, self.at) = (rate, now);
            self.fill();
        }
        let tokens = &self.free.budget;
        let rate = rate?.max(1);
        let earned = now.saturating_sub(self.at).as_nanos() * u128::from(rate) / NANOS;
        if earned > 0 {
            // Fills take tokens meanwhile, which leaves room for more.
            let room = self.most.saturating_sub(tokens.load(Ordering::Relaxed));
            let earned = i64::try_from(earned).unwrap_or(i64::MAX).min(room);
            tokens.fetch_add(earned, Ordering::Relaxed);
            self.at = now;
        }
        let tokens = tokens.load(Ordering::Relaxed);
        if tokens > 0 {
            return None;
        }
        let wait = u128::from(tokens.unsigned_abs() + 1) * NANOS / u128::from(rate);
        Some(now + Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX)))
    }
}

const NANOS: u128 = 1_000_000_000;
