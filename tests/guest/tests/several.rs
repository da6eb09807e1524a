//! Several devices in one process: each has its own data and is stopped, fails and is recovered on its own; all of them
//! start, or none does.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use ublk_bpf::control::{Control, DeviceId};
use ublk_bpf_guest::device::CONFIGURATION;
use ublk_bpf_guest::fio::Running;
use ublk_bpf_guest::leftover::{SOON, nothing_is_left, refused, traces};
use ublk_bpf_guest::{Backing, Device, Fio, foreground, run, run_json, wait_until};

/// Bytes of a block that identifies its device.
const BLOCK: usize = 4096;

/// A configuration with a device on each backing, and shared settings.
fn on(shared: &str, backings: &[&Backing]) -> String {
    let tables = backings
        .iter()
        .map(|backing| format!("[[device]]\nbacking = \"{}\"\n", backing.spec()));
    format!("{shared}\n{}", tables.collect::<String>())
}

/// Marks the device's first block as its own.
fn mark(device: &Device, byte: u8) {
    OpenOptions::new()
        .write(true)
        .open(device.path())
        .and_then(|file| {
            file.write_all_at(&[byte; BLOCK], 0)?;
            file.sync_all()
        })
        .unwrap_or_else(|e| panic!("cannot write to {}: {e}", device.path_str()));
}

/// Whether the first block is the one that was [`mark`]ed so, read without the page cache.
fn is_marked(path: &Path, byte: u8) -> bool {
    run("sync", &[]);
    ublk_bpf_guest::backing::drop_caches();
    let mut found = [0; BLOCK];
    File::open(path)
        .and_then(|file| file.read_exact_at(&mut found, 0))
        .unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
    found.iter().all(|&found| found == byte)
}

fn is_alive(process: &str) -> bool {
    Path::new("/proc").join(process).exists()
}

#[test]
fn devices_of_one_process_hold_their_own_data_under_load() {
    let backings = [
        Backing::file("first", 32),
        Backing::file("second", 32),
        Backing::null_blk("third", 32),
    ];
    let cache = Backing::file("several-cache", 8);
    let text = on("queues = 2\npolicy = \"sparse\"", &backings.each_ref());
    // The last table is the third device's.
    let text = format!(
        "{text}queues = 1\npolicy = \"lru\"\ncache = \"{}\"\n",
        cache.spec()
    );
    let devices = Device::run_all(&text);
    assert_eq!(devices.len(), 3);
    let server = devices[0].server();
    assert!(devices.iter().all(|device| device.server() == server));
    let queues: Vec<_> = devices.iter().map(|one| one.show()["queues"].clone()).collect();
    assert_eq!(queues, [2, 2, 1]);
    assert_eq!(
        run_json("ublk-bpf", &["list", "--json"]).as_array().map(Vec::len),
        Some(3)
    );

    let job = |(seed, device): (usize, &Device)| {
        Fio::verify(device.path())
            .arg("randseed", &seed.to_string())
            .arg("offset", "64k")
            .arg("size", "12m")
            .arg("iodepth", "16")
            .start()
    };
    let jobs: Vec<_> = devices.iter().enumerate().map(job).collect();
    // Each device has its own policy.
    devices[1].swap("drop-discard");
    let policies: Vec<_> = devices.iter().map(|one| one.show()["policy"].clone()).collect();
    assert_eq!(policies, ["sparse", "drop-discard", "lru"]);
    for running in jobs {
        running.finish();
    }
    for (device, byte) in devices.iter().zip(1..) {
        mark(device, byte);
        let stats = device.stats();
        assert_eq!(stats["server"]["arrived"], stats["server"]["completed"]);
        assert_eq!(stats["server"]["failed"], 0);
    }
    for ((device, backing), byte) in devices.iter().zip(&backings).zip(1..) {
        assert!(is_marked(device.path(), byte));
        assert!(backing.path().is_some_and(|path| is_marked(path, byte)));
    }
    run("ublk-bpf", &["stop", "--all"]);
    nothing_is_left();
    assert!(run("ublk-bpf", &["cache", "inspect", cache.spec()]).contains("clean"));
}

