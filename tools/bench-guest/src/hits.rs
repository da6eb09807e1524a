//! A cache of ours that holds everything that is read.
//!
//! A promotion writes to the fast device, and a read of a ram disk's written page copies it, which at 64k takes half the
//! instructions and drowns the rest. So the pages can be discarded below the cache: they read as zeroes before
//! and do after.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::counts::Cached as _;
use super::load::{DEPTH, Reader};
use super::ours::Device;
use super::peers::{self, BLOCK, FAST, SLOW};

/// Promotion follows the reads.
const WARM_LIMIT: Duration = Duration::from_secs(60);

/// A device with this many queues of this depth and its first MiBs in its cache.
pub fn warm(mib: u64, queues: u16, depth: u16) -> Result<Device> {
    warm_in("write-through", mib, queues, depth)
}

/// The same in this cache mode.
pub fn warm_in(mode: &str, mib: u64, queues: u16, depth: u16) -> Result<Device> {
    discard_fast()?;
    let (queues, depth) = (queues.to_string(), depth.to_string());
    let device = Device::start(&[
        "--backing",
        SLOW,
        "--cache",
        FAST,
        "--cache-block",
        "64K",
        "--cache-mode",
        mode,
        "--cache-reset",
        "--policy",
        "lru",
        "--queues",
        &queues,
        "--depth",
        &depth,
    ])?;
    read_until_promoted(&device, (mib << 20) / BLOCK)?;
    Ok(device)
}

/// Reads the first blocks until every one of them is promoted.
pub(crate) fn read_until_promoted(device: &Device, blocks: u64) -> Result<()> {
    let block = usize::try_from(BLOCK)?;
    let mut reader = Reader::open(device.path(), block)?;
    let started = Instant::now();
    loop {
        for first in (0..blocks).step_by(DEPTH) {
            let batch: Vec<u64> = (first..blocks).take(DEPTH).map(|number| number * BLOCK).collect();
            reader.read(&batch, block)?;
        }
        let promoted = device.counts()?.promoted;
        if promoted >= blocks {
            return Ok(());
        }
        if started.elapsed() > WARM_LIMIT {
            bail!("ublk-bpf promoted {promoted} of the {blocks} blocks that were read again and again");
        }
    }
}

/// Leaves the fast device without any page. What ublk-bpf keeps there about the cache goes too: it writes that anew
/// when it stops, and does not read it before.
pub fn discard_fast() -> Result<()> {
    peers::empty(FAST)
}
