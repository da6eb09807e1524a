//! Panics of a server's threads: what is logged of them, and how the tests cause one.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{self, PanicHookInfo};
use std::path::Path;
use std::sync::OnceLock;
use std::thread;

use crate::log;

/// For tests alone: the name of the thread that panics as soon as [`TRIGGER`] exists. Read once, at the start.
const VARIABLE: &str = "UBLK_BPF_TEST_PANIC";
/// In the directory of records, which only root can write.
const TRIGGER: &str = "/run/ublk-bpf/panic-now";

static VICTIM: OnceLock<String> = OnceLock::new();

/// Logs panics in a line from now on, and reads which thread is to panic for a test.
pub(super) fn prepare() {
    panic::set_hook(Box::new(report));
    if let Ok(victim) = std::env::var(VARIABLE) {
        tracing::warn!("{VARIABLE} is set: thread {victim} panics when {TRIGGER} appears");
        let _ = VICTIM.set(victim);
    }
}

fn report(info: &PanicHookInfo<'_>) {
    let payload = info.payload();
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let what = text.or_else(|| payload.downcast_ref::<&str>().copied());
    let thread = thread::current();
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    log::say(format_args!(
        "thread {} panicked at {location}: {}",
        thread.name().unwrap_or("?"),
        what.unwrap_or("no reason given")
    ));
    let trace = Backtrace::capture();
    if trace.status() == BacktraceStatus::Captured {
        log::say(trace);
    }
}

/// Whether a test wants the calling thread to panic.
pub(super) fn is_wanted() -> bool {
    VICTIM
        .get()
        .is_some_and(|victim| thread::current().name() == Some(victim))
}

/// Panics if a test wants the calling thread to, now.
pub(super) fn point() {
    assert!(
        !(is_wanted() && Path::new(TRIGGER).exists()),
        "a test wants it ({VARIABLE})"
    );
}