#[test]
fn a_device_is_stopped_alone_and_the_last_one_ends_the_process() {
    let backings = [Backing::file("alone", 16), Backing::file("rest", 32)];
    let devices = Device::run_all(&on("", &backings.each_ref()));
    let Ok([first, second]) = <[Device; 2]>::try_from(devices) else {
        panic!("expected two devices");
    };
    let server = first.server();
    let mut job = Fio::verify(second.path())
        .arg("size", "24m")
        .arg("rate", "3m")
        .arg("iodepth", "8")
        .start();
    let (log, other) = (
        first.show()["log"].clone(),
        format!("/run/ublk-bpf/ublkb{}.log", second.id()),
    );
    assert!(log.is_string() && Path::new(&other).exists());
    let id = first.id();
    first.stop();
    assert!(!Path::new(log.as_str().unwrap_or_default()).exists());
    assert!(job.is_running() && is_alive(&server));
    // Its backing and its number are free again.
    let again = Device::on(&backings[0], &[]);
    assert_eq!(again.id(), id);
    assert_ne!(again.server(), server);
    again.stop();
    job.finish();
    assert_eq!(second.state(), "live");
    second.stop();
    wait_until("the process ends with its last device", SOON, || {
        !is_alive(&server)
    });
    nothing_is_left();
}

#[test]
fn devices_whose_process_was_killed_are_recovered_one_by_one() {
    let backings = [Backing::file("killed", 32), Backing::file("too", 32)];
    let devices = Device::run_all(&on("recovery = \"reissue\"", &backings.each_ref()));
    let start = |device: &Device| {
        Fio::verify(device.path())
            .arg("iodepth", "16")
            .arg("size", "24m")
            .arg("rate", "2m")
            .start()
    };
    let mut jobs: Vec<_> = devices.iter().map(start).collect();
    sleep(Duration::from_secs(1));
    devices[0].kill_server("waiting");
    wait_until("both devices wait", SOON, || devices[1].state() == "waiting");
    assert!(jobs.iter_mut().all(Running::is_running));
    for device in &devices {
        let said = run("ublk-bpf", &["run", "--recover", &device.id(), "--daemon"]);
        assert!(said.contains("is ready"), "{said}");
        assert_eq!(device.state(), "live");
    }
    assert_ne!(devices[0].server(), devices[1].server());
    for job in jobs {
        job.finish();
    }
    devices.into_iter().for_each(Device::stop);
    nothing_is_left();
}

#[test]
fn if_one_cannot_start_none_does() {
    let (first, second) = (Backing::file("good", 16), Backing::file("fine", 16));
    let cache = Backing::file("shared-cache", 8);
    let other = Device::run(&["--backing", "mem:8M", "--id", "5"]);
    let before = traces();
    let tables = on("", &[&first, &second]);
    let cached = |backing: &Backing| {
        format!(
            "[[device]]\nbacking = \"{}\"\ncache = \"{}\"\n",
            backing.spec(),
            cache.spec()
        )
    };
    for (text, words) in [
        // These are found before the first device is made,
        (
            format!("{tables}[[device]]\nbacking = \"/tmp/missing.img\""),
            "device 3 of 3: backing /tmp/missing.img: does not exist",
        ),
        (
            format!("{tables}policy = \"lfu\""),
            "device 2 of 2: no policy `lfu`",
        ),
        (on("", &[&first, &first]), "device 2 of 2: backing "),
        (cached(&first) + &cached(&second), "device 2 of 2: "),
        // and these when the first device is already running.
        (format!("{tables}id = 5"), "device 2 of 2: "),
        (
            format!("{tables}policy = \"/root/policies/refused-bounds.o\""),
            "device 2 of 2: ",
        ),
    ] {
        fs::write(CONFIGURATION, &text).unwrap_or_else(|e| panic!("{e}"));
        for daemon in [&[][..], &["--daemon"]] {
            let said = refused(&[&["run", "--config", CONFIGURATION], daemon].concat());
            assert!(said.starts_with(words), "{text}: {said}");
            wait_until(&format!("nothing is left of {text}"), SOON, || traces() == before);
        }
    }
    other.stop();
    nothing_is_left();
}

