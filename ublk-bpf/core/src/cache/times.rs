//! How long requests are served, as queues sample it and the mover reads it.

use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::time::Duration;

use super::shared::Cache;

/// Durations are counted in units of 256 nanoseconds, up to 32 units exactly, beyond in 32 steps an octave: to 3 %.
const UNIT_BITS: u32 = 8;
const STEP_BITS: u32 = 5;
const STEPS: u64 = 1 << STEP_BITS;
/// The longest duration that is told from longer ones is 2^28 units: a minute.
const BUCKETS: usize = (28 - STEP_BITS as usize + 1) << STEP_BITS;

/// One request in so many is sampled, and each as long as the mover has asked for more samples.
const ONE_IN: u32 = 64;
/// How many of these the mover asks for a second: where few requests arrive, all are sampled.
const EAGER: i32 = 256;
/// Samples of a queue that may be open.
const MAX_OPEN: usize = 8;

/// Counts of samples, by duration. Queues add to them, and the mover takes them.
#[derive(Debug)]
pub(super) struct ServiceTimes {
    counts: Box<[AtomicU32]>,
    eager: AtomicI32,
}

impl ServiceTimes {
    /// For a cache that takes no samples.
    pub(super) fn none() -> Self {
        Self {
            counts: Box::default(),
            eager: AtomicI32::new(0),
        }
    }

    pub(super) fn new() -> Self {
        Self {
            counts: (0..BUCKETS).map(|_| AtomicU32::new(0)).collect(),
            eager: AtomicI32::new(EAGER),
        }
    }

    pub(super) fn record(&self, time: Duration) {
        if let Some(count) = self.counts.get(bucket(time)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes all samples, and asks for others.
    pub(super) fn take(&self) -> Times {
        self.eager.store(EAGER, Ordering::Relaxed);
        let mut times = Times::new();
        for (of, count) in times.counts.iter_mut().zip(&self.counts) {
            // Nearly all are 0, which a load finds for less.
            if count.load(Ordering::Relaxed) > 0 {
                *of = f64::from(count.swap(0, Ordering::Relaxed));
                times.total += *of;
            }
        }
        times
    }

    /// Whether the mover has asked for one more sample.
    fn is_asked(&self) -> bool {
        self.eager.load(Ordering::Relaxed) > 0 && self.eager.fetch_sub(1, Ordering::Relaxed) > 0
    }
}

fn bucket(time: Duration) -> usize {
    let units = u64::try_from(time.as_nanos() >> UNIT_BITS).unwrap_or(u64::MAX);
    let shift = (u64::BITS - units.leading_zeros()).saturating_sub(STEP_BITS + 1);
    let at = (u64::from(shift) << STEP_BITS) + (units >> shift);
    usize::try_from(at).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

/// The shortest duration of a bucket, in nanoseconds.
fn start(bucket: usize) -> u64 {
    let at = bucket as u64;
    if at < 2 * STEPS {
        return at << UNIT_BITS;
    }
    let shift = (at >> STEP_BITS) - 1;
    (at - (shift << STEP_BITS)) << shift << UNIT_BITS
}

/// Samples of some time, of which older ones may count less.
#[derive(Clone, Debug)]
pub(super) struct Times {
    counts: Box<[f64]>,
    total: f64,
}

impl Times {
    pub(super) fn new() -> Self {
        Self {
            counts: vec![0.0; BUCKETS].into_boxed_slice(),
            total: 0.0,
        }
    }

    /// How many there are.
    pub(super) const fn total(&self) -> f64 {
        self.total
    }

    /// Adds others. With so many as `all` or more of them, those that are here lose the part `forget` of their weight; with
    /// fewer, less.
    pub(super) fn add(&mut self, others: &Self, forget: f64, all: f64) {
        let keep = 1.0 - forget * (others.total / all).min(1.0);
        for (of, more) in self.counts.iter_mut().zip(&others.counts) {
            *of = keep.mul_add(*of, *more);
        }
        self.total = keep.mul_add(self.total, others.total);
    }

    /// A duration that this share of the samples exceeds. Within a bucket they are taken to be spread evenly.
    pub(super) fn exceeded_by(&self, share: f64) -> Duration {
        let mut left = share * self.total;
        for (bucket, &count) in self.counts.iter().enumerate().rev() {
            if count > 0.0 && count >= left {
                let (first, end) = (start(bucket), start(bucket + 1));
                let width = (end - first) as f64;
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "between 0 and the width"
                )]
                let within = (width * (1.0 - left / count)) as u64;
                return Duration::from_nanos(first + within);
            }
            left -= count;
        }
        Duration::ZERO
    }

    /// How many of the samples exceed a duration.
    pub(super) fn above(&self, time: Duration) -> f64 {
        let at = bucket(time);
        let (first, end) = (start(at), start(at + 1));
        let nanos = u64::try_from(time.as_nanos())
            .unwrap_or(u64::MAX)
            .clamp(first, end);
        let share = (end - nanos) as f64 / (end - first) as f64;
        self.counts[at] * share + self.counts[at + 1..].iter().sum::<f64>()
    }
}

/// Samples some of the requests of a queue, whose thread owns it, for a cache with write-back.
///
/// The driver reads the clock only when it is asked to. It calls [`arrived`](Self::arrived) when requests arrive, and
/// [`settle`](Self::settle) each time before results that are ready can reach the kernel: from then on, a tag may be another
/// request's.
#[derive(Debug)]
pub struct Sampler<'c> {
    times: &'c ServiceTimes,
    /// Requests since the last sample.
    since: u32,
    open: Vec<(u16, Duration)>,
}

