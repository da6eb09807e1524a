//! Disks that fail in a part, for a while, or in writes only: errors for what they hit, right content for all else, and
//! everything again when they are mended.

use std::ops::Range;
use std::time::{Duration, Instant};

use serde_json::Value;

use ublk_bpf_guest::leftover::SOON;
use ublk_bpf_guest::power::{Client, Done, Machine, Until, block_device, forget_dirty_caches, number};
use ublk_bpf_guest::{Backing, Device, Mapper, run, run_json, wait_until};

const MIB: u64 = 8;
const CACHE_MIB: u64 = 4;
/// A part of the backing, in the middle of where most writes go; a block of 64 KiB and parts of its neighbours.
const PART: Range<u64> = (256 << 10) - 8192..(320 << 10) + 512;
const THROUGH: [&str; 6] = [
    "--cache-mode",
    "write-through",
    "--policy",
    "lru",
    "--promote-limit",
    "1G",
];
const AROUND: [&str; 6] = [
    "--cache-mode",
    "write-around",
    "--policy",
    "lru",
    "--promote-limit",
    "1G",
];

fn seed(of_test: u64) -> u64 {
    number("UBLK_BPF_SEED", of_test)
}

fn work(client: &Client, device: &std::path::Path, operations: u64) -> Done {
    let disk = block_device(device);
    let done = client.work(&disk, Until::Operations(operations));
    done.unwrap_or_else(|fault| panic!("{fault}"))
}

/// How long a disk that comes and goes is worked on: it is there for a second, gone for one, and so on.
const TURNS: Duration = Duration::from_millis(2500);

/// Performs operations for so long that each of them may have met the disk while it was gone.
fn work_in_turns(client: &Client, device: &std::path::Path) -> Done {
    let start = Instant::now();
    let mut done = Done::default();
    while start.elapsed() < TURNS {
        done.add(work(client, device, 50));
    }
    done
}

fn verify(client: &Client, device: &std::path::Path) {
    let verified = client.verify_now(&block_device(device));
    verified.unwrap_or_else(|fault| panic!("{}: {fault}", device.display()));
}

#[test]
fn a_broken_part_of_the_backing_fails_alone() {
    for (number, options) in (1..).zip([&[][..], &THROUGH, &AROUND]) {
        let cache = (!options.is_empty()).then_some(CACHE_MIB);
        let mut machine = Machine::new(seed(number), MIB, cache, options);
        let client = Client::new(seed(number), MIB << 20);
        let path = machine.boot().expect("the power is on");
        client.lay_down(&block_device(&path));
        assert_eq!(work(&client, &path, 100).failed, 0);
        for reads in [false, true] {
            machine.backing.break_range(PART, reads);
            client.expect_failures(PART);
            let done = work(&client, &path, 300);
            eprintln!("{options:?}, reads {reads}: {done:?}");
            assert!(done.failed > 0, "{done:?}");
            machine.backing.mend();
            client.expect_failures(0..0);
            assert_eq!(work(&client, &path, 100).failed, 0);
            verify(&client, &path);
        }
        machine.stop();
        verify(&client, machine.plug_backing().path());
    }
}

#[test]
fn a_broken_part_of_the_cache_is_not_seen() {
    for (number, options) in (4..).zip([THROUGH, AROUND]) {
        let mut machine = Machine::new(seed(number), MIB, Some(CACHE_MIB), &options);
        let client = Client::new(seed(number), MIB << 20);
        let path = machine.boot().expect("the power is on");
        client.lay_down(&block_device(&path));
        assert_eq!(work(&client, &path, 100).failed, 0);
        let cache = machine.cache.as_ref().expect("there is one");
        cache.break_range(1 << 20..2 << 20, true);
        assert_eq!(work(&client, &path, 300).failed, 0);
        cache.mend();
        assert_eq!(work(&client, &path, 100).failed, 0);
        verify(&client, &path);
        machine.stop();
        verify(&client, machine.plug_backing().path());
    }
}

/// A backing and a cache of which one can be made to fail as a whole.
struct Fallible {
    // Dropped first: it is over one of the two.
    failing: Mapper,
    backing: Backing,
    cache: Backing,
    cache_fails: bool,
}

impl Fallible {
    fn new(cache_fails: bool) -> Self {
        let backing = Backing::null_blk("backing", MIB);
        let cache = Backing::null_blk("cache", CACHE_MIB);
        let below = if cache_fails { &cache } else { &backing };
        Self {
            failing: Mapper::linear("failing", below.spec()),
            backing,
            cache,
            cache_fails,
        }
    }

    fn run(&self, options: &[&str]) -> Device {
        let failing = self.failing.path().display().to_string();
        let (backing, cache) = if self.cache_fails {
            (self.backing.spec(), &*failing)
        } else {
            (&*failing, self.cache.spec())
        };
        Device::run(&[&["--backing", backing, "--cache", cache], options].concat())
    }
}

#[test]
fn a_disk_that_comes_and_goes_is_right_in_between() {
    // Each of the two devices is such a disk.
    for cache_fails in [false, true] {
        let pair = Fallible::new(cache_fails);
        let device = pair.run(&THROUGH);
        let client = Client::new(seed(6), MIB << 20);
        client.lay_down(&block_device(device.path()));
        pair.failing.fail_at_times();
        if !cache_fails {
            client.expect_failures(0..MIB << 20);
        }
        let done = work_in_turns(&client, device.path());
        eprintln!("cache fails {cache_fails}: {done:?}");
        assert_eq!(done.failed > 0, !cache_fails, "{done:?}");
        pair.failing.heal();
        client.expect_failures(0..0);
        assert_eq!(work(&client, device.path(), 150).failed, 0);
        verify(&client, device.path());
        device.stop();
        verify(&client, pair.backing.spec().as_ref());
    }
}

