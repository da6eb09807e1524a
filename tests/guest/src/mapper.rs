//! Device-mapper devices, whose tables are switched to make a disk fail.

use std::path::{Path, PathBuf};

use crate::{read, run};

/// A device-mapper device over the whole of another; removed when dropped.
#[derive(Debug)]
pub struct Mapper {
    name: String,
    below: String,
    sectors: String,
}

impl Mapper {
    /// A device named `name` that passes everything through to the block device `below`.
    pub fn linear(name: &str, below: &str) -> Self {
        let disk = below.rsplit('/').next().unwrap_or(below);
        let mapper = Self {
            name: name.to_owned(),
            below: below.to_owned(),
            sectors: read(format!("/sys/class/block/{disk}/size")),
        };
        let table = mapper.table("linear", "0");
        mapper.setup(&["create", name, "--table", &table]);
        mapper
    }

    /// `/dev/dm-N`: a guest without udev has no other name for it.
    pub fn path(&self) -> PathBuf {
        let columns = ["info", "--columns", "--noheadings", "--options", "blkdevname"];
        let disk = run("dmsetup", &[&columns, &[self.name.as_str()][..]].concat());
        Path::new("/dev").join(disk.trim())
    }

    /// From now on every request fails.
    pub fn fail(&self) {
        self.switch(&format!("0 {} error", self.sectors));
    }

    /// From now on every write fails; reads succeed.
    pub fn fail_writes(&self) {
        run("modprobe", &["dm_flakey"]);
        // Up for 0 seconds, then down for as long as a test may take.
        self.switch(&self.table("flakey", "0 0 3600 1 error_writes"));
    }

    /// From now on it works for a second and fails every request for a second, in turn.
    pub fn fail_at_times(&self) {
        run("modprobe", &["dm_flakey"]);
        self.switch(&self.table("flakey", "0 1 1"));
    }

    /// From now on it has only its first `sectors` sectors.
    pub fn shrink(&self, sectors: u64) {
        self.switch(&format!("0 {sectors} linear {} 0", self.below));
    }

    /// From now on every write takes this many milliseconds; reads are not delayed.
    pub fn delay_writes(&self, milliseconds: u32) {
        run("modprobe", &["dm_delay"]);
        self.switch(&self.table("delay", &format!("0 0 {} 0 {milliseconds}", self.below)));
    }

    /// From now on every request takes so many milliseconds.
    pub fn delay(&self, milliseconds: u32) {
        run("modprobe", &["dm_delay"]);
        self.switch(&self.table("delay", &format!("0 {milliseconds}")));
    }

    /// From now on nothing is answered, until it is [released](Self::release).
    pub fn hold(&self) {
        self.setup(&["suspend", "--noflush", "--nolockfs", &self.name]);
    }

    /// Answers what waits, and everything after it.
    pub fn release(&self) {
        self.setup(&["resume", &self.name]);
    }

    /// From now on everything passes through again.
    pub fn heal(&self) {
        self.switch(&self.table("linear", "0"));
    }

    fn table(&self, target: &str, arguments: &str) -> String {
        format!("0 {} {target} {} {arguments}", self.sectors, self.below)
    }

    fn switch(&self, table: &str) {
        self.setup(&["load", &self.name, "--table", table]);
        self.setup(&["suspend", "--noflush", "--nolockfs", &self.name]);
        self.setup(&["resume", &self.name]);
    }

    #[expect(clippy::unused_self, reason = "there is a device only while there is a value")]
    fn setup(&self, args: &[&str]) {
        // Otherwise it waits for udev.
        run("dmsetup", &[args, &["--noudevrules", "--noudevsync"]].concat());
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        self.setup(&["remove", &self.name]);
    }
}
