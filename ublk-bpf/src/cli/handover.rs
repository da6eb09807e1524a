//! `ublk-bpf handover`.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::ArgGroup;

use super::output::print_line;
use crate::control::{Control, DeviceId};
use crate::log;
use crate::registry::ask::ask;
use crate::registry::lock::Lock;
use crate::registry::message::DeviceCommand;
use crate::registry::record;
use crate::server::{self, Ready, Start};

/// How long a server may take to finish its requests in flight and leave the device.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(1);

/// Hand running devices over to a new server, of this program
///
/// The present server finishes its requests in flight and leaves the devices waiting; a new process, in the background, takes
/// them over. With `--recovery reissue` no request fails: those of the meantime wait. The new server has the policy with its
/// maps, and the blocks in the cache, which it compares with the backing before their first hit. Prints how long each device
/// had no server. A service manager's server is restarted by the manager: `systemctl restart ublk-bpf.service`.
#[derive(Debug, clap::Args)]
#[command(group(ArgGroup::new("which").required(true).args(["id", "all"])))]
pub(super) struct Args {
    /// The device: 0, ublkb0, /dev/ublkb0 or its name
    #[arg(value_name = "ID", value_parser = super::args::device)]
    id: Option<DeviceId>,
    /// Hand over every device that is served and can wait; one process serves them then
    #[arg(long)]
    all: bool,
}

/// A device that its server leaves, and since when.
pub(super) struct Leaving {
    id: DeviceId,
    since: Instant,
}

/// Has the servers leave, and becomes the parent of the next one.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    // What would keep a new server from starting is found out while the present one serves.
    Control::open()?;
    let leaving = match args.id {
        Some(id) => vec![leave(id)?],
        None => leave_all()?,
    };
    if leaving.is_empty() {
        bail!("no device can be handed over: see `ublk-bpf list`");
    }
    for device in &leaving {
        wait_for_departure(device)?;
    }
    let start = Start::recover_all(leaving.iter().map(|device| device.id).collect());
    let said = server::run_in_background(&start, |ready| announce(ready, &leaving));
    let said = said.context("the devices wait for `ublk-bpf run --recover --all`")?;
    Ok(print_line(said)?)
}

pub(super) fn leave(id: DeviceId) -> anyhow::Result<Leaving> {
    let since = Instant::now();
    ask(id, DeviceCommand::Leave, |_| {})?;
    Ok(Leaving { id, since })
}

/// Asks every server. Those that refuse go on as before.
fn leave_all() -> anyhow::Result<Vec<Leaving>> {
    let mut leaving = Vec::new();
    for id in record::ids()? {
        if !Lock::is_served(id)? {
            continue;
        }
        match leave(id) {
            Ok(device) => leaving.push(device),
            Err(error) => log::say(format_args!("{} stays as it is: {error}", id.disk_name())),
        }
    }
    Ok(leaving)
}

pub(super) fn wait_for_departure(device: &Leaving) -> anyhow::Result<()> {
    while Lock::is_served(device.id)? {
        if device.since.elapsed() > PATIENCE {
            bail!(
                "the server of {} has not left it within {} s: see its log, and recover the device with `ublk-bpf run \
                 --recover {}` when it waits",
                device.id.disk_name(),
                PATIENCE.as_secs(),
                device.id
            );
        }
        thread::sleep(POLL);
    }
    Ok(())
}

/// A line for each device, in the new server's words, and one if there should be more.
pub(super) fn announce(ready: &[Ready], leaving: &[Leaving]) -> String {
    let line = |device: &Ready| {
        let id = device.record.id();
        let left = leaving.iter().find(|left| left.id == id)?;
        let pause = device.at.saturating_duration_since(left.since);
        Some(format!(
            "{} is served by process {} after a pause of {} ms",
            id.block_path().display(),
            device.record.pid,
            pause.as_millis()
        ))
    };
    let mut lines: Vec<String> = ready.iter().filter_map(line).collect();
    if ready.len() < leaving.len() {
        lines
            .push("the other devices wait: see the server's log, and `ublk-bpf run --recover ID`".to_owned());
    }
    lines.join("\n")
}
