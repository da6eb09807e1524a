//! Shared helpers of the guest tests: devices served by the real `ublk-bpf`, backings, and programs that check them.
//!
//! These tests need root and a kernel with batch-mode ublk, so `cargo xtask test` runs them in the guest, one at
//! a time. A failure panics with the command and what it printed.
#![expect(clippy::missing_panics_doc, reason = "a test helper reports by panicking")]

pub mod aligned;
pub mod backing;
pub mod cached;
pub mod cgroup;
pub mod device;
pub mod direct;
pub mod fabric;
pub mod fio;
pub mod leftover;
pub mod mapper;
pub mod mount;
pub mod openmetrics;
pub mod power;
pub mod recorder;
pub mod torture;
pub mod trace;

use std::{
    fs::{File, OpenOptions},
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

pub use backing::Backing;
pub use cgroup::Cgroup;
pub use device::{Device, foreground};
pub use fio::Fio;
pub use mapper::Mapper;
pub use mount::{FileSystem, Mount};
pub use torture::Torture;

/// Runs a program and returns what it printed on standard output; panics unless it succeeded.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = try_run(program, args);
    assert!(
        output.status.success(),
        "{program} {args:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a program to its end and returns its result, whether it succeeded or not.
pub fn try_run(program: &str, args: &[&str]) -> Output {
    Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|e| panic!("cannot run {program}: {e}"))
}

/// Runs a program and parses what it printed as JSON.
pub fn run_json(program: &str, args: &[&str]) -> serde_json::Value {
    let text = run(program, args);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{program} {args:?} printed no JSON: {e}\n{text}"))
}

/// Waits until `done` holds, at most `limit`; panics with `what` after that.
pub fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < limit, "still waiting after {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Opens a file or device for reading and writing.
pub fn open(path: &Path) -> File {
    let file = OpenOptions::new().read(true).write(true).open(path);
    file.unwrap_or_else(|e| panic!("cannot open {}: {e}", path.display()))
}

/// A file's content as text, trimmed.
pub fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    let text =
        std::fs::read_to_string(path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
    text.trim().to_owned()
}

/// Writes text to a kernel file, such as one in sysfs.
pub fn write(path: impl AsRef<Path>, text: &str) {
    let path = path.as_ref();
    std::fs::write(path, text).unwrap_or_else(|e| panic!("cannot write {text:?} to {}: {e}", path.display()));
}
