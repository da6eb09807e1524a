//! How fast dirty blocks are cleaned while clients are served: as fast as does not harm them, and as must be.
//!
//! The rate rises by steps, and falls by a part of it when the clients' p99 is longer than it is without cleaning. That is
//! measured when nothing has to be cleaned, and in a second now and then without. Below this rate there is a floor, which rises
//! with what is dirty, from the low to the high watermark.

use std::time::Duration;

use crate::cache::CleanLimits;
use crate::cache::times::{ServiceTimes, Times};

/// The rate is looked at once in so long.
const PERIOD: Duration = Duration::from_secs(1);
/// The p99 that is borne, in parts of that without cleaning.
const HEADROOM: f64 = 1.08;
const TAIL: f64 = 0.01;
/// With fewer requests above that than this part of the tail, the rate rises.
const RISING: f64 = 0.8;
/// With fewer samples, there is no p99. With as many new ones, the weight of those before falls by the part below: cleaning
/// changes, and what it does to requests, but not what they take without.
const MIN_SAMPLES: f64 = 48.0;
const FORGET_BUSY: f64 = 0.3;
const FORGET_QUIET: f64 = 0.15;
/// Periods of cleaning, at most, before one without it; and of these in a row, if there are few samples.
const PERIODS_BUSY: u32 = 16;
const PERIODS_QUIET: u32 = 4;

/// Bytes a second to begin with, at least, and of a device that nothing is known of.
const FIRST: u64 = 1 << 20;
const LEAST: u64 = 128 << 10;
const UNKNOWN: u64 = 4 << 20;
/// The rate falls to three quarters, and rises by this part of what it fell from.
const STEPS: u64 = 32;

/// What is sampled at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Period {
    /// Requests without cleaning.
    Quiet,
    /// Requests beside cleaning.
    Busy,
    /// Nothing that counts: what was begun has to end before a quiet period.
    Settling,
}

/// What the rate is computed from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight<'a> {
    pub(super) now: Duration,
    pub(super) times: &'a ServiceTimes,
    /// Slots.
    pub(super) dirty: u32,
    pub(super) limits: CleanLimits,
    /// Something is to be cleaned.
    pub(super) is_wanted: bool,
    /// Nothing is being cleaned.
    pub(super) is_at_rest: bool,
}

/// The rate of cleaning, as the latency of requests allows.
#[derive(Debug)]
pub(super) struct CleanRate {
    rate: u64,
    /// What the rate rises by; `None`: it has not fallen yet.
    step: Option<u64>,
    /// The most that was begun in a second, roughly: what the devices can.
    best: u64,
    quiet: Times,
    busy: Times,
    period: Period,
    ends_at: Duration,
    /// Periods of this kind in a row that have ended.
    periods: u32,
    /// Bytes whose copy has begun in this one.
    begun: u64,
    /// The floor is above the rate.
    is_floor: bool,
    /// Periods in which the rate fell.
    held_back: u64,
}

impl CleanRate {
    pub(super) fn new() -> Self {
        Self {
            rate: FIRST,
            step: None,
            best: UNKNOWN,
            quiet: Times::new(),
            busy: Times::new(),
            period: Period::Settling,
            ends_at: Duration::ZERO,
            periods: 0,
            begun: 0,
            is_floor: false,
            held_back: 0,
        }
    }

    /// The copy of so many bytes has begun.
    pub(super) const fn count(&mut self, begun: u64) {
        self.begun += begun;
    }

    /// Periods in which the rate fell, since the last call.
    pub(super) const fn take_held_back(&mut self) -> u64 {
        std::mem::replace(&mut self.held_back, 0)
    }

    /// When the period ends.
    pub(super) const fn ends_at(&self) -> Duration {
        self.ends_at
    }

    /// All that can be cleaned is: what requests take meanwhile says nothing.
    pub(super) const fn ignore(&mut self) {
        self.period = Period::Settling;
    }

    /// The bytes a second that may be cleaned; `None`: nothing is, for now.
    pub(super) fn look(&mut self, sight: &Sight<'_>) -> Option<u64> {
        let floor = self.floor(sight);
        self.is_floor = sight.is_wanted && floor > self.rate;
        if self.period != Period::Settling && sight.now >= self.ends_at {
            self.end_period(sight);
        }
        let next = match self.period {
            Period::Settling if self.is_floor => Some(Period::Busy),
            Period::Settling => sight.is_at_rest.then_some(Period::Quiet),
            Period::Quiet if sight.is_wanted && self.knows_enough() => {
                self.quiet.add(&sight.times.take(), FORGET_QUIET, MIN_SAMPLES);
                Some(Period::Busy)
            }
            Period::Quiet => None,
            Period::Busy => {
                let is_due = self.periods >= PERIODS_BUSY && !self.is_floor;
                (is_due || !sight.is_wanted).then_some(Period::Settling)
            }
        };
        if let Some(next) = next {
            drop(sight.times.take());
            (self.period, self.periods, self.begun) = (next, 0, 0);
            self.ends_at = sight.now + PERIOD;
        }
        (sight.is_wanted && self.period == Period::Busy).then(|| self.rate.max(floor))
    }

    /// Whether a quiet period may end: it was one as a whole, and there is a p99.
    fn knows_enough(&self) -> bool {
        let is_known = self.quiet.total() >= MIN_SAMPLES || self.periods >= PERIODS_QUIET;
        self.is_floor || (self.periods > 0 && is_known)
    }

    fn end_period(&mut self, sight: &Sight<'_>) {
        let times = sight.times.take();
        if self.period == Period::Busy {
            self.busy.add(&times, FORGET_BUSY, MIN_SAMPLES);
            self.judge();
        } else {
            self.quiet.add(&times, FORGET_QUIET, MIN_SAMPLES);
        }
        self.periods = self.periods.saturating_add(1);
        self.ends_at = sight.now + PERIOD;
    }

    /// Changes the rate by what requests took beside cleaning.
    fn judge(&mut self) {
        let begun = std::mem::replace(&mut self.begun, 0);
        self.best = begun.max(self.best - self.best / 64);
        if self.is_floor {
            return;
        }
        let borne = self.quiet.exceeded_by(TAIL).mul_f64(HEADROOM);
        let (above, wanted) = (self.busy.above(borne), TAIL * self.busy.total());
        let is_known = self.quiet.total() >= MIN_SAMPLES && self.busy.total() >= MIN_SAMPLES;
        // A few more may be chance.
        if is_known && above > 2.0f64.mul_add(wanted.sqrt(), wanted) {
            self.held_back += 1;
            self.step = Some((self.rate / STEPS).max(LEAST / STEPS));
            self.rate = (self.rate / 4 * 3).max(LEAST);
            self.busy = Times::new();
        } else if begun >= self.rate / 2 && !(is_known && above > RISING * wanted) {
            // It is what holds cleaning back, and harms nobody.
            let step = self.step.unwrap_or(self.rate / 4);
            self.rate = self.rate.saturating_add(step);
        }
    }

    /// What must be cleaned a second with so many slots dirty: nothing at the low watermark, an eighth of what the devices can
    /// halfway to the high one, and there as much as they can.
    fn floor(&self, sight: &Sight<'_>) -> u64 {
        let range = sight.limits.high.saturating_sub(sight.limits.low);
        let above = sight.dirty.saturating_sub(sight.limits.low);
        if above >= range {
            return u64::MAX;
        }
        let part = f64::from(above) / f64::from(range);
        let floor = self.best as f64 * part.powi(4) / (1.0 - part);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it saturates, and is not negative"
        )]
        let floor = floor as u64;
        floor
    }
}
