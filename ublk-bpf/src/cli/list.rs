//! `ublk-bpf list`.

use super::args::OutputFormat;
use super::output::print_line;
use super::table;
use crate::backend::Size;
use crate::control::Control;
use crate::log;
use crate::registry::status::{self, Status};

/// List the devices of ublk-bpf
///
/// STATE is live, changing (the server is starting or stopping), waiting (for a server: see `run --recover`) or dead
/// (the server died and the device is gone: the next `run` or `stop` cleans up).
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    format: OutputFormat,
}

/// Prints every device. Errors of single devices go to standard error.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let control = Control::open().ok();
    let mut devices = Vec::new();
    for status in status::all(control.as_ref())? {
        match status {
            Ok(status) => devices.push(status),
            Err(error) => log::say(error),
        }
    }
    if args.format.json {
        print_line(serde_json::to_string_pretty(&devices)?)?;
    } else if devices.is_empty() {
        print_line("no devices: make one with `ublk-bpf run`")?;
    } else {
        let header = [
            "DEVICE", "NAME", "STATE", "SIZE", "POLICY", "QUEUES", "SERVER", "FLAGS", "BACKING",
        ];
        table::print(&header, &devices.iter().map(row).collect::<Vec<_>>())?;
    }
    Ok(())
}

fn row(status: &Status) -> Vec<String> {
    let cache = status.cache.as_ref();
    let flags = [
        (status.read_only, "read-only"),
        (status.allow_lossy, "lossy"),
        (cache.is_some_and(|cache| cache.detached.is_none()), "cached"),
        (
            cache.is_some_and(|cache| cache.detached.is_some()),
            "cache-failed",
        ),
    ];
    let flags: Vec<&str> = flags
        .iter()
        .filter(|(holds, _)| *holds)
        .map(|(_, name)| *name)
        .collect();
    vec![
        status.device.clone(),
        status
            .name
            .as_ref()
            .map_or_else(|| "-".to_owned(), ToString::to_string),
        status.state.name().to_owned(),
        Size(status.size).to_string(),
        status.policy.clone(),
        format!("{}x{}", status.queues, status.depth),
        status
            .server
            .map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
        if flags.is_empty() {
            "-".to_owned()
        } else {
            flags.join(",")
        },
        status.backing.clone(),
    ]
}
