//! `--daemon`: the server goes to the background, and the command ends when its devices are ready or cannot be.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::record::{self, RecordError};
use super::serve::{Ready, Start, serve};
use crate::control::Control;
use crate::sys::fork::{Side, fork, leave_session, replace_standard_files, wait_for};

/// Why there is no server in the background.
#[derive(Debug, thiserror::Error)]
pub enum BackgroundError {
    /// The server's own reason.
    #[error("{0}")]
    Server(String),
    /// The server ended without a word.
    #[error("the server ended before it was ready: see {}", .0.display())]
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

/// Serves devices in a new process and returns when they are ready, with what `announce` made of them. The process
/// must have one thread.
///
/// # Errors
/// The server's, in its words.
pub fn run_in_background(
    start: &Start,
    announce: impl FnOnce(&[Ready]) -> String,
) -> Result<String, BackgroundError> {
    // What the server would say next, but before the first file is made.
    Control::open()?;
    // The ids are not known yet, which the log's names have in them.
    let (log, log_path) = record::make_first_log(std::process::id())?;
    let system = BackgroundError::System;
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
            if let Some(lines) = said.strip_prefix(READY) {
                return Ok(lines.to_owned());
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
    announce: impl FnOnce(&[Ready]) -> String,
    say: io::PipeWriter,
    first_log: &Path,
) -> i32 {
    let mut say = Some(say);
    let result = serve(start, |ready| {
        for device in ready {
            record::name_log(first_log, device.record.id());
        }
        record::remove_extra(first_log);
        tell(say.take(), READY, &announce(ready));
    });
    if let Err(error) = &result {
        // The file system of the log may be full.
        let _ = writeln!(io::stderr(), "ublk-bpf: {error}");
        if say.is_some() {
            tell(say, FAILED, &error.to_string());
            record::remove_extra(first_log);
        }
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
