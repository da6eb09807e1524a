//! `ublk-bpf set`.

use anyhow::anyhow;

use super::args::DeviceArg;
use super::error::Usage;
use super::output::print_line;
use crate::backend::parse_size;
use crate::registry::ask::ask;
use crate::registry::message::{DeviceCommand, Setting};

/// Change options of a running device
///
/// The device keeps the new value when its server restarts.
#[derive(Debug, clap::Args)]
#[command(after_help = DETAILS)]
pub(super) struct Args {
    #[command(flatten)]
    device: DeviceArg,
    /// An option and its new value
    #[arg(value_name = "OPTION=VALUE", required = true)]
    settings: Vec<String>,
}

const DETAILS: &str = "\
Options that can change:
  promote-limit=SIZE   promotion into the cache, bytes a second; `none` for no limit

Examples:
  ublk-bpf set 0 promote-limit=20M";

/// Changes one option after the other. All are parsed before the first is changed.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let parsed = args.settings.iter().map(|text| parse(text));
    let settings = parsed.collect::<Result<Vec<_>, _>>();
    for setting in settings.map_err(|why| anyhow!(Usage(why)))? {
        // A change that takes long is no setting: there is no progress to show.
        let said = ask(args.device.id, DeviceCommand::Set(setting), |_| {})?;
        if !said.is_empty() {
            print_line(said)?;
        }
    }
    Ok(())
}

fn parse(text: &str) -> Result<Setting, String> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| format!("{text} is no setting: give OPTION=VALUE"))?;
    match name {
        "promote-limit" if value == "none" => Ok(Setting::PromoteLimit(None)),
        "promote-limit" => parse_size(value)
            .map(|size| Setting::PromoteLimit(Some(size)))
            .map_err(|error| format!("promote-limit: {error}")),
        _ => Err(format!(
            "{name} cannot be changed while the device runs: promote-limit can"
        )),
    }
}
