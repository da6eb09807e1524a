//! A device without its server, by each recovery mode and each way to lose it.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use ublk_bpf_guest::device::CONFIGURATION;
use ublk_bpf_guest::leftover::{SOON, nothing_is_left};
use ublk_bpf_guest::{Backing, Device, Fio, foreground, run, wait_until};

const MIB: u64 = 1 << 20;
/// What a request takes to get to the server, or to a queue in the kernel, under emulation.
const ON_ITS_WAY: Duration = Duration::from_millis(500);

/// What direct I/O can be done with.
#[repr(align(4096))]
struct Page([u8; 4096]);

/// A read at this byte, on a thread of its own: its errno, or what it found. The page cache would try again after an error.
fn read_at(device: &Device, offset: u64) -> JoinHandle<Result<u8, i32>> {
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(device.path())
        .unwrap_or_else(|e| panic!("{e}"));
    spawn(move || {
        let mut content = Page([0; 4096]);
        match file.read_exact_at(&mut content.0, offset) {
            Ok(()) => Ok(content.0[0]),
            Err(error) => Err(error.raw_os_error().unwrap_or_default()),
        }
    })
}

fn end_of<T>(thread: JoinHandle<T>) -> T {
    wait_until("the read ends", SOON, || thread.is_finished());
    thread.join().unwrap_or_else(|_| panic!("the reader panicked"))
}

fn filled(name: &str) -> Backing {
    let backing = Backing::file(name, 16);
    let path: &Path = backing.path().unwrap_or_else(|| panic!("a file has a path"));
    std::fs::write(path, vec![0x5a; 16 << 20]).unwrap_or_else(|e| panic!("{e}"));
    backing
}

#[test]
fn requests_wait_or_fail_without_a_server_as_the_mode_says() {
    // Whether what the server had in hand fails, and what comes while there is none.
    for (mode, name, in_hand_fails, new_fails) in [
        ("reissue", "reissue", false, false),
        ("fail-in-flight", "fail-in-flight", true, false),
        ("fail", "fail-in-flight", true, false),
        ("fail-all", "fail-all", true, true),
    ] {
        let backing = filled("modes");
        let device = Device::on(&backing, &["--recovery", mode]);
        assert_eq!(device.show()["recovery"], name);
        let id = device.id();
        // A server that stands still has what comes in hand.
        device.pause_server();
        let in_hand = read_at(&device, MIB);
        sleep(ON_ITS_WAY);
        assert!(!in_hand.is_finished(), "{mode}: no server has it");
        device.kill_server("waiting");
        let new = read_at(&device, 4 * MIB);
        sleep(ON_ITS_WAY);
        assert_eq!(in_hand.is_finished(), in_hand_fails, "{mode}: in hand");
        assert_eq!(new.is_finished(), new_fails, "{mode}: new");
        let shown = run("ublk-bpf", &["show", &id]);
        assert!(
            shown.contains(&format!("{name}: while the device has no server, requests ")),
            "{shown}"
        );
        assert!(run("ublk-bpf", &["list"]).contains("waiting"));

        run("ublk-bpf", &["run", "--recover", &id, "--daemon"]);
        // The driver fails what comes without a server by BLK_STS_TARGET.
        let wanted = |fails, errno| if fails { Err(errno) } else { Ok(0x5a) };
        assert_eq!(
            end_of(in_hand),
            wanted(in_hand_fails, libc::EIO),
            "{mode}: in hand"
        );
        assert_eq!(end_of(new), wanted(new_fails, libc::EREMOTEIO), "{mode}: new");
        assert_eq!(end_of(read_at(&device, 8 * MIB)), Ok(0x5a), "{mode}: recovered");
        assert_eq!(device.show()["recovery"], name);

        // Other starts leave it alone, and it is removed by name only.
        device.kill_server("waiting");
        Device::run(&["--backing", "mem:8M"]).stop();
        assert_eq!(device.state(), "waiting");
        device.stop();
        nothing_is_left();
    }
}

/// Sends a server in the background a signal and waits until it has left the device.
fn signal_server(device: &Device, signal: &str) {
    let server = device.server();
    run("kill", &[signal, &server]);
    wait_until("the server has left the device", SOON, || {
        device.state() == "waiting" && !Path::new(&format!("/proc/{server}")).exists()
    });
}