#[test]
fn a_signal_stops_each_device_unless_it_is_in_use() {
    // The first device does not get the second one's number.
    let devices =
        Device::run_all("[[device]]\nbacking = \"mem:8M\"\n[[device]]\nbacking = \"mem:16M\"\nid = 0");
    let Ok([free, used]) = <[Device; 2]>::try_from(devices) else {
        panic!("expected two devices");
    };
    assert_eq!((free.id().as_str(), used.id().as_str()), ("1", "0"));
    assert_eq!(used.show()["size"], 16 << 20);
    let server = used.server();
    let user = OpenOptions::new()
        .read(true)
        .write(true)
        .open(used.path())
        .unwrap_or_else(|e| panic!("{e}"));
    run("kill", &["-TERM", &server]);
    wait_until("the free device is gone", SOON, || !free.path().exists());
    wait_until("the server says who uses the other", SOON, || {
        fs::read_to_string("/run/ublk-bpf/ublkb0.log")
            .unwrap_or_default()
            .contains("ublkb0 is in use")
    });
    assert_eq!(used.state(), "live");
    user.write_all_at(&[1; BLOCK], 0)
        .and_then(|()| user.sync_all())
        .unwrap_or_else(|e| panic!("{e}"));
    run("kill", &["-TERM", &server]);
    wait_until("the second signal ends the server", SOON, || !is_alive(&server));
    assert!(user.write_all_at(&[1; BLOCK], 4096).is_err() || user.sync_all().is_err());
    drop(user);
    nothing_is_left();
    drop((free, used));

    fs::write(CONFIGURATION, "[[device]]\n[[device]]\nbacking = \"null:1G\"")
        .unwrap_or_else(|e| panic!("{e}"));
    let (child, lines) = foreground(&["--config", CONFIGURATION], 2);
    assert_eq!(
        lines,
        "/dev/ublkb0 is ready: 1 GiB of memory, 1 queue of depth 128, policy passthrough\n\
         /dev/ublkb1 is ready: 1 GiB null device, 1 queue of depth 128, policy passthrough\n"
    );
    run("kill", &["-INT", &child.id().to_string()]);
    let output = child.wait_with_output().unwrap_or_else(|e| panic!("{e}"));
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    nothing_is_left();
}

#[test]
fn a_signal_during_the_start_stops_started_devices() {
    fs::write(CONFIGURATION, "[[device]]\nbacking = \"mem:8M\"\n".repeat(8))
        .unwrap_or_else(|e| panic!("{e}"));
    let server = Command::new("ublk-bpf")
        .args(["run", "--config", CONFIGURATION])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot run ublk-bpf: {e}"));
    wait_until("the first device is there", SOON, || {
        Path::new("/dev/ublkb0").exists()
    });
    run("kill", &["-TERM", &server.id().to_string()]);
    let output = server.wait_with_output().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "ublk-bpf: stopped by a signal before all 8 devices were ready\n"
    );
    nothing_is_left();
}

#[test]
fn a_failed_device_ends_alone_and_is_reported_at_exit() {
    let backings = [Backing::file("taken", 16), Backing::file("kept", 16)];
    fs::write(CONFIGURATION, on("recovery = \"reissue\"", &backings.each_ref()))
        .unwrap_or_else(|e| panic!("{e}"));
    let (child, lines) = foreground(&["--config", CONFIGURATION], 2);
    let devices: Vec<_> = lines.lines().map(Device::announced).collect();
    mark(&devices[0], 0xa5);
    // Removed, as by another program.
    let id = devices[0].id();
    let control = Control::open().unwrap_or_else(|e| panic!("{e}"));
    control
        .quiesce(
            id.parse::<DeviceId>().unwrap_or_else(|e| panic!("{e}")),
            Duration::from_secs(10),
        )
        .unwrap_or_else(|e| panic!("{e}"));
    wait_until("the server has left the device", SOON, || {
        devices[0].state() == "waiting"
    });
    Fio::verify(devices[1].path()).arg("size", "4m").run();
    let said = run("ublk-bpf", &["run", "--recover", &id, "--daemon"]);
    assert!(said.contains("is ready"), "{said}");
    assert!(is_marked(devices[0].path(), 0xa5));
    assert_eq!(devices[1].server(), child.id().to_string());

    devices.into_iter().for_each(Device::stop);
    let output = child.wait_with_output().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert!(
        lines[0].contains(&format!("ublkb{id}: the device was taken from this server")),
        "{said}"
    );
    assert_eq!(lines[1], "ublk-bpf: 1 of 2 devices failed");
    nothing_is_left();
}
