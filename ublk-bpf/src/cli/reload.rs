//! `ublk-bpf reload`.

use std::collections::BTreeMap;

use anyhow::bail;

use super::output::print_line;
use crate::control::DeviceId;
use crate::registry::lock::Lock;
use crate::registry::{Record, ask, record};

const DETAILS: &str = "\
The server of `run --config` reads its file again. Devices that are new in it are made, or taken back if they wait; those \
that are gone from it are stopped, unless they are in use; policy, scheduler, and the limits and the mode of the cache \
change as they do by `set`. Each other option that differs is named: it needs a restart of the device. Paths are those of \
this command. A device is found by its name, its number, or its backing.

Each change is printed as it is made. The exit status is 0 if the devices are what the file describes, and 1 if not; if the \
file has an error, nothing is changed. SIGHUP does the same, and its words go to the log.";

/// Make the devices of a server what its configuration describes now
#[derive(Debug, clap::Args)]
#[command(after_help = DETAILS)]
pub(super) struct Args {
    /// A device of the server, if there are several servers: 0, ublkb0, /dev/ublkb0 or its name
    #[arg(value_name = "ID", value_parser = super::args::device, conflicts_with = "process")]
    id: Option<DeviceId>,
    /// The server, by its process number, as a unit of systemd knows it
    #[arg(long, value_name = "PID")]
    process: Option<u32>,
}

/// Asks the server.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let id = match args.id {
        Some(id) => id,
        None => device_of(args.process)?,
    };
    let said = ask::reload(id, |line| {
        // Who does not read it has the exit status.
        let _ = print_line(line);
    })?;
    if !said.is_empty() {
        print_line(said)?;
    }
    Ok(())
}

/// A device of this server, or of the only one.
fn device_of(process: Option<u32>) -> anyhow::Result<DeviceId> {
    let mut servers = BTreeMap::new();
    for id in record::ids()? {
        if let Ok(record) = Record::read(id)
            && Lock::is_served(id)?
        {
            servers.insert(record.pid, id);
        }
    }
    match (process, servers.len()) {
        (Some(process), _) => match servers.get(&process) {
            Some(id) => Ok(*id),
            None => bail!("process {process} serves no device: see `ublk-bpf list`"),
        },
        (None, 1) => Ok(servers.into_values().next().expect("there is one")),
        (None, 0) => {
            bail!("there is no server: see `ublk-bpf list`, and start one with `ublk-bpf run --config FILE`")
        }
        (None, of) => {
            let processes: Vec<String> = servers.keys().map(u32::to_string).collect();
            bail!(
                "there are {of} servers, the processes {}: name a device of the one that is meant, or give --process",
                processes.join(", ")
            )
        }
    }
}
