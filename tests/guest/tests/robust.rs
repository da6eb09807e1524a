//! Failures around a device: servers killed at every stage, backings that change, fill up or are write-protected,
//! unprivileged users, and invalid policy objects.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use ublk_bpf::control::{Control, DeviceId};
use ublk_bpf_guest::leftover::{SOON, nothing_is_left, refused, refused_by, traces};
use ublk_bpf_guest::mapper::Mapper;
use ublk_bpf_guest::{Backing, Device, Fio, open, read, run, wait_until, write};

const SLOW: &str = "/root/policies/slow.o";
const OTHER: &str = "/root/policies/other.o";

/// Kills `ublk-bpf` as one of its threads enters the `when`th of these system calls.
fn kill_at(call: &str, path: Option<&str>, when: u32, args: &[&str]) {
    let inject = format!("inject={call}:signal=SIGKILL:when={when}");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &inject]);
    if let Some(path) = path {
        strace.args(["-P", path]);
    }
    let mut strace = strace
        .arg("ublk-bpf")
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot run strace: {e}"));
    wait_until(&format!("{call} {when} kills {args:?}"), SOON, || {
        matches!(strace.try_wait(), Ok(Some(_)))
    });
}

/// The next server removes what a killed one left behind, and leaves nothing itself.
fn next_server_cleans_up(after: &str) {
    let next = Device::run(&["--backing", "mem:8M"]);
    assert_eq!(
        next.id(),
        "0",
        "after {after}: the id was not free: {:?}",
        traces()
    );
    next.stop();
    wait_until(&format!("nothing is left after {after}"), SOON, || {
        traces().is_empty()
    });
}

#[test]
fn a_server_killed_between_device_and_lock_is_cleaned_up() {
    // It opens the lock file once: before or after the device is made, this is the gap.
    kill_at(
        "openat",
        Some("/run/ublk-bpf/ublkb0.lock"),
        1,
        &["run", "--backing", "mem:8M"],
    );
    next_server_cleans_up("a kill at the lock");
}

#[test]
fn a_server_killed_at_any_start_command_is_cleaned_up() {
    // Commands to the kernel's ublk go through this call: GET_FEATURES, GET_DEV_INFO, ADD_DEV, SET_PARAMS, START_DEV.
    for when in 1..=5 {
        kill_at("io_uring_enter", None, when, &["run", "--backing", "mem:8M"]);
        next_server_cleans_up(&format!("a kill at io_uring_enter {when}"));
    }
}

