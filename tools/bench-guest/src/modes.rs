//! What is measured of ours: each way that a request can go.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::hits;
use super::ours::Device;
use super::peers::FAST;
use super::sizes::RANGE_MIB;
use super::subject::{Kind, Raw, Shape, Subject};
use host::command;

/// What forgets everything, and does not touch a reader's pages.
const NULL: &str = "null:8G,unfilled";
/// What nothing was written to.
const UNWRITTEN: &str = "mem:1G";

/// In the order of tables.
pub fn kinds() -> Vec<Kind> {
    let kind = |name, raw, options, start| Kind {
        name,
        raw,
        options,
        version,
        start,
    };
    vec![
        kind(
            "ublk-bpf-null",
            Raw::NullBlk,
            "`--backing null:8G,unfilled --policy passthrough`",
            null as fn(Shape) -> _,
        ),
        kind(
            "ublk-bpf-drop",
            Raw::NullBlk,
            "`--backing mem:1G --policy sparse`",
            drop,
        ),
        kind(
            "ublk-bpf-brd",
            Raw::Brd,
            "`--backing /dev/ram0 --policy passthrough`",
            brd,
        ),
        kind(
            "ublk-bpf-hit",
            Raw::Brd,
            "`--backing /dev/ram1 --cache /dev/ram0 --policy lru`, warm",
            hit,
        ),
    ]
}

fn version() -> Result<String> {
    let version = command::output(Command::new("ublk-bpf").arg("--version"))?;
    Ok(version.trim().to_owned())
}

/// A device of ours, and where its reads are to go.
struct Mode {
    device: Device,
    server: u32,
    /// The server's counter of such reads.
    counter: &'static str,
    before: Counted,
}

/// Requests that arrived, and those that went the way that was meant.
#[derive(Clone, Copy, Debug)]
struct Counted {
    arrived: u64,
    meant: u64,
}

impl Mode {
    fn of(device: Device, counter: &'static str) -> Result<Box<dyn Subject>> {
        Ok(Box::new(Self {
            server: device.server()?,
            before: Counted::read(&device.stats()?, counter)?,
            device,
            counter,
        }))
    }

    fn start(backing: &str, policy: &str, shape: Shape, counter: &'static str) -> Result<Box<dyn Subject>> {
        let (queues, depth) = (shape.queues.to_string(), shape.depth.to_string());
        let what = ["--backing", backing, "--policy", policy];
        let shape = ["--queues", &queues, "--depth", &depth];
        Self::of(Device::start(&[what, shape].concat())?, counter)
    }
}

impl Subject for Mode {
    fn path(&self) -> &Path {
        self.device.path()
    }

    fn servers(&self) -> Vec<u32> {
        vec![self.server]
    }

    fn check(&self) -> Result<()> {
        let now = Counted::read(&self.device.stats()?, self.counter)?;
        self.before.all_until(now, self.counter)
    }
}

impl Counted {
    fn read(stats: &Value, counter: &str) -> Result<Self> {
        let number = |name: &str| {
            let value = stats["server"][name].as_u64();
            value.with_context(|| format!("the statistics have no number /server/{name}"))
        };
        Ok(Self {
            arrived: number("arrived")?,
            meant: number(counter)?,
        })
    }

    fn all_until(self, now: Self, counter: &str) -> Result<()> {
        let (arrived, meant) = (now.arrived - self.arrived, now.meant - self.meant);
        ensure!(
            arrived > 0 && meant == arrived,
            "only {meant} of {arrived} requests were counted as {counter}"
        );
        Ok(())
    }
}

/// Passed through to nothing: the price of the classifier, the queue and the server's loop.
fn null(shape: Shape) -> Result<Box<dyn Subject>> {
    Mode::start(NULL, "passthrough", shape, "passthrough")
}

/// Dropped: what was never written is filled with zeroes without I/O.
fn drop(shape: Shape) -> Result<Box<dyn Subject>> {
    Mode::start(UNWRITTEN, "sparse", shape, "dropped")
}

/// Passed through to a ram disk.
fn brd(shape: Shape) -> Result<Box<dyn Subject>> {
    Mode::start(FAST, "passthrough", shape, "passthrough")
}

/// A hit: read from a ram disk that is the cache of another. It is emptied, as the others' is.
fn hit(shape: Shape) -> Result<Box<dyn Subject>> {
    let device = hits::warm(RANGE_MIB, shape.queues, shape.depth)?;
    hits::discard_fast()?;
    Mode::of(device, "hits")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_read_that_went_another_way_is_too_many() {
        let counted = |arrived: u64, hits: u64| {
            let stats = json!({"server": {"arrived": arrived, "hits": hits}});
            Counted::read(&stats, "hits").expect("read")
        };
        let warm = counted(5, 0);
        assert!(warm.all_until(counted(9, 4), "hits").is_ok());
        assert!(warm.all_until(counted(9, 3), "hits").is_err());
        assert!(warm.all_until(counted(5, 0), "hits").is_err(), "nothing was read");
    }
}
