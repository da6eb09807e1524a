//! Passthrough makes no copy in the server, by its own counters and by the kernel's.

use std::path::Path;

use ublk_bpf_guest::trace::{Trace, threads};
use ublk_bpf_guest::{Backing, Device, Fio};

#[test]
fn passthrough_calls_no_user_copy() {
    let backing = Backing::brd(64);
    let device = Device::on(&backing, &["--policy", "passthrough"]);
    let before = device.stats()["server"].clone();
    let trace = trace_copies(&device);
    // One job on one CPU, so that the classifier is never skipped for nesting.
    let done = Fio::new(device.path())
        .arg("rw", "randrw")
        .arg("bsrange", "4k-256k")
        .arg("size", "64m")
        .arg("io_size", "64m")
        .arg("iodepth", "32")
        .arg("cpus_allowed", "0")
        .run();
    let copies = trace.finish().len();
    assert!(done.reads > 100 && done.writes > 100, "too little I/O: {done:?}");
    let after = device.stats()["server"].clone();
    let grown = |name: &str| after[name].as_u64().unwrap_or(0) - before[name].as_u64().unwrap_or(0);
    let missing = grown("verdict_missing") + grown("verdict_stale");
    assert_eq!(grown("passthrough"), grown("arrived") - missing, "{after:#}");
    assert_eq!(grown("slow"), missing);
    assert_eq!(
        missing, 0,
        "a request of one job on one CPU came without a verdict"
    );
    assert_eq!(grown("user_copies"), 0);
    assert_eq!(grown("user_copy_bytes"), 0);
    assert_eq!(copies, 0, "the kernel saw user copies");
    device.stop();
}

#[test]
fn the_slow_path_copies() {
    // The counterpart: shows that the test above can detect copies.
    let device = Device::run(&["--backing", "mem:16M", "--policy", &user_policy("hostile")]);
    let trace = trace_copies(&device);
    Fio::new(device.path())
        .arg("rw", "randwrite")
        .arg("bs", "4k")
        .arg("size", "4m")
        .run();
    let copies = trace.finish().len();
    let counted = device.counter("user_copies");
    assert!(
        counted > 0 && copies > 0,
        "the server counted {counted} user copies, the kernel {copies}"
    );
    device.stop();
}

/// The path of an object of the tests' own policies.
fn user_policy(name: &str) -> String {
    let path = format!("/root/policies/{name}.o");
    assert!(Path::new(&path).exists(), "{path} was not handed to the guest");
    path
}

/// Traces the reads and writes that the server's threads make by system call: a user copy is one of those.
fn trace_copies(device: &Device) -> Trace {
    let events = ["pread64", "pwrite64"].map(|call| format!("syscalls/sys_enter_{call}"));
    Trace::start(&threads(device), &events.each_ref().map(String::as_str))
}
