//! Policies that cannot be loaded: each is refused in one line, before a device is made.

use std::fs;
use std::path::Path;

use cli_tests::{refused, run_in};

/// Objects of policies, good and bad.
const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/policy_object");

#[test]
fn a_policy_that_cannot_be_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::write(at.join("text.o"), "not an object").unwrap();
    fs::copy(std::env::current_exe().unwrap(), at.join("native.o")).unwrap();
    let path = |name: &str| at.join(name).display().to_string();
    refused(
        at,
        &["run", "--policy", "lfu"],
        1,
        "no policy `lfu`: it is neither a file nor built in (passthrough, drop-discard, sparse, fault, lru, scan-resistant, auto, frugal, shares)",
    );
    for (name, why) in [
        ("missing.o", "No such file or directory (os error 2)"),
        (
            "text.o",
            "it is not an ELF object; a policy is a crate built for bpfel-unknown-none with ublk-bpf-policy",
        ),
        (
            "native.o",
            "it is an ELF object for X86_64, not for BPF (little endian); build it for bpfel-unknown-none",
        ),
    ] {
        let line = format!("{} cannot be a policy: {why}", path(name));
        refused(at, &["run", "--policy", name], 1, &line);
    }
}

#[test]
fn a_policy_that_does_what_it_may_not_is_refused_with_its_line() {
    let folder = Path::new(CORPUS);
    for (name, what) in [
        ("hang.o", "it calls the helper `bpf_loop` (hang.c:5: `"),
        ("kill.o", "it calls the helper `bpf_send_signal` (kill.c:3: `"),
        (
            "scribble.o",
            "it calls the helper `bpf_probe_write_user` (scribble.c:4: `",
        ),
        ("pinned.o", "map `left_behind` asks to be pinned: "),
        ("damaged-bss-2g.o", "its ELF headers are damaged; build it again"),
    ] {
        // No device is asked for before the object is read.
        for command in [
            &["policy", "swap", "1048575", name][..],
            &["run", "--policy", name],
        ] {
            let outcome = run_in(folder, command);
            let wanted = format!("{name} cannot be a policy: {what}");
            assert_eq!(
                (outcome.status, outcome.stderr.lines().count()),
                (1, 1),
                "{}",
                outcome.stderr
            );
            assert!(outcome.stderr.contains(&wanted), "{}", outcome.stderr);
        }
    }
    let small = run_in(
        folder,
        &["run", "--policy-memory", "4K", "--policy", "good-cgroup-tiers.o"],
    );
    assert!(
        small
            .stderr
            .contains("more than the 4096 bytes of --policy-memory"),
        "{}",
        small.stderr
    );
}

#[test]
fn a_check_describes_an_object_without_a_device_and_says_whether_the_verifier_was_asked() {
    let folder = Path::new(CORPUS);
    let outcome = run_in(folder, &["policy", "check", "good-cgroup-tiers.o"]);
    assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""), "{outcome:?}");
    for words in [
        "object     good-cgroup-tiers.o",
        "entry      policy, in section freplace/policy: ",
        "interface  it states no version, which the SDK would have it do",
        "licence    Dual MIT/GPL",
        "helpers    bpf_get_current_cgroup_id, bpf_map_lookup_elem",
        "maps       tiers: hash of 1024, u64 (8 bytes) => Tier (4 bytes), ",
        "reasons    none",
    ] {
        assert!(
            outcome.stdout.contains(words),
            "no {words} in\n{}",
            outcome.stdout
        );
    }
    let last = outcome.stdout.lines().last().unwrap();
    let is_answer = last.starts_with("verifier   takes it: ") || last.starts_with("verifier   not asked: ");
    assert!(is_answer, "{last}");

    let json = run_in(folder, &["policy", "check", "--json", "good-cgroup-tiers.o"]);
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert!(json["abi"].is_null(), "{json}");
    assert_eq!(json["maps"][0]["name"], "tiers");
    assert!(json["refused"].is_null());
    assert_ne!(
        json["not_asked"].is_null(),
        json["verified_instructions"].is_null()
    );
}

#[test]
fn a_check_fails_for_what_is_no_policy() {
    let outcome = run_in(Path::new(CORPUS), &["policy", "check", "hang.o"]);
    assert_eq!((outcome.status, outcome.stdout.as_str()), (1, ""));
    assert!(
        outcome
            .stderr
            .starts_with("ublk-bpf: hang.o cannot be a policy: it calls the helper `bpf_loop`"),
        "{}",
        outcome.stderr
    );
    assert_eq!(outcome.stderr.lines().count(), 1);
}
