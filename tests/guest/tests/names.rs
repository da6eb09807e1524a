//! Devices with names: every command takes the name for the number, and no two devices have the same.

use std::path::Path;

use ublk_bpf_guest::leftover::{nothing_is_left, refused};
use ublk_bpf_guest::{Backing, Device, run, run_json};

#[test]
fn a_name_stands_for_the_number_and_outlives_the_server() {
    let backing = Backing::file("named", 16);
    let line = run(
        "ublk-bpf",
        &[
            "run",
            "--daemon",
            "--name",
            "mail-store",
            "--recovery",
            "reissue",
            "--backing",
            backing.spec(),
        ],
    );
    assert!(line.contains(" (mail-store) is ready: "), "{line}");
    let device = Device::announced(&line);
    let list = run("ublk-bpf", &["list"]);
    let row: Vec<&str> = list
        .lines()
        .nth(1)
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    assert_eq!(row[..3], [device.path_str(), "mail-store", "live"], "{list}");
    let show = run_json("ublk-bpf", &["show", "mail-store", "--json"]);
    assert_eq!(
        (&show["id"], &show["name"]),
        (&device.show()["id"], &"mail-store".into())
    );
    assert_eq!(
        run("ublk-bpf", &["show", &device.id(), "--udev"]),
        "UBLK_BPF_NAME=mail-store\n"
    );
    run("ublk-bpf", &["stats", "mail-store"]);
    run("ublk-bpf", &["policy", "swap", "mail-store", "sparse"]);
    assert_eq!(device.show()["policy"], "sparse");

    let other = ["run", "--backing", "mem:8M", "--name", "mail-store"];
    let taken = format!("ublkb{} has the name mail-store already: ", device.id());
    assert!(refused(&other).starts_with(&taken));
    device.kill_server("waiting");
    assert!(
        refused(&other).starts_with(&taken),
        "a waiting device keeps its name"
    );
    // A configuration without the name means another device.
    let without = [
        "run",
        "--backing",
        backing.spec(),
        "--recovery",
        "reissue",
        "--recover-waiting",
    ];
    let said = refused(&without);
    assert!(
        said.contains("was made with the name mail-store, not without a name"),
        "{said}"
    );
    run("ublk-bpf", &["run", "--recover", "mail-store", "--daemon"]);
    assert_eq!(device.state(), "live");
    assert_eq!(device.show()["name"], "mail-store");
    run("ublk-bpf", &["stop", "mail-store"]);
    device.assert_gone();
    std::mem::forget(device);

    // The name is free again; a device without one has nothing to say to udev.
    let device = Device::run(&["--backing", "mem:8M", "--name", "mail-store"]);
    device.stop();
    let device = Device::run(&["--backing", "mem:8M"]);
    assert_eq!(run("ublk-bpf", &["show", &device.id(), "--udev"]), "");
    assert!(refused(&["show", "mail-store"]).contains("or the name of a device"));
    device.stop();
    nothing_is_left();
    assert!(!Path::new("/run/ublk-bpf/ublkb0.json").exists());
}
