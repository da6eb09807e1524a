//! A server under a service manager: what it says to it, and the rights that its unit leaves it.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use ublk_bpf_guest::device::started;
use ublk_bpf_guest::leftover::{SOON, nothing_is_left};
use ublk_bpf_guest::{Backing, Device, Fio, run, wait_until, write};

/// The unit as it is installed.
const UNIT: &str = include_str!("../../../ublk-bpf/dist/ublk-bpf.service");
const CONFIGURATION: &str = "/etc/ublk-bpf/devices.toml";
/// On a file system that the server leaves.
const SOCKET: &str = "/tmp/notify";

/// A service manager.
struct Manager(UnixDatagram);

impl Manager {
    fn new() -> Self {
        std::fs::remove_file(SOCKET).ok();
        let socket = UnixDatagram::bind(SOCKET).unwrap_or_else(|e| panic!("{SOCKET}: {e}"));
        socket
            .set_read_timeout(Some(SOON))
            .unwrap_or_else(|e| panic!("{e}"));
        Self(socket)
    }

    /// The next message.
    fn hear(&self) -> String {
        let mut message = [0; 4096];
        let length = self
            .0
            .recv(&mut message)
            .unwrap_or_else(|e| panic!("no message: {e}"));
        String::from_utf8_lossy(&message[..length]).into_owned()
    }

    /// Takes what has come, and counts it.
    fn forget(&self) -> usize {
        let blocking = |is: bool| self.0.set_nonblocking(!is).unwrap_or_else(|e| panic!("{e}"));
        blocking(false);
        let count = (0..).take_while(|_| self.0.recv(&mut [0; 64]).is_ok()).count();
        blocking(true);
        count
    }

    /// The next message that is not about the watchdog.
    fn hear_news(&self) -> String {
        loop {
            let message = self.hear();
            if message != "WATCHDOG=1\n" {
                return message;
            }
        }
    }
}

/// The values of a name in the unit.
fn of_unit(name: &str) -> Vec<&'static str> {
    let lines = UNIT
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    lines.collect()
}

/// The unit's command with the unit's capabilities, as the manager starts it.
fn service() -> Command {
    let [command] = of_unit("ExecStart")[..] else {
        panic!("one command in {UNIT}")
    };
    let capabilities = of_unit("CapabilityBoundingSet").join(" ").to_lowercase();
    let capabilities: Vec<String> = capabilities
        .split(' ')
        .map(|name| name.replace("cap_", "+"))
        .collect();
    let set = format!("-all,{}", capabilities.join(","));
    let mut service = Command::new("setpriv");
    service
        .args([
            "--no-new-privs",
            "--bounding-set",
            &set,
            "--inh-caps",
            &set,
            "ublk-bpf",
        ])
        .args(command.split(' ').skip(1))
        .env("NOTIFY_SOCKET", SOCKET)
        .env("WATCHDOG_USEC", "1000000");
    service
}

fn start() -> (Child, Device) {
    let (child, line) = started(service(), 1);
    (child, Device::announced(&line))
}

/// Ends a server as `systemctl stop` does, and checks that it has nothing to complain of.
fn stop(server: Child, manager: &Manager, device: &Device) {
    run("kill", &["-TERM", &server.id().to_string()]);
    assert_eq!(manager.hear_news(), "STOPPING=1\n");
    let output = server.wait_with_output().unwrap_or_else(|e| panic!("{e}"));
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.lines().filter(|line| !line.contains("reload: ")).count() == 1
            && said.contains("waits for a server"),
        "{said}"
    );
    assert_eq!(device.state(), "waiting");
}

