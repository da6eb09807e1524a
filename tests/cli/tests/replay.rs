//! `ublk-bpf replay`: tables, JSON, curves, a policy crate, and what is refused.

use std::fs;
use std::path::{Path, PathBuf};

use cli_tests::{refused, run_in, wrong_usage};
use serde_json::Value;
use tempfile::TempDir;

/// A trace in which each of ten blocks is read three times, and one is written.
fn trace() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("small.csv");
    let mut text = String::from("time_ms,op,sector,sectors\n");
    for n in 0..30 {
        text.push_str(&format!("{n},read,{},8\n", n % 10 * 128));
    }
    text.push_str("30,write,0,8\n");
    fs::write(&path, text).expect("written");
    (folder, path)
}

fn rows(folder: &Path, args: &[&str]) -> Vec<Value> {
    let outcome = run_in(folder, &[&["replay", "small.csv", "--json"], args].concat());
    assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""), "{args:?}");
    let json: Value = serde_json::from_str(&outcome.stdout).expect("JSON");
    json["rows"].as_array().expect("rows").clone()
}

#[test]
fn a_replay_has_a_row_for_each_configuration() {
    let (folder, _) = trace();
    let args = [
        "--policy",
        "lru,passthrough",
        "--cache-size",
        "50%,1M",
        "--cache-block",
        "64K",
    ];
    let rows = rows(folder.path(), &args);
    let names: Vec<&str> = rows.iter().map(|row| row["policy"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "lru",
            "passthrough",
            "LRU",
            "Belady",
            "lru",
            "passthrough",
            "LRU",
            "Belady"
        ]
    );
    assert_eq!(
        (rows[0]["cache_blocks"].as_u64(), rows[4]["cache_blocks"].as_u64()),
        (Some(5), Some(16))
    );
    let hits = |row: &Value| row["counts"]["hits"].as_u64().unwrap();
    assert_eq!([4, 5, 6, 7].map(|row| hits(&rows[row])), [20, 0, 20, 20]);
    assert_eq!(rows[4]["counts"]["writes"].as_u64(), Some(1));
}

#[test]
fn a_replay_prints_a_table_and_draws_a_curve() {
    let (folder, _) = trace();
    let args = [
        "replay",
        "small.csv",
        "--cache-size",
        "20%,100%",
        "--plot",
        "curve.svg",
    ];
    let outcome = run_in(folder.path(), &args);
    assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""));
    assert!(outcome.stdout.starts_with("TRACE"), "{}", outcome.stdout);
    assert_eq!(outcome.stdout.lines().count(), 1 + 2 * 3, "{}", outcome.stdout);
    let svg = fs::read_to_string(folder.path().join("curve.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("Belady"), "{svg}");
}

#[test]
fn a_policy_crate_is_built_and_replayed() {
    let (folder, _) = trace();
    let crate_folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/pin-range");
    let rows = rows(
        folder.path(),
        &["--policy-crate", crate_folder, "--cache-size", "100%"],
    );
    let of = rows.iter().find(|row| row["policy"] == "pin-range").unwrap();
    // It promotes a block on its second read.
    assert_eq!(of["counts"]["hits"].as_u64(), Some(10), "{of:#}");
}

#[test]
fn what_cannot_be_replayed_is_refused_in_a_line() {
    let (folder, _) = trace();
    let at = folder.path();
    fs::write(at.join("bad.csv"), "sector,bytes\n1,512\n2,x\n").unwrap();
    let line = "bad.csv: line 3: wanted a number of bytes, a whole number, found \"x\"";
    refused(at, &["replay", "bad.csv"], 1, line);
    let line = "nothing: cannot read it: No such file or directory (os error 2)";
    refused(at, &["replay", "nothing"], 1, line);
    let line = "a policy object cannot be replayed: \"mine.o\" is BPF code, which only the kernel runs: name the folder of \
                its crate with --policy-crate DIR";
    wrong_usage(&["replay", "x", "--policy", "mine.o"], line);
    let line = "there is no ./Cargo.toml: --policy-crate takes the folder of a policy's Cargo.toml";
    refused(at, &["replay", "small.csv", "--policy-crate", "."], 1, line);
}
