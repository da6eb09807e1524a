//! The cache: every byte is correct under caching, eviction, policy swaps and device failures; a hit copies nothing;
//! and cached data is still there after a restart, or is not used.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{scope, sleep};
use std::time::Duration;

use serde_json::Value;
use ublk_bpf_guest::leftover::{SOON, refused};
use ublk_bpf_guest::torture::Report;
use ublk_bpf_guest::{
    Backing, Device, FileSystem, Fio, Mapper, Torture, backing::drop_caches, read, run, try_run, wait_until,
    write,
};

/// Size of the devices, in MiB, and of a much smaller cache: 5 %.
const MIB: u64 = 80;
const SMALL: u64 = 4;
/// Operations of a torture with ordered and with overlapping accesses: 50,000 in all.
const ORDERED: u64 = 40_000;
const OVERLAPPING: u64 = 10_000;
/// Policies that are swapped during a torture; one returns random bytes.
const POLICIES: [&str; 4] = ["scan-resistant", "/root/policies/hostile.o", "lru", "passthrough"];
/// The part of a device that is cached and read again, for fio.
const SET: &str = "4m";
/// Promotes every miss, without a limit.
const PROMOTE: [&str; 4] = ["--policy", "lru", "--promote-limit", "1G"];

/// A backing and a cache for it.
struct Pair {
    backing: Backing,
    cache: Backing,
}

impl Pair {
    /// Two files; the one with the cache outlives the server.
    fn files(mib: u64, cache_mib: u64) -> Self {
        Self {
            backing: Backing::file("cached", mib),
            cache: Backing::file("cache", cache_mib),
        }
    }

    /// Two disks on which sectors are read and written whole.
    fn disks(mib: u64, cache_mib: u64) -> Self {
        Self {
            backing: Backing::null_blk("cached", mib),
            cache: Backing::null_blk("cache", cache_mib),
        }
    }

    fn options<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        let pair = ["--backing", self.backing.spec(), "--cache", self.cache.spec()];
        [&pair, &PROMOTE[..], more].concat()
    }

    fn run(&self, more: &[&str]) -> Device {
        Device::run(&self.options(more))
    }

    /// The error line of a start with these options.
    fn refused(&self, more: &[&str]) -> String {
        let args = [&["run", "--daemon"], &self.options(more)[..]].concat();
        assert_eq!(try_run("ublk-bpf", &args).status.code(), Some(1), "{args:?}");
        refused(&args)
    }
}

#[test]
fn torture_write_through_clock() {
    torture("write-through", "clock", "16K", 21);
}

#[test]
fn torture_write_through_s3fifo() {
    torture("write-through", "s3fifo", "64K", 22);
}

#[test]
fn torture_write_around_clock() {
    torture("write-around", "clock", "64K", 23);
}

