//! `ublk-bpf resize`.

use super::args::DeviceArg;
use super::output::print_line;
use crate::backend::parse_size;
use crate::registry::ask::ask;
use crate::registry::message::DeviceCommand;

/// Let a running device grow with the block device that it is on
///
/// Make the backing larger first; what is on the device stays as it is, in use or not. A device cannot shrink, and one on a
/// file or with a cache cannot grow while it is served.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    device: DeviceArg,
    /// Its new size, such as 2T [default: that of its backing]
    #[arg(value_name = "SIZE", value_parser = parse_size)]
    size: Option<u64>,
}

/// Asks the server.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let said = ask(args.device.id, DeviceCommand::Resize(args.size), |_| {})?;
    Ok(print_line(said)?)
}
