//! The server's process: threads that panic, logs that cannot be written, mounts that others remove, memory that may not
//! be locked.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;
use ublk_bpf_guest::device::CONFIGURATION;
use ublk_bpf_guest::leftover::{SOON, nothing_is_left};
use ublk_bpf_guest::{
    Backing, Device, FileSystem, Fio, Mapper, foreground, read, run, try_run, wait_until, write,
};

/// The thread named in the environment panics when this file appears.
const VICTIM: &str = "UBLK_BPF_TEST_PANIC";
const TRIGGER: &str = "/run/ublk-bpf/panic-now";

/// Starts two devices in one process, one of whose threads is to panic.
fn start_with_victim(thread: &str, first: &str, second: &str) -> [Device; 2] {
    let text = format!("[[device]]\n{first}\n[[device]]\n{second}\n");
    fs::write(CONFIGURATION, text).unwrap_or_else(|e| panic!("cannot write {CONFIGURATION}: {e}"));
    let output = Command::new("ublk-bpf")
        .args(["run", "--daemon", "--config", CONFIGURATION])
        .env(VICTIM, thread)
        .output()
        .unwrap_or_else(|e| panic!("cannot run ublk-bpf: {e}"));
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let devices: Vec<Device> = lines.lines().map(Device::announced).collect();
    let said = String::from_utf8_lossy(&output.stderr);
    devices
        .try_into()
        .unwrap_or_else(|found| panic!("not two devices but {found:?}: {said}"))
}