#[test]
fn torture_write_around_s3fifo() {
    torture("write-around", "s3fifo", "4K", 24);
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
    let calls = QueueCalls::watch(&device);
    let reads = read_set(&device);
    let calls = calls.finish();
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
fn a_clean_stop_keeps_the_cache_warm() {
    let pair = Pair::files(MIB, 16);
    let (device, report) = warmed(&pair, &[]);
    device.stop();
    assert_clean(&pair);

    let device = pair.run(&[]);
    all_hits(&device);
    report.compare(device.path());
    device.stop();
    report.compare(pair.backing.spec());
    assert_clean(&pair);
}

#[test]
fn a_killed_server_leaves_the_cache_warm() {
    let pair = Pair::files(MIB, 16);
    let (device, report) = warmed(&pair, &["--recovery", "reissue"]);
    device.kill_server("waiting");
    run("ublk-bpf", &["run", "--daemon", "--recover", &device.id()]);
    verified(&device);
    assert_eq!(number(&device.stats(), "cache", "differing"), 0);
    all_hits(&device);
    report.compare(device.path());
    // Blocks cached since then are correct too.
    let report = Torture::new(device.path()).operations(2_000).seed(42).run();
    device.stop();
    report.compare(pair.backing.spec());
}

/// One block of a thousand is changed while no server is there: too few for samples, and a read finds the change.
#[test]
fn a_killed_servers_cache_is_compared_with_its_backing_block_by_block() {
    let pair = Pair::files(MIB, 16);
    let (device, _) = warmed(&pair, &["--recovery", "reissue", "--cache-block", "4K"]);
    device.kill_server("waiting");
    let path = pair.backing.path().expect("a file has a path");
    let changes = [change_a_sector(path, 1_234_944), change_a_sector(path, 3_000_320)];
    run("ublk-bpf", &["run", "--daemon", "--recover", &device.id()]);
    for _ in 0..2 {
        read_set(&device);
        changes
            .iter()
            .for_each(|change| change.assert_seen(device.path()));
        verified(&device);
    }
    let stats = device.stats();
    assert_eq!(number(&stats, "cache", "differing"), 2, "{stats:#}");
    assert!(number(&stats, "cache", "verified") > 1000, "{stats:#}");
    device.stop();
}

/// A RAM disk counts no writes, so that nothing tells that it was changed.
#[test]
fn a_disks_saved_cache_is_compared_with_it_block_by_block() {
    let pair = Pair {
        backing: Backing::brd(MIB),
        cache: Backing::file("cache", 16),
    };
    let (device, _) = warmed(&pair, &["--cache-block", "4K"]);
    device.stop();
    let change = change_a_sector(Path::new(pair.backing.spec()), 2_345_984);
    let device = pair.run(&["--cache-block", "4K"]);
    read_set(&device);
    change.assert_seen(device.path());
    verified(&device);
    change.assert_seen(device.path());
    let stats = device.stats();
    assert_eq!(number(&stats, "cache", "differing"), 1, "{stats:#}");
    warm(&device);
    device.stop();
}

#[test]
fn a_server_that_leaves_by_a_signal_leaves_the_cache_warm() {
    let pair = Pair::files(MIB, 16);
    let (device, report) = warmed(&pair, &["--recovery", "reissue"]);
    run("kill", &["-TERM", &device.server()]);
    wait_until("the device waits for a server", SOON, || {
        device.state() == "waiting"
    });
    run("ublk-bpf", &["run", "--daemon", "--recover", &device.id()]);
    all_hits(&device);
    report.compare(device.path());
    device.stop();
    report.compare(pair.backing.spec());
    assert_clean(&pair);
}

#[test]
fn a_cache_is_refused_after_its_backing_changed() {
    let pair = Pair::files(MIB, 16);
    let (device, _) = warmed(&pair, &[]);
    device.stop();
    let block = [0x5a; 4096];
    let path = pair.backing.path().expect("a file has a path");
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|file| file.write_all_at(&block, 8192).and_then(|()| file.sync_all()))
        .expect("the backing is written to");
    let said = pair.refused(&[]);
    assert!(said.contains("--cache-reset"), "{said}");

    let device = pair.run(&["--cache-reset"]);
    assert_eq!(device.counter("hits"), 0);
    let mut found = [0; 4096];
    OpenOptions::new()
        .read(true)
        .open(device.path())
        .and_then(|file| file.read_exact_at(&mut found, 8192))
        .expect("the device is read");
    assert!(found == block, "the device serves stale data");
    warm(&device);
    device.stop();
    let device = pair.run(&[]);
    all_hits(&device);
    device.stop();
}

