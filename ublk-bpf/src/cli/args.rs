//! Arguments that several subcommands share.

use clap::Args;

use crate::control::{DeviceId, InvalidDeviceId};
use crate::registry::{DeviceName, record};

/// Which device.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct DeviceArg {
    /// The device: 0, ublkb0, /dev/ublkb0 or its name
    #[arg(value_name = "ID", value_parser = device)]
    pub(super) id: DeviceId,
}

/// How to print.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct OutputFormat {
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// The device that a number or a name means.
pub(super) fn device(text: &str) -> Result<DeviceId, String> {
    let error = match text.parse() {
        Ok(id) => return Ok(id),
        Err(error) => InvalidDeviceId::to_string(&error),
    };
    let Ok(name) = text.parse::<DeviceName>() else {
        return Err(error);
    };
    match record::named(&name) {
        Ok(found) => {
            found.ok_or_else(|| format!("{error}, or the name of a device, which `ublk-bpf list` shows"))
        }
        Err(unreadable) => Err(unreadable.to_string()),
    }
}