impl<'c> Sampler<'c> {
    /// For a queue of this cache, unless it has no write-back.
    #[must_use]
    pub fn new(cache: &'c Cache<'_>) -> Option<Self> {
        cache.has_writeback().then(|| Self {
            times: &cache.writeback.times,
            since: 0,
            open: Vec::with_capacity(MAX_OPEN),
        })
    }

    /// So many requests have arrived, one of which has this tag.
    #[inline]
    pub fn arrived(&mut self, requests: u32, tag: u16, now: impl FnOnce() -> Duration) {
        self.since = self.since.saturating_add(requests);
        let may_open = self.open.len() < MAX_OPEN;
        if may_open && (self.since >= ONE_IN || self.times.is_asked()) {
            self.since = 0;
            self.open.push((tag, now()));
        }
    }

    /// Results are about to be returned to the kernel. `is_here` says of a tag whether its request is still served.
    #[inline]
    pub fn settle(&mut self, is_here: impl Fn(u16) -> bool, now: impl FnOnce() -> Duration) {
        if self.open.iter().any(|&(tag, _)| !is_here(tag)) {
            self.close(is_here, now());
        }
    }

    fn close(&mut self, is_here: impl Fn(u16) -> bool, now: Duration) {
        let times = self.times;
        self.open.retain(|&(tag, since)| {
            let is_open = is_here(tag);
            if !is_open {
                times.record(now.saturating_sub(since));
            }
            is_open
        });
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_bucket_is_as_wide_as_it_is_exact(nanos in 0_u64..70_000_000_000) {
            let at = bucket(Duration::from_nanos(nanos));
            if at < BUCKETS - 1 {
                prop_assert!((start(at)..start(at + 1)).contains(&nanos), "{nanos} in {at}");
                prop_assert!(start(at + 1) - start(at) <= (start(at) / 32).max(1 << UNIT_BITS));
            }
        }

        #[test]
        fn quantiles_are_those_of_the_samples(mut samples in prop::collection::vec(1_000_u64..50_000_000, 100..400)) {
            let times = ServiceTimes::new();
            samples.iter().for_each(|&nanos| times.record(Duration::from_nanos(nanos)));
            let times = times.take();
            samples.sort_unstable();
            let exact = samples[samples.len() * 99 / 100];
            let found = u64::try_from(times.exceeded_by(0.01).as_nanos()).expect("it is short");
            // The sample above, at most.
            let next = samples[(samples.len() * 99 / 100 + 1).min(samples.len() - 1)];
            let before = samples[samples.len() * 99 / 100 - 1];
            prop_assert!(found * 100 >= before * 96 && found * 96 <= next * 100, "{found} is not {exact}");
            let above = times.above(Duration::from_nanos(found));
            prop_assert!((above - times.total() / 100.0).abs() < 0.05, "{above}");
        }
    }

    #[test]
    fn a_sample_ends_when_its_request_does() {
        let times = ServiceTimes::new();
        let mut sampler = Sampler {
            times: &times,
            since: 0,
            open: Vec::new(),
        };
        let now = Cell::new(Duration::ZERO);
        sampler.arrived(1, 7, || now.get());
        now.set(Duration::from_millis(1));
        sampler.settle(|tag| tag == 7, || unreachable!("nothing has ended"));
        sampler.settle(|_| false, || now.get());
        let samples = times.take();
        assert!((samples.total() - 1.0).abs() < 1e-9);
        let time = samples.exceeded_by(0.5);
        assert!(
            time > Duration::from_micros(960) && time < Duration::from_micros(1040),
            "{time:?}"
        );
    }

    #[test]
    fn one_request_in_64_is_sampled_and_more_where_there_are_few() {
        let times = ServiceTimes::new();
        let mut sampler = Sampler {
            times: &times,
            since: 0,
            open: Vec::new(),
        };
        for tag in 0..256 + 64 * 64 {
            sampler.arrived(1, tag, || Duration::ZERO);
            sampler.settle(|_| false, || Duration::ZERO);
        }
        assert!((times.take().total() - 320.0).abs() < 1e-9);
    }
}
