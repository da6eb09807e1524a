//! The caches of running devices: written back, detached, replaced.

use std::path::Path;

use anyhow::{Context as _, anyhow, bail};

use super::super::handover;
use super::super::output::print_line;
use super::super::progress::Progress;
use crate::backend::Spec;
use crate::control::{Control, DeviceId};
use crate::path_text::ShowPath as _;
use crate::registry::ask::{AskError, ask};
use crate::registry::message::{AfterDrain, DeviceCommand};
use crate::registry::record::CacheRecord;
use crate::registry::{Record, RecordError};
use crate::server::{Start, run_in_background};

/// Has the server write back what is dirty, and prints its last line.
pub(super) fn drain(id: DeviceId) -> anyhow::Result<()> {
    Ok(print_line(drained(id, AfterDrain::Resume)?)?)
}

/// The same, and the cache is used no longer.
pub(super) fn detach(id: DeviceId) -> anyhow::Result<()> {
    Ok(print_line(drained(id, AfterDrain::Detach)?)?)
}

/// Has the server write back what is dirty, and shows how far it is. Returns its last line.
pub(in super::super) fn drained(id: DeviceId, then: AfterDrain) -> Result<String, AskError> {
    let mut progress = Progress::new();
    ask(id, DeviceCommand::Drain(then), |line| progress.say(line))
}

/// Puts another device in the place of a detached cache: a new server takes the device over with it, or as it was.
pub(super) fn attach(id: DeviceId, path: &Path) -> anyhow::Result<()> {
    let path = std::path::absolute(path).with_context(|| format!("cannot resolve {}", path.shown()))?;
    let spec = Spec::from_user(path.as_os_str()).map_err(|error| anyhow!("{error}"))?;
    Control::open()?;
    // What would be refused afterwards is refused while the present server serves.
    replace(&mut Record::read(id)?, spec.clone())?;
    let leaving = handover::leave(id)?;
    handover::wait_for_departure(&leaving)?;
    let before = Record::change(id, |record| replace(record, spec));
    let before = before.map_err(|error| taken_back(id, error))?;
    let start = Start::recover_all(vec![id]);
    let said = run_in_background(&start, |ready| handover::announce(ready, &[leaving]));
    match said {
        Ok(said) => Ok(print_line(said)?),
        Err(error) => {
            let restored = Record::change(id, |record| {
                record.cache = Some(before);
                Ok::<_, RecordError>(())
            });
            let error = restored.map_or_else(Into::into, |()| error.into());
            Err(taken_back(id, error))
        }
    }
}

/// Serves the device again as it was. Returns what is to be told.
fn taken_back(id: DeviceId, why: anyhow::Error) -> anyhow::Error {
    let start = Start::recover_all(vec![id]);
    match run_in_background(&start, |_| String::new()) {
        Ok(_) => why,
        Err(error) => anyhow!("{why:#}; and now {} waits: {error}", id.disk_name()),
    }
}

/// Puts it into the record. Returns what was there.
fn replace(record: &mut Record, device: Spec) -> anyhow::Result<CacheRecord> {
    let disk = record.id().disk_name();
    let Some(cache) = record.cache.as_mut() else {
        bail!(
            "{disk} was made without a cache, and its requests are not cut for one: stop it, and run it with --cache"
        );
    };
    if cache.detached.is_none() {
        bail!(
            "{disk} has the cache {}: detach that first with `ublk-bpf cache detach`",
            cache.options.device
        );
    }
    let before = cache.clone();
    cache.options.device = device;
    cache.detached = None;
    cache.is_attached_anew = true;
    Ok(before)
}
