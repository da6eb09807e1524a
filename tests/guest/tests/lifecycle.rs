//! The life of a device: created, found by other commands, stopped, lost with its server, recovered. A device that is
//! gone or failed to start leaves nothing behind.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use ublk_bpf_guest::device::started;
use ublk_bpf_guest::leftover::{SOON, nothing_is_left, refused, traces};
use ublk_bpf_guest::{Backing, Device, Fio, foreground, run, run_json, try_run, wait_until};

#[test]
fn a_device_is_found_by_every_command_until_it_is_stopped() {
    let device = Device::run(&[
        "--backing",
        "mem:64M",
        "--queues",
        "2",
        "--depth",
        "64",
        "--policy",
        "sparse",
    ]);
    let id = device.id();
    let list = run_json("ublk-bpf", &["list", "--json"]);
    let listed = list
        .as_array()
        .and_then(|all| all.iter().find(|one| one["id"].as_u64() == id.parse().ok()));
    let listed = listed.unwrap_or_else(|| panic!("device {id} is not in {list:#}"));
    assert_eq!(listed["state"], "live");
    assert_eq!((&listed["queues"], &listed["depth"]), (&2.into(), &64.into()));
    assert_eq!(listed["size"], 64 << 20);
    let shown = device.show();
    assert_eq!(
        (&shown["policy"], &shown["backing"]),
        (&"sparse".into(), &"mem:64M".into())
    );
    assert_eq!(shown["users"].as_array().map(Vec::len), Some(0));
    for spelling in [id.clone(), format!("ublkb{id}"), format!("/dev/ublkb{id}")] {
        assert!(run("ublk-bpf", &["show", &spelling]).contains(device.path_str()));
    }
    Fio::verify(device.path()).arg("size", "8m").run();
    let stats = device.stats();
    assert_eq!(stats["queues"].as_array().map(Vec::len), Some(2));
    assert_eq!(stats["server"]["arrived"], stats["server"]["completed"]);
    device.swap("drop-discard");
    assert_eq!(device.show()["policy"], "drop-discard");
    run("ublk-bpf", &["policy", "reset", &id]);
    assert_eq!(device.show()["policy"], "passthrough");
    device.stop();
    assert_eq!(
        refused(&["show", &id]),
        format!("ublkb{id} is not a device of ublk-bpf: see `ublk-bpf list`")
    );
    nothing_is_left();
}

#[test]
fn signals_stop_a_server_in_the_foreground() {
    for signal in ["-INT", "-TERM", "-HUP"] {
        let (child, line) = foreground(&["--backing", "mem:64M"], 1);
        assert!(
            line.ends_with(" is ready: 64 MiB of memory, 1 queue of depth 128, policy passthrough\n"),
            "{line}"
        );
        run("kill", &[signal, &child.id().to_string()]);
        let output = child.wait_with_output().unwrap_or_else(|error| panic!("{error}"));
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        nothing_is_left();
    }
}

#[test]
fn a_server_outlives_its_terminal_where_it_is_to_ignore_that() {
    // What nohup does.
    let mut server = Command::new("sh");
    server.args(["-c", "trap '' HUP; exec ublk-bpf run --backing mem:64M"]);
    let (child, line) = started(server, 1);
    let device = Device::announced(&line);
    run("kill", &["-HUP", &child.id().to_string()]);
    Fio::verify(device.path()).arg("size", "8m").run();
    device.stop();
    let output = child.wait_with_output().unwrap_or_else(|error| panic!("{error}"));
    assert!(output.status.success(), "{output:?}");
    nothing_is_left();
}

