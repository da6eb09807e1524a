//! What `stats` and `show` say that a cache saves and costs, compared with what was read and written.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use ublk_bpf_guest::cached::{Pair, number, read_set, warm};
use ublk_bpf_guest::leftover::SOON;
use ublk_bpf_guest::{Fio, read, run, wait_until};

const MIB: i64 = 1 << 20;
/// A cache block.
const BLOCK: i64 = 64 << 10;

/// A signed number of the part `savings`.
fn saved(stats: &Value, name: &str) -> i64 {
    let number = &stats["savings"][name];
    number
        .as_i64()
        .unwrap_or_else(|| panic!("no savings.{name} in {stats:#}"))
}

/// What each of these numbers grew by.
fn grown<const N: usize>(before: &Value, after: &Value, names: [&str; N]) -> [i64; N] {
    names.map(|name| saved(after, name) - saved(before, name))
}

/// What the disks themselves have counted: reads and bytes read of the backing, and bytes written to the cache.
fn disks() -> [i64; 3] {
    // Documentation/block/stat.rst.
    let stat = |disk: &str| -> Vec<i64> {
        let text = read(format!("/sys/block/{disk}/stat"));
        let numbers = text
            .split_whitespace()
            .map(|number| number.parse().expect("a number"));
        numbers.collect()
    };
    let (backing, cache) = (stat("cached"), stat("cache"));
    [backing[0] + backing[1], backing[2] * 512, cache[6] * 512]
}

/// The same as `stats` has it.
fn counted(stats: &Value) -> [i64; 3] {
    [
        saved(stats, "reads") - saved(stats, "backing_reads_saved"),
        saved(stats, "read_bytes") - saved(stats, "backing_bytes_saved"),
        saved(stats, "cache_bytes_written"),
    ]
}

fn difference(before: [i64; 3], after: [i64; 3]) -> [i64; 3] {
    [0, 1, 2].map(|at| after[at] - before[at])
}

/// Random reads, and writes after them, of more than the cache holds. On a busy machine the kernel may skip the classifier for
/// a request, which is then not counted: it is all done again.
fn agrees_with_the_disks(policy: &str) {
    assert!(
        (0..3).any(|_| agrees(policy)),
        "requests without a verdict each time"
    );
}

/// The same once. Returns whether every request had a verdict.
fn agrees(policy: &str) -> bool {
    let pair = Pair::disks(64, 8);
    let device = pair.run(&["--queues", "1"]);
    device.swap(policy);
    let before = (disks(), device.stats());
    for rw in ["randread", "write"] {
        Fio::new(device.path())
            .arg("rw", rw)
            .arg("bs", "4k")
            .arg("size", "16m")
            .arg("io_size", "12m")
            .arg("iodepth", "4")
            .arg("cpus_allowed", "0")
            .run();
        // The mover may still be at work.
        let mut last = [0; 3];
        wait_until("the mover has nothing to do", SOON, || {
            std::thread::sleep(Duration::from_millis(500));
            std::mem::replace(&mut last, disks()) == last
        });
    }
    let (after, stats) = (disks(), device.stats());
    if number(&stats, "server", "verdict_missing") > 0 {
        device.stop();
        return false;
    }
    let [disks, counted] = [
        difference(before.0, after),
        difference(counted(&before.1), counted(&stats)),
    ];
    assert_eq!(counted, disks, "{policy}: {stats:#}");
    assert!(saved(&stats, "hits") > 0 && disks[2] > 0, "{stats:#}");
    device.stop();
    true
}

#[test]
fn the_disks_have_counted_the_same_for_promotions() {
    agrees_with_the_disks("lru");
}

#[test]
fn the_disks_have_counted_the_same_for_fills() {
    agrees_with_the_disks("auto");
}

