//! The logs of servers that run in the background.
//!
//! A server does not know the ids of its devices when it starts, so its log has a temporary name at first. Each of its
//! devices then gets a hard link to the one log.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::RecordError;
use super::run_dir::{DIRECTORY, RunDir, file_name};
use crate::control::DeviceId;

/// The log of the server of device `id` when it runs in the background.
#[must_use]
pub fn log_path(id: DeviceId) -> PathBuf {
    Path::new(DIRECTORY).join(file_name(id, "log"))
}

/// Makes the log of a server that does not know its devices yet, for process `process`, which started it and waits for it.
pub(crate) fn make_first_log(process: u32) -> Result<(fs::File, PathBuf), RecordError> {
    let name = format!("{FIRST_LOG}{process}.log");
    let run = RunDir::make()?;
    Ok((run.create(&name)?, run.path(&name)))
}

const FIRST_LOG: &str = "starting-";

/// Gives the log at `first` the name that it has for device `id`. The devices of a process have one log, each by its own
/// name.
pub(crate) fn name_log(first: &Path, id: DeviceId) {
    let first = first.file_name().unwrap_or_default().to_string_lossy();
    let linked = RunDir::make().and_then(|run| run.link(&first, &file_name(id, "log")));
    if let Err(error) = linked {
        tracing::warn!("{error}");
    }
}

/// Removes the log of the server of device `id`.
pub(crate) fn remove_log(id: DeviceId) {
    remove_extra(&log_path(id));
}

/// The process that made the log of this name, which [`make_first_log`] gave it. A server that starts while another process
/// has that number loses nothing but its first words.
pub(crate) fn process_of_first_log(name: &str) -> Option<u32> {
    name.strip_prefix(FIRST_LOG)?.strip_suffix(".log")?.parse().ok()
}

/// Removes a file; a failure is only logged.
pub(crate) fn remove_extra(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!("cannot remove {}: {error}", path.display());
        }
        _ => {}
    }
}