#[test]
fn more_queues_than_cpus_are_reported() {
    let (child, line) = foreground(&["--backing", "mem:64M", "--queues", "64"], 1);
    assert!(!line.contains("64 queues"), "{line}");
    run("kill", &["-TERM", &child.id().to_string()]);
    let output = child.wait_with_output().unwrap_or_else(|error| panic!("{error}"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("64 queues were asked for"), "{said}");
}

#[test]
fn a_mounted_device_is_stopped_only_by_force() {
    let device = Device::run(&["--backing", "mem:64M"]);
    run("mkfs.ext4", &["-q", device.path_str()]);
    run("mkdir", &["-p", "/mnt/lifecycle"]);
    run("mount", &[device.path_str(), "/mnt/lifecycle"]);
    let id = device.id();
    let said = refused(&["stop", &id]);
    assert!(
        said.starts_with(&format!("ublkb{id} is in use by a mount on /mnt/lifecycle")),
        "{said}"
    );
    // A signal respects the mount too, and the device keeps running.
    let log = format!("/run/ublk-bpf/ublkb{id}.log");
    run("kill", &["-TERM", &device.server()]);
    wait_until("the server says that it is in use", SOON, || {
        fs::read_to_string(&log)
            .unwrap_or_default()
            .contains("in use by a mount on /mnt/lifecycle")
    });
    fs::write("/mnt/lifecycle/file", "content").unwrap_or_else(|error| panic!("{error}"));
    run("sync", &[]);
    run("umount", &["/mnt/lifecycle"]);
    device.stop();

    let device = Device::run(&["--backing", "mem:64M"]);
    run("mkfs.ext4", &["-q", device.path_str()]);
    run("mount", &[device.path_str(), "/mnt/lifecycle"]);
    run("ublk-bpf", &["stop", &device.id(), "--force"]);
    // The file system has lost its device.
    assert!(
        fs::write("/mnt/lifecycle/file", "content").is_err()
            || !try_run("sync", &["/mnt/lifecycle/file"]).status.success()
    );
    run("umount", &["-l", "/mnt/lifecycle"]);
    nothing_is_left();
}

#[test]
fn a_device_dies_with_its_server_and_is_cleaned_up() {
    // By the next server,
    let device = Device::run(&["--backing", "mem:64M"]);
    let id = device.id();
    device.kill_server("dead");
    assert!(device.pins().exists());
    let next = Device::run(&["--backing", "mem:32M"]);
    assert_eq!(next.id(), id, "the dead server's id is free again");
    next.stop();
    device.assert_gone();
    // or by name.
    let device = Device::run(&["--backing", "mem:64M"]);
    device.kill_server("dead");
    device.stop();
    nothing_is_left();
}

#[test]
fn a_recovered_device_has_lost_no_io() {
    let backing = Backing::file("recovered", 64);
    let device = Device::on(&backing, &["--queues", "2", "--recovery", "reissue"]);
    let mut job = Fio::verify_slowly(device.path()).start();
    for _ in 0..2 {
        sleep(Duration::from_secs(1));
        device.kill_server("waiting");
        assert!(job.is_running(), "fio ended before the server was killed");
        let said = run("ublk-bpf", &["run", "--recover", &device.id(), "--daemon"]);
        assert!(said.contains("is ready"), "{said}");
        assert_eq!(device.state(), "live");
    }
    job.finish();
    assert!(refused(&["run", "--recover", &device.id()]).contains("is served by another process"));
    device.stop();
    nothing_is_left();
}

#[test]
fn a_waiting_device_can_be_stopped() {
    let backing = Backing::file("waiting", 64);
    let device = Device::on(&backing, &["--recovery", "fail"]);
    device.kill_server("waiting");
    // Another server does not touch it.
    Device::run(&["--backing", "mem:32M"]).stop();
    assert_eq!(device.state(), "waiting");
    device.stop();
    nothing_is_left();
}

#[test]
fn bad_input_is_refused_in_one_line_and_leaves_nothing() {
    fs::write("/tmp/text.o", "no object").unwrap_or_else(|error| panic!("{error}"));
    fs::write("/tmp/odd.img", [0; 1000]).unwrap_or_else(|error| panic!("{error}"));
    let used = Backing::file("used", 16);
    let device = Device::on(&used, &[]);
    let id = device.id();
    let before = traces();
    for (args, words) in [
        (&["--backing", "mem:1X"][..], "not a size"),
        (&["--backing", "mem:700"], "not a multiple of 512"),
        (&["--backing", "/tmp/missing.img"], "does not exist"),
        (&["--backing", "/tmp"], "is a directory"),
        (
            &["--backing", "/dev/zero"],
            "give a regular file or a block device",
        ),
        (&["--backing", "/tmp/odd.img"], "is not a multiple of its block"),
        (&["--backing", used.spec()], "in use"),
        (&["--policy", "/tmp/text.o"], "it is not an ELF object"),
        (&["--policy", "/tmp/missing.o"], "No such file"),
        (&["--policy", "/bin/busybox"], "not for BPF"),
        (&["--policy", "lfu"], "neither a file nor built in"),
        (&["--id", &id], "its id is in use"),
        (&["--id", "1048576"], "is not a ublk device"),
        (&["--depth", "5000"], "5000 is not in 1..=4096"),
        (
            &["--recovery", "reissue"],
            "a memory backing does not outlive its server",
        ),
        (&["--recover", "77"], "is not a device of ublk-bpf"),
        (&["--recover", &id], "is served by another process"),
    ] {
        for daemon in [&[][..], &["--daemon"]] {
            let said = refused(&[&["run"], daemon, args].concat());
            assert!(said.contains(words), "{args:?}: {said}");
            wait_until(&format!("nothing is left of {args:?}"), SOON, || {
                traces() == before
            });
        }
    }
    device.stop();
    nothing_is_left();
}

#[test]
fn an_invalid_record_is_reported_and_can_be_removed() {
    let device = Device::run(&["--backing", "mem:64M"]);
    let record = format!("/run/ublk-bpf/ublkb{}.json", device.id());
    assert!(Path::new(&record).exists());
    fs::write(&record, "{").unwrap_or_else(|error| panic!("{error}"));
    let said = refused(&["show", &device.id()]);
    assert!(
        said.starts_with(&format!("the record {record} cannot be read: ")),
        "{said}"
    );
    device.stop();
    nothing_is_left();
}
