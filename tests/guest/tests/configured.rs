//! `run --config` as a supervisor runs it, again and again, whatever is there already; and `reload`.

use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use ublk_bpf_guest::device::CONFIGURATION;
use ublk_bpf_guest::leftover::{SOON, nothing_is_left, refused};
use ublk_bpf_guest::{
    Backing, Device, FileSystem, Fio, foreground, open, run, run_json, try_run, wait_until, write,
};

/// A named device on this backing.
fn table(name: &str, backing: &str) -> String {
    format!("[[device]]\nname = \"{name}\"\nbacking = \"{backing}\"\n")
}

/// What a start in the background prints.
fn start(configuration: &str) -> Vec<String> {
    write(CONFIGURATION, configuration);
    let said = run("ublk-bpf", &["run", "--daemon", "--config", CONFIGURATION]);
    said.lines().map(str::to_owned).collect()
}

/// What a start says of a device that it leaves alone.
fn left_alone(device: &Device) -> String {
    let (path, server) = (device.path_str(), device.server());
    format!("{path} is served by process {server} and left as it is")
}

fn devices() -> usize {
    let list = run_json("ublk-bpf", &["list", "--json"]);
    list.as_array().map_or(0, Vec::len)
}

#[test]
fn a_start_makes_what_is_missing_takes_back_what_waits_and_leaves_the_rest() {
    let (first, second) = (Backing::file("first", 16), Backing::file("second", 16));
    let shared = "recovery = \"reissue\"\n";
    let one = format!("{shared}{}", table("one", first.spec()));
    let both = format!("{one}{}", table("two", second.spec()));
    let [line] = &start(&one)[..] else {
        panic!("one line")
    };
    let one = Device::announced(line);

    let [left, line] = &start(&both)[..] else {
        panic!("two lines")
    };
    assert_eq!(*left, left_alone(&one));
    let two = Device::announced(line);
    assert_ne!(one.server(), two.server());
    assert_eq!(start(&both), [left_alone(&one), left_alone(&two)]);
    assert_eq!(devices(), 2);

    // A service manager's service would have no process.
    let output = Command::new("ublk-bpf")
        .args(["run", "--config", CONFIGURATION])
        .env("NOTIFY_SOCKET", "/tmp/none")
        .output()
        .unwrap_or_else(|e| panic!("{e}"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("every device of the configuration is served"),
        "{said}"
    );

    one.kill_server("waiting");
    let [left, line] = &start(&both)[..] else {
        panic!("two lines")
    };
    assert_eq!(*left, left_alone(&two));
    assert!(
        line.starts_with(&format!("{} (one) is ready", one.path_str())),
        "{line}"
    );
    assert_eq!((one.state(), devices()), ("live".to_owned(), 2));
    one.stop();
    two.stop();
    nothing_is_left();
}

#[test]
fn a_device_that_was_made_otherwise_is_not_taken_for_the_described_one() {
    let (first, second) = (Backing::file("otherwise", 16), Backing::file("more", 16));
    let [line] = &start(&table("one", first.spec()))[..] else {
        panic!("one line")
    };
    let device = Device::announced(line);
    for (tables, words) in [
        (
            format!("{}read-only = true\n", table("one", first.spec())),
            "and was made writable, not read-only",
        ),
        (
            table("another", first.spec()),
            "and was made with the name one, not with the name another",
        ),
    ] {
        write(CONFIGURATION, &format!("{}{tables}", table("two", second.spec())));
        let said = refused(&["run", "--config", CONFIGURATION]);
        let served = format!("ublkb{} is served by process {} ", device.id(), device.server());
        assert!(said.contains(&served) && said.contains(words), "{said}");
    }
    assert_eq!(devices(), 1);
    // What can change does not count, and the name of memory says which it is.
    let memory = table("memory", "mem:8M");
    let policy = format!("{}policy = \"sparse\"\n{memory}", table("one", first.spec()));
    let [left, line] = &start(&policy)[..] else {
        panic!("two lines")
    };
    assert_eq!(*left, left_alone(&device));
    let memory = Device::announced(line);
    assert_eq!(start(&policy), [left_alone(&device), left_alone(&memory)]);
    memory.stop();
    device.stop();
    nothing_is_left();
}

/// A reload that does not do all; what it printed, and its error.
fn reloaded_in_part() -> (String, String) {
    let output = try_run("ublk-bpf", &["reload"]);
    let [said, error] =
        [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert_eq!(output.status.code(), Some(1), "{said}{error}");
    (said, error)
}

fn reload() -> String {
    run("ublk-bpf", &["reload"])
}

fn ready(id: u32, name: &str) -> String {
    format!("/dev/ublkb{id} ({name}) is ready: ")
}

#[test]
fn a_reload_makes_the_devices_what_the_file_says() {
    let (first, second) = (Backing::file("first", 32), Backing::file("second", 16));
    let shared = "recovery = \"reissue\"\n";
    let one = format!("{shared}{}", table("one", first.spec()));
    let lines = start(&format!("{one}{}", table("two", second.spec())));
    let [one_device, two] = [0, 1].map(|at: usize| Device::announced(&lines[at]));
    assert_eq!(reload(), format!("nothing is to change by {CONFIGURATION}\n"));

    // On a file system that was mounted after the server had left its mounts.
    let disk = Backing::null_blk("late", 64);
    FileSystem::Ext4.make(disk.spec());
    let mount = FileSystem::Ext4.mount(disk.spec(), "noatime");
    let late = mount.make_file("three.img", 16);
    let mut job = Fio::verify(one_device.path())
        .arg("iodepth", "16")
        .arg("size", "24m")
        .arg("rate", "4m")
        .start();
    let with_policy = format!("{one}policy = \"sparse\"\nscheduler = \"mq-deadline\"\n");
    write(CONFIGURATION, &format!("{with_policy}{}", table("three", &late)));
    assert_eq!(
        reload(),
        "ublkb1 (two) is stopped\nublkb0 (one): policy sparse\nublkb0 (one): scheduler mq-deadline\n\
         ublkb1 (three) is ready\n"
    );
    std::mem::forget(two);
    assert!(job.is_running(), "fio ended before the reload");
    let three = Device::announced(&ready(1, "three"));
    assert_eq!(three.server(), one_device.server());
    assert_eq!(one_device.show()["policy"], "sparse");
    let inode = |device: &Device| std::fs::metadata(format!("/run/ublk-bpf/ublkb{}.log", device.id()));
    let [log, other] =
        [&one_device, &three].map(|device| inode(device).unwrap_or_else(|e| panic!("{e}")).ino());
    assert_eq!(log, other, "a device of the server has its log");
    Fio::verify(three.path()).arg("size", "8m").start().finish();
    job.finish();
    // What the file no longer says goes back to the default.
    write(CONFIGURATION, &one);
    assert_eq!(
        reload(),
        "ublkb1 (three) is stopped\nublkb0 (one): policy passthrough\nublkb0 (one): scheduler none\n"
    );
    std::mem::forget(three);
    // Nothing of the server keeps the file system: its disk can be had whole.
    drop(mount);
    FileSystem::Ext4.make(disk.spec());

    // Every device is another one, and the server is the same.
    let server = one_device.server();
    write(CONFIGURATION, &format!("{shared}{}", table("two", second.spec())));
    assert_eq!(reload(), "ublkb0 (one) is stopped\nublkb0 (two) is ready\n");
    std::mem::forget(one_device);
    let two = Device::announced(&ready(0, "two"));
    assert_eq!(two.server(), server);
    two.stop();
    nothing_is_left();
}

#[test]
fn what_a_reload_cannot_do_is_said_and_the_rest_is_done() {
    let (first, second) = (Backing::file("first", 16), Backing::file("second", 16));
    let (one, two) = (table("one", first.spec()), table("two", second.spec()));
    let lines = start(&one);
    let device = Device::announced(&lines[0]);

    // An error in the file changes nothing.
    write(CONFIGURATION, &format!("{two}dept = 3\n"));
    let (said, error) = reloaded_in_part();
    assert_eq!(said, "");
    assert!(error.contains("unknown field `dept`"), "{error}");
    assert_eq!((device.state().as_str(), devices()), ("live", 1));

    // In use, missing, and made all the same.
    let user = open(device.path());
    write(
        CONFIGURATION,
        &format!("{two}{}", table("none", "/tmp/missing.img")),
    );
    let (said, error) = reloaded_in_part();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 3, "{said}");
    assert!(lines[0].starts_with("ublkb0 is in use by "), "{said}");
    assert_eq!(lines[1], "ublkb1 (two) is ready");
    assert!(lines[2].contains("/tmp/missing.img: does not exist"), "{said}");
    assert_eq!(
        error,
        format!("ublk-bpf: 2 of 3 changes by {CONFIGURATION} were not made\n")
    );
    assert_eq!(devices(), 2);
    drop(user);
    let two_device = Device::announced(&ready(1, "two"));

    // What needs a restart stays as it is. A conflict with a device of the server is found.
    let deeper = format!("{one}depth = 64\nread-only = true\n");
    write(
        CONFIGURATION,
        &format!("{deeper}{two}{}", table("same", second.spec())),
    );
    let (said, _) = reloaded_in_part();
    let restart = "needs a restart: stop the device with `ublk-bpf stop 0`, and reload again";
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], format!("ublkb0 (one): depth {restart}"));
    assert_eq!(lines[1], format!("ublkb0 (one): read-only {restart}"));
    assert!(lines[2].contains("ublkb1 is served by process"), "{said}");
    assert_eq!((lines.len(), device.show()["depth"].clone()), (3, 128.into()));
    // As it says.
    write(CONFIGURATION, &format!("{deeper}{two}"));
    run("ublk-bpf", &["stop", "one"]);
    assert_eq!(reload(), "ublkb0 (one) is ready\n");
    assert_eq!(device.show()["depth"], 64);
    device.stop();
    two_device.stop();

    let other = Device::run(&["--backing", "mem:8M"]);
    assert!(refused(&["reload"]).contains("started without --config"));
    other.stop();
    assert!(refused(&["reload"]).starts_with("there is no server"));
    nothing_is_left();
}

