//! `ublk-bpf check` on a machine without ublk. `tests/guest` has the test of one with it.

use std::path::Path;

use cli_tests::run;
use serde_json::Value;

fn has_ublk() -> bool {
    Path::new("/dev/ublk-control").exists()
}

#[test]
fn a_machine_without_ublk_is_told_what_is_missing_and_what_to_do() {
    if has_ublk() {
        return;
    }
    let outcome = run(&["check"]);
    assert_eq!(outcome.status, 1);
    assert!(
        outcome
            .stderr
            .starts_with("ublk-bpf: no device can be served on this machine: see "),
        "{}",
        outcome.stderr
    );
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    let line = |name: &str| {
        let found = outcome.stdout.lines().find(|line| line.contains(name));
        found.unwrap_or_else(|| panic!("no line of {name} in\n{}", outcome.stdout))
    };
    let driver = line("  ublk driver  ");
    assert!(driver.starts_with("MISSING"), "{driver}");
    assert!(driver.contains("/dev/ublk-control does not exist: "), "{driver}");
    assert!(
        driver.contains(": boot a kernel") || driver.contains(": run `modprobe ublk_drv`"),
        "{driver}"
    );
    assert!(line("  ublk features  ").starts_with("unknown"));
    assert!(line("  I/O scheduler  ").contains("udev"));
}

#[test]
fn the_json_has_each_finding_with_the_same_states() {
    let outcome = run(&["check", "--json"]);
    let json: Value = serde_json::from_str(&outcome.stdout)
        .unwrap_or_else(|error| panic!("no JSON: {error}\n{}", outcome.stdout));
    assert_eq!(json["can_serve"] == true, outcome.status == 0, "{json:#}");
    let findings = json["findings"]
        .as_array()
        .unwrap_or_else(|| panic!("no findings: {json:#}"));
    let names: Vec<&str> = findings
        .iter()
        .filter_map(|finding| finding["name"].as_str())
        .collect();
    assert_eq!(
        names,
        [
            "kernel",
            "privilege",
            "ublk driver",
            "ublk features",
            "io_uring",
            "BTF",
            "bpffs",
            "classifier",
            "policies",
            "truncation watch",
            "run folder",
            "open files",
            "locked memory",
            "low memory",
            "I/O scheduler",
        ]
    );
    for finding in findings {
        let state = finding["state"].as_str().unwrap_or_default();
        assert!(
            ["ok", "note", "missing", "unknown"].contains(&state),
            "{finding:#}"
        );
        assert!(
            finding["found"].as_str().is_some_and(|found| !found.is_empty()),
            "{finding:#}"
        );
    }
}