#[test]
fn the_service_is_ready_alive_and_stopped_and_its_restart_takes_the_device_back() {
    let backing = Backing::file("service", 64);
    std::fs::create_dir_all("/etc/ublk-bpf").unwrap_or_else(|e| panic!("{e}"));
    let configuration = format!(
        "recovery = \"reissue\"\n[[device]]\nname = \"data\"\nbacking = \"{}\"\n",
        backing.spec()
    );
    std::fs::write(CONFIGURATION, configuration).unwrap_or_else(|e| panic!("{e}"));
    let manager = Manager::new();

    let (server, device) = start();
    let ready = format!("READY=1\nSTATUS=serving ublkb{}\n", device.id());
    assert_eq!(manager.hear_news(), ready);
    assert_eq!(
        (device.state(), device.show()["name"].clone()),
        ("live".into(), "data".into())
    );
    // Twice in the second that the manager waits, in a namespace that has lost the socket's mount.
    // Those that came while the command ran are not counted.
    manager.forget();
    let since = Instant::now();
    for _ in 0..6 {
        assert_eq!(manager.hear(), "WATCHDOG=1\n");
    }
    assert!(since.elapsed() >= Duration::from_secs(2), "{:?}", since.elapsed());

    // Its rights are enough for a reload, by both ways.
    let change = |policy| {
        let text = ublk_bpf_guest::read(CONFIGURATION);
        let text = text.split("\npolicy").next().unwrap_or_default();
        std::fs::write(CONFIGURATION, format!("{text}\npolicy = \"{policy}\"\n"))
            .unwrap_or_else(|e| panic!("{e}"));
    };
    change("sparse");
    let said = run("ublk-bpf", &["reload", "--process", &server.id().to_string()]);
    assert_eq!(said, format!("ublkb{} (data): policy sparse\n", device.id()));
    assert_eq!(
        manager.hear_news(),
        format!("STATUS=serving ublkb{}\n", device.id())
    );
    change("passthrough");
    run("kill", &["-HUP", &server.id().to_string()]);
    wait_until("the policy is changed", SOON, || {
        device.show()["policy"] == "passthrough"
    });
    assert_eq!(
        manager.hear_news(),
        format!("STATUS=serving ublkb{}\n", device.id())
    );

    // Under load: nothing fails, and what was written is there.
    let mut job = Fio::verify(device.path())
        .arg("iodepth", "16")
        .arg("size", "32m")
        .arg("rate", "4m")
        .start();
    std::thread::sleep(Duration::from_secs(1));
    stop(server, &manager, &device);
    assert!(job.is_running(), "fio ended before the service was stopped");
    let (server, again) = start();
    assert_eq!(manager.hear_news(), ready);
    assert_eq!(again.id(), device.id());
    job.finish();
    stop(server, &manager, &device);
    run("ublk-bpf", &["stop", "data"]);
    std::mem::forget(again);
    device.assert_gone();
    std::mem::forget(device);
    nothing_is_left();
}

#[test]
fn a_manager_that_is_not_there_keeps_no_server_from_its_work() {
    let mut server = Command::new("ublk-bpf");
    server
        .args(["run", "--backing", "mem:8M"])
        .env("NOTIFY_SOCKET", "/tmp/none");
    let (server, line) = started(server, 1);
    let device = Device::announced(&line);
    assert_eq!(device.state(), "live");
    run("kill", &["-TERM", &server.id().to_string()]);
    let output = server.wait_with_output().unwrap_or_else(|e| panic!("{e}"));
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("cannot reach the service manager at /tmp/none: "),
        "{said}"
    );
    device.assert_gone();
    std::mem::forget(device);
    nothing_is_left();
}

#[test]
fn a_server_that_stands_still_is_noticed() {
    let backing = Backing::file("still", 16);
    let manager = Manager::new();
    let mut server = Command::new("ublk-bpf");
    server
        .args(["run", "--backing", backing.spec()])
        .env("NOTIFY_SOCKET", SOCKET)
        .env("WATCHDOG_USEC", "1000000");
    let (server, line) = started(server, 1);
    let device = Device::announced(&line);
    let server = server.id().to_string();
    assert!(manager.hear_news().starts_with("READY=1"));
    run("kill", &["-STOP", &server]);
    wait_until("it stands still", SOON, || {
        ublk_bpf_guest::read(format!("/proc/{server}/stat")).contains(") T ")
    });
    manager.forget();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(manager.forget(), 0, "a sign of life");
    run("kill", &["-CONT", &server]);
    device.stop();
    nothing_is_left();
}

#[test]
fn the_unit_names_what_the_package_installs() {
    assert!(Path::new("/run").is_dir());
    assert_eq!(
        of_unit("ExecStart"),
        ["/usr/bin/ublk-bpf run --config /etc/ublk-bpf/devices.toml"]
    );
    assert_eq!(of_unit("Type"), ["notify"]);
    write("/proc/self/oom_score_adj", of_unit("OOMScoreAdjust")[0]);
    write("/proc/self/oom_score_adj", "0");
}
