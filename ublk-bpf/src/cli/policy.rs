//! `ublk-bpf policy`.

mod check;
mod map;
mod new;
mod shadow;

use std::ffi::{OsStr, OsString};
use std::path::Path;

use anyhow::Context;
use clap::Subcommand;
use serde::Serialize;

use super::args::{DeviceArg, OutputFormat};
use super::output::print_line;
use super::table;
use crate::backend::parse_size;
use crate::log;
use crate::observe;
use crate::path_text::ShowPath as _;
use crate::policy::{Disk, PinDir, Policy, PolicyError, Verified, builtin};
use crate::registry::Record;
use crate::registry::changes::{reset_policy, swap_policy};
use crate::registry::record;

/// List policies, or change the policy of a running device
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: PolicyAction,
}

#[derive(Debug, Subcommand)]
enum PolicyAction {
    /// List the built-in policies and those in use, with the number of instructions that the verifier processed
    List(OutputFormat),
    /// Replace a device's policy without losing requests; the default policy answers for about a millisecond
    Swap {
        #[command(flatten)]
        device: DeviceArg,
        /// A built-in name or a BPF object file (./NAME for a file named like a built-in policy)
        #[arg(value_name = "NAME|FILE.o")]
        policy: OsString,
        /// Memory limit for the maps of a policy loaded from a file
        #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "64M")]
        policy_memory: u64,
    },
    Map(map::Args),
    New(new::Args),
    Check(check::Args),
    /// Have a second policy answer every request without an effect, or show how its answers compare
    Shadow(shadow::Args),
    /// Make the shadow policy the one that decides, with what its maps have learned
    PromoteShadow {
        #[command(flatten)]
        device: DeviceArg,
    },
    /// Remove a device's policy: every request passes through
    Reset {
        #[command(flatten)]
        device: DeviceArg,
    },
}

/// Lists policies or changes one.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.action {
        PolicyAction::List(format) => list(*format),
        PolicyAction::Swap {
            device,
            policy,
            policy_memory,
        } => {
            let (name, verified) = swap(*device, policy, *policy_memory)?;
            say(*device, &format!("policy {name}"), verified)
        }
        PolicyAction::Map(args) => map::run(args),
        PolicyAction::New(args) => new::run(args),
        PolicyAction::Check(args) => check::run(args),
        PolicyAction::Shadow(args) => shadow::run(args),
        PolicyAction::PromoteShadow { device } => shadow::promote(*device),
        PolicyAction::Reset { device } => Ok(reset_policy(device.id)?),
    }
}

/// Replaces a device's policy, and notes it in the record.
pub(super) fn swap(device: DeviceArg, policy: &OsStr, memory: u64) -> anyhow::Result<(String, Verified)> {
    let (name, wanted) = wanted(device, policy, memory)?;
    let verified = swap_policy(device.id, &wanted, &name, memory)?;
    Ok((name, verified))
}

/// The name and the policy that are wanted for a device.
fn wanted(device: DeviceArg, policy: &OsStr, memory: u64) -> anyhow::Result<(String, Policy)> {
    let name = absolute(policy)?;
    let wanted = Policy::parse(&name, memory)?;
    if wanted.needs_cache() && Record::read(device.id)?.cache.is_none() {
        return Err(PolicyError::NeedsCache(name).into());
    }
    Ok((name, wanted))
}

/// Says what a device has now, and what that may cost.
pub(super) fn say(device: DeviceArg, what: &str, verified: Verified) -> anyhow::Result<()> {
    print_line(format_args!(
        "ublkb{}: {what}, {} instructions verified",
        device.id, verified.instructions
    ))?;
    if let Some(warning) = verified.warning() {
        log::say(format_args!("warning: {warning}"));
    }
    Ok(())
}

/// A row of `policy list`.
#[derive(Serialize)]
struct PolicyRow {
    name: String,
    description: &'static str,
    /// The devices that have it.
    devices: Vec<InUse>,
}

/// A policy as a device has it.
#[derive(Serialize)]
struct InUse {
    id: u32,
    /// Instructions that the verifier went through; none for the classifier's own answer, and where the pins may not be
    /// read.
    verified_instructions: Option<u32>,
}

fn list(format: OutputFormat) -> anyhow::Result<()> {
    let rows = rows();
    if format.json {
        print_line(serde_json::to_string_pretty(&rows)?)?;
    } else {
        let rows: Vec<_> = rows.iter().map(PolicyRow::columns).collect();
        table::print(&["POLICY", "VERIFIED", "DEVICES", "WHAT IT DOES"], &rows)?;
    }
    Ok(())
}

/// The built-in policies, and those of users' own that devices have.
fn rows() -> Vec<PolicyRow> {
    let row = |name: &str, description| PolicyRow {
        name: name.to_owned(),
        description,
        devices: Vec::new(),
    };
    let mut rows: Vec<PolicyRow> = builtin().iter().map(|of| row(of.name, of.description)).collect();
    let ids = record::ids().unwrap_or_default();
    for record in ids.into_iter().filter_map(|id| Record::read(id).ok()) {
        let at = rows.iter().position(|row| row.name == record.policy);
        let at = at.unwrap_or_else(|| {
            rows.push(row(&record.policy, "loaded from a file"));
            rows.len() - 1
        });
        let pins = PinDir::open(&Disk::ublk(record.id().number())).ok();
        let program = pins.and_then(|pins| observe::program(&pins.policy()).ok()?);
        rows[at].devices.push(InUse {
            id: record.id().number(),
            verified_instructions: program.map(|program| program.verified_instructions),
        });
    }
    rows
}

impl PolicyRow {
    fn columns(&self) -> Vec<String> {
        let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        let verified = self
            .devices
            .iter()
            .filter_map(|device| device.verified_instructions)
            .max();
        let devices: Vec<_> = self.devices.iter().map(|device| device.id.to_string()).collect();
        vec![
            self.name.clone(),
            or_dash(verified.map(|count| count.to_string()).unwrap_or_default()),
            or_dash(devices.join(",")),
            self.description.to_owned(),
        ]
    }
}

/// The policy's name as text, with the path of a file made absolute: servers and later commands have other working
/// directories.
pub(super) fn absolute(policy: &OsStr) -> anyhow::Result<String> {
    if let Some(name) = policy.to_str()
        && (builtin().iter().any(|known| known.name == name)
            || !name.contains(['/', '.']) && !Path::new(name).exists())
    {
        return Ok(name.to_owned());
    }
    let path = std::path::absolute(policy).with_context(|| format!("cannot resolve {}", policy.shown()))?;
    Ok(path.shown().to_string())
}
