//! Shadow policies: every request has both answers counted as they are, nothing acts on the shadow's, and a promoted
//! shadow keeps what it has learned.

use serde_json::{Value, json};
use ublk_bpf_guest::cached::{Pair, all_hits, number, warm};
use ublk_bpf_guest::leftover::SOON;
use ublk_bpf_guest::{Device, Fio, run, run_json, try_run, wait_until};

fn shadow(device: &Device, more: &[&str]) -> String {
    run("ublk-bpf", &[&["policy", "shadow", &device.id()], more].concat())
}

/// The comparison of one operation, by its place among all.
fn compared(device: &Device, op: usize) -> Value {
    run_json("ublk-bpf", &["policy", "shadow", &device.id(), "--json"])["compared"][op].clone()
}

/// Reads of 4 KiB on one CPU, so that no program is skipped for nesting.
fn reads(device: &Device, size: &str) -> u64 {
    let job = Fio::new(device.path())
        .arg("rw", "randread")
        .arg("bs", "4k")
        .arg("size", size);
    job.arg("iodepth", "8").arg("cpus_allowed", "0").run().reads
}

fn has_program() -> bool {
    run("bpftool", &["prog", "show"]).contains("name shadow ")
}

#[test]
fn both_answers_are_counted_and_one_acts() {
    let pair = Pair::files(64, 16);
    let device = pair.run(&["--queues", "1"]);
    warm(&device);
    device.swap("passthrough");
    let said = shadow(&device, &["lru"]);
    assert!(
        said.contains("shadow policy lru, ") && said.contains("instructions verified"),
        "{said}"
    );
    assert_eq!(compared(&device, 0)["verdicts"]["passthrough"]["hit"], 0);

    let before = device.stats();
    // What is cached, then what is not.
    let hits = reads(&device, "4m");
    let after = device.stats();
    assert_eq!(
        number(&after, "server", "hits"),
        number(&before, "server", "hits"),
        "nothing acts"
    );
    let seen = compared(&device, 0);
    assert_eq!(seen["verdicts"]["passthrough"]["hit"], hits, "{seen:#}");
    assert_eq!(seen["live_reasons"]["default"], hits);
    assert_eq!(seen["shadow_reasons"]["cached"], hits);
    assert_eq!(
        seen["cached"],
        json!({"neither": hits, "live": 0, "shadow": 0, "both": 0})
    );
    let all = reads(&device, "64m");
    let seen = compared(&device, 0);
    let count = |shadow: &str| {
        seen["verdicts"]["passthrough"][shadow]
            .as_u64()
            .expect("a number")
    };
    assert_eq!(count("hit") + count("passthrough"), hits + all, "{seen:#}");
    assert!(count("passthrough") > all / 2, "{seen:#}");
    assert_eq!(
        seen["cached"]["shadow"],
        count("passthrough"),
        "each would be promoted"
    );
    assert_eq!(
        number(&device.stats(), "cache", "promoted"),
        number(&before, "cache", "promoted")
    );

    let stats = run("ublk-bpf", &["stats", &device.id()]);
    assert!(
        stats.contains("shadow policy lru: ") && stats.contains("into the cache"),
        "{stats}"
    );
    assert_eq!(device.stats()["shadow"]["policy"], "lru");

    shadow(&device, &["--off"]);
    wait_until("the shadow is gone", SOON, || !has_program());
    assert_eq!(device.stats()["shadow"], Value::Null);
    let refused = try_run("ublk-bpf", &["policy", "shadow", &device.id(), "--off"]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && told.contains("has no shadow policy: attach one with"),
        "{told}"
    );
    device.stop();
}

#[test]
fn a_shadow_of_the_same_policy_agrees() {
    let pair = Pair::files(64, 16);
    let device = pair.run(&["--queues", "1"]);
    shadow(&device, &["lru"]);
    let asked = reads(&device, "32m");
    let seen = compared(&device, 0);
    // The shadow is asked a moment later: a block may have come into the cache in between.
    let rarely = |part: &Value| assert!(part.as_u64().expect("a number") <= asked / 200, "{seen:#}");
    let verdicts = &seen["verdicts"];
    for (live, shadow) in [("passthrough", "hit"), ("hit", "passthrough")] {
        rarely(&verdicts[live][shadow]);
    }
    for differ in ["live", "shadow"] {
        rarely(&seen["cached"][differ]);
    }
    assert!(seen["cached"]["both"].as_u64() > Some(100), "{seen:#}");
    device.stop();
    wait_until("the shadow is gone", SOON, || !has_program());
}

#[test]
fn a_promoted_shadow_decides_with_its_own_maps() {
    let pair = Pair::files(64, 16);
    let device = pair.run(&["--queues", "1"]);
    warm(&device);
    device.swap("passthrough");
    shadow(&device, &["fault"]);
    // A second shadow takes the place of the first.
    shadow(&device, &["auto"]);
    reads(&device, "4m");
    let maps = |folder: &str| {
        let dump = run("bpftool", &["-j", "map", "show"]);
        let folder = device.pins().join(folder);
        let mut names: Vec<_> = std::fs::read_dir(folder)
            .expect("a folder")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort();
        (names, dump.len())
    };
    let (learned, _) = maps("shadow/maps");
    assert!(!learned.is_empty());
    let program = device.stats()["shadow"]["program"]["id"].clone();
    let said = run("ublk-bpf", &["policy", "promote-shadow", &device.id()]);
    assert!(said.contains("policy auto, the shadow until now"), "{said}");
    assert_eq!(device.show()["policy"], "auto");
    let stats = device.stats();
    assert_eq!(
        (&stats["policy"]["id"], &stats["shadow"]),
        (&program, &Value::Null),
        "the same program"
    );
    assert_eq!(maps("maps").0, learned);
    assert!(!device.pins().join("shadow").exists());
    wait_until("the shadow is gone", SOON, || !has_program());
    all_hits(&device);
    // It is a policy like another.
    device.swap("lru");
    device.stop();
}

#[test]
fn a_refused_shadow_leaves_the_one_before() {
    let device = Device::run(&["--backing", "mem:64M", "--queues", "1"]);
    shadow(&device, &["drop-discard"]);
    run("blkdiscard", &["-o", "1048576", "-l", "65536", device.path_str()]);
    let seen = compared(&device, 3);
    assert_eq!(seen["verdicts"]["passthrough"]["drop"], 1, "{seen:#}");
    assert_eq!(seen["shadow_reasons"]["advisory"], 1);
    let refused = try_run("ublk-bpf", &["policy", "shadow", &device.id(), "lru"]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && told.contains("needs a cache"),
        "{told}"
    );
    assert_eq!(
        compared(&device, 3)["verdicts"]["passthrough"]["drop"],
        1,
        "the first one stays"
    );
    device.stop();
}
