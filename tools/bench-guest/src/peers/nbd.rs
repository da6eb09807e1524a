//! The kernel's network block device, served by nbdkit over a unix socket.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};

use super::wait_until;
use crate::subject::{Kind, Raw, Shape, Subject};
use host::command;

const DEVICE: &str = "/dev/nbd0";
const SOCKET: &str = "/run/bench-nbdkit";

pub(crate) const KINDS: [Kind; 1] = [Kind {
    name: "nbd-nbdkit",
    raw: Raw::NullBlk,
    options: "`nbdkit null`, `nbd-client -unix`, a connection for each queue",
    version,
    start: |shape| Ok(Box::new(Nbd::start(shape)?)),
}];

fn version() -> Result<String> {
    let nbdkit = command::output(Command::new("nbdkit").arg("--version"))?;
    let client = command::output(Command::new("nbd-client").arg("--version"))?;
    // "This is nbd-client, from nbd 3.24"
    let client = client.split_whitespace().last().unwrap_or_default();
    Ok(format!("{}, nbd-client {client}", nbdkit.trim()))
}

/// nbdkit with its null plugin, and the device that is connected to it; dropped, both end.
struct Nbd {
    nbdkit: Child,
}

impl Nbd {
    /// Each connection is a queue; their depth is the driver's, 128.
    fn start(shape: Shape) -> Result<Self> {
        command::output(Command::new("modprobe").args(["nbd", "nbds_max=1"]))?;
        let mut nbdkit = Command::new("nbdkit");
        nbdkit.args(["--foreground", "--unix", SOCKET, "null", "size=1G"]);
        nbdkit.stdin(Stdio::null()).stdout(Stdio::null());
        let nbd = Self {
            nbdkit: nbdkit.spawn().context("cannot start nbdkit")?,
        };
        wait_until("nbdkit has its socket", || Path::new(SOCKET).exists())?;
        let connections = shape.queues.to_string();
        let mut client = Command::new("nbd-client");
        client.args(["-unix", SOCKET, DEVICE, "-connections", &connections]);
        command::output(&mut client)?;
        Ok(nbd)
    }
}

impl Subject for Nbd {
    fn path(&self) -> &Path {
        Path::new(DEVICE)
    }

    fn servers(&self) -> Vec<u32> {
        vec![self.nbdkit.id()]
    }
}

impl Drop for Nbd {
    fn drop(&mut self) {
        // If something is left, the next one fails and says so.
        let _ = command::output(Command::new("nbd-client").args(["-d", DEVICE]));
        let _ = self.nbdkit.kill();
        let _ = self.nbdkit.wait();
        let _ = std::fs::remove_file(SOCKET);
    }
}
