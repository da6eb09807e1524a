//! Policies that cannot be loaded: each is refused in one line, before a device is made.

use std::fs;
use std::path::Path;

use cli_tests::{refused, run_in};

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
        "no policy `lfu`: it is neither a file nor built in (passthrough, drop-discard, sparse, fault, lru, scan-resistant, auto, frugal)",
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
    let folder = Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../fuzz/corpus/policy_object"
    ));
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
