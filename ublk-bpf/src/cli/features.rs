//! `ublk-bpf features`.

use serde_json::json;

use super::args::OutputFormat;
use super::output::print_line;
use super::table;
use crate::control::{Control, FEATURES, Features};

/// Show the ublk features of this kernel, and those that ublk-bpf needs
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    format: OutputFormat,
}

/// Prints every known feature.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let found = Control::open()?.features()?;
    if args.format.json {
        let features: Vec<_> = FEATURES
            .iter()
            .map(|of| {
                let (major, minor) = of.since;
                json!({
                    "name": of.name, "what": of.what, "since": format!("{major}.{minor}"),
                    "present": found.contains(of.flag), "needed": Features::NEEDED.contains(of.flag),
                })
            })
            .collect();
        let json = json!({
            "word": found.bits(), "sufficient": found.contains(Features::NEEDED), "unknown": found.unknown_bits(), "features": features,
        });
        print_line(format_args!("{json:#}"))?;
        return Ok(());
    }
    let rows: Vec<Vec<String>> = FEATURES
        .iter()
        .map(|of| {
            let (major, minor) = of.since;
            let present = if found.contains(of.flag) { "yes" } else { "no" };
            let needed = if Features::NEEDED.contains(of.flag) {
                "needed"
            } else {
                ""
            };
            vec![
                of.name.into(),
                present.into(),
                needed.into(),
                format!("{major}.{minor}"),
                of.what.into(),
            ]
        })
        .collect();
    table::print(&["FEATURE", "HERE", "", "LINUX", "WHAT"], &rows)?;
    match found.require(Features::NEEDED) {
        Ok(()) => print_line("\nublk-bpf works with this kernel.")?,
        Err(missing) => print_line(format_args!("\n{missing}"))?,
    }
    Ok(())
}
