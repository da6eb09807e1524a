//! Log lines, on standard error: the terminal in the foreground, the log file in the background.
//!
//! A log never fails a device. A line that cannot be written (the file system is full, the terminal or the reader of a
//! pipe has gone) is dropped. In a server a separate thread writes the lines ([`write_in_background`]), so a reader
//! that stalls, or a file system that waits for this server's device, holds up that thread and no other.

use std::fmt::Display;
use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

/// Lines that wait to be written; further ones are dropped and counted.
const MAX_WAITING: usize = 1024;
/// Bytes of the stack of the thread that writes lines, which is locked whole.
const STACK: usize = 128 << 10;
/// How long a server that ends waits for its last lines to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Sends to the thread that writes. Unset: the calling thread writes.
static WRITER: OnceLock<SyncSender<Message>> = OnceLock::new();
/// Replaces the filter of what is logged.
static SET_FILTER: OnceLock<Box<dyn Fn(EnvFilter) + Send + Sync>> = OnceLock::new();
/// Lines dropped since the last one was written.
static LOST: AtomicU64 = AtomicU64::new(0);

enum Message {
    Line(Vec<u8>),
    /// To be answered when everything before it is written.
    Flush(SyncSender<()>),
}

/// Sends what is logged to standard error from now on: warnings and errors, or more with a `verbose` of 1 to 3; `RUST_LOG`
/// has precedence. To be called once.
pub fn start(verbose: u8) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| level(verbose));
    let subscriber = tracing_subscriber::fmt()
        .with_writer(|| Log)
        .with_target(false)
        .with_ansi(false)
        // It would print its own failures, and panic where it cannot.
        .log_internal_errors(false)
        .with_env_filter(filter)
        .with_filter_reloading();
    let filter = subscriber.reload_handle();
    // It is called once.
    let _ = SET_FILTER.set(Box::new(move |new| {
        if let Err(error) = filter.reload(new) {
            say(format_args!("cannot change what is logged: {error}"));
        }
    }));
    subscriber.init();
}

/// Logs warnings and errors from now on, or more with a `verbose` of 1 to 3.
pub(crate) fn set_verbosity(verbose: u8) {
    if let Some(set) = SET_FILTER.get() {
        set(level(verbose));
    }
}

fn level(verbose: u8) -> EnvFilter {
    EnvFilter::new(match verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    })
}

/// Writes a line for the person at the terminal, whatever level is logged.
pub fn say(line: impl Display) {
    // A `Log` takes everything.
    let _ = Log.write(format!("ublk-bpf: {line}\n").as_bytes());
}

/// Starts the thread that writes from now on. Once it has been started, the process must not fork.
///
/// # Errors
/// If the process can have no more threads; lines are written as before then.
pub fn write_in_background() -> io::Result<()> {
    if WRITER.get().is_some() {
        return Ok(());
    }
    let (sender, receiver) = sync_channel(MAX_WAITING);
    thread::Builder::new()
        .name("log".to_owned())
        .stack_size(STACK)
        .spawn(move || write_all(&receiver))?;
    let _ = WRITER.set(sender);
    Ok(())
}

/// Waits until what was logged is written, at most a second.
pub fn flush() {
    let Some(writer) = WRITER.get() else {
        return;
    };
    let (done, is_done) = sync_channel(1);
    // A full queue: the reader stalls, and would not read the last lines either.
    if writer.try_send(Message::Flush(done)).is_ok() {
        let _ = is_done.recv_timeout(LAST_LINES);
    }
}

/// The thread that writes.
fn write_all(messages: &Receiver<Message>) {
    for message in messages {
        match message {
            Message::Line(line) => {
                let lost = LOST.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    write_now(
                        format!("ublk-bpf: {lost} lines were dropped here: they came too fast\n").as_bytes(),
                    );
                }
                write_now(&line);
            }
            // The caller may have timed out.
            Message::Flush(done) => drop(done.send(())),
        }
    }
}

/// Writes to standard error, if that is possible.
fn write_now(line: &[u8]) {
    let _ = io::stderr().write_all(line);
}

/// Takes every line, and never fails or waits for long. A call of `write` is a line.
#[derive(Clone, Copy, Debug)]
struct Log;

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match WRITER.get() {
            None => write_now(line),
            Some(writer) => {
                if writer.try_send(Message::Line(line.to_vec())).is_err() {
                    LOST.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
