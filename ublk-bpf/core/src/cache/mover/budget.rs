//! The rate limit of promotion.

use std::time::Duration;

/// A token bucket of bytes: filled at the rate, it holds those of a second, but at least one block.
#[derive(Debug)]
pub(super) struct Budget {
    rate: Option<u64>,
    most: i64,
    /// Negative: overdrawn.
    tokens: i64,
    /// When `tokens` was computed.
    at: Duration,
}

impl Budget {
    pub(super) fn new(rate: Option<u64>, block: u64) -> Self {
        let most = i64::try_from(rate.unwrap_or(0).max(block)).unwrap_or(i64::MAX);
        Self {
            rate,
            most,
            tokens: most,
            at: Duration::ZERO,
        }
    }

    /// When something may be spent again; `None`: now.
    pub(super) fn exhausted_until(&mut self, now: Duration) -> Option<Duration> {
        let rate = self.rate?.max(1);
        let earned = now.saturating_sub(self.at).as_nanos() * u128::from(rate) / NANOS;
        if earned > 0 {
            let earned = i64::try_from(earned).unwrap_or(i64::MAX);
            self.tokens = self.tokens.saturating_add(earned).min(self.most);
            self.at = now;
        }
        if self.tokens > 0 {
            return None;
        }
        let wait = u128::from(self.tokens.unsigned_abs() + 1) * NANOS / u128::from(rate);
        Some(now + Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX)))
    }

    /// A block may overdraw the bucket, which delays the next one.
    pub(super) fn spend(&mut self, bytes: u32) {
        if self.rate.is_some() {
            self.tokens = self.tokens.saturating_sub(bytes.into());
        }
    }
}

const NANOS: u128 = 1_000_000_000;
