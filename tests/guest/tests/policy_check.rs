//! `ublk-bpf policy check` where there is a verifier to ask.

use ublk_bpf_guest::{Device, run, try_run};

#[test]
fn a_check_asks_the_verifier_without_a_device() {
    let object = "/root/policies/cgroup-tiers.o";
    let checked = run("ublk-bpf", &["policy", "check", object]);
    for line in [
        "helpers    bpf_get_current_cgroup_id, bpf_map_lookup_elem",
        "reasons    1 bulk",
    ] {
        assert!(checked.contains(line), "no {line} in\n{checked}");
    }
    let count = checked.rsplit_once("verifier   takes it: ");
    let count = count
        .unwrap_or_else(|| panic!("the verifier was not asked:\n{checked}"))
        .1;
    let device = Device::run(&["--backing", "mem:8M"]);
    let swapped = run("ublk-bpf", &["policy", "swap", &device.id(), object]);
    assert!(swapped.ends_with(count), "{swapped} is not {count}");
    device.stop();

    let json = try_run(
        "ublk-bpf",
        &["policy", "check", "--json", "/root/policies/refused-null.o"],
    );
    assert_eq!(json.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    let why = json["refused"].as_str().unwrap_or_default();
    assert!(why.contains("may find nothing"), "{json:#}");
    assert!(json["verified_instructions"].is_null(), "{json:#}");
}

#[test]
fn a_check_without_privilege_says_that_the_verifier_was_not_asked() {
    let args = [
        "--bounding-set=-all",
        "--inh-caps=-all",
        "ublk-bpf",
        "policy",
        "check",
    ];
    let output = try_run(
        "setpriv",
        &[&args[..], &["/root/policies/cgroup-tiers.o"]].concat(),
    );
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    let said = "verifier   not asked: loading BPF programs was refused: run as root";
    assert!(text.contains(said), "{text}");
    assert!(text.contains("maps       tiers: hash of 1024"), "{text}");
}
