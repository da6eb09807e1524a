//! Starts that are ended before their devices are ready: nothing is left of them, and nothing comes afterwards.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use ublk_bpf_guest::device::CONFIGURATION;
use ublk_bpf_guest::leftover::{SOON, nothing_is_left, traces};
use ublk_bpf_guest::{Backing, Device, run, wait_until};

/// More than any of these starts has made when it is ended.
const DEVICES: usize = 8;

/// A start of several devices, once the first of them is there.
fn begun(options: &[&str]) -> Child {
    fs::write(
        CONFIGURATION,
        "[[device]]\nbacking = \"mem:8M\"\n".repeat(DEVICES),
    )
    .unwrap_or_else(|e| panic!("{e}"));
    let start = Command::new("ublk-bpf")
        .args(["run", "--config", CONFIGURATION])
        .args(options)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot run ublk-bpf: {e}"));
    wait_until("the first device is there", SOON, || {
        Path::new("/dev/ublkb0").exists()
    });
    start
}

fn end_of(start: Child) -> Output {
    let output = start.wait_with_output().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    output
}

/// Nothing is there, and nothing comes.
fn nothing_comes() {
    assert_eq!(traces(), Vec::<String>::new());
    sleep(Duration::from_secs(3));
    assert_eq!(traces(), Vec::<String>::new());
}

#[test]
fn stop_all_ends_a_start_and_none_of_its_devices_comes() {
    for options in [&[][..], &["--daemon"]] {
        let start = begun(options);
        run("ublk-bpf", &["stop", "--all"]);
        let output = end_of(start);
        assert_eq!(output.status.code(), Some(1), "{options:?}");
        assert_eq!(
            String::from_utf8_lossy(&output.stderr),
            format!("ublk-bpf: stopped by a signal before all {DEVICES} devices were ready\n"),
            "{options:?}"
        );
        nothing_comes();
    }
}

#[test]
fn stop_all_ends_a_start_that_recovers_and_removes_the_device() {
    let backing = Backing::file("recovering", 16);
    let device = Device::on(&backing, &["--recovery", "reissue"]);
    device.kill_server("waiting");
    let mut start = Command::new("ublk-bpf")
        .args(["run", "--daemon", "--recover", &device.id()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot run ublk-bpf: {e}"));
    sleep(Duration::from_millis(100));
    run("ublk-bpf", &["stop", "--all"]);
    // It was ended, or ready before.
    let _ = start.wait();
    device.assert_gone();
    nothing_comes();
}

#[test]
fn a_start_in_the_background_ends_with_the_command_that_began_it() {
    for signal in ["-TERM", "-INT"] {
        let start = begun(&["--daemon"]);
        run("kill", &[signal, &start.id().to_string()]);
        let output = end_of(start);
        assert_eq!(output.status.code(), Some(1), "{signal}");
        assert_eq!(
            String::from_utf8_lossy(&output.stderr),
            format!("ublk-bpf: stopped by a signal before all {DEVICES} devices were ready\n"),
            "{signal}"
        );
        nothing_comes();
    }
    // It cannot pass this one on, nor wait.
    let mut start = begun(&["--daemon"]);
    start.kill().unwrap_or_else(|e| panic!("{e}"));
    let _ = start.wait();
    nothing_is_left();
    nothing_comes();
}

#[test]
fn a_server_that_is_ready_outlives_the_command_that_began_it() {
    let device = Device::run(&["--backing", "mem:8M"]);
    sleep(Duration::from_secs(1));
    assert_eq!(device.state(), "live");
    // A later `stop --all` sees no start, and stops it.
    run("ublk-bpf", &["stop", "--all"]);
    device.assert_gone();
    nothing_is_left();
}

#[test]
fn a_number_is_free_once_its_device_is_stopped() {
    for _ in 0..20 {
        // The kernel takes a moment to free it after it finds the device no longer.
        Device::run(&["--backing", "mem:8M", "--id", "0"]).stop();
    }
    nothing_is_left();
}
