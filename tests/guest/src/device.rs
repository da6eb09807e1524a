//! A device served by `ublk-bpf run --daemon`.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::leftover::SOON;
use crate::{Backing, run, run_json, try_run, wait_until};

/// Path of the configuration file for several devices.
pub const CONFIGURATION: &str = "/tmp/devices.toml";

/// A running device; stopped when dropped.
#[derive(Debug)]
pub struct Device {
    id: u32,
    path: PathBuf,
    stopped: bool,
}

impl Device {
    /// Starts a device with these options of `ublk-bpf run` and waits until it is ready.
    pub fn run(options: &[&str]) -> Self {
        let mut args = vec!["run", "--daemon"];
        args.extend_from_slice(options);
        let line = run("ublk-bpf", &args);
        Self::announced(&line)
    }

    /// Starts a device on this backing, with more options.
    pub fn on(backing: &Backing, options: &[&str]) -> Self {
        Self::run(&[&["--backing", backing.spec()], options].concat())
    }

    /// Starts the devices that a configuration of this text describes, in one process, and waits until all are ready.
    pub fn run_all(configuration: &str) -> Vec<Self> {
        std::fs::write(CONFIGURATION, configuration)
            .unwrap_or_else(|e| panic!("cannot write {CONFIGURATION}: {e}"));
        let lines = run("ublk-bpf", &["run", "--daemon", "--config", CONFIGURATION]);
        lines.lines().map(Self::announced).collect()
    }

    /// The device that this "is ready" line announces.
    pub fn announced(line: &str) -> Self {
        let id = line
            .split_once("ublkb")
            .filter(|_| line.contains(" is ready: "))
            .and_then(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next())
            .and_then(|digits| digits.parse().ok())
            .unwrap_or_else(|| panic!("no device is ready by {line:?}"));
        Self {
            id,
            path: format!("/dev/ublkb{id}").into(),
            stopped: false,
        }
    }

    /// The device's number.
    pub fn id(&self) -> String {
        self.id.to_string()
    }

    /// `/dev/ublkbN`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path as text.
    pub fn path_str(&self) -> &str {
        self.path.to_str().expect("device paths are ASCII")
    }

    /// `/sys/block/ublkbN/...`.
    pub fn sysfs(&self, file: &str) -> PathBuf {
        format!("/sys/block/ublkb{}/{file}", self.id).into()
    }

    /// Its pin directory.
    pub fn pins(&self) -> PathBuf {
        format!("/sys/fs/bpf/ublk-bpf/ublkb{}", self.id).into()
    }

    /// `stats --json`.
    pub fn stats(&self) -> Value {
        run_json("ublk-bpf", &["stats", &self.id(), "--json"])
    }

    /// One of the server's counters, summed over the queues.
    pub fn counter(&self, name: &str) -> u64 {
        let stats = self.stats();
        stats["server"][name]
            .as_u64()
            .unwrap_or_else(|| panic!("no counter {name} in {stats:#}"))
    }

    /// `show --json`.
    pub fn show(&self) -> Value {
        run_json("ublk-bpf", &["show", &self.id(), "--json"])
    }

    /// Its state, as `show` prints it.
    pub fn state(&self) -> String {
        self.show()["state"].as_str().unwrap_or_default().to_owned()
    }

    /// Its server's process id.
    pub fn server(&self) -> String {
        self.show()["server"].to_string()
    }

    /// Stops the server as SIGSTOP does, and waits until each of its threads stands still.
    pub fn pause_server(&self) {
        let server = self.server();
        run("kill", &["-STOP", &server]);
        wait_until("the device's server stands still", SOON, || stands_still(&server));
    }

    /// Kills the server and waits until the device is in this state.
    pub fn kill_server(&self, then: &str) {
        run("kill", &["-KILL", &self.server()]);
        wait_until("the device's server is dead", SOON, || self.state() == then);
    }

    /// Serves the waiting device again, and returns what the start printed.
    pub fn recover(&self) -> String {
        run("ublk-bpf", &["run", "--daemon", "--recover", &self.id()])
    }

    /// Replaces the policy.
    pub fn swap(&self, policy: &str) {
        run("ublk-bpf", &["policy", "swap", &self.id(), policy]);
    }

    /// Stops the device and checks that nothing of it is left.
    pub fn stop(mut self) {
        self.stopped = true;
        let shown = try_run("ublk-bpf", &["show", "--json", &self.id()]);
        let shown = serde_json::from_slice(&shown.stdout).unwrap_or(Value::Null);
        let server = shown["server"].as_u64();
        run("ublk-bpf", &["stop", &self.id()]);
        self.assert_gone();
        wait_until("its server has ended, or serves another device", SOON, || {
            server.is_none_or(has_ended) || is_any_recorded()
        });
    }

    /// A command has stopped it: checks that nothing of it is left.
    pub fn was_stopped(mut self) {
        self.stopped = true;
        self.assert_gone();
    }

    /// Panics unless the block device, the control node, the pins and the record are gone.
    pub fn assert_gone(&self) {
        for left in [
            self.path.clone(),
            format!("/dev/ublkc{}", self.id).into(),
            self.pins(),
            format!("/run/ublk-bpf/ublkb{}.json", self.id).into(),
        ] {
            assert!(!left.exists(), "left behind: {}", left.display());
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if !self.stopped {
            let output = try_run("ublk-bpf", &["stop", &self.id(), "--force"]);
            if !output.status.success() {
                eprintln!("{}", String::from_utf8_lossy(&output.stderr));
            }
        }
    }
}

/// Starts a server in the foreground and waits until `devices` devices are ready; returns it with its output.
pub fn foreground(args: &[&str], devices: usize) -> (Child, String) {
    let mut server = Command::new("ublk-bpf");
    server.arg("run").args(args);
    started(server, devices)
}

/// The same for a command that becomes a server.
pub fn started(mut server: Command, devices: usize) -> (Child, String) {
    let mut child = server
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {server:?}: {error}"));
    let mut lines = String::new();
    let stdout = child
        .stdout
        .as_mut()
        .unwrap_or_else(|| panic!("standard output is a pipe"));
    let mut stdout = BufReader::new(stdout);
    for _ in 0..devices {
        stdout
            .read_line(&mut lines)
            .unwrap_or_else(|error| panic!("cannot read what ublk-bpf says: {error}"));
    }
    (child, lines)
}

/// Whether a process has ended. It may do so a moment after the last device that it serves.
fn has_ended(process: u64) -> bool {
    let command = std::fs::read(format!("/proc/{process}/cmdline"));
    command.is_ok_and(|command| command.is_empty()) || !Path::new(&format!("/proc/{process}")).exists()
}

/// Whether there is a record of a device.
fn is_any_recorded() -> bool {
    let names = std::fs::read_dir("/run/ublk-bpf").into_iter().flatten().flatten();
    names
        .filter_map(|name| name.file_name().into_string().ok())
        .any(|name| name.starts_with("ublkb") && name.ends_with(".json"))
}

/// Whether each thread of a process is stopped.
fn stands_still(process: &str) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{process}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let states =
        threads.map(|thread| std::fs::read_to_string(thread.path().join("status")).unwrap_or_default());
    let is_stopped = |status: &str| status.contains("\nState:\tT");
    states.into_iter().all(|status| is_stopped(&status))
}
