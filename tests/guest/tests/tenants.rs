//! Quotas of cgroups: the example `tenants` on real devices, against what fio counts.

use std::time::{Duration, Instant};

use serde_json::Value;
use ublk_bpf_guest::{Backing, Cgroup, Device, Fio, run, run_json, try_run, wait_until};

const POLICY: &str = "/root/policies/tenants.o";
/// Bytes of a cache block.
const BLOCK: u64 = 64 << 10;
/// How long a rate is measured, in seconds.
const SECONDS: u64 = 8;

/// A device on two files, with a cache of about 100 blocks, and a cgroup that has no quota yet.
fn cached(cgroup: &str, more: &[&str]) -> ([Backing; 2], Device, Cgroup) {
    let files = [Backing::file("tenants", 64), Backing::file("tenants-cache", 8)];
    let options = [&["--cache", files[1].spec(), "--policy", POLICY], more].concat();
    let device = Device::on(&files[0], &options);
    (files, device, Cgroup::new(cgroup))
}

/// Sets a quota, and returns what the command says.
fn quota(device: &Device, cgroup: &Cgroup, limits: &[&str]) -> String {
    let id = device.id();
    run(
        "ublk-bpf",
        &[&["quota", "set", &id, cgroup.path()], limits].concat(),
    )
}

/// The quota of a device's only tenant.
fn state(device: &Device) -> Value {
    let listed = run_json("ublk-bpf", &["quota", "list", "--json", &device.id()]);
    let [of] = listed["quotas"].as_array().expect("a list").as_slice() else {
        panic!("{listed}")
    };
    of.clone()
}

fn field(device: &Device, name: &str) -> u64 {
    state(device)[name].as_u64().expect("a number")
}

/// Reads at random for a while.
fn reads(device: &Device, bs: &str, depth: &str) -> Fio {
    Fio::new(device.path())
        .arg("rw", "randread")
        .arg("bs", bs)
        .arg("iodepth", depth)
        .arg("time_based", "1")
        .arg("runtime", &SECONDS.to_string())
}

/// Checks a count of requests of [`SECONDS`] against a rate.
fn assert_rate(done: u64, per_second: u64) {
    let wanted = per_second * SECONDS;
    assert!(
        done * 100 >= wanted * 95 && done * 100 <= wanted * 105,
        "{done} requests, and {wanted} were to be done"
    );
}

#[test]
fn rates_hold_within_five_percent_and_others_are_not_held_back() {
    let device = Device::run(&["--backing", "mem:64M", "--policy", "shares"]);
    let cgroup = Cgroup::new("slow");
    let said = quota(&device, &cgroup, &["iops=300"]);
    assert_eq!(said, "/slow: 300 requests a second\n");
    for depth in ["1", "16"] {
        let other = reads(&device, "4k", "1").arg("rate_iops", "100").start();
        let limited = reads(&device, "4k", depth).within(cgroup.path()).run();
        assert_rate(limited.reads, 300);
        let other = other.finish();
        // fio's own rate, which a delay would have lowered.
        assert!(other.reads >= 95 * SECONDS, "{other:?}");
        assert!(other.read_ns[0] < limited.read_ns[0], "{other:?} {limited:?}");
    }
    // Of two limits, the lower one holds.
    quota(&device, &cgroup, &["iops=1000", "bandwidth=8M"]);
    assert_rate(reads(&device, "64k", "4").within(cgroup.path()).run().reads, 128);
    let delayed = field(&device, "delayed");
    let server = device.stats()["server"]["delayed"].as_u64();
    assert!(delayed > 0 && server == Some(delayed), "{delayed}, {server:?}");
    device.stop();
}