#[test]
fn a_server_killed_while_starting_or_stopping_is_cleaned_up() {
    let start = Instant::now();
    let device = Device::run(&["--backing", "mem:8M"]);
    let time = start.elapsed();
    device.stop();
    for step in 0..6_u32 {
        let mut server = Command::new("ublk-bpf")
            .args(["run", "--backing", "mem:8M", "--policy", "sparse"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run ublk-bpf: {e}"));
        sleep(time * step / 5);
        if step % 2 == 1 {
            run("kill", &["-TERM", &server.id().to_string()]);
            sleep(Duration::from_millis(7 * u64::from(step)));
        }
        // It may have ended by the other signal.
        let _ = server.kill();
        let _ = server.wait();
        next_server_cleans_up(&format!("kill {step}"));
    }
    // The log of a background server is removed too.
    kill_at("bpf", None, 3, &["run", "--daemon", "--backing", "mem:8M"]);
    next_server_cleans_up("a kill in the background");
}

/// A read of the device that its backing does not answer, in another thread.
fn held_read(device: &Device, below: &Mapper) -> thread::JoinHandle<std::io::Result<()>> {
    below.hold();
    let disk = File::open(device.path()).unwrap_or_else(|e| panic!("{e}"));
    let reader = thread::spawn(move || disk.read_exact_at(&mut [0; 4096], 4 << 20));
    wait_until("the read is in flight", SOON, || {
        let inflight = read(device.sysfs("inflight"));
        inflight.split_whitespace().next() == Some("1")
    });
    reader
}

#[test]
fn a_server_killed_while_it_removes_a_disk_with_requests_in_flight_ends() {
    let disk = Backing::null_blk("held", 8);
    let below = Mapper::linear("below", disk.spec());
    let device = Device::run(&["--backing", &below.path().display().to_string()]);
    let server = device.server();
    let reader = held_read(&device, &below);
    // The first signal finds it in use.
    for _ in 0..2 {
        run("kill", &["-TERM", &server]);
        sleep(Duration::from_millis(300));
    }
    run("kill", &["-KILL", &server]);
    below.release();
    wait_until("the server has ended", SOON, || {
        !Path::new(&format!("/proc/{server}")).exists()
    });
    // Answered or failed, but not left waiting.
    let _ = reader.join().expect("a read does not panic");
    next_server_cleans_up("a kill in a stop");
    drop(device);
    nothing_is_left();
}

#[test]
fn a_server_killed_while_it_changes_a_queue_with_requests_in_flight_ends() {
    let disk = Backing::null_blk("held", 8);
    let below = Mapper::linear("below", disk.spec());
    let backing = below.path().display().to_string();
    let device = Device::run(&["--backing", &backing, "--recovery", "reissue"]);
    let server = device.server();
    let reader = held_read(&device, &below);
    let set = Command::new("ublk-bpf")
        .args(["set", &device.id(), "scheduler=mq-deadline"])
        .stderr(Stdio::null())
        .spawn();
    let mut set = set.unwrap_or_else(|e| panic!("cannot run ublk-bpf: {e}"));
    sleep(Duration::from_millis(300));
    run("kill", &["-KILL", &server]);
    below.release();
    wait_until("the device waits for a server", SOON, || {
        device.state() == "waiting"
    });
    device.recover();
    reader
        .join()
        .expect("a read does not panic")
        .unwrap_or_else(|e| panic!("the read is reissued: {e}"));
    let _ = set.wait();
    Fio::verify(device.path()).arg("size", "4m").run();
    device.stop();
    nothing_is_left();
}

#[test]
fn a_device_is_not_recovered_on_another_backing() {
    let backing = Backing::file("same", 16);
    let path = backing.path().unwrap_or_else(|| panic!("a file has a path"));
    let device = Device::on(&backing, &["--recovery", "reissue"]);
    open(device.path())
        .write_all_at(&[0xa5; 4096], 8 << 20)
        .unwrap_or_else(|e| panic!("{e}"));
    run("sync", &[]);
    device.kill_server("waiting");
    let recover = ["run", "--daemon", "--recover", &device.id()];

    let kept = path.with_extension("kept");
    fs::rename(path, &kept).unwrap_or_else(|e| panic!("{e}"));
    assert!(refused(&recover).contains("does not exist"));
    File::create(path)
        .and_then(|file| file.set_len(16 << 20))
        .unwrap_or_else(|e| panic!("{e}"));
    let said = refused(&recover);
    assert!(said.contains("has changed since"), "{said}");
    fs::rename(&kept, path).unwrap_or_else(|e| panic!("{e}"));
    open(path).set_len(4 << 20).unwrap_or_else(|e| panic!("{e}"));
    let said = refused(&recover);
    assert!(said.contains("4M") && said.contains("16M"), "{said}");
    assert_eq!(device.state(), "waiting");

    // A larger backing is sufficient.
    open(path).set_len(32 << 20).unwrap_or_else(|e| panic!("{e}"));
    open(path)
        .write_all_at(&[0xa5; 4096], 8 << 20)
        .unwrap_or_else(|e| panic!("{e}"));
    device.recover();
    assert_eq!(device.show()["size"], 16 << 20);
    let mut found = [0; 4096];
    open(device.path())
        .read_exact_at(&mut found, 8 << 20)
        .unwrap_or_else(|e| panic!("{e}"));
    assert!(found.iter().all(|&byte| byte == 0xa5));
    device.stop();
    nothing_is_left();
}

#[test]
fn a_device_is_recovered_without_its_policys_object() {
    let backing = Backing::file("objectless", 16);
    fs::copy(SLOW, "/tmp/gone.o").unwrap_or_else(|e| panic!("{e}"));
    let device = Device::on(&backing, &["--recovery", "reissue", "--policy", "/tmp/gone.o"]);
    fs::remove_file("/tmp/gone.o").unwrap_or_else(|e| panic!("{e}"));
    for pins in [true, false] {
        device.kill_server("waiting");
        if !pins {
            fs::remove_file(device.pins().join("link")).unwrap_or_else(|e| panic!("{e}"));
        }
        device.recover();
        let policy = device.show()["policy"].clone();
        assert_eq!(policy, if pins { "/tmp/gone.o" } else { "passthrough" });
        Fio::verify(device.path()).arg("size", "4m").run();
    }
    device.stop();
    nothing_is_left();
}

#[test]
fn a_quiesced_device_is_left_for_another_server() {
    let backing = Backing::file("quiesced", 16);
    let device = Device::on(&backing, &["--queues", "2", "--recovery", "reissue"]);
    let id = device.id().parse::<DeviceId>().unwrap_or_else(|e| panic!("{e}"));
    let file = open(device.path());
    file.write_all_at(&[0xa5; 8192], 4096)
        .and_then(|()| file.sync_all())
        .unwrap_or_else(|e| panic!("{e}"));
    // Without load: in batch mode the driver fails requests issued from here until a new server is there.
    let control = Control::open().unwrap_or_else(|e| panic!("{e}"));
    control
        .quiesce(id, Duration::from_secs(10))
        .unwrap_or_else(|e| panic!("{e}"));
    wait_until("the server has left the device", SOON, || {
        device.state() == "waiting"
    });
    let said = run("ublk-bpf", &["run", "--recover", &device.id(), "--daemon"]);
    assert!(said.contains("is ready"), "{said}");
    let mut found = [0; 8192];
    ublk_bpf_guest::backing::drop_caches();
    file.read_exact_at(&mut found, 4096)
        .unwrap_or_else(|e| panic!("{e}"));
    assert!(found.iter().all(|&byte| byte == 0xa5));
    drop(file);
    Fio::verify(device.path()).arg("size", "8m").run();
    device.stop();
    nothing_is_left();
}

#[test]
fn a_second_signal_stops_a_device_in_use() {
    let device = Device::run(&["--backing", "mem:8M"]);
    let log = format!("/run/ublk-bpf/ublkb{}.log", device.id());
    let user = open(device.path());
    let server = device.server();
    run("kill", &["-TERM", &server]);
    wait_until("the server says that it is in use", SOON, || {
        fs::read_to_string(&log).unwrap_or_default().contains("is in use")
    });
    user.write_all_at(&[1; 4096], 0)
        .and_then(|()| user.sync_all())
        .unwrap_or_else(|e| panic!("{e}"));
    run("kill", &["-TERM", &server]);
    wait_until("the server ends", SOON, || {
        !Path::new(&format!("/proc/{server}")).exists()
    });
    assert!(user.write_all_at(&[1; 4096], 4096).is_err() || user.sync_all().is_err());
    drop(user);
    nothing_is_left();
    drop(device);
}

#[test]
fn a_policy_that_is_always_slow_is_only_slow() {
    for backing in [Backing::file("slow", 32), Backing::brd(32)] {
        let device = Device::on(&backing, &["--policy", SLOW, "--queues", "2"]);
        Fio::verify(device.path())
            .arg("size", "32m")
            .arg("io_size", "16m")
            .arg("iodepth", "64")
            .run();
        let stats = device.stats();
        assert_eq!(stats["server"]["passthrough"], 0, "{stats:#}");
        assert_eq!(stats["server"]["failed"], 0, "{stats:#}");
        assert!(device.counter("user_copies") >= device.counter("slow") / 2);
        device.stop();
    }
}

#[test]
fn blocks_of_4_kib_are_served_by_every_path() {
    let disk = Backing::null_blk_with("blocks", &[("size", "32"), ("blocksize", "4096")]);
    for policy in ["passthrough", SLOW] {
        let device = Device::on(&disk, &["--policy", policy]);
        assert_eq!(read(device.sysfs("queue/logical_block_size")), "4096");
        Fio::new(device.path())
            .arg("rw", "randrw")
            .arg("bsrange", "4k-256k")
            .arg("verify", "crc32c")
            .arg("size", "16m")
            .arg("iodepth", "16")
            .run();
        assert_eq!(device.counter("failed"), 0);
        device.stop();
    }
}

#[test]
fn write_back_throttling_matches_the_backing_device() {
    let _disk = Backing::null_blk_with("throttled", &[("size", "32")]);
    let throttled = |backing: &str| {
        let device = Device::run(&["--backing", backing]);
        let latency = read(device.sysfs("queue/wbt_lat_usec"));
        device.stop();
        latency
    };
    for latency in ["3000", "0"] {
        write("/sys/block/throttled/queue/wbt_lat_usec", latency);
        assert_eq!(throttled("/dev/throttled"), latency);
    }
    // Memory does not throttle.
    let disk = Backing::brd(8);
    assert_eq!(throttled(disk.spec()), "0");
    assert_eq!(throttled("null:8M"), "0");
}

#[test]
fn a_write_protected_disk_makes_a_read_only_device() {
    let disk = Backing::brd(8);
    open(Path::new(disk.spec()))
        .write_all_at(&[0x5a; 4096], 4096)
        .unwrap_or_else(|e| panic!("{e}"));
    run("blockdev", &["--setro", disk.spec()]);
    let device = Device::on(&disk, &[]);
    assert_eq!(read(device.sysfs("ro")), "1");
    assert_eq!(device.show()["state"], "live");
    let file = File::open(device.path()).unwrap_or_else(|e| panic!("{e}"));
    let mut found = [0; 4096];
    file.read_exact_at(&mut found, 4096)
        .unwrap_or_else(|e| panic!("{e}"));
    assert!(found.iter().all(|&byte| byte == 0x5a));
    drop(file);
    assert!(
        OpenOptions::new()
            .write(true)
            .open(device.path())
            .and_then(|file| file.write_all_at(&[1; 4096], 0).and_then(|()| file.sync_all()))
            .is_err()
    );
    device.stop();
    run("blockdev", &["--setrw", disk.spec()]);
}

#[test]
fn a_full_file_system_fails_writes_until_it_has_space() {
    run("mkdir", &["-p", "/mnt/full"]);
    run("mount", &["-t", "tmpfs", "-o", "size=12m", "tmpfs", "/mnt/full"]);
    File::create("/mnt/full/disk.img")
        .and_then(|file| file.set_len(16 << 20))
        .unwrap_or_else(|e| panic!("{e}"));
    fs::write("/mnt/full/filler", vec![1; 8 << 20]).unwrap_or_else(|e| panic!("{e}"));
    for policy in ["passthrough", SLOW] {
        let device = Device::run(&["--backing", "/mnt/full/disk.img", "--policy", policy]);
        let fill = || {
            let file = OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_DIRECT)
                .open(device.path())?;
            (0..8).try_for_each(|mib| file.write_all_at(&vec![7; 1 << 20], mib << 20))
        };
        let error = fill().expect_err("there is no room");
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
        fs::remove_file("/mnt/full/filler").unwrap_or_else(|e| panic!("{e}"));
        fill().unwrap_or_else(|e| panic!("{e}"));
        device.stop();
        run(
            "fallocate",
            &["-p", "-o", "0", "-l", "8388608", "/mnt/full/disk.img"],
        );
        fs::write("/mnt/full/filler", vec![1; 8 << 20]).unwrap_or_else(|e| panic!("{e}"));
    }
    run("umount", &["/mnt/full"]);
}

#[test]
fn unprivileged_users_are_refused_in_one_line() {
    // The server of the test before this one may have a moment to live.
    nothing_is_left();
    let before = traces();
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", "ublk-bpf"];
    for args in [
        &["run", "--backing", "mem:8M"][..],
        &["run", "--backing", "mem:8M", "--daemon"],
        &["stop", "--all"],
        &["features"],
    ] {
        let said = refused_by("setpriv", &[&nobody[..], args].concat());
        assert!(said.contains("root"), "{args:?}: {said}");
        assert_eq!(traces(), before, "{args:?}");
    }
    let device = Device::run(&["--backing", "mem:8M"]);
    let id = device.id();
    for args in [
        &["stop", &id][..],
        &["policy", "swap", &id, "sparse"],
        &["run", "--recover", &id],
    ] {
        let said = refused_by("setpriv", &[&nobody[..], args].concat());
        assert!(
            said.contains("root") || said.contains("ermission denied"),
            "{args:?}: {said}"
        );
        assert_eq!(device.state(), "live");
    }
    device.stop();
}

#[test]
fn an_object_that_is_not_a_policy_is_refused_in_one_line() {
    let before = traces();
    for daemon in [&[][..], &["--daemon"]] {
        let said = refused(&[&["run", "--backing", "mem:8M", "--policy", OTHER], daemon].concat());
        assert!(said.contains("no function `policy` in section"), "{said}");
        assert_eq!(traces(), before);
    }
    let device = Device::run(&["--backing", "mem:8M", "--policy", "sparse"]);
    let said = refused(&["policy", "swap", &device.id(), OTHER]);
    assert!(said.contains("no function `policy` in section"), "{said}");
    assert_eq!(device.show()["policy"], "sparse");
    device.stop();
}
