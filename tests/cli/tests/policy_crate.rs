//! A policy's crate: made, tested, built and checked, and what is said of the usual mistakes in one.

use std::fs;
use std::path::Path;
use std::process::Command;

use cli_tests::{Outcome, refused, run_in};

/// The root of this checkout.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
/// Where the crates are built, so that the next run finds their dependencies.
const BUILD: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/policy-crates");

/// A folder whose crates are built offline, with the versions of this workspace.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = folder.path().join(".cargo");
    fs::create_dir(&config).expect("made");
    let text = format!("[build]\ntarget-dir = '{BUILD}'\n[net]\noffline = true\n");
    fs::write(config.join("config.toml"), text).expect("written");
    folder
}

/// Makes a crate there.
fn new_crate(folder: &Path, name: &str) {
    let sdk = format!("{ROOT}/ublk-bpf-ebpf/sdk");
    let outcome = run_in(folder, &["policy", "new", name, "--sdk", &sdk]);
    assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""), "{outcome:?}");
    assert!(
        outcome.stdout.starts_with(&format!("made {name}, ")),
        "{outcome:?}"
    );
    fs::copy(format!("{ROOT}/Cargo.lock"), folder.join(name).join("Cargo.lock")).expect("copied");
}

/// Checks the crate after a change of one of its files, and expects this hint in the last line.
fn check_fails(folder: &Path, name: &str, hint: &str) {
    let outcome = run_in(folder, &["policy", "check", name]);
    let last = outcome.stderr.lines().last().unwrap_or_default();
    assert_eq!(outcome.status, 1, "{outcome:?}");
    assert!(
        last.starts_with("ublk-bpf: the crate ") && last.contains(hint),
        "no {hint} in\n{}",
        outcome.stderr
    );
}

#[test]
fn a_new_crate_builds_passes_its_tests_and_is_a_policy() {
    let folder = folder();
    let at = folder.path();
    new_crate(at, "second-read");
    let tests = Command::new("cargo")
        .args(["test", "--quiet"])
        .current_dir(at.join("second-read"))
        .output();
    let tests = tests.unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&tests.stdout),
        String::from_utf8_lossy(&tests.stderr)
    );
    assert!(tests.status.success() && said.contains("2 passed"), "{said}");

    let Outcome {
        status,
        stdout,
        stderr,
    } = run_in(at, &["policy", "check", "second-read"]);
    assert_eq!(status, 0, "{stderr}");
    for words in [
        &format!("object     {BUILD}/second-read.o"),
        "interface  version 2\n",
        "helpers    bpf_map_lookup_elem\n",
        "maps       limits: array of 1, u32 (4 bytes) => Limits (8 bytes), 1 KiB",
        "reasons    1 large-read",
    ] {
        assert!(stdout.contains(words), "no {words} in\n{stdout}");
    }
    // What is there stays as it is.
    let exists = "second-read exists already: name a new folder";
    refused(at, &["policy", "new", "second-read"], 1, exists);
    let no_sdk = "no SDK in .: --sdk takes the folder ublk-bpf-ebpf/sdk of a checkout of ublk-bpf";
    refused(at, &["policy", "new", "third", "--sdk", "."], 1, no_sdk);
    assert!(!at.join("third").exists());
}

#[test]
fn the_usual_mistakes_in_a_crate_have_a_cure() {
    let folder = folder();
    let at = folder.path();
    new_crate(at, "mistaken");
    let source = at.join("mistaken/src/main.rs");
    let good = fs::read_to_string(&source).unwrap();
    let changed = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        fs::write(&source, good.replace(from, to)).unwrap();
    };
    changed(
        "-> Decision {",
        "-> bool { let _ = request; true }\n#[cfg(any())]\nfn other(request: &Request) -> Decision {",
    );
    check_fails(at, "mistaken", "takes a function `fn(&Request) -> Decision`");
    changed("#![cfg_attr(target_arch = \"bpf\", no_std, no_main)]\n", "");
    check_fails(
        at,
        "mistaken",
        "begin src/main.rs with `#![cfg_attr(target_arch = \"bpf\", no_std, no_main)]`",
    );
    changed(
        "map! {",
        "type Reads = std::collections::HashMap<u64, u64>;\nmap! {",
    );
    check_fails(at, "mistaken", "a map (`map!`) in place of a collection");
    // This one builds, and only the verifier refuses it.
    changed(
        "LIMITS.get(0).map_or(0, |limits| limits.largest_read)",
        "[4096, 8192][request.heat as usize]",
    );
    let outcome = run_in(at, &["policy", "check", "mistaken"]);
    let place =
        "may panic  main.rs:34: `let limit = [4096, 8192][request.heat as usize];`; an index out of bounds";
    assert!(outcome.stdout.contains(place), "{outcome:?}");
    fs::write(&source, &good).unwrap();

    let manifest = at.join("mistaken/Cargo.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    let sdk = text
        .lines()
        .find(|line| line.starts_with("ublk-bpf-policy"))
        .unwrap();
    fs::write(&manifest, text.replace(sdk, "")).unwrap();
    check_fails(at, "mistaken", "add `ublk-bpf-policy` to [dependencies]");
    refused(
        at,
        &["policy", "check", "."],
        1,
        "there is no ./Cargo.toml: want the folder of a policy's Cargo.toml",
    );
}
