//! A machine whose power is cut: disks that lose what was not flushed, and a server that ends with the power.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use super::disk::VolatileDisk;
use super::image::Lost;
use super::nbd::Plug;
use super::supply::Supply;
use crate::leftover::SOON;
use crate::torture::Dice;
use crate::torture::content::mix;
use crate::{run, run_json, wait_until};

/// A backing, perhaps a cache, and a server of both.
#[derive(Debug)]
pub struct Machine {
    /// Power of all.
    pub supply: Arc<Supply>,
    /// The backing's disk.
    pub backing: Arc<VolatileDisk>,
    /// The cache's.
    pub cache: Option<Arc<VolatileDisk>>,
    options: Vec<String>,
    seed: u64,
    cuts: u64,
    plugs: Vec<Plug>,
}

impl Machine {
    /// A machine that is off, whose server is run with these options.
    pub fn new(seed: u64, mib: u64, cache_mib: Option<u64>, options: &[&str]) -> Self {
        let supply = Supply::new();
        let mut all = vec!["--backing".to_owned(), "/dev/nbd0".to_owned()];
        if cache_mib.is_some() {
            all.extend(["--cache", "/dev/nbd1"].map(str::to_owned));
        }
        all.extend(options.iter().map(|&option| option.to_owned()));
        Self {
            backing: VolatileDisk::new(&supply, mib),
            cache: cache_mib.map(|mib| VolatileDisk::new(&supply, mib)),
            supply,
            options: all,
            seed,
            cuts: 0,
            plugs: Vec::new(),
        }
    }

    /// Numbers that are the same for the same seed and number of cuts.
    pub fn dice(&self) -> Dice {
        Dice::new(mix(self.seed ^ mix(self.cuts)))
    }

    /// How often its power was cut.
    pub fn cuts(&self) -> u64 {
        self.cuts
    }

    /// Switches the power on and starts the server: gives the path of its block device, or nothing if the power was
    /// cut meanwhile.
    pub fn boot(&mut self) -> Option<PathBuf> {
        self.supply.restore();
        let disks = std::iter::once(&self.backing).chain(&self.cache);
        self.plugs = (0..)
            .zip(disks)
            .map(|(number, disk)| Plug::new(disk, number))
            .collect();
        let mut command = Command::new("ublk-bpf");
        command.arg("run").args(&self.options);
        self.start(command)
    }

    /// Kills the server alone, which leaves its device waiting.
    pub fn kill_server(&self) {
        self.supply.kill();
        self.supply.wait();
        wait_until("the device waits for a server", SOON, || {
            let devices = run_json("ublk-bpf", &["list", "--json"]);
            let devices = devices.as_array().into_iter().flatten();
            devices
                .map(|device| &device["state"])
                .all(|state| state == "waiting")
        });
    }

    /// Starts a server that recovers the device.
    pub fn recover(&self) -> Option<PathBuf> {
        let mut command = Command::new("ublk-bpf");
        command.args(["run", "--recover", "--all"]);
        self.start(command)
    }

    fn start(&self, mut command: Command) -> Option<PathBuf> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut server = command
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
        let stdout = server.stdout.take().expect("standard output is a pipe");
        let stderr = server.stderr.take().expect("standard error is a pipe");
        self.supply.feed(server);
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        read.unwrap_or_else(|e| panic!("cannot read what {command:?} says: {e}"));
        if let Some((path, _)) = line.split_once(" is ready: ") {
            // It must never wait for a reader of its log.
            std::thread::spawn(move || std::io::copy(&mut BufReader::new(stderr), &mut std::io::stderr()));
            return Some(PathBuf::from(path));
        }
        let said = std::io::read_to_string(stderr).unwrap_or_default();
        assert!(!self.supply.is_on(), "{command:?} did not start: {line}{said}");
        None
    }

    /// After a power cut: everything is as it is after a boot. Disks have lost a part of what was not flushed.
    pub fn off(&mut self) -> Lost {
        assert!(!self.supply.is_on(), "there is still power");
        let mut dice = self.dice();
        // Where the disks answer with errors, the server has a moment to do something about it.
        std::thread::sleep(milliseconds(&mut dice, 20));
        self.supply.end();
        self.supply.wait();
        self.supply.keep();
        forget_devices();
        self.plugs.clear();
        self.cuts += 1;
        let mut lost = Lost::default();
        for disk in std::iter::once(&self.backing).chain(&self.cache) {
            lost.add(disk.lose(dice.below(u64::MAX)));
        }
        lost
    }

    /// Stops the server as a user does, and takes the disks out; nothing is lost.
    pub fn stop(&mut self) {
        run("ublk-bpf", &["stop", "--all"]);
        self.supply.wait();
        self.plugs.clear();
    }

    /// The backing's block device while no server has it.
    pub fn plug_backing(&self) -> Plug {
        Plug::new(&self.backing, 0)
    }

    /// The cache's block device while no server has it.
    pub fn plug_cache(&self) -> Plug {
        Plug::new(self.cache.as_ref().expect("there is a cache"), 1)
    }

    /// The seed and words to find a fault again.
    pub fn describe(&self) -> String {
        let mut text = format!("UBLK_BPF_SEED={}, cut {}:", self.seed, self.cuts);
        for option in &self.options {
            let _ = write!(text, " {option}");
        }
        text
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the machine was: {}", self.describe());
        }
        self.supply.end();
        self.supply.wait();
        if !std::thread::panicking() {
            forget_devices();
        }
        forget_dirty_caches();
    }
}

/// What only memory holds is gone: devices, records, pins. A record of dirty caches is on a disk, and stays.
fn forget_devices() {
    // Their servers are dead, so this takes nothing from the disks, and gives them nothing.
    run("ublk-bpf", &["stop", "--all", "--force"]);
    for folder in ["/run/ublk-bpf", "/sys/fs/bpf/ublk-bpf"] {
        if Path::new(folder).exists() {
            fs::remove_dir_all(folder).unwrap_or_else(|e| panic!("cannot remove {folder}: {e}"));
        }
    }
}

/// Forgets which backings lack what their caches hold, once both are gone.
pub fn forget_dirty_caches() {
    // Without write-back there is none.
    let _ = fs::remove_dir_all("/var/lib/ublk-bpf");
}

/// A time from 0 to this many milliseconds.
pub fn milliseconds(dice: &mut Dice, most: u64) -> Duration {
    Duration::from_millis(dice.below(most + 1))
}