const BACK: [&str; 6] = [
    "--cache-mode",
    "write-back",
    "--policy",
    "lru",
    "--promote-limit",
    "1G",
];

/// The ranges that cannot be written back, if there are some.
fn failing_ranges() -> Option<Vec<Value>> {
    let shown = run_json("ublk-bpf", &["show", "0", "--json"]);
    let ranges = shown["cache"]["dirty"]["failing"].as_array().cloned();
    ranges.filter(|ranges| !ranges.is_empty())
}

/// The same, once the mover has tried: when nothing has arrived for a second.
fn failing_soon() -> Vec<Value> {
    let mut found = None;
    wait_until("some range cannot be written back", 4 * SOON, || {
        found = failing_ranges();
        found.is_some()
    });
    found.unwrap_or_default()
}

/// The cache blocks that have some of that part: a discard waits until all of its blocks are clean.
const BLOCKS: Range<u64> = 192 << 10..384 << 10;

/// What cannot be written to the backing stays in the cache, and gets there when the backing is mended.
#[test]
fn what_is_dirty_waits_for_the_backing() {
    let mut machine = Machine::new(seed(7), MIB, Some(CACHE_MIB), &BACK);
    let client = Client::new(seed(7), MIB << 20);
    let path = machine.boot().expect("the power is on");
    client.lay_down(&block_device(&path));
    for reads in [false, true] {
        machine.backing.break_range(PART, reads);
        client.expect_failures(BLOCKS);
        let done = work(&client, &path, 300);
        eprintln!("reads {reads}: {done:?}");
        let failing = failing_soon();
        let meets = |range: &Value| {
            let start = range["offset"].as_u64().expect("a number");
            let end = start + range["bytes"].as_u64().expect("a number");
            start < BLOCKS.end && BLOCKS.start < end && range["is_unreadable"] == false
        };
        assert!(failing.iter().all(meets), "{failing:?}");
        let shown = run("ublk-bpf", &["show", "0"]);
        assert!(shown.contains(" cannot be written to the backing"), "{shown}");
        machine.backing.mend();
        // What has failed is tried again in up to a minute, or at once for a drain.
        run("ublk-bpf", &["cache", "drain", "0"]);
        assert_eq!(failing_ranges(), None);
        client.expect_failures(0..0);
        assert_eq!(work(&client, &path, 100).failed, 0);
        verify(&client, &path);
    }
    machine.stop();
    let path = machine.boot().expect("the power is on");
    verify(&client, &path);
    machine.stop();
}

/// What the cache alone has fails while the cache does, and is there when it is mended.
#[test]
fn a_broken_part_of_the_cache_hides_what_is_dirty() {
    let mut machine = Machine::new(seed(8), MIB, Some(CACHE_MIB), &BACK);
    let client = Client::new(seed(8), MIB << 20);
    let path = machine.boot().expect("the power is on");
    client.lay_down(&block_device(&path));
    assert_eq!(work(&client, &path, 200).failed, 0);
    // Most slots: which of them are dirty is a matter of time.
    let broken = 1 << 20..CACHE_MIB << 20;
    machine
        .cache
        .as_ref()
        .expect("there is one")
        .break_range(broken, true);
    client.expect_failures(0..MIB << 20);
    let done = work(&client, &path, 300);
    eprintln!("{done:?}");
    let failing = failing_soon();
    let is_unreadable = |range: &Value| range["is_unreadable"] == true;
    assert!(failing.iter().all(is_unreadable), "{failing:?}");
    machine.cache.as_ref().expect("there is one").mend();
    machine.stop();
    client.expect_failures(0..0);
    let path = machine.boot().expect("the power is on");
    verify(&client, &path);
    assert_eq!(work(&client, &path, 100).failed, 0);
    machine.stop();
}

/// A whole device fails, for good or at times, and is mended: nothing that was acknowledged is lost.
#[test]
fn what_is_dirty_outlives_failures_of_either_device() {
    for (at, how) in (0..).zip(["at times", "for good"]) {
        for cache_fails in [false, true] {
            let seed = seed(9 + 2 * at + u64::from(cache_fails));
            let pair = Fallible::new(cache_fails);
            let device = pair.run(&BACK);
            let client = Client::new(seed, MIB << 20);
            client.lay_down(&block_device(device.path()));
            assert_eq!(work(&client, device.path(), 100).failed, 0);
            match how {
                "at times" => pair.failing.fail_at_times(),
                _ => pair.failing.fail(),
            }
            client.expect_failures(0..MIB << 20);
            let done = work_in_turns(&client, device.path());
            eprintln!("{how}, cache fails {cache_fails}: {done:?}");
            assert!(done.failed > 0, "{done:?}");
            pair.failing.heal();
            // A cache that has failed is used again by the next server alone.
            device.stop();
            let device = pair.run(&BACK);
            client.expect_failures(0..0);
            verify(&client, device.path());
            assert_eq!(work(&client, device.path(), 100).failed, 0);
            run("ublk-bpf", &["stop", "--drain", &device.id()]);
            device.was_stopped();
            verify(&client, pair.backing.spec().as_ref());
            forget_dirty_caches();
        }
    }
}
