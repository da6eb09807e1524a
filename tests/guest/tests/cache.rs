//! The cache: every byte is correct under caching, eviction, policy swaps and device failures, and a hit
//! copies nothing.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{scope, sleep};
use std::time::Duration;

use serde_json::Value;
use ublk_bpf_guest::cached::{PROMOTE, Pair, number, read_set, warm};
use ublk_bpf_guest::leftover::SOON;
use ublk_bpf_guest::torture::Report;
use ublk_bpf_guest::trace::{Trace, threads};
use ublk_bpf_guest::{
    Backing, Device, FileSystem, Fio, Mapper, Torture, backing::drop_caches, run, wait_until,
};

/// Size of the devices, in MiB, and of a much smaller cache: 5 %.
const MIB: u64 = 80;
const SMALL: u64 = 4;
/// Operations of a torture with ordered and with overlapping accesses: 60,000 in all four.
const ORDERED: u64 = 12_000;
const OVERLAPPING: u64 = 3_000;
/// Policies that are swapped during a torture; one returns random bytes.
const POLICIES: [&str; 6] = [
    "auto",
    "/root/policies/hostile.o",
    "frugal",
    "scan-resistant",
    "lru",
    "passthrough",
];

#[test]
fn torture_write_through_clock() {
    torture("write-through", "clock", "16K", 21);
}

#[test]
fn torture_write_through_adaptive() {
    torture("write-through", "adaptive", "64K", 22);
}

#[test]
fn torture_write_around_clock() {
    torture("write-around", "clock", "64K", 23);
}

#[test]
fn torture_write_around_adaptive() {
    torture("write-around", "adaptive", "4K", 24);
}

/// Every byte is right while blocks come and go, policies are swapped, and operations meet in a block; and the
/// backing has it all without the cache.
fn torture(mode: &str, eviction: &str, block: &str, seed: u64) {
    let pair = Pair::disks(MIB, SMALL);
    let device = pair.run(&[
        "--cache-mode",
        mode,
        "--cache-eviction",
        eviction,
        "--cache-block",
        block,
        "--queues",
        "2",
    ]);
    let ordered = Torture::new(device.path()).operations(ORDERED).seed(seed);
    let report = swapping(&device, || ordered.run());
    report.compare(pair.backing.spec());
    let overlapping = Torture::new(device.path()).operations(OVERLAPPING).seed(seed);
    let report = swapping(&device, || overlapping.overlapping().run());
    let stats = device.stats();
    for (part, counter) in [("server", "hits"), ("cache", "promoted"), ("cache", "evicted")] {
        assert!(number(&stats, part, counter) > 0, "no {counter}: {stats:#}");
    }
    assert_eq!(number(&stats, "server", "failed"), 0, "{stats:#}");
    assert_eq!(device.show()["cache"]["detached"], Value::Null);
    device.stop();
    report.compare(pair.backing.spec());
}

