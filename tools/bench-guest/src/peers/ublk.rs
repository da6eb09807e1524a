//! Other ublk servers: kublk, the kernel's reference in C, and rublk in Rust.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::KUBLK_VERSION;
use super::disks::{FAST, empty};
use super::wait_until;
use crate::subject::{Kind, Raw, Shape, Subject};
use host::command;

/// kublk one request at a time and in batch mode, with copies and with automatic buffers (zero copy).
pub(crate) const KUBLK: [Kind; 8] = [
    kublk("kublk-null", Raw::NullBlk, "`-t null`", |shape| null(shape, &[])),
    kublk("kublk-zc-null", Raw::NullBlk, "`-t null --auto_zc`", |shape| {
        null(shape, &["--auto_zc"])
    }),
    kublk("kublk-batch-null", Raw::NullBlk, "`-t null -b`", |shape| {
        null(shape, &["-b"])
    }),
    kublk(
        "kublk-batch-zc-null",
        Raw::NullBlk,
        "`-t null -b --auto_zc`",
        |shape| null(shape, &["-b", "--auto_zc"]),
    ),
    kublk("kublk-loop", Raw::Brd, "`-t loop`", |shape| looped(shape, &[])),
    kublk("kublk-zc-loop", Raw::Brd, "`-t loop --auto_zc`", |shape| {
        looped(shape, &["--auto_zc"])
    }),
    kublk("kublk-batch-loop", Raw::Brd, "`-t loop -b`", |shape| {
        looped(shape, &["-b"])
    }),
    kublk(
        "kublk-batch-zc-loop",
        Raw::Brd,
        "`-t loop -b --auto_zc`",
        |shape| looped(shape, &["-b", "--auto_zc"]),
    ),
];

/// rublk in its fastest modes. Its null never looks at the data, and copies none in user copy mode; its loop has zero copy.
pub(crate) const RUBLK: [Kind; 2] = [
    Kind {
        name: "rublk-null",
        raw: Raw::NullBlk,
        options: "`null --user-copy`",
        version: rublk_version,
        start: |shape| Server::start("rublk", shape, &["null", "--user-copy"]),
    },
    Kind {
        name: "rublk-loop",
        raw: Raw::Brd,
        options: "`loop --zero-copy`, on a ram disk",
        version: rublk_version,
        start: |shape| {
            empty(FAST)?;
            Server::start("rublk", shape, &["loop", "--file", FAST, "--zero-copy"])
        },
    },
];

const fn kublk(
    name: &'static str,
    raw: Raw,
    options: &'static str,
    start: fn(Shape) -> Result<Box<dyn Subject>>,
) -> Kind {
    Kind {
        name,
        raw,
        options,
        version: kublk_version,
        start,
    }
}

fn null(shape: Shape, options: &[&str]) -> Result<Box<dyn Subject>> {
    Server::start("kublk", shape, &[&["-t", "null"], options].concat())
}

fn looped(shape: Shape, options: &[&str]) -> Result<Box<dyn Subject>> {
    empty(FAST)?;
    Server::start("kublk", shape, &[&["-t", "loop"], options, &[FAST]].concat())
}

fn kublk_version() -> Result<String> {
    let version =
        fs::read_to_string(KUBLK_VERSION).with_context(|| format!("cannot read {KUBLK_VERSION}"))?;
    Ok(format!("kublk of Linux {version}"))
}

fn rublk_version() -> Result<String> {
    let said = command::output(Command::new("rublk").arg("--version"))?;
    Ok(said.trim().to_owned())
}

/// A server in the background, and its device; dropped, both end.
struct Server {
    program: &'static str,
    id: u32,
    pid: u32,
    path: PathBuf,
}

impl Server {
    /// kublk and rublk have the same options for what both can do.
    fn start(program: &'static str, shape: Shape, options: &[&str]) -> Result<Box<dyn Subject>> {
        let mut add = Command::new(program);
        add.arg("add").args(options);
        add.args(["-q", &shape.queues.to_string(), "-d", &shape.depth.to_string()]);
        let said = command::output(&mut add)?;
        let number = |before: &str| {
            number_after(&said, before)
                .with_context(|| format!("{program} was to say its `{before}`, but said: {}", said.trim()))
        };
        let id = number("dev id ")?;
        Ok(Box::new(Self {
            program,
            id,
            pid: number("daemon pid ")?,
            path: PathBuf::from(format!("/dev/ublkb{id}")),
        }))
    }
}

impl Subject for Server {
    fn path(&self) -> &Path {
        &self.path
    }

    fn servers(&self) -> Vec<u32> {
        vec![self.pid]
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // If it cannot be removed, the next one on the same disk fails and says so.
        let _ = command::output(Command::new(self.program).args(["del", "-n", &self.id.to_string()]));
        // rublk deletes its device first and ends later, with the backing open until then.
        let process = PathBuf::from(format!("/proc/{}", self.pid));
        let _ = wait_until("the server has ended", || !process.exists());
    }
}

fn number_after(text: &str, before: &str) -> Option<u32> {
    let (_, rest) = text.split_once(before)?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_says_what_it_made() {
        let said = "dev id 3: nr_hw_queues 1 queue_depth 128 block size 512 dev_capacity 524288000\n\
                    \tmax rq size 1048576 daemon pid 130 flags 0x2c042 state LIVE\n";
        assert_eq!(number_after(said, "dev id "), Some(3));
        assert_eq!(number_after(said, "daemon pid "), Some(130));
        assert_eq!(number_after(said, "queue tid "), None);
        assert_eq!(number_after("dev id x", "dev id "), None);
    }
}
