//! The replay agrees with the device: the same trace, played by fio on a device and replayed, gives the same hits.

use std::fmt::Write as _;

use ublk_bpf_guest::cached::{Pair, number};
use ublk_bpf_guest::recorder::{Recorder, not_seen};
use ublk_bpf_guest::{Fio, run_json};

/// Size of the device and of the cache, in MiB.
const DEVICE: u64 = 64;
const CACHE: u64 = 8;
const BLOCK: u64 = 64 << 10;
/// Reads of the trace, and the time between two of them in microseconds: a block that is promoted is in the cache before
/// the next read, in the emulator too.
const READS: u64 = 2500;
const PAUSE: u64 = 4000;
/// Difference of the hit ratios that is allowed: on a busy machine, some blocks come into the cache a read later.
const POINT: f64 = 0.02;

const PLAYED: &str = "/tmp/played.iolog";
const RECORDED: &str = "/tmp/played.trace";

/// A log of fio's: reads of 4 KiB, mostly of few blocks, and a scan in between.
fn iolog(device: &str) -> String {
    let mut log = "fio version 3 iolog\n".to_owned();
    let mut random = 7_u64;
    let mut next = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        random >> 33
    };
    let blocks = (DEVICE << 20) / BLOCK;
    let _ = writeln!(log, "0 {device} add\n0 {device} open");
    for read in 0..READS {
        let offset = if read % 1000 < 200 {
            // Whole blocks in sequence, never again.
            (read / 1000 * 200 + read % 1000) * BLOCK % (DEVICE << 20)
        } else {
            // The cube of a number from 0 to 1 is mostly small.
            let part = next() % 1024;
            let block = (part * part * part * blocks) >> 30;
            block * 61 % blocks * BLOCK + next() % 16 * 4096
        };
        let _ = writeln!(log, "{} {device} read {offset} 4096", read * PAUSE);
    }
    let _ = writeln!(log, "{} {device} close", READS * PAUSE);
    log
}

/// What a device showed.
struct Shown {
    /// The part of the reads that were hits.
    hits: f64,
    cache_bytes: u64,
    /// Reads that the recorder may not have seen.
    not_seen: u64,
}

/// Plays the trace on a new device, and records it.
fn on_device(policy: &str, eviction: &str) -> Shown {
    let pair = Pair::disks(DEVICE, CACHE);
    let device = pair.run(&["--queues", "1", "--cache-eviction", eviction]);
    device.swap(policy);
    std::fs::write(PLAYED, iolog(device.path_str())).expect("the log is written");
    let recorder = Recorder::start(&device, RECORDED, &[]);
    let before = device.stats();
    let done = Fio::new(device.path())
        .arg("ioengine", "psync")
        .arg("read_iolog", PLAYED)
        .arg("cpus_allowed", "0")
        .run();
    assert_eq!(done.reads, READS);
    let not_seen = not_seen(&recorder.interrupt());
    let after = device.stats();
    let hits = number(&after, "server", "hits") - number(&before, "server", "hits");
    let slots = device.show()["cache"]["slots"].as_u64().expect("a number");
    device.stop();
    Shown {
        hits: ratio(hits, READS),
        cache_bytes: slots * BLOCK,
        not_seen,
    }
}

/// The part of the reads that are hits in a replay of a trace that may lack some.
fn replayed(trace: &str, policy: &str, eviction: &str, bytes: u64, lacking: u64) -> f64 {
    let report = run_json(
        "ublk-bpf",
        &[
            "replay",
            trace,
            "--policy",
            policy,
            "--cache-eviction",
            eviction,
            "--cache-size",
            &bytes.to_string(),
            "--promote-limit",
            "1G",
            "--promote-latency",
            "1ms",
            "--json",
        ],
    );
    let rows = report["rows"].as_array().expect("rows");
    let row = rows
        .iter()
        .find(|row| row["policy"] == policy)
        .unwrap_or_else(|| panic!("{report:#}"));
    let count = |name: &str| row["counts"][name].as_u64().expect("a number");
    let reads = count("reads");
    assert!((READS - lacking..=READS).contains(&reads), "{report:#}");
    ratio(count("hits"), reads)
}

#[expect(clippy::cast_precision_loss, reason = "thousands")]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

fn agree(policy: &str, eviction: &str) {
    let shown = on_device(policy, eviction);
    let real = shown.hits;
    assert!((0.1..0.9).contains(&real), "a trace that tells nothing: {real}");
    for (trace, lacking) in [(PLAYED, 0), (RECORDED, shown.not_seen)] {
        let replayed = replayed(trace, policy, eviction, shown.cache_bytes, lacking);
        println!("{policy} with {eviction}: {real:.4} on the device, {replayed:.4} in the replay of {trace}");
        assert!(
            (real - replayed).abs() <= POINT,
            "{policy}: {real} on the device, {replayed} of {trace}"
        );
    }
}

#[test]
fn lru_agrees() {
    agree("lru", "clock");
}

#[test]
fn scan_resistant_agrees() {
    agree("scan-resistant", "adaptive");
}

#[test]
fn auto_agrees() {
    agree("auto", "adaptive");
}

#[test]
fn frugal_agrees() {
    agree("frugal", "adaptive");
}
