//! Arguments that several subcommands share.

use clap::Args;

use crate::control::DeviceId;

/// Which device.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct DeviceArg {
    /// The device: 0, ublkb0 or /dev/ublkb0
    #[arg(value_name = "ID")]
    pub(super) id: DeviceId,
}

/// How to print.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Format {
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}
