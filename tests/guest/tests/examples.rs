//! The examples on a device with a cache: each has the effect that its README describes.

use std::time::Duration;

use ublk_bpf_guest::{Cgroup, Device, run, run_json, wait_until, write};

/// Time limit for undelayed promotions.
const SOON: Duration = Duration::from_secs(30);
/// Bytes in a cache block, as `--cache-block` has it by default.
const BLOCK: u64 = 64 << 10;

/// A device with room for 64 blocks in its cache.
fn device(policy: &str) -> Device {
    Device::run(&[
        "--backing",
        "mem:64M",
        "--cache",
        "mem:4M",
        "--policy",
        &format!("/root/policies/{policy}.o"),
    ])
}

/// A cache counter, as bpftool shows it.
fn cache(device: &Device, field: &str) -> u64 {
    let map = device.pins().join("cache").display().to_string();
    let entries = run_json("bpftool", &["-j", "map", "dump", "pinned", &map]);
    entries[0]["formatted"]["value"][field]
        .as_u64()
        .unwrap_or_else(|| panic!("no {field}: {entries:#}"))
}

/// Number of decisions with this reason of the policy's own.
fn code(device: &Device, code: usize) -> u64 {
    let map = device.pins().join("codes").display().to_string();
    let entries = run_json("bpftool", &["-j", "map", "dump", "pinned", &map]);
    let values = entries[code]["formatted"]["values"]
        .as_array()
        .unwrap_or_else(|| panic!("no value for each CPU: {entries:#}"));
    values
        .iter()
        .map(|cpu| cpu["value"].as_u64().expect("a count"))
        .sum()
}

/// The command that reads blocks past the page cache.
fn dd(device: &Device, first: u64, blocks: u64) -> String {
    format!(
        "dd if={} of=/dev/null bs={BLOCK} skip={first} count={blocks} iflag=direct status=none",
        device.path_str()
    )
}

fn read(device: &Device, first: u64, blocks: u64) {
    run("sh", &["-c", &dd(device, first, blocks)]);
}

/// Waits until at least `blocks` blocks were promoted and promotion has settled; returns how many.
fn promoted(device: &Device, blocks: u64) -> u64 {
    wait_until(&format!("{blocks} blocks are promoted"), SOON, || {
        cache(device, "promoted") >= blocks
    });
    std::thread::sleep(Duration::from_millis(500));
    cache(device, "promoted")
}

/// Sets a value in a map of the policy, and returns what the command prints.
fn set(device: &Device, map: &str, key: &str, value: &str) -> String {
    let id = device.id();
    let mut args = vec!["policy", "map", &id, map, "set", key];
    args.extend(value.split(' '));
    run("ublk-bpf", &args)
}

#[test]
fn cgroup_tiers_keeps_a_backup_out_of_the_cache() {
    let device = device("cgroup-tiers");
    let cgroup = Cgroup::new("backup");
    assert_eq!(set(&device, "tiers", cgroup.path(), "tier=1"), "tier=1\n");
    let tiers = run("ublk-bpf", &["policy", "map", &device.id(), "tiers"]);
    assert_eq!(tiers, "KEY      VALUE\n/backup  tier=1\n");

    read(&device, 0, 32);
    read(&device, 0, 32);
    let before = promoted(&device, 32);
    let backup = format!(
        "{} && {read} && {read}",
        cgroup.enter(),
        read = dd(&device, 0, 1024)
    );
    run("sh", &["-c", &backup]);
    assert_eq!(promoted(&device, 32), before);
    assert_eq!(cache(&device, "evicted"), 0);
    assert_eq!(code(&device, 1), 2 * 1024);
    let stats = run("ublk-bpf", &["stats", &device.id()]);
    let named = stats.lines().find(|line| line.trim_start().starts_with("bulk "));
    assert!(named.is_some_and(|line| line.ends_with(" 2048")), "{stats}");
    let before = device.counter("hits");
    read(&device, 0, 32);
    assert_eq!(device.counter("hits") - before, 32);
    device.stop();
    cgroup.remove();
}

#[test]
fn pin_range_keeps_pinned_and_rejects_banned_blocks() {
    let device = device("pin-range");
    let sectors = |blocks: u64| blocks * BLOCK / 512;
    // The first MiB, sixteen blocks, and the next one.
    let last = sectors(16) - 1;
    set(
        &device,
        "ranges",
        "0",
        &format!("first_sector=0 last_sector={last} rule=1"),
    );
    let last = sectors(32) - 1;
    let said = set(
        &device,
        "ranges",
        "1",
        &format!("first_sector=1M last_sector={last} rule=2"),
    );
    assert_eq!(
        said,
        format!("first_sector={} last_sector={last} rule=2\n", sectors(16))
    );

    read(&device, 0, 16);
    promoted(&device, 16);
    read(&device, 16, 16);
    read(&device, 16, 16);
    assert_eq!(code(&device, 2), 32);
    // Three times the size of the cache.
    for _ in 0..3 {
        read(&device, 32, 144);
        std::thread::sleep(Duration::from_millis(500));
    }
    promoted(&device, 64);
    let before = device.counter("hits");
    read(&device, 0, 16);
    assert_eq!(device.counter("hits") - before, 16, "pinned blocks were evicted");
    read(&device, 16, 16);
    assert_eq!(
        device.counter("hits") - before,
        16,
        "banned blocks are in the cache"
    );
    device.stop();
}

#[test]
fn metadata_first_keeps_a_directory_through_a_flood() {
    let device = device("metadata-first");
    run(
        "mkfs.ext4",
        &["-q", "-F", "-E", "lazy_itable_init=0", device.path_str()],
    );
    std::fs::create_dir_all("/mnt/examples").expect("a mount point");
    run("mount", &[device.path_str(), "/mnt/examples"]);
    for directory in 0..50 {
        let path = format!("/mnt/examples/{directory}");
        std::fs::create_dir(&path).expect("a directory");
        std::fs::write(format!("{path}/file"), "x").expect("a file");
    }
    std::fs::write("/mnt/examples/large", vec![7; 24 << 20]).expect("a large file");
    run("sync", &[]);
    let walk = || {
        write("/proc/sys/vm/drop_caches", "3");
        let before = device.stats();
        run("find", &["/mnt/examples", "-type", "f", "-size", "+0"]);
        let after = device.stats();
        let count = |stats: &serde_json::Value, field: &str| {
            let read = &stats["decisions"][0];
            let count = if field == "requests" {
                &read[field]
            } else {
                &read["verdicts"][field]
            };
            count.as_u64().expect("a count")
        };
        ["requests", "hit"].map(|field| count(&after, field) - count(&before, field))
    };
    walk();
    std::thread::sleep(Duration::from_secs(1));
    for _ in 0..3 {
        write("/proc/sys/vm/drop_caches", "3");
        run("cat", &["/mnt/examples/large"]);
    }
    let [requests, hits] = walk();
    assert!(requests > 0, "nothing was read");
    assert!(hits * 10 >= requests * 9, "{hits} of {requests} reads hit");
    run("umount", &["/mnt/examples"]);
    device.stop();
}
