//! `--daemon`: the server goes to the background, and the command ends when its devices are ready or cannot be.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::life::Ready;
use super::serve::{serve_started, start_lock};
use super::start::Start;
use crate::control::Control;
use crate::log;
use crate::registry::lock::Lock;
use crate::registry::{RecordError, logs};
use crate::sys::fork::{
    ForwardSignals, Side, end_with_parent, fork, leave_session, outlive_parent, replace_standard_files,
    wait_for,
};

/// Why there is no server in the background.
#[derive(Debug, thiserror::Error)]
pub enum BackgroundError {
    /// The server's own reason.
    #[error("{0}")]
    Server(String),
    /// The server ended without a message.
    #[error("the server ended before it was ready: see {}", .0.display())]
    Silent(PathBuf),
    /// A signal came before the server could say so itself.
    #[error("stopped by a signal before any device was made")]
    Interrupted,
    /// This user, or this kernel, can have no devices.
    #[error(transparent)]
    Control(#[from] crate::control::ControlError),
    /// The log could not be made.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The process cannot go to the background.
    #[error("cannot go to the background: {0}")]
    System(io::Error),
}

/// How the messages of the server through the pipe begin.
const READY: &str = "ready ";
const FAILED: &str = "failed ";

/// Serves devices in a new process and returns when they are ready, with what `announce` made of them. The process
/// must have one thread. If it is ended before, by SIGINT, SIGTERM or otherwise, the start is given up.
///
/// # Errors
/// The server's, in its words.
pub fn run_in_background(
    start: &Start,
    announce: impl FnOnce(&[Ready]) -> String,
) -> Result<String, BackgroundError> {
    // The first check of the server, before any file is created.
    Control::open()?;
    let starting = start_lock().map_err(|error| BackgroundError::Server(error.to_string()))?;
    let me = std::process::id();
    // The log's final name contains the id, which is not known yet.
    let (log, log_path) = logs::make_first_log(me)?;
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
            if end_with_parent(me).is_err() {
                logs::remove_extra(&log_path);
                std::process::exit(1);
            }
            let detached = leave_session()
                .and_then(|()| replace_standard_files(&null, &log))
                .and_then(|()| std::env::set_current_dir("/"));
            if let Err(error) = detached {
                tracing::warn!("cannot detach completely: {error}");
            }
            let start = Begun {
                start,
                starting,
                parent: me,
            };
            let status = be_server(start, announce, say, &log_path);
            log::flush();
            std::process::exit(status);
        }
        Side::Parent(child) => {
            drop(say);
            // Only the server's copy marks a start in progress.
            drop(starting);
            // Without them, a signal ends this process, and that ends the server.
            let signals = ForwardSignals::to(child);
            let mut said = String::new();
            listen.read_to_string(&mut said).map_err(system)?;
            if let Some(lines) = said.strip_prefix(READY) {
                return Ok(lines.to_owned());
            }
            drop(signals);
            // The server has reported its error and cleans up: wait, so that the cleanup is complete when this command ends.
            let signal = wait_for(child);
            Err(match (said.strip_prefix(FAILED), signal) {
                (Some(why), _) => BackgroundError::Server(why.to_owned()),
                (None, Some(libc::SIGTERM)) => {
                    logs::remove_extra(&log_path);
                    BackgroundError::Interrupted
                }
                (None, _) => BackgroundError::Silent(log_path),
            })
        }
    }
}

/// A start that is under way.
struct Begun<'a> {
    start: &'a Start,
    starting: Lock,
    /// The process that waits for its end.
    parent: u32,
}

/// The server's process: its exit status.
fn be_server(
    begun: Begun<'_>,
    announce: impl FnOnce(&[Ready]) -> String,
    say: io::PipeWriter,
    first_log: &Path,
) -> i32 {
    let mut say = Some(say);
    let result = serve_started(begun.start, Some(begun.starting), |ready| {
        for device in ready {
            logs::name_log(first_log, device.record.id());
        }
        logs::remove_extra(first_log);
        // The parent ends when the pipe is closed, which it is after this.
        let say = say.take();
        tell(say.as_ref(), READY, &announce(ready)) && outlive_parent(begun.parent)
    });
    if let Err(error) = &result {
        log::say(error);
        if say.is_some() {
            tell(say.as_ref(), FAILED, &error.to_string());
            logs::remove_extra(first_log);
        }
    }
    i32::from(result.is_err())
}

/// Sends a message to the command that waits. Returns false if that command has ended.
fn tell(say: Option<&io::PipeWriter>, kind: &str, what: &str) -> bool {
    let said = say.map(|mut say| write!(say, "{kind}{what}"));
    matches!(said, Some(Ok(())))
}
