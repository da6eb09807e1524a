//! What the guard measures, in the guest.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::fio::{self, Job, Summary};
use super::hits;
use super::ours::{Device, Recording};
use super::peers::FAST;

/// Runs of fio that count, for each case, after one that does not.
const RUNS: usize = 3;
/// A run, on the guest's clock; the whole takes some twenty times longer outside.
const RUNTIME: &str = "--runtime=150ms";
/// What is in the cache: enough that a hit is no special case, and little to be promoted.
const CACHED_MIB: u64 = 16;

/// Reads at random of one size, from one device.
struct Case {
    name: &'static str,
    device: Made,
    block: &'static str,
}

/// How a device is made, one queue of depth 128.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Made {
    /// A policy's name, and a backing.
    With(&'static str, &'static str),
    /// The same device as [`NULL`], while its requests are recorded.
    Recorded,
    /// The same device as [`RAM`], with this value of `--observe`.
    Observed(&'static str),
    /// A ram disk before another, with all that is read in the cache.
    Cached,
}

/// The ram disk is empty, so that its copy loop does not drown the rest.
const RAM: Made = Made::With("passthrough", FAST);
const NULL: Made = Made::With("passthrough", "null:8G,unfilled");
/// What was never written is never read from the backing either, whatever that is.
const DROP: Made = Made::With("sparse", "mem:1G");

/// Those with the same device stand together.
const CASES: [Case; 9] = [
    Case {
        name: "passthrough-brd-4k",
        device: RAM,
        block: "4k",
    },
    Case {
        name: "passthrough-brd-64k",
        device: RAM,
        block: "64k",
    },
    Case {
        name: "uncounted-brd-4k",
        device: Made::Observed("off"),
        block: "4k",
    },
    Case {
        name: "observed-brd-4k",
        device: Made::Observed("full"),
        block: "4k",
    },
    Case {
        name: "passthrough-null-4k",
        device: NULL,
        block: "4k",
    },
    Case {
        name: "recorded-null-4k",
        device: Made::Recorded,
        block: "4k",
    },
    Case {
        name: "drop-4k",
        device: DROP,
        block: "4k",
    },
    Case {
        name: "hit-4k",
        device: Made::Cached,
        block: "4k",
    },
    Case {
        name: "hit-64k",
        device: Made::Cached,
        block: "64k",
    },
];

/// In the order in which they are measured and shown.
pub fn names() -> impl Iterator<Item = &'static str> {
    CASES.iter().map(|case| case.name)
}

/// Measures in this system, and prints a line for each case, as the baseline has them.
pub fn measure() -> Result<()> {
    for cases in CASES.chunk_by(|one, next| one.device == next.device) {
        let made = cases[0].device;
        let device = made.start()?;
        let recording = (made == Made::Recorded).then(|| device.record()).transpose()?;
        for case in cases {
            let instructions = case.measure(device.path())?;
            println!("{} = {instructions:.0}", case.name);
        }
        made.check(&device)?;
        recording.map_or(Ok(()), Recording::end)?;
        device.stop()?;
    }
    Ok(())
}

impl Case {
    /// Instructions per I/O: the median.
    fn measure(&self, device: &Path) -> Result<f64> {
        let job = Job {
            devices: &[device],
            block: self.block,
            range_mib: (self.device == Made::Cached).then_some(CACHED_MIB),
        };
        let run = || Ok(fio::run(&job, &[RUNTIME])?.iops);
        // The first run after a start costs more.
        run().with_context(|| self.name)?;
        let results = (0..RUNS).map(|_| run()).collect::<Result<Vec<f64>>>()?;
        Ok(1e9 / Summary::of(results)?.median)
    }
}

impl Made {
    fn start(self) -> Result<Device> {
        let (policy, backing, observe) = match self {
            Self::With(policy, backing) => (policy, backing, "counters"),
            Self::Observed(observe) => ("passthrough", FAST, observe),
            Self::Recorded => return NULL.start(),
            Self::Cached => {
                let device = hits::warm(CACHED_MIB, 1, 128)?;
                // The promotions wrote there: without this each hit would copy.
                hits::discard_fast()?;
                return Ok(device);
            }
        };
        let options = ["--queues", "1", "--depth", "128", "--policy", policy];
        Device::start(&[&["--backing", backing, "--observe", observe], &options[..]].concat())
    }

    /// Makes sure that what was read was served as the cases' names say.
    fn check(self, device: &Device) -> Result<()> {
        let counter = match self {
            Self::With("sparse", _) => "dropped",
            Self::With(..) | Self::Observed(_) | Self::Recorded => "passthrough",
            Self::Cached => "hits",
        };
        let stats = device.stats()?;
        let count = |name: &str| stats["server"][name].as_u64().unwrap_or_default();
        let (arrived, served) = (count("arrived"), count(counter));
        // The block layer reads a little of a new disk; the cache had to be filled.
        ensure!(
            arrived > 0 && served * 20 > arrived * 19,
            "only {served} of {arrived} requests were counted as {counter}"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_is_made_once_and_each_case_has_its_name() {
        let groups = CASES.chunk_by(|one, next| one.device == next.device);
        let mut seen = Vec::new();
        for group in groups {
            assert!(!seen.contains(&group[0].device.tag()), "{}", group[0].name);
            seen.push(group[0].device.tag());
        }
        let mut sorted: Vec<_> = names().collect();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), CASES.len());
    }

    impl Made {
        fn tag(self) -> &'static str {
            match self {
                Self::With(_, backing) => backing,
                Self::Recorded => "recorded",
                Self::Observed(observe) => observe,
                Self::Cached => "cached",
            }
        }
    }
}
