//! Devices with a cache.

use serde_json::Value;

use crate::leftover::{SOON, refused};
use crate::{Backing, Device, Fio, try_run, wait_until};

/// Options that promote every miss, without a limit.
pub const PROMOTE: [&str; 4] = ["--policy", "lru", "--promote-limit", "1G"];
/// The part of a device that is cached and read again, for fio.
const SET: &str = "4m";

/// A backing and a cache for it.
#[derive(Debug)]
pub struct Pair {
    /// What is cached.
    pub backing: Backing,
    /// Where.
    pub cache: Backing,
}

impl Pair {
    /// Two files; the one with the cache outlives the server.
    pub fn files(mib: u64, cache_mib: u64) -> Self {
        Self {
            backing: Backing::file("cached", mib),
            cache: Backing::file("cache", cache_mib),
        }
    }

    /// Two disks on which sectors are read and written whole.
    pub fn disks(mib: u64, cache_mib: u64) -> Self {
        Self {
            backing: Backing::null_blk("cached", mib),
            cache: Backing::null_blk("cache", cache_mib),
        }
    }

    fn options<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        let pair = ["--backing", self.backing.spec(), "--cache", self.cache.spec()];
        [&pair, &PROMOTE[..], more].concat()
    }

    /// A device on both.
    pub fn run(&self, more: &[&str]) -> Device {
        Device::run(&self.options(more))
    }

    /// The error line of a start with these options.
    pub fn refused(&self, more: &[&str]) -> String {
        let args = [&["run", "--daemon"], &self.options(more)[..]].concat();
        assert_eq!(try_run("ublk-bpf", &args).status.code(), Some(1), "{args:?}");
        refused(&args)
    }
}

/// Reads the set until all of it comes from the cache.
pub fn warm(device: &Device) {
    wait_until("the set is cached", 4 * SOON, || {
        let before = device.counter("hits");
        let reads = read_set(device);
        device.counter("hits") - before == reads
    });
}

/// Asserts that the set comes from the cache, with nothing promoted for it.
pub fn all_hits(device: &Device) {
    let before = device.stats();
    let reads = read_set(device);
    let after = device.stats();
    let grown = |part, name| number(&after, part, name) - number(&before, part, name);
    assert_eq!(grown("server", "hits"), reads, "{after:#}");
    assert_eq!(grown("cache", "promoted"), 0, "{after:#}");
}

/// Reads the set once in random order and gives the number of reads.
pub fn read_set(device: &Device) -> u64 {
    // One job on one CPU, so that the classifier is never skipped for nesting.
    let done = Fio::new(device.path())
        .arg("rw", "randread")
        .arg("bs", "4k")
        .arg("size", SET)
        .arg("iodepth", "8")
        .arg("cpus_allowed", "0")
        .run();
    assert_eq!(done.reads, 1024);
    done.reads
}

/// A number of `stats --json`: `part` is "server" or "cache".
pub fn number(stats: &Value, part: &str, name: &str) -> u64 {
    stats[part][name]
        .as_u64()
        .unwrap_or_else(|| panic!("no {part}.{name} in {stats:#}"))
}
