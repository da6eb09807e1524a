//! `ublk-bpf check` on a machine that can serve devices, and on one that lost something.

use std::process::Command;

use serde_json::Value;
use ublk_bpf_guest::leftover::nothing_is_left;
use ublk_bpf_guest::{read, run, run_json, write};

/// The finding of this name, by a check that this command runs and that must end with this status.
fn finding(check: &mut Command, status: i32, name: &str) -> Value {
    let output = check.output().unwrap_or_else(|e| panic!("{check:?}: {e}"));
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(status), "{check:?}: {text}");
    let json: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("no JSON: {e}\n{text}"));
    let findings = json["findings"].as_array().cloned().unwrap_or_default();
    let found = findings.into_iter().find(|finding| finding["name"] == name);
    found.unwrap_or_else(|| panic!("no finding {name} in {json:#}"))
}

#[test]
fn a_machine_that_can_serve_devices_says_so_and_nothing_is_left_of_the_check() {
    let programs = || {
        let programs = run_json("bpftool", &["prog", "list", "--json"]);
        programs.as_array().map_or(0, Vec::len)
    };
    let before = programs();
    let text = run("ublk-bpf", &["check"]);
    for line in text.lines() {
        assert!(line.starts_with("ok ") || line.starts_with("note "), "{text}");
    }
    for name in ["classifier", "policies", "truncation watch", "ublk features"] {
        let line = text.lines().find(|line| line.contains(&format!("  {name}  ")));
        assert!(line.is_some_and(|line| line.starts_with("ok ")), "{name}: {text}");
    }
    nothing_is_left();
    // The kernel frees programs in the background.
    ublk_bpf_guest::wait_until("its programs are gone", ublk_bpf_guest::leftover::SOON, || {
        programs() == before
    });
}

#[test]
fn io_uring_that_is_turned_off_is_found() {
    let setting = "/proc/sys/kernel/io_uring_disabled";
    assert_eq!(read(setting), "0");
    write(setting, "2");
    let found = finding(Command::new("ublk-bpf").args(["check", "--json"]), 1, "io_uring");
    write(setting, "0");
    assert_eq!(found["state"], "missing", "{found:#}");
    assert_eq!(
        found["remedy"], "run `sysctl kernel.io_uring_disabled=0`",
        "{found:#}"
    );
}

#[test]
fn privileges_and_limits_that_are_missing_are_found() {
    let without = |capabilities: &str| {
        let mut command = Command::new("setpriv");
        command.args([
            &format!("--bounding-set={capabilities}"),
            &format!("--inh-caps={capabilities}"),
            "ublk-bpf",
            "check",
            "--json",
        ]);
        command
    };
    for name in ["privilege", "classifier"] {
        let found = finding(&mut without("-sys_admin"), 1, name);
        let remedy = "run as root";
        let text = format!("{} {}", found["remedy"], found["found"]);
        assert!(text.contains(remedy), "{found:#}");
    }
    let found = finding(&mut without("-sys_resource"), 0, "low memory");
    assert_eq!(found["state"], "note", "{found:#}");
    let mut few = Command::new("sh");
    few.args(["-c", "ulimit -n 20; exec ublk-bpf check --json"]);
    let found = finding(&mut few, 1, "open files");
    assert_eq!(found["state"], "missing", "{found:#}");
}
