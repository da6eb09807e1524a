//! A rate that work is held to.

use std::time::Duration;

const NANOS: u128 = 1_000_000_000;

/// What may be saved up: the bytes of so long a time, so that a pause is not followed by a burst.
const SAVED: u64 = 8;
/// The shortest wait: nothing is gained by less.
const SHORTEST: Duration = Duration::from_micros(100);

/// A token bucket of bytes. Work is begun as long as it has some, and may overdraw it, which delays what follows.
#[derive(Debug, Default)]
pub(super) struct Pace {
    tokens: i64,
    at: Duration,
}

impl Pace {
    /// What may be begun at `now` with this rate of bytes a second: nothing before the time that it returns, if it does.
    pub(super) fn exhausted_until(&mut self, rate: u64, now: Duration) -> Option<Duration> {
        let rate = rate.max(1);
        let earned = now.saturating_sub(self.at).as_nanos() * u128::from(rate) / NANOS;
        if earned > 0 {
            let most = i64::try_from(rate / SAVED).unwrap_or(i64::MAX).max(1);
            let earned = i64::try_from(earned).unwrap_or(i64::MAX);
            self.tokens = self.tokens.saturating_add(earned).min(most);
            self.at = now;
        }
        if self.tokens > 0 {
            return None;
        }
        let wait = u128::from(self.tokens.unsigned_abs() + 1) * NANOS / u128::from(rate);
        let wait = Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX));
        Some(now + wait.max(SHORTEST))
    }

    /// Something of so many bytes has begun.
    pub(super) fn spend(&mut self, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.tokens = self.tokens.saturating_sub(bytes);
    }

    /// Nothing limits what is done until `now`.
    pub(super) fn forget(&mut self, now: Duration) {
        (self.tokens, self.at) = (1, now);
    }
}
