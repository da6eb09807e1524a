//! `ublk-bpf check`.

use std::fmt::Write as _;

use anyhow::bail;
use serde_json::json;

use super::args::OutputFormat;
use super::error::plain;
use super::output::{print, print_line};
use crate::check::{Finding, FindingState, can_serve, findings};

/// Check what of this machine is fit to serve devices, and say what to do about the rest
///
/// STATE is ok, note (devices can be served, with the loss that it names), MISSING, or unknown (something above it is
/// missing). The exit status is 0 if a device can be served. Run it as root: it tries the BPF programs, without a device.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    format: OutputFormat,
}

/// Prints a line for each finding, and fails if no device can be served.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let findings = findings();
    let can_serve = can_serve(&findings);
    if args.format.json {
        let json = json!({ "can_serve": can_serve, "findings": findings });
        print_line(format_args!("{json:#}"))?;
    } else {
        print(render(&findings))?;
    }
    if can_serve {
        return Ok(());
    }
    let missing = findings
        .iter()
        .filter(|finding| finding.state == FindingState::Missing);
    let missing: Vec<&str> = missing.map(|finding| finding.name).collect();
    bail!(
        "no device can be served on this machine: see {}",
        missing.join(", ")
    )
}

/// A line for each finding, with what to do at its end.
fn render(findings: &[Finding]) -> String {
    let width = findings
        .iter()
        .map(|finding| finding.name.len())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        let (state, name) = (finding.state.name(), finding.name);
        let remedy = finding.remedy.as_ref().map(|remedy| format!(": {remedy}"));
        // A `String` takes everything.
        let _ = writeln!(
            text,
            "{state:7}  {name:width$}  {}{}",
            plain(&finding.found),
            plain(&remedy.unwrap_or_default())
        );
    }
    text
}
