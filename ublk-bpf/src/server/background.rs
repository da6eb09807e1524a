//! `--daemon`: the server goes to the background, and the command ends when the device is ready or cannot be.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::record::{self, RecordError};
use super::serve::{Ready, Start, serve};
use crate::control::Control;
use crate::sys::fork::{Side, fork, leave_session, replace_standard_files, wait_for};

/// Why there is no device in the background.
#[derive(Debug, thiserror::Error)]
pub enum BackgroundError {
    /// The server's own reason.
    #[error("{0}")]
    Server(String),
    /// The server ended without a word.
    #[error("the server ended before its device was ready: see {}", .0.display())]
    Silent(PathBuf),
    /// This user, or this kernel, can have no devices.
    #[error(transparent)]
    Control(#[from] crate::control::Error),
    /// The log could not be made.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// There is no way to the background.
    #[error("cannot go to the background: {0}")]
    System(io::Error),
}

/// What the server says through the pipe, before what it is about.
const READY: &str = "ready ";
const FAILED: &str = "failed ";

/// Serves a device in a new process and returns when it is ready, with what `announce` made of it. The process
/// must have one thread.
///
/// # Errors
/// The server's, in its words.
pub fn run_in_background(
    start: &Start,
    announce: impl FnOnce(&Ready) -> String,
) -> Result<String, BackgroundError> {
    // What the server would say next, but before the first file is made.
    Control::open()?;
    record::make_directory()?;
    // The id is not known yet, which the log's name has in it.
    let log_path = record::first_log_path(std::process::id());
    let system = BackgroundError::System;
    let log = File::create(&log_path).map_err(system)?;
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(system)?;
    let (mut listen, say) = io::pipe().map_err(system)?;
    match fork().map_err(system)? {
        Side::Child => {
            drop(listen);
            let detached = leave_session()
                .and_then(|()| replace_standard_files(&null, &log))
                .and_then(|()| std::env::set_current_dir("/"));
            if let Err(error) = detached {
                tracing::warn!("not wholly in the background: {error}");
            }
            std::process::exit(be_server(start, announce, say, &log_path));
        }
        Side::Parent(child) => {
            drop(say);
            let mut said = String::new();
            listen.read_to_string(&mut said).map_err(system)?;
            if let Some(line) = said.strip_prefix(READY) {
                return Ok(line.to_owned());
            }
            // It has said why and cleans up: when this command ends, nothing is left.
            wait_for(child);
            Err(match said.strip_prefix(FAILED) {
                Some(why) => BackgroundError::Server(why.to_owned()),
                None => BackgroundError::Silent(log_path),
            })
        }
    }
}

/// The server's process: its exit status.
fn be_server(
    start: &Start,
    announce: impl FnOnce(&Ready) -> String,
    say: io::PipeWriter,
    first_log: &Path,
) -> i32 {
    let mut say = Some(say);
    let mut log = first_log.to_owned();
    let result = serve(start, |ready| {
        let path = record::log_path(ready.record.id());
        match fs::rename(&log, &path) {
            Ok(()) => log = path,
            Err(error) => tracing::warn!("cannot rename {}: {error}", log.display()),
        }
        tell(say.take(), READY, &announce(ready));
    });
    if let Err(error) = &result {
        // The file system of the log may be full.
        let _ = writeln!(io::stderr(), "ublk-bpf: {error}");
        if say.is_none() {
            // The device was ready: the log is all that is left to say why it is gone.
            return 1;
        }
        tell(say, FAILED, &error.to_string());
    }
    if let Err(error) = fs::remove_file(&log) {
        tracing::warn!("cannot remove {}: {error}", log.display());
    }
    i32::from(result.is_err())
}

/// The command may have been ended meanwhile; the server does not depend on it.
fn tell(say: Option<io::PipeWriter>, kind: &str, what: &str) {
    if let Some(mut say) = say
        && let Err(error) = write!(say, "{kind}{what}")
    {
        tracing::debug!("nobody listens any more: {error}");
    }
}
