//! How much may be promoted.

use std::time::Duration;

/// Bytes that may be promoted: a bucket that fills at the rate, and holds what comes in a second or one block.
#[derive(Debug)]
pub(super) struct Budget {
    rate: Option<u64>,
    most: i64,
    /// Below zero: what was spent ahead.
    left: i64,
    /// When `left` was right.
    at: Duration,
}

impl Budget {
    pub(super) fn new(rate: Option<u64>, block: u64) -> Self {
        let most = i64::try_from(rate.unwrap_or(0).max(block)).unwrap_or(i64::MAX);
        Self {
            rate,
            most,
            left: most,
            at: Duration::ZERO,
        }
    }

    /// When something may be spent again; `None`: now.
    pub(super) fn exhausted_until(&mut self, now: Duration) -> Option<Duration> {
        let rate = self.rate?.max(1);
        let earned = now.saturating_sub(self.at).as_nanos() * u128::from(rate) / NANOS;
        if earned > 0 {
            let earned = i64::try_from(earned).unwrap_or(i64::MAX);
            self.left = self.left.saturating_add(earned).min(self.most);
            self.at = now;
        }
        if self.left > 0 {
            return None;
        }
        let wait = u128::from(self.left.unsigned_abs() + 1) * NANOS / u128::from(rate);
        Some(now + Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX)))
    }

    /// A block may take more than is left: the next waits the longer.
    pub(super) fn spend(&mut self, bytes: u32) {
        if self.rate.is_some() {
            self.left = self.left.saturating_sub(bytes.into());
        }
    }
}

const NANOS: u128 = 1_000_000_000;
