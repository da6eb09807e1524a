//! `ublk-bpf stop`.

use anyhow::bail;
use clap::ArgGroup;

use super::cache::live::drained;
use crate::control::{Control, DeviceId};
use crate::log;
use crate::registry::ask::ask;
use crate::registry::message::{AfterDrain, DeviceCommand};
use crate::registry::{Record, RecordError, StopError, stale, stop, stop_starts, users};

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
    /// First write back what is dirty in its cache, so that the backing has everything
    ///
    /// Without this, dirty blocks stay in the cache, and the next start of the backing needs it.
    #[arg(long)]
    drain: bool,
}

/// Stops one device or all of them. A failure of one does not keep the others from being stopped.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let control = Control::open()?;
    if let Some(id) = args.id {
        return stop_one(&control, id, args);
    }
    // Their devices might come after those that are known now.
    stop_starts()?;
    let mut failed = 0;
    let ids = stale::known()?;
    for id in &ids {
        if let Err(error) = stop_one(&control, *id, args) {
            log::say(format_args!("{error:#}"));
            failed += 1;
        }
    }
    if failed > 0 {
        bail!("{failed} of {} devices were not stopped", ids.len());
    }
    Ok(())
}

fn stop_one(control: &Control, id: DeviceId, args: &Args) -> anyhow::Result<()> {
    // A device whose record is damaged can be stopped.
    let has_dirty = || Ok::<_, RecordError>(Record::read(id)?.cache.is_some_and(|cache| cache.writes_back));
    if !args.drain || !has_dirty()? {
        return Ok(stop(control, id, args.force)?);
    }
    // That may take long, so what would be refused then is refused now.
    if !args.force && !users::of(id).is_empty() {
        let users = users::in_words(id);
        return Err(StopError::InUse { id, users }.into());
    }
    log::say(format_args!(
        "{}: {}",
        id.disk_name(),
        drained(id, AfterDrain::Hold)?
    ));
    let stopped = stop(control, id, args.force);
    if stopped.is_err() {
        // It is served on as before.
        let _ = ask(id, DeviceCommand::EndDrain, |_| {});
    }
    Ok(stopped?)
}