/// Runs `work` while policies are swapped, and leaves the last one attached.
fn swapping(device: &Device, work: impl FnOnce() -> Report) -> Report {
    let done = AtomicBool::new(false);
    scope(|scope| {
        let swaps = scope.spawn(|| {
            for policy in POLICIES.iter().cycle() {
                // Long enough for blocks to be promoted and hit.
                sleep(Duration::from_secs(2));
                if done.load(Relaxed) {
                    break;
                }
                device.swap(policy);
            }
            device.swap("lru");
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        done.store(true, Relaxed);
        swaps.join().expect("every policy was swapped in");
        result.unwrap_or_else(|fault| std::panic::resume_unwind(fault))
    })
}

#[test]
fn ext4_is_consistent_on_a_cached_device() {
    file_system(FileSystem::Ext4, "write-through");
}

#[test]
fn xfs_is_consistent_on_a_cached_device() {
    file_system(FileSystem::Xfs, "write-around");
}

fn file_system(system: FileSystem, mode: &str) {
    let pair = Pair::files(320, 16);
    let device = pair.run(&["--cache-mode", mode, "--queues", "2"]);
    system.make(device.path_str());
    let mounted = system.mount(device.path_str(), "discard");
    let file = mounted.make_file("tortured", 48);
    let report = Torture::on_file(&file).operations(8_000).seed(31).run();
    run("fstrim", &[mounted.at()]);
    drop(mounted);
    system.check(device.path_str());
    let mounted = system.mount(device.path_str(), "ro");
    report.compare(mounted.file("tortured"));
    drop(mounted);
    assert!(device.counter("hits") > 0, "{:#}", device.stats());
    assert_eq!(device.counter("failed"), 0);
    device.stop();

    drop_caches();
    system.check(pair.backing.spec());
    let mounted = system.mount(pair.backing.spec(), "loop,ro");
    report.compare(mounted.file("tortured"));
}

#[test]
fn a_hit_costs_no_copy_and_no_system_call() {
    let pair = Pair::disks(MIB, 16);
    let device = pair.run(&[]);
    warm(&device);
    let before = device.stats();
    let mut queue = threads(&device);
    queue.retain(|thread| thread.name == format!("ublkb{}-q0", device.id()));
    assert_eq!(queue.len(), 1, "the queue's thread");
    let trace = Trace::start(&queue, &["raw_syscalls/sys_enter"]);
    let reads = read_set(&device);
    let number_of = |line: &String| line.split_once("NR ")?.1.split(' ').next()?.parse().ok();
    let calls: Vec<libc::c_long> = trace.finish().iter().filter_map(number_of).collect();
    let after = device.stats();
    let grown = |part, name| number(&after, part, name) - number(&before, part, name);
    assert_eq!(grown("server", "hits"), reads, "{after:#}");
    for (part, name) in [
        ("server", "slow"),
        ("server", "user_copies"),
        ("server", "user_copy_bytes"),
        ("cache", "staged_bytes"),
        ("cache", "promoted"),
    ] {
        assert_eq!(grown(part, name), 0, "{name} grew: {after:#}");
    }
    let enter = libc::SYS_io_uring_enter;
    assert!(
        calls.contains(&enter),
        "the queue was not seen to work: {calls:?}"
    );
    let others: Vec<_> = calls.iter().filter(|&&call| call != enter).collect();
    assert!(others.is_empty(), "the queue made other system calls: {others:?}");
    device.stop();
}

#[test]
fn a_failing_cache_is_detached() {
    outlive(Mapper::fail);
}

#[test]
fn a_cache_that_fails_writes_is_detached() {
    outlive(Mapper::fail_writes);
}

/// A cache device that fails under load causes no error and no wrong data, and is not used again.
fn outlive(fail: fn(&Mapper)) {
    let backing = Backing::brd(MIB);
    let disk = Backing::loop_device("cache", 16);
    let cache = Mapper::linear("cache", disk.spec());
    let path = cache.path().display().to_string();
    let device = Device::run(&[
        "--backing",
        backing.spec(),
        "--cache",
        &path,
        PROMOTE[0],
        PROMOTE[1],
    ]);
    warm(&device);
    assert_eq!(device.show()["cache"]["detached"], Value::Null);
    let mut load = Fio::verify(device.path())
        .arg("size", "48m")
        .arg("iodepth", "16")
        // Also on a fast machine it runs for some seconds after the failure.
        .arg("rate", "6m,6m")
        .start();
    sleep(Duration::from_secs(1));
    fail(&cache);
    assert!(load.is_running(), "fio ended before the cache failed");
    load.finish();
    wait_until("the cache is detached", SOON, || {
        device.show()["cache"]["detached"] != Value::Null
    });
    let show = device.show();
    let detached = &show["cache"]["detached"];
    assert_ne!(detached["since"], Value::Null, "{show:#}");
    assert!(
        detached["why"].as_str().is_some_and(|why| !why.is_empty()),
        "{show:#}"
    );

    // A cache device that comes back has missed writes.
    cache.heal();
    let hits = device.counter("hits");
    let report = Torture::new(device.path()).operations(5_000).seed(51).run();
    assert_eq!(device.counter("hits"), hits);
    assert_eq!(device.counter("failed"), 0);
    device.stop();
    report.compare(backing.spec());
}