#[test]
fn a_signal_leaves_a_recoverable_device_to_the_next_server_and_no_io_is_lost() {
    let backing = Backing::file("signalled", 64);
    let options = [
        "--backing",
        backing.spec(),
        "--queues",
        "2",
        "--recovery",
        "reissue",
    ];
    let (child, line) = foreground(&options, 1);
    let device = Device::announced(&line);
    let id = device.id();
    // Longer than four servers take to start and end on a busy machine.
    let mut job = Fio::verify_slowly(device.path()).arg("rate", "1500k").start();
    sleep(Duration::from_secs(1));
    run("kill", &["-INT", &child.id().to_string()]);
    let output = child.wait_with_output().unwrap_or_else(|e| panic!("{e}"));
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        format!(
            "ublk-bpf: ublkb{id} waits for a server; requests wait for the next server, those in flight included: \
             recover it with `ublk-bpf run --recover {id}`, or remove it with `ublk-bpf stop {id}`\n"
        )
    );
    // What it says holds at once.
    assert_eq!(device.state(), "waiting");
    for signal in ["-TERM", "-INT", "-TERM"] {
        assert!(job.is_running(), "fio ended before the server was signalled");
        run("ublk-bpf", &["run", "--recover", &id, "--daemon"]);
        assert_eq!(device.state(), "live");
        sleep(Duration::from_millis(700));
        signal_server(&device, signal);
    }
    let log = std::fs::read_to_string(format!("/run/ublk-bpf/ublkb{id}.log")).unwrap_or_default();
    assert!(log.contains(&format!("ublk-bpf run --recover {id}")), "{log}");
    run("ublk-bpf", &["run", "--recover", &id, "--daemon"]);
    job.finish();
    device.stop();
    nothing_is_left();
}

#[test]
fn of_several_devices_a_signal_leaves_those_that_can_be_recovered() {
    let backings = [Backing::file("first", 16), Backing::file("second", 16)];
    let [first, second] = backings.each_ref().map(Backing::spec);
    let configuration = format!(
        "[[device]]\nbacking = \"{first}\"\nrecovery = \"fail-all\"\n[[device]]\nbacking = \"{second}\"\n"
    );
    std::fs::write(CONFIGURATION, configuration).unwrap_or_else(|e| panic!("{e}"));
    let (child, lines) = foreground(&["--config", CONFIGURATION], 2);
    let devices: Vec<_> = lines.lines().map(Device::announced).collect();
    run("kill", &["-TERM", &child.id().to_string()]);
    let output = child.wait_with_output().unwrap_or_else(|e| panic!("{e}"));
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(
        said.contains("requests fail until the next server starts"),
        "{said}"
    );
    assert_eq!(devices[0].state(), "waiting");
    devices[1].assert_gone();
    run("ublk-bpf", &["run", "--recover", &devices[0].id(), "--daemon"]);
    assert!(end_of(read_at(&devices[0], MIB)).is_ok());
    // By name it is removed, whatever its mode.
    run("ublk-bpf", &["stop", "--all"]);
    devices[0].assert_gone();
    nothing_is_left();
}

#[test]
fn recover_all_serves_what_waits_in_one_process_and_names_what_it_cannot() {
    let recover = ["run", "--recover", "--all", "--daemon"];
    assert_eq!(run("ublk-bpf", &recover), "no device waits for a server\n");
    let backings = ["first", "second", "changed", "served"].map(|name| Backing::file(name, 16));
    let devices = backings
        .each_ref()
        .map(|backing| Device::run(&["--backing", backing.spec(), "--recovery", "reissue"]));
    let [first, second, changed, served] = &devices;
    let server = served.server();
    for device in [first, second, changed] {
        device.kill_server("waiting");
    }
    let reader = read_at(second, MIB);
    let path = backings[2].path().unwrap_or_else(|| panic!("a file has a path"));
    let file = File::options().write(true).open(path);
    file.and_then(|file| file.set_len(8 * MIB))
        .unwrap_or_else(|e| panic!("{e}"));

    let lines = run("ublk-bpf", &recover);
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    for (line, device) in lines.iter().zip([first, second]) {
        assert!(
            line.starts_with(&format!("{} is ready: ", device.path_str())),
            "{lines:?}"
        );
    }
    assert_eq!(
        lines[2],
        "1 of 3 devices could not be recovered: see the server's log"
    );
    let log = std::fs::read_to_string(format!("/run/ublk-bpf/ublkb{}.log", first.id())).unwrap_or_default();
    let name = format!("ublkb{} cannot be recovered", changed.id());
    assert!(log.contains(&name), "{log}");
    assert!(end_of(reader).is_ok());
    assert_eq!(first.server(), second.server());
    assert_eq!((served.server(), changed.state()), (server, "waiting".to_owned()));

    // Again: what is served stays as it is.
    let output = ublk_bpf_guest::try_run("ublk-bpf", &recover);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        (output.status.code(), said.lines().count()),
        (Some(1), 1),
        "{said}"
    );
    assert!(said.contains(&name), "{said}");
    run("ublk-bpf", &["stop", &changed.id()]);
    assert_eq!(run("ublk-bpf", &recover), "no device waits for a server\n");
    for device in devices {
        if device.path().exists() {
            device.stop();
        }
    }
    nothing_is_left();
}
