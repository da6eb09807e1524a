//! The demo's second part: a cache before a device, which is there again after a stop.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::device::{Device, Steps, shown};
use host::command;

const BACKING_BYTES: u64 = 128 << 20;
const CACHE_BYTES: u64 = 16 << 20;
/// What is read again and again: 128 blocks.
const SET_BYTES: usize = 8 << 20;
const BLOCKS: u64 = SET_BYTES as u64 / (64 << 10);
const PATIENCE: Duration = Duration::from_secs(20);

/// The steps of it.
pub(super) const STEPS: usize = 2;

/// Shows it.
pub(super) fn show(folder: &Path, steps: &mut Steps) -> Result<()> {
    steps.next("a cache before a slower device");
    let (slow, fast) = (folder.join("slow.img"), folder.join("fast.img"));
    let content = pattern();
    let file = File::create(&slow).context("cannot make the slow file")?;
    file.set_len(BACKING_BYTES)?;
    file.write_all_at(&content, 0)?;
    File::create(&fast)
        .and_then(|file| file.set_len(CACHE_BYTES))
        .context("cannot make the fast file")?;
    let fast_text = fast.display().to_string();
    let options = ["--cache", &fast_text];
    let device = Device::start(&slow, &options)?;
    for round in ["first", "second"] {
        read_all(&device, folder, &content)?;
        settle(&device)?;
        println!("read 8 MiB for the {round} time: {}", summary(&device)?);
    }
    device.stop()?;

    steps.next("it is warm after a stop");
    shown(Command::new("ublk-bpf").args(["cache", "inspect", &fast_text]))?;
    let device = Device::start(&slow, &options)?;
    read_all(&device, folder, &content)?;
    println!("read 8 MiB: {}", summary(&device)?);
    let (hits, passed) = (
        counter(&device, "/server/hits")?,
        counter(&device, "/server/passthrough")?,
    );
    ensure!(
        hits >= BLOCKS,
        "only {hits} hits, {passed} reads passed through, after a restart"
    );
    device.stop()
}

/// Bytes that differ from block to block.
fn pattern() -> Vec<u8> {
    let word = |i: usize| (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    (0..SET_BYTES / 8).flat_map(word).collect()
}

/// Reads the set past the page cache, and compares.
fn read_all(device: &Device, folder: &Path, wanted: &[u8]) -> Result<()> {
    let out = folder.join("read");
    let mut dd = Command::new("dd");
    dd.arg(format!("if={}", device.path.display()))
        .arg(format!("of={}", out.display()))
        .args(["bs=64k", "iflag=direct"])
        .arg(format!("count={BLOCKS}"));
    command::output(&mut dd)?;
    ensure!(
        std::fs::read(&out)? == wanted,
        "the device gave other bytes than were written"
    );
    Ok(())
}

/// Waits until every block of the set is in the cache.
fn settle(device: &Device) -> Result<()> {
    let start = Instant::now();
    while counter(device, "/cache/used")? < BLOCKS {
        ensure!(
            start.elapsed() < PATIENCE,
            "the blocks are still not in the cache"
        );
        sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn summary(device: &Device) -> Result<String> {
    Ok(format!(
        "{} hits so far, {} requests passed through, {} reads of the backing that filled blocks",
        counter(device, "/server/hits")?,
        counter(device, "/server/passthrough")?,
        counter(device, "/server/fills")?
    ))
}

fn counter(device: &Device, path: &str) -> Result<u64> {
    let text = command::output(Command::new("ublk-bpf").args(["stats", &device.id, "--json"]))?;
    let stats: Value = serde_json::from_str(&text).context("the counts are no JSON")?;
    let counter = stats.pointer(path).and_then(Value::as_u64);
    counter.with_context(|| format!("there is no count {path}"))
}
