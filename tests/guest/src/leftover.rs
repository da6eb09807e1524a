//! Error messages of failed commands, and the traces that they leave behind.

use std::fs;
use std::time::Duration;

use crate::{try_run, wait_until};

/// How long a process may take to end, under emulation.
pub const SOON: Duration = Duration::from_secs(30);

/// The single error line of a failing command.
pub fn refused(args: &[&str]) -> String {
    refused_by("ublk-bpf", args)
}

/// The single error line of `ublk-bpf` when run by another program.
pub fn refused_by(program: &str, args: &[&str]) -> String {
    let output = try_run(program, args);
    assert!(!output.status.success(), "{args:?} succeeded");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 1, "{args:?} said\n{text}");
    lines[0]
        .strip_prefix("ublk-bpf: ")
        .unwrap_or_else(|| panic!("{args:?} said {text}"))
        .to_owned()
}

/// The names in a directory, sorted; none if it is not there.
fn names(directory: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// A server's process may end a moment after its device.
pub fn nothing_is_left() {
    wait_until("nothing is left", SOON, || traces().is_empty());
}

/// All traces that a device may leave in the system: nodes, pins, records, processes.
pub fn traces() -> Vec<String> {
    let mut traces = names("/dev");
    traces.retain(|name| name.starts_with("ublkb") || name.starts_with("ublkc"));
    traces.extend(names("/sys/fs/bpf/ublk-bpf"));
    traces.extend(
        names("/run/ublk-bpf")
            .into_iter()
            .filter(|name| name != "start.lock"),
    );
    for process in names("/proc") {
        // A process that has ended has a name until its parent asks for its status, but no command line.
        let command = fs::read_to_string(format!("/proc/{process}/cmdline")).unwrap_or_default();
        if command
            .split('\0')
            .next()
            .is_some_and(|program| program.ends_with("ublk-bpf"))
        {
            traces.push(format!("process {process}"));
        }
    }
    traces
}
