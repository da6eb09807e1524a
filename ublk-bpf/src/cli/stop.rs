//! `ublk-bpf stop`.

use anyhow::bail;
use clap::ArgGroup;

use crate::control::{Control, DeviceId};
use crate::log;
use crate::registry::{stale, stop, stop_starts};

/// Stop a device and remove everything of it
///
/// A device that somebody has open is not stopped, unless --force is given: then its I/O fails. The device of a server
/// that died is removed in the same way.
#[derive(Debug, clap::Args)]
#[command(group(ArgGroup::new("which").required(true).args(["id", "all"])))]
pub(super) struct Args {
    /// The device: 0, ublkb0 or /dev/ublkb0
    #[arg(value_name = "ID")]
    id: Option<DeviceId>,
    /// Every device of this program, and every start of devices that is under way
    #[arg(long)]
    all: bool,
    /// Even if somebody has it open, whose I/O fails then
    #[arg(long)]
    force: bool,
}

/// Stops one device, or all of them, each whatever becomes of the others.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let control = Control::open()?;
    if let Some(id) = args.id {
        return Ok(stop(&control, id, args.force)?);
    }
    // Their devices might come after those that are known now.
    stop_starts()?;
    let mut failed = 0;
    let ids = stale::known()?;
    for id in &ids {
        if let Err(error) = stop(&control, *id, args.force) {
            log::say(error);
            failed += 1;
        }
    }
    if failed > 0 {
        bail!("{failed} of {} devices were not stopped", ids.len());
    }
    Ok(())
}