/// Reads a block of the device in the background, past the page cache.
fn poke(device: &Device) -> Child {
    let from = format!("if={}", device.path_str());
    Command::new("dd")
        .args([&from, "of=/dev/null", "bs=4096", "count=1", "iflag=direct"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot run dd: {e}"))
}

fn verify_a_little(device: &Device) {
    Fio::verify(device.path()).arg("size", "4m").run();
}

/// A thread of the first device panics. The second one serves on, and of the first one there is what its options promise.
fn panics_alone(thread: &str, recoverable: bool) {
    let backings = [Backing::file("first", 16), Backing::file("second", 16)];
    let fast = Backing::brd(4);
    let recovery = if recoverable { "recovery = \"reissue\"" } else { "" };
    let [first, second] = start_with_victim(
        thread,
        &format!(
            "backing = \"{}\"\ncache = \"{}\"\npolicy = \"lru\"\n{recovery}",
            backings[0].spec(),
            fast.spec()
        ),
        &format!("backing = \"{}\"", backings[1].spec()),
    );
    verify_a_little(&first);
    let server = second.server();
    let load = Fio::verify(second.path()).arg("size", "8m").start();
    write(TRIGGER, "");
    let mut reader = poke(&first);
    if recoverable {
        wait_until("the device waits", SOON, || first.state() == "waiting");
        assert!(first.pins().exists());
        fs::remove_file(TRIGGER).unwrap_or_else(|e| panic!("{e}"));
        run("ublk-bpf", &["run", "--daemon", "--recover", &first.id()]);
        let status = reader.wait().unwrap_or_else(|e| panic!("{e}"));
        assert!(status.success(), "a request was lost: {status}");
        verify_a_little(&first);
        first.stop();
    } else {
        let record = format!("/run/ublk-bpf/ublkb{}.json", first.id());
        wait_until("the device is gone", SOON, || !Path::new(&record).exists());
        let _ = reader.wait();
        first.assert_gone();
        fs::remove_file(TRIGGER).unwrap_or_else(|e| panic!("{e}"));
        let log = read(format!("/run/ublk-bpf/ublkb{}.log", first.id()));
        assert!(log.contains("panicked"), "{log}");
    }
    load.finish();
    assert_eq!(second.server(), server);
    verify_a_little(&second);
    second.stop();
    // The log of a device that failed stays until the next one of its number ends in good order.
    let _ = fs::remove_file("/run/ublk-bpf/ublkb0.log");
    nothing_is_left();
}

#[test]
fn a_queue_thread_that_panics_ends_its_device_alone() {
    panics_alone("ublkb0-q0", false);
}

#[test]
fn a_queue_thread_that_panics_leaves_a_recoverable_device_waiting() {
    panics_alone("ublkb0-q0", true);
}

#[test]
fn a_device_thread_that_panics_ends_its_device_alone() {
    panics_alone("device-1", false);
}

#[test]
fn a_device_thread_that_panics_leaves_a_recoverable_device_waiting() {
    panics_alone("device-1", true);
}

#[test]
fn a_mover_that_panics_leaves_its_device_without_a_cache() {
    let backings = [Backing::file("first", 16), Backing::file("second", 16)];
    let fast = Backing::brd(4);
    let [first, second] = start_with_victim(
        "ublkb0-mover",
        &format!(
            "backing = \"{}\"\ncache = \"{}\"\npolicy = \"lru\"",
            backings[0].spec(),
            fast.spec()
        ),
        &format!("backing = \"{}\"", backings[1].spec()),
    );
    verify_a_little(&first);
    write(TRIGGER, "");
    wait_until("the cache is detached", SOON, || {
        first.show()["cache"]["detached"] != Value::Null
    });
    fs::remove_file(TRIGGER).unwrap_or_else(|e| panic!("{e}"));
    for device in [&first, &second] {
        verify_a_little(device);
        assert_eq!(device.state(), "live");
    }
    first.stop();
    second.stop();
    nothing_is_left();
}

#[test]
fn a_main_thread_that_panics_serves_on() {
    let backings = [Backing::file("first", 16), Backing::file("second", 16)];
    let on = |backing: &Backing| format!("backing = \"{}\"", backing.spec());
    let [first, second] = start_with_victim("main", &on(&backings[0]), &on(&backings[1]));
    let server = first.server();
    write(TRIGGER, "");
    run("kill", &["-TERM", &server]);
    let log = format!("/run/ublk-bpf/ublkb{}.log", first.id());
    wait_until("the main thread has panicked", SOON, || {
        read(&log).contains("thread main panicked")
    });
    fs::remove_file(TRIGGER).unwrap_or_else(|e| panic!("{e}"));
    for device in [&first, &second] {
        verify_a_little(device);
        assert_eq!(device.server(), server);
    }
    run("kill", &["-TERM", &server]);
    nothing_is_left();
}

/// A cache fails under the server, which has something to say then. Returns once it has said it, or would have.
fn fail_the_cache(device: &Device, cache: &Mapper) {
    let read_all = || {
        let read = Fio::new(device.path()).arg("rw", "read").arg("bs", "64k");
        read.arg("size", "2m").run()
    };
    read_all();
    wait_until("blocks are in the cache", SOON, || {
        read_all();
        device.counter("hits") > 0
    });
    cache.fail();
    read_all();
    // It is looked five times a second whether the cache has failed.
    sleep(Duration::from_secs(1));
    read_all();
    assert!(
        Path::new("/proc").join(device.server()).exists(),
        "the server died"
    );
    assert_eq!(device.state(), "live");
}

#[test]
fn a_full_file_system_of_the_log_fails_no_device() {
    fs::create_dir_all("/run/ublk-bpf").unwrap_or_else(|e| panic!("{e}"));
    run(
        "mount",
        &["-t", "tmpfs", "-o", "size=256k,mode=755", "none", "/run/ublk-bpf"],
    );
    let (backing, fast) = (Backing::file("slow", 16), Backing::brd(4));
    let cache = Mapper::linear("cache", fast.spec());
    let path = cache.path().display().to_string();
    let device = Device::on(&backing, &["--cache", &path, "--policy", "lru"]);
    let filler = "/run/ublk-bpf/filler";
    let mut file = File::create(filler).unwrap_or_else(|e| panic!("{e}"));
    while file.write_all(&[0; 512]).is_ok() {}
    drop(file);
    fail_the_cache(&device, &cache);
    fs::remove_file(filler).unwrap_or_else(|e| panic!("{e}"));
    device.stop();
    nothing_is_left();
    // The server closes its log with its process, which ends a moment after its device.
    wait_until("the log's file system is unmounted", SOON, || {
        try_run("umount", &["/run/ublk-bpf"]).status.success()
    });
}

#[test]
fn a_reader_of_the_log_that_leaves_fails_no_device() {
    let (backing, fast) = (Backing::file("slow", 16), Backing::brd(4));
    let cache = Mapper::linear("cache", fast.spec());
    let path = cache.path().display().to_string();
    let args = ["--backing", backing.spec(), "--cache", &path, "--policy", "lru"];
    let (mut server, line) = foreground(&args, 1);
    let device = Device::announced(line.trim());
    drop(server.stderr.take());
    drop(server.stdout.take());
    fail_the_cache(&device, &cache);
    device.stop();
    let status = server.wait().unwrap_or_else(|e| panic!("{e}"));
    assert!(status.success(), "{status}");
    nothing_is_left();
}

#[test]
fn a_reader_of_the_log_that_stalls_fails_no_device() {
    let (_reader, writer) = io::pipe().unwrap_or_else(|e| panic!("{e}"));
    let clone = || writer.try_clone().unwrap_or_else(|e| panic!("{e}"));
    let mut yes = Command::new("yes")
        .stdout(clone())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot run yes: {e}"));
    let stat = format!("/proc/{}/stat", yes.id());
    wait_until("the pipe is full", SOON, || read(&stat).contains(") S "));
    let mut server = Command::new("ublk-bpf")
        .args(["run", "--backing", "mem:16M"])
        .stdout(Stdio::piped())
        .stderr(clone())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot run ublk-bpf: {e}"));
    let stdout = server.stdout.take().unwrap_or_else(|| panic!("it is a pipe"));
    let mut line = String::new();
    BufReader::new(stdout)
        .read_line(&mut line)
        .unwrap_or_else(|e| panic!("{e}"));
    let device = Device::announced(line.trim());
    let user = File::open(device.path()).unwrap_or_else(|e| panic!("{e}"));
    // It has a line to say now: the device is in use.
    run("kill", &["-INT", &server.id().to_string()]);
    sleep(Duration::from_secs(1));
    verify_a_little(&device);
    drop(user);
    run("ublk-bpf", &["stop", &device.id()]);
    wait_until("the server has ended", SOON, || {
        matches!(server.try_wait(), Ok(Some(_)))
    });
    let _ = yes.kill();
    let _ = yes.wait();
    nothing_is_left();
}

/// Whether no mount anywhere has the block device.
fn is_free(path: &str) -> bool {
    let exclusive = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(path);
    exclusive.is_ok()
}

/// Where something is mounted in the namespace of a process.
fn mount_points(process: &str) -> BTreeSet<String> {
    let table = read(format!("/proc/{process}/mountinfo"));
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points.map(str::to_owned).collect()
}

#[test]
fn a_file_system_that_its_user_unmounts_is_not_in_use_by_the_server() {
    let stick = Backing::brd(16);
    let stick = stick.spec();
    FileSystem::Ext4.make(stick);
    for (under, hidden) in [
        ("/run/media/stick", true),
        ("/dev/stick", false),
        ("/tmp/stick", false),
    ] {
        fs::create_dir_all(under).unwrap_or_else(|e| panic!("{e}"));
        run("mount", &["-t", "ext4", stick, under]);
        if hidden {
            run("mount", &["-t", "tmpfs", "none", "/run/media"]);
        }
        // Its working directory is where a user was as he typed the command.
        let mut server = Command::new("ublk-bpf")
            .args(["run", "--backing", "mem:16M"])
            .current_dir(if hidden { "/" } else { under })
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run ublk-bpf: {e}"));
        let stdout = server.stdout.take().unwrap_or_else(|| panic!("it is a pipe"));
        let mut line = String::new();
        BufReader::new(stdout)
            .read_line(&mut line)
            .unwrap_or_else(|e| panic!("{e}"));
        let device = Device::announced(line.trim());
        let used = [
            "/",
            "/dev",
            "/proc",
            "/run",
            "/sys",
            "/sys/fs/bpf",
            "/sys/fs/cgroup",
        ]
        .map(str::to_owned);
        let more: Vec<String> = mount_points(&server.id().to_string())
            .difference(&BTreeSet::from(used))
            .cloned()
            .collect();
        assert!(
            more.is_empty(),
            "the server has mounts that it does not need: {more:?}"
        );
        if hidden {
            run("umount", &["/run/media"]);
        }
        run("umount", &[under]);
        assert!(is_free(stick), "{under} is in use after its umount");
        // One that is mounted while the server lives does not come to it.
        run("mount", &["-t", "ext4", stick, under]);
        run("umount", &[under]);
        assert!(is_free(stick), "{under} is in use after its second umount");
        fs::remove_dir(under).unwrap_or_else(|e| panic!("{e}"));
        device.stop();
        let _ = server.wait();
    }
    nothing_is_left();
}

/// A server that may lock `limit` bytes, without the capabilities by which root may lock more.
fn confined(limit: u64, args: &[&str]) -> Child {
    const CAP_IPC_LOCK: libc::c_ulong = 14;
    const CAP_SYS_RESOURCE: libc::c_ulong = 24;
    let mut command = Command::new("ublk-bpf");
    command.arg("run").args(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let confine = move || {
        let limit = libc::rlimit {
            rlim_cur: limit,
            rlim_max: limit,
        };
        // SAFETY: the limit is readable memory that lives over the call.
        let mut result = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
        for capability in [CAP_IPC_LOCK, CAP_SYS_RESOURCE] {
            // SAFETY: the option takes a number, not a pointer.
            result |= unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        }
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    // SAFETY: between fork and exec, system calls alone are made.
    unsafe { command.pre_exec(confine) };
    command
        .spawn()
        .unwrap_or_else(|e| panic!("cannot run ublk-bpf: {e}"))
}

#[test]
fn a_server_that_may_lock_little_serves_and_says_what_is_locked() {
    let (backing, fast) = (Backing::file("slow", 64), Backing::brd(16));
    for limit in [0, 8 << 20, 64 << 20] {
        let args = [
            "--backing",
            backing.spec(),
            "--cache",
            fast.spec(),
            "--policy",
            "lru",
            "--queues",
            "4",
        ];
        let mut server = confined(limit, &args);
        let mut line = String::new();
        let stdout = server.stdout.take().unwrap_or_else(|| panic!("it is a pipe"));
        BufReader::new(stdout)
            .read_line(&mut line)
            .unwrap_or_else(|e| panic!("{e}"));
        if line.is_empty() {
            let mut said = String::new();
            let _ = server
                .stderr
                .take()
                .map(|mut stderr| stderr.read_to_string(&mut said));
            panic!("it did not start under a limit of {limit}: {said}");
        }
        let device = Device::announced(line.trim());
        Fio::verify(device.path()).arg("size", "16m").run();
        device.stop();
        let output = server.wait_with_output().unwrap_or_else(|e| panic!("{e}"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{}: {said}", output.status);
        let memlock: Vec<&str> = said.lines().filter(|line| line.contains("MEMLOCK")).collect();
        assert_eq!(memlock.len(), 1, "{said}");
        assert!(memlock[0].contains(&format!("is {} KiB", limit >> 10)), "{said}");
        assert!(said.contains("oom_score_adj"), "{said}");
    }
    nothing_is_left();
}

#[test]
fn a_server_is_spared_when_memory_runs_out() {
    let device = Device::run(&["--backing", "mem:16M"]);
    assert_eq!(read(format!("/proc/{}/oom_score_adj", device.server())), "-1000");
    device.stop();
}

#[test]
fn swap_on_memory_is_warned_of() {
    let device = Device::run(&["--backing", "mem:16M"]);
    assert!(device.show()["warnings"].as_array().is_some_and(Vec::is_empty));
    run("mkswap", &[device.path_str()]);
    run("swapon", &[device.path_str()]);
    let warned = try_run("ublk-bpf", &["show", &device.id()]);
    let warnings = device.show()["warnings"].clone();
    run("swapoff", &[device.path_str()]);
    let text = String::from_utf8_lossy(&warned.stdout).into_owned();
    assert!(text.contains("swapoff"), "{text}");
    assert_eq!(warnings.as_array().map(Vec::len), Some(1), "{warnings}");
    device.stop();
}