#[test]
fn hits_are_saved_and_promotions_are_a_cost() {
    let pair = Pair::disks(64, 16);
    let device = pair.run(&["--queues", "1"]);
    warm(&device);

    let names = [
        "reads",
        "read_bytes",
        "hits",
        "hit_bytes",
        "backing_reads_saved",
        "backing_bytes_saved",
        "cache_bytes_written",
    ];
    let before = device.stats();
    assert_eq!(read_set(&device), 1024);
    let after = device.stats();
    let all = [1024, 4 * MIB, 1024, 4 * MIB, 1024, 4 * MIB, 0];
    assert_eq!(grown(&before, &after, names), all, "{after:#}");

    let before = after;
    Fio::new(device.path())
        .arg("rw", "write")
        .arg("bs", "4k")
        .arg("size", "1m")
        .run();
    let after = device.stats();
    assert_eq!(
        grown(&before, &after, names),
        [0, 0, 0, 0, 0, 0, MIB],
        "{after:#}"
    );

    // Sixteen blocks that are not cached, a page of each.
    let before = after;
    Fio::new(device.path())
        .arg("rw", "read:60k")
        .arg("bs", "4k")
        .arg("offset", "32m")
        .arg("size", "1m")
        .arg("io_size", "64k")
        .arg("cpus_allowed", "0")
        .run();
    let promoted = |stats: &Value| number(stats, "cache", "promoted") - number(&before, "cache", "promoted");
    wait_until("the blocks are promoted", SOON, || {
        promoted(&device.stats()) == 16
    });
    let after = device.stats();
    let all = [16, BLOCK, 0, 0, -16, -16 * BLOCK, 16 * BLOCK];
    assert_eq!(grown(&before, &after, names), all, "{after:#}");
    assert_eq!(device.show()["warnings"], Value::Array(Vec::new()));
    device.stop();
}

#[test]
fn a_cache_that_is_a_loss_is_told() {
    let pair = Pair::disks(64, 2);
    let device = pair.run(&["--queues", "1"]);
    // Each block once: nothing is hit, and everything is promoted.
    Fio::new(device.path())
        .arg("rw", "read:60k")
        .arg("bs", "4k")
        .arg("size", "64m")
        .arg("io_size", "4m")
        .arg("cpus_allowed", "0")
        .run();
    let words = "the cache costs more than it saves";
    let warned = || device.show()["warnings"].to_string().contains(words);
    wait_until("the loss is told", SOON, warned);
    let text = run("ublk-bpf", &["stats", &device.id()]);
    assert!(
        text.contains("The cache costs more reads of the backing than it saves."),
        "{text}"
    );
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    device.stop();
}

#[test]
fn a_watch_has_the_last_second_too() {
    let pair = Pair::disks(64, 16);
    let device = pair.run(&["--queues", "1"]);
    warm(&device);
    let mut watch = Command::new("ublk-bpf")
        .args(["stats", &device.id(), "--watch", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("ublk-bpf starts");
    let mut lines = BufReader::new(watch.stdout.take().expect("a pipe")).lines();
    let mut next = || -> Value {
        let line = lines.next().expect("a line").expect("it is read");
        serde_json::from_str(&line).expect("JSON")
    };
    assert_eq!(next()["interval"], Value::Null);
    read_set(&device);
    // The reads may have begun in one interval and ended in the next.
    let (mut reads, mut hits) = (0, 0);
    while reads < 1024 {
        let interval = &next()["interval"];
        let seconds = interval["seconds"].as_f64().expect("a number");
        assert!((0.9..10.0).contains(&seconds), "{interval:#}");
        assert_eq!(interval["requests"][0]["requests"], interval["savings"]["reads"]);
        reads += interval["savings"]["reads"].as_u64().expect("a number");
        hits += interval["savings"]["hits"].as_u64().expect("a number");
    }
    assert_eq!((reads, hits), (1024, 1024));
    run("kill", &[&watch.id().to_string()]);
    watch.wait().expect("it ends");
    device.stop();
}