#[test]
fn a_share_of_the_cache_holds_through_a_killed_server() {
    let (_files, device, cgroup) = cached("backup", &["--recovery", "reissue"]);
    quota(&device, &cgroup, &["cache=25%"]);
    let share = field(&device, "cache_blocks");
    assert!((20..=32).contains(&share), "{share}");
    let read = |blocks: u64, from: u64| {
        Fio::new(device.path())
            .arg("rw", "read")
            .arg("bs", "64k")
            .arg("offset", &(from * BLOCK).to_string())
            .arg("size", &(blocks * BLOCK).to_string())
    };
    read(400, 0).within(cgroup.path()).run();
    let within = |used: u64| used * 100 >= share * 95 && used * 100 <= share * 105;
    wait_until("its share is in use", Duration::from_secs(10), || {
        within(field(&device, "used_blocks"))
    });
    let refused = field(&device, "refused");
    assert!((400 - share - 2..=400).contains(&refused), "{refused}");
    // Others have the rest of the cache.
    read(40, 500).run();
    wait_until("others fill", Duration::from_secs(10), || {
        device.stats()["cache"]["used"].as_u64().unwrap_or(0) >= share + 40
    });
    assert!(within(field(&device, "used_blocks")));

    device.kill_server("waiting");
    device.recover();
    let used = field(&device, "used_blocks");
    assert!(within(used), "{used} of {share}");
    read(400, 0).within(cgroup.path()).run();
    let used = field(&device, "used_blocks");
    assert!(used * 100 <= share * 105, "{used} of {share}");
    device.stop();
}

#[test]
fn what_is_written_back_is_within_the_share() {
    let (_files, device, cgroup) = cached("writer", &["--cache-mode", "write-back"]);
    quota(&device, &cgroup, &["cache=1M"]);
    Fio::new(device.path())
        .arg("rw", "write")
        .arg("bs", "64k")
        .arg("size", "6m")
        .arg("verify", "crc32c")
        .within(cgroup.path())
        .run();
    let used = field(&device, "used_blocks");
    assert!((15..=17).contains(&used), "{used}");
    let absorbed = device.counter("absorbed");
    assert!((15..=17).contains(&absorbed), "{absorbed}");
    device.stop();
}

#[test]
fn a_device_whose_requests_wait_is_stopped_at_once() {
    let device = Device::run(&["--backing", "mem:8M", "--policy", POLICY]);
    let cgroup = Cgroup::new("stuck");
    quota(&device, &cgroup, &["iops=1"]);
    let read = format!(
        "{}; for i in 1 2 3 4; do dd if={} of=/dev/null bs=4k count=4 iflag=direct & done; wait",
        cgroup.enter(),
        device.path_str()
    );
    let mut readers = std::process::Command::new("sh")
        .args(["-c", &read])
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("a shell");
    wait_until("requests wait", Duration::from_secs(10), || {
        field(&device, "delayed") >= 4
    });
    let begin = Instant::now();
    run("ublk-bpf", &["stop", "--force", &device.id()]);
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    device.was_stopped();
    readers.wait().expect("they end");
}

#[test]
fn quotas_are_refused_in_words() {
    let device = Device::run(&["--backing", "mem:8M"]);
    let id = device.id();
    let refused = |args: &[&str], words: &str| {
        let output = try_run("ublk-bpf", &[&["quota"], args].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && said.contains(words),
            "{args:?}: {said}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
    };
    refused(
        &["list", &id],
        "the device's policy has no quotas: swap in `shares`",
    );
    device.swap(POLICY);
    refused(&["list", &id], "no cgroup has a quota");
    refused(&["set", &id, "/nowhere", "iops=1"], "there is no cgroup /nowhere");
    refused(&["set", &id, "/", "cache=10%"], "cache: the device has no cache");
    refused(&["remove", &id, "/"], "has no entry for /");
    let said = run("ublk-bpf", &["quota", "set", &id, "/", "bandwidth=1G"]);
    assert_eq!(said, "/: 1G a second\n");
    let said = run("ublk-bpf", &["quota", "set", &id, "/", "bandwidth=max"]);
    assert_eq!(said, "/: no limit\n");
    let gone = Cgroup::new("gone");
    quota(&device, &gone, &["iops=5"]);
    drop(gone);
    quota(&device, &Cgroup::new("again"), &["iops=5"]);
    let listed = run("ublk-bpf", &["quota", "list", &id]);
    assert_eq!(
        listed.lines().count(),
        3,
        "a quota of a cgroup that is gone goes: {listed}"
    );
    run("ublk-bpf", &["quota", "remove", &id, "/"]);
    device.stop();
}