#[test]
fn a_hangup_reloads_with_the_mounts_of_process_1_and_the_command_with_its_own() {
    write(CONFIGURATION, &table("one", "mem:8M"));
    let (server, line) = foreground(&["--config", CONFIGURATION], 1);
    let one = Device::announced(&line);
    let hangup = |process: &str| run("kill", &["-HUP", process]);
    let second = Backing::file("second", 16);
    write(
        CONFIGURATION,
        &format!("{}{}", table("one", "mem:8M"), table("two", second.spec())),
    );
    hangup(&server.id().to_string());
    wait_until("the second device is there", SOON, || devices() == 2);
    let two = Device::announced(&ready(1, "two"));
    wait_until("it is ready", SOON, || two.state() == "live");

    // The same path is another file in the command's namespace.
    let script = format!(
        "mount -t tmpfs tmpfs /mnt && truncate -s 24M /mnt/three.img && printf '%s' '{}' >/mnt/more && \
         cat /mnt/more >>{CONFIGURATION} && ublk-bpf reload",
        table("three", "/mnt/three.img")
    );
    assert_eq!(
        run("unshare", &["-m", "sh", "-c", &script]),
        "ublkb2 (three) is ready\n"
    );
    let three = Device::announced(&ready(2, "three"));
    assert_eq!(three.show()["size"], 24 << 20);
    // For process 1 it does not exist, but the device does.
    hangup(&server.id().to_string());
    wait_until("another server may be asked", SOON, || {
        try_run("ublk-bpf", &["reload", "--process", &server.id().to_string()])
            .status
            .success()
    });
    assert_eq!(devices(), 3);
    for device in [three, two, one] {
        device.stop();
    }
    let output = server.wait_with_output().unwrap_or_else(|e| panic!("{e}"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{output:?}");
    assert!(said.contains("reload: ublkb1 (two) is ready"), "{said}");
    nothing_is_left();
}
