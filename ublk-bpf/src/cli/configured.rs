//! What `run --config` is to serve of the devices that the file describes.

use std::env;
use std::path::PathBuf;

use anyhow::bail;

use super::config::Settings;
use super::devices::devices;
use super::output::print_line;
use crate::control::Control;
use crate::registry::Record;
use crate::server::{self, Configuration, Start};

/// The start of those that no live server has: the ones that wait are recovered, the others are made. The rest is left
/// alone and named. `None` if nothing is left to serve.
pub(super) fn start(path: PathBuf, line: Settings, file: Settings) -> anyhow::Result<Option<Start>> {
    let devices = devices(line.clone(), file)?;
    // Without ublk no device is served, and the start says so, after what is wrong with the options.
    let (rest, served) = match Control::open() {
        Ok(control) => server::not_served(&control, devices)?,
        Err(_) => (devices, Vec::new()),
    };
    if rest.is_empty() && env::var_os("NOTIFY_SOCKET").is_some() {
        bail!(
            "every device of the configuration is served by another process: {}: stop that server, or this service has \
             nothing to watch",
            of_processes(&served)
        );
    }
    for record in &served {
        print_line(format_args!(
            "{} is served by process {} and left as it is",
            record.id().block_path().display(),
            record.pid
        ))?;
    }
    let start = (!rest.is_empty()).then(|| Start::make_or_recover(rest));
    Ok(start.map(|start| start.configured(configuration(path, line))))
}

/// The file, to be read again, with the same command line.
fn configuration(path: PathBuf, line: Settings) -> Configuration {
    let file = path.clone();
    let read = move || {
        let file = Settings::read(&path)?;
        devices(line.clone(), file)
    };
    Configuration::new(file, move || {
        read().map_err(|error: anyhow::Error| format!("{error:#}"))
    })
}

fn of_processes(served: &[Record]) -> String {
    let of = |record: &Record| format!("{} by process {}", record.id().disk_name(), record.pid);
    served.iter().map(of).collect::<Vec<_>>().join(", ")
}
