//! The configuration file of `run`: what is refused, with its line, and how the command line overrides it.

use std::fs::{self, File};

use cli_tests::{refused, run_in};

#[test]
fn a_wrong_configuration_is_told_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for (text, why) in [
        (
            "backing = \"mem:1M\"\ncaches = \"x\"\n",
            "line 2: unknown field `caches`, expected one of `backing`, `policy`, `policy-memory`, `id`, `name`, `queues`, `depth`, `logical-block`, `scheduler`, `read-only`, `daemon`, `recover-waiting`, `metrics`, `recovery`, `allow-lossy`, `observe`, `cache`, `cache-block`, `cache-mode`, `cache-eviction`, `promote-limit`, `dirty-high`, `clean-limit`, `device`",
        ),
        ("depth = 0\n", "line 1: depth is 0: give 1 to 4096"),
        ("id = 2000000\n", "line 1: id is 2000000: give 0 to 1048575"),
        (
            "recovery = \"maybe\"\n",
            "line 1: unknown variant `maybe`, expected one of `none`, `reissue`, `fail`, `fail-in-flight`, `fail-all`",
        ),
    ] {
        fs::write(at.join("c.toml"), text).unwrap();
        let line = format!("configuration c.toml: {why}");
        refused(at, &["run", "--config", "c.toml"], 2, &line);
    }
    refused(
        at,
        &["run", "--config", "none.toml"],
        1,
        "cannot read the configuration none.toml: No such file or directory (os error 2)",
    );
}

#[test]
fn the_command_line_wins_over_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::write(at.join("c.toml"), "backing = \"first\"\nread-only = true\n").unwrap();
    let outcome = run_in(at, &["run", "--config", "c.toml", "--backing", "second"]);
    let second = at.join("second");
    assert!(
        outcome
            .stderr
            .starts_with(&format!("ublk-bpf: backing {}", second.display())),
        "{}",
        outcome.stderr
    );
    let outcome = run_in(at, &["run", "--config", "c.toml"]);
    let first = at.join("first");
    assert!(
        outcome
            .stderr
            .starts_with(&format!("ublk-bpf: backing {}", first.display())),
        "{}",
        outcome.stderr
    );
}

#[test]
fn several_devices_are_checked_before_one_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for (text, line) in [
        (
            "[[device]]\n[[device]]\ndepht = 4\n",
            "configuration c.toml: line 3: unknown field `depht`, expected one of `backing`, `policy`, `policy-memory`, `id`, `name`, `queues`, `depth`, `logical-block`, `scheduler`, `read-only`, `daemon`, `recover-waiting`, `metrics`, `recovery`, `allow-lossy`, `observe`, `cache`, `cache-block`, `cache-mode`, `cache-eviction`, `promote-limit`, `dirty-high`, `clean-limit`, `device`",
        ),
        (
            "backing = \"a\"\n[[device]]\n",
            "configuration c.toml: backing is set above the first [[device]], which only sets defaults for all devices: move it into one of them",
        ),
        (
            "[[device]]\nid = 4\n[[device]]\nid = 4\n",
            "configuration c.toml: devices 1 and 2 have the same id, 4: give each its own id, or none",
        ),
        (
            "[[device]]\ndaemon = true\n",
            "configuration c.toml: device 1: daemon applies to the whole process: move it above the first [[device]]",
        ),
        (
            "[[device]]\n[[device]]\nrecovery = \"fail\"\n",
            "device 2: a memory backing does not outlive its server: --recovery needs a file or a block device as backing",
        ),
    ] {
        fs::write(at.join("c.toml"), text).unwrap();
        refused(at, &["run", "--config", "c.toml"], 2, line);
    }
    fs::write(
        at.join("c.toml"),
        "[[device]]\n[[device]]\nbacking = \"missing\"\n",
    )
    .unwrap();
    for (option, value) in [
        ("--queues", Some("2")),
        ("--read-only", None),
        ("--cache-reset", None),
    ] {
        let line = format!(
            "{option} applies to one device, and the configuration has 2: set it in the file, or run that device alone"
        );
        let args = ["run", "--config", "c.toml", option].into_iter().chain(value);
        refused(at, &args.collect::<Vec<_>>(), 2, &line);
    }
    // The options are right, and so the second backing is looked for.
    let outcome = run_in(at, &["run", "--config", "c.toml"]);
    let missing = at.join("missing");
    assert!(
        outcome.stderr.starts_with(&format!(
            "ublk-bpf: device 2 of 2: backing {}: does not exist",
            missing.display()
        )),
        "{}",
        outcome.stderr
    );
    assert_eq!(outcome.status, 1);
    // A backing cannot be had twice.
    File::create(at.join("twice")).unwrap().set_len(1 << 20).unwrap();
    fs::write(
        at.join("c.toml"),
        "[[device]]\nbacking = \"twice\"\n[[device]]\nbacking = \"twice\"\n",
    )
    .unwrap();
    let outcome = run_in(at, &["run", "--config", "c.toml"]);
    assert!(
        outcome.stderr.starts_with(&format!(
            "ublk-bpf: device 2 of 2: backing {}: in use",
            at.join("twice").display()
        )),
        "{}",
        outcome.stderr
    );
}

#[test]
fn one_table_is_like_none() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::write(at.join("c.toml"), "queues = 2\n[[device]]\nbacking = \"first\"\n").unwrap();
    for (args, name) in [(&[][..], "first"), (&["--backing", "second"], "second")] {
        let outcome = run_in(at, &[&["run", "--config", "c.toml"], args].concat());
        let line = format!("ublk-bpf: backing {}", at.join(name).display());
        assert!(outcome.stderr.starts_with(&line), "{}", outcome.stderr);
    }
}