#[test]
fn a_cache_is_refused_for_another_backing() {
    let pair = Pair::files(MIB, 16);
    let (device, report) = warmed(&pair, &[]);
    device.stop();
    let other = Pair {
        backing: Backing::file("other", MIB),
        cache: pair.cache,
    };
    let said = other.refused(&[]);
    assert!(said.contains("--cache-reset"), "{said}");
    let device = other.run(&["--cache-reset"]);
    Torture::new(device.path()).operations(1_000).seed(43).run();
    device.stop();
    report.compare(pair.backing.spec());
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

/// A device with what a torture left on it, its set cached.
fn warmed(pair: &Pair, more: &[&str]) -> (Device, Report) {
    let device = pair.run(more);
    let report = Torture::new(device.path()).operations(2_000).seed(41).run();
    warm(&device);
    (device, report)
}

/// Waits until no block of an earlier server is left to be compared with the backing.
fn verified(device: &Device) {
    wait_until("every block is verified", 4 * SOON, || {
        device.show()["cache"]["unverified"] == 0
    });
}

/// A sector that was written beside the device.
struct Change {
    offset: u64,
    content: [u8; 512],
}

/// Inverts a sector of a backing.
fn change_a_sector(path: &Path, offset: u64) -> Change {
    let mut content = [0; 512];
    let file = OpenOptions::new().read(true).write(true).open(path);
    file.and_then(|file| {
        file.read_exact_at(&mut content, offset)?;
        content.iter_mut().for_each(|byte| *byte = !*byte);
        file.write_all_at(&content, offset)?;
        file.sync_all()
    })
    .unwrap_or_else(|error| panic!("cannot change {}: {error}", path.display()));
    Change { offset, content }
}

impl Change {
    /// Panics unless a read of the device finds it.
    fn assert_seen(&self, device: &Path) {
        drop_caches();
        let mut found = [0; 512];
        OpenOptions::new()
            .read(true)
            .open(device)
            .and_then(|file| file.read_exact_at(&mut found, self.offset))
            .expect("the device is read");
        assert!(
            found == self.content,
            "byte {}: the device serves what was there before",
            self.offset
        );
    }
}

/// Reads the set until all of it comes from the cache.
fn warm(device: &Device) {
    wait_until("the set is cached", 4 * SOON, || {
        let before = device.counter("hits");
        let reads = read_set(device);
        device.counter("hits") - before == reads
    });
}

/// Asserts that the set comes from the cache, with nothing promoted for it.
fn all_hits(device: &Device) {
    let before = device.stats();
    let reads = read_set(device);
    let after = device.stats();
    let grown = |part, name| number(&after, part, name) - number(&before, part, name);
    assert_eq!(grown("server", "hits"), reads, "{after:#}");
    assert_eq!(grown("cache", "promoted"), 0, "{after:#}");
}

/// Reads the set once in random order and gives the number of reads.
fn read_set(device: &Device) -> u64 {
    // One job on one CPU, so that the classifier is never skipped for nesting.
    let done = Fio::new(device.path())
        .arg("rw", "randread")
        .arg("bs", "4k")
        .arg("size", SET)
        .arg("iodepth", "8")
        .arg("cpus_allowed", "0")
        .run();
    assert_eq!(done.reads, 1024);
    done.reads
}

/// Asserts that the cache is marked clean.
fn assert_clean(pair: &Pair) {
    let said = run("ublk-bpf", &["cache", "inspect", pair.cache.spec()]);
    let denied = ["unclean", "not clean"].iter().any(|words| said.contains(words));
    assert!(said.contains("clean") && !denied, "{said}");
}

fn number(stats: &Value, part: &str, name: &str) -> u64 {
    stats[part][name]
        .as_u64()
        .unwrap_or_else(|| panic!("no {part}.{name} in {stats:#}"))
}

/// System calls of a device's queue thread.
struct QueueCalls;

impl QueueCalls {
    const TRACING: &str = "/sys/kernel/tracing";
    const ENTER: &str = "/sys/kernel/tracing/events/raw_syscalls/sys_enter/enable";

    fn watch(device: &Device) -> Self {
        let name = format!("ublkb{}-q0", device.id());
        let tasks = format!("/proc/{}/task", device.server());
        let queue = std::fs::read_dir(&tasks)
            .expect("the server's threads")
            .map(|entry| entry.expect("a thread").path())
            .find(|task| read(task.join("comm")) == name)
            .unwrap_or_else(|| panic!("no thread {name} in {tasks}"));
        let thread = queue.file_name().expect("a thread has an id");
        write(Self::path("set_event_pid"), &thread.to_string_lossy());
        write(Self::path("trace"), "");
        write(Self::ENTER, "1");
        Self
    }

    /// The numbers of its system calls.
    fn finish(self) -> Vec<libc::c_long> {
        write(Self::ENTER, "0");
        let trace = read(Self::path("trace"));
        write(Self::path("set_event_pid"), "");
        let number = |line: &str| line.split_once("NR ")?.1.split(' ').next()?.parse().ok();
        trace
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(number)
            .collect()
    }

    fn path(file: &str) -> std::path::PathBuf {
        Path::new(Self::TRACING).join(file)
    }
}
