//! A sample of a device's requests: latencies, tasks, and where on the device they are.

use std::collections::BTreeMap;

use crate::observe::{Ended, TraceLine};

/// Parts of the device that are told apart.
pub(super) const REGIONS: usize = 128;
/// Latencies that are kept.
const LATENCIES: usize = 4096;

/// The requests of the last seconds: each second, all counts are halved.
#[derive(Debug)]
pub(super) struct Sample {
    /// One request in so many was sampled.
    pub(super) every: u32,
    /// Requests by the part of the device that they begin in.
    pub(super) regions: [u64; REGIONS],
    tasks: BTreeMap<(String, u64), TaskLoad>,
    /// The last latencies in nanoseconds, as a ring.
    latencies: Vec<u64>,
    at: usize,
}

/// What a task, or all tasks of one name and cgroup, has asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TaskLoad {
    pub(super) requests: u64,
    pub(super) bytes: u64,
    /// The longest of its requests, in nanoseconds.
    pub(super) longest: u64,
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            every: 1,
            regions: [0; REGIONS],
            tasks: BTreeMap::new(),
            latencies: Vec::new(),
            at: 0,
        }
    }
}

impl Sample {
    /// An empty one, of one request in `every`.
    #[cfg(test)]
    pub(super) fn of(every: u32) -> Self {
        Self {
            every,
            ..Self::default()
        }
    }

    /// Adds a request of a device of so many sectors.
    pub(super) fn add(&mut self, ended: &Ended, sectors: u64) {
        let (of, weight) = (&ended.request, u64::from(self.every));
        if of.nr_sectors != 0 {
            let region = u128::from(of.sector) * REGIONS as u128 / u128::from(sectors.max(1));
            if let Some(count) = self.regions.get_mut(usize::try_from(region).unwrap_or(REGIONS)) {
                *count += weight;
            }
        }
        let line = TraceLine::new(of);
        let task = self.tasks.entry((line.task, line.cgroup)).or_default();
        task.requests += weight;
        task.bytes += weight * u64::from(of.nr_sectors) * 512;
        task.longest = task.longest.max(ended.latency_ns);
        if self.latencies.len() < LATENCIES {
            self.latencies.push(ended.latency_ns);
        } else {
            self.latencies[self.at] = ended.latency_ns;
            self.at = (self.at + 1) % LATENCIES;
        }
    }

    /// Halves the counts: what is seconds ago fades.
    pub(super) fn age(&mut self) {
        self.regions.iter_mut().for_each(|count| *count /= 2);
        self.tasks.retain(|_, task| {
            task.requests /= 2;
            task.bytes /= 2;
            task.requests != 0
        });
    }

    /// Name, cgroup and load of each task, the one with the highest `key` first.
    pub(super) fn tasks(&self, key: impl Fn(&TaskLoad) -> u64) -> Vec<(&str, u64, TaskLoad)> {
        let tasks = self.tasks.iter();
        let mut tasks: Vec<_> = tasks
            .map(|((name, cgroup), load)| (name.as_str(), *cgroup, *load))
            .collect();
        tasks.sort_by_key(|(name, cgroup, load)| (u64::MAX - key(load), *name, *cgroup));
        tasks
    }

    /// The latencies that these parts of the requests, in percent, do not exceed; none without a request.
    pub(super) fn percentiles<const N: usize>(&self, percents: [usize; N]) -> Option<[u64; N]> {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let last = sorted.len().checked_sub(1)?;
        Some(percents.map(|percent| sorted[(sorted.len() * percent / 100).min(last)]))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use ublk_bpf_abi::Op;

    use super::*;
    use crate::trace::TracedRequest;

    pub(in super::super) fn ended(name: &str, sector: u64, latency_ns: u64) -> Ended {
        let mut comm = [0; 16];
        comm[..name.len()].copy_from_slice(name.as_bytes());
        Ended {
            request: TracedRequest {
                comm,
                cgroup_id: 45,
                ..TracedRequest::new(Op::Read, sector, 8)
            },
            latency_ns,
            failed: false,
        }
    }

    #[test]
    fn a_sample_stands_for_all_and_fades() {
        let mut sample = Sample {
            every: 4,
            ..Sample::default()
        };
        sample.add(&ended("fio", 0, 100), 1280);
        sample.add(&ended("fio", 1279, 300), 1280);
        sample.add(&ended("dd", 640, 200), 1280);
        assert_eq!(
            (sample.regions[0], sample.regions[64], sample.regions[127]),
            (4, 4, 4)
        );
        let tasks = sample.tasks(|of| of.requests);
        let load = TaskLoad {
            requests: 8,
            bytes: 8 * 4096,
            longest: 300,
        };
        assert_eq!(tasks[0], ("fio", 45, load));
        assert_eq!(sample.percentiles([0, 50, 99]), Some([100, 200, 300]));
        assert_eq!(Sample::default().percentiles([50]), None);
        (0..3).for_each(|_| sample.age());
        assert_eq!(sample.tasks(|of| of.bytes).len(), 1, "dd had half of fio's");
    }
}
