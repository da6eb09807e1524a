//! `ublk-bpf stop`.

use anyhow::bail;
use clap::ArgGroup;

use crate::control::{Control, DeviceId};
use crate::log;
use crate::registry::{stale, stop, stop_starts};

/// Stop a device and remove it
///
/// A device that is in use is not stopped unless --force is given, which fails its I/O. A device whose server died is
/// removed in the same way.
#[derive(Debug, clap::Args)]
#[command(group(ArgGroup::new("which").required(true).args(["id", "all"])))]
pub(super) struct Args {
    /// The device: 0, ublkb0, /dev/ublkb0 or its name
    #[arg(value_name = "ID", value_parser = super::args::device)]
    id: Option<DeviceId>,
    /// Stop every device of ublk-bpf, and cancel every start in progress
    #[arg(long)]
    all: bool,
    /// Stop it even if it is in use, which fails its I/O
    #[arg(long)]
    force: bool,
}

/// Stops one device or all of them. A failure of one does not keep the others from being stopped.
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
