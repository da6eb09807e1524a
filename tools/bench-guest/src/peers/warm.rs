//! Reading until a cache has everything.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::fio::{self, Job};

/// Promotion follows the reads.
const LIMIT: Duration = Duration::from_secs(60);

/// Reads the first MiBs of a device at random until nothing of it misses.
pub(crate) fn warm(device: &Path, mib: u64, misses: impl Fn() -> Result<u64>) -> Result<()> {
    let job = Job {
        devices: &[device],
        block: "4k",
        range_mib: Some(mib),
    };
    let started = Instant::now();
    while started.elapsed() < LIMIT {
        let before = misses()?;
        fio::run(&job, &[])?;
        if misses()? == before {
            return Ok(());
        }
    }
    bail!("{} still misses after {} s", device.display(), LIMIT.as_secs())
}
