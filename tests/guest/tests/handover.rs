//! A new server takes over devices that are in use.

use std::time::Duration;

use ublk_bpf_guest::leftover::{nothing_is_left, refused};
use ublk_bpf_guest::{Backing, Device, Fio, run};

/// The pause in a line of `handover`, in milliseconds.
fn pause(line: &str) -> u64 {
    let found = line
        .rsplit_once("after a pause of ")
        .and_then(|(_, rest)| rest.split_once(" ms"));
    let number = found.and_then(|(number, _)| number.parse().ok());
    number.unwrap_or_else(|| panic!("no pause in {line:?}"))
}

#[test]
fn under_load_no_request_fails_and_policy_and_cache_stay() {
    let (backing, cache) = (Backing::file("handover", 64), Backing::file("handover-cache", 16));
    let options = [
        "--recovery",
        "reissue",
        "--cache",
        cache.spec(),
        "--policy",
        "lru",
    ];
    let device = Device::on(&backing, &options);
    let id = device.id();
    run("ublk-bpf", &["set", &id, "promote-limit=512M"]);
    let start = || Fio::verify_slowly(device.path()).arg("iodepth", "16").start();
    let mut job = start();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_secs(1));
        if !job.is_running() {
            job.finish();
            job = start();
        }
        let before = device.server();
        let decided = device.counter("arrived");
        let said = run("ublk-bpf", &["handover", &id]);
        println!("{said}");
        assert!(
            said.starts_with(&format!("/dev/ublkb{id} is served by process ")),
            "{said}"
        );
        assert!(pause(&said) < 30_000, "{said}");
        let after = device.server();
        assert_ne!(before, after);
        assert!(said.contains(&format!("process {after} ")), "{said}");
        assert!(!std::path::Path::new(&format!("/run/ublk-bpf/server-{before}.sock")).exists());
        assert!(device.counter("arrived") >= decided, "the counters begin again");
    }
    job.finish();
    let shown = device.show();
    assert_eq!(
        (shown["policy"].clone(), shown["cache"]["promote_limit"].clone()),
        ("lru".into(), (512 << 20).into())
    );
    let used = device.stats()["cache"]["used"].as_u64().unwrap_or_default();
    assert!(used > 0, "the cache is empty: {:#}", device.stats());
    device.stop();
    nothing_is_left();
}

#[test]
fn all_that_can_wait_are_handed_over_and_the_others_stay() {
    let (one, two) = (Backing::file("one", 16), Backing::file("two", 16));
    let devices = [&one, &two].map(|backing| Device::on(backing, &["--recovery", "reissue"]));
    let fixed = Device::run(&["--backing", "mem:8M"]);
    let said = refused(&["handover", &fixed.id()]);
    assert!(said.contains("was made without --recovery"), "{said}");
    let before = fixed.server();
    let said = run("ublk-bpf", &["handover", "--all"]);
    assert_eq!(said.lines().count(), 2, "{said}");
    assert_eq!(fixed.server(), before);
    assert_eq!(devices[0].server(), devices[1].server());
    for device in devices {
        Fio::verify(device.path()).run();
        device.stop();
    }
    let said = run("sh", &["-c", "ublk-bpf handover --all 2>&1 || true"]);
    assert!(said.contains("no device can be handed over"), "{said}");
    fixed.stop();
    nothing_is_left();
}
