//! `ublk-bpf policy`.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use anyhow::Context;
use clap::Subcommand;
use serde_json::json;

use super::args::{Device, Format};
use super::output::print_line;
use super::table;
use crate::path_text::ShowPath as _;
use crate::policy::{self, DEFAULT_POLICY, Disk, Policy, PolicyError, builtin};
use crate::server::Record;
use crate::server::lock::Lock;
use crate::server::record::RecordError;

/// List policies, or change a device's policy while it runs
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the built-in policies
    List(Format),
    /// Replace a device's policy; no request is lost, and for about a millisecond the default one answers
    Swap {
        #[command(flatten)]
        device: Device,
        /// A built-in policy's name, or a BPF object file (one that is called like a built-in: ./NAME)
        #[arg(value_name = "NAME|FILE.o")]
        policy: OsString,
    },
    /// Take a device's policy away: everything passes through
    Reset {
        #[command(flatten)]
        device: Device,
    },
}

/// Lists policies or changes one.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.action {
        Action::List(format) => list(*format),
        Action::Swap { device, policy } => {
            let name = absolute(policy)?;
            let wanted = Policy::parse(&name)?;
            if wanted.needs_cache() && Record::read(device.id)?.cache.is_none() {
                return Err(PolicyError::NeedsCache(name).into());
            }
            change(*device, name, |disk| policy::swap(disk, &wanted))
        }
        Action::Reset { device } => change(*device, DEFAULT_POLICY.to_owned(), |disk| {
            policy::reset(disk).map(drop)
        }),
    }
}

fn list(format: Format) -> anyhow::Result<()> {
    if format.json {
        let all: Vec<_> = builtin()
            .iter()
            .map(|of| json!({ "name": of.name, "description": of.description }))
            .collect();
        print_line(serde_json::to_string_pretty(&all)?)?;
    } else {
        let rows: Vec<_> = builtin()
            .iter()
            .map(|of| vec![of.name.to_owned(), of.description.to_owned()])
            .collect();
        table::print(&["POLICY", "WHAT IT DOES"], &rows)?;
    }
    Ok(())
}

/// Changes the policy and the record of it, one process at a time.
fn change(
    device: Device,
    name: String,
    change: impl FnOnce(&Disk) -> Result<(), PolicyError>,
) -> anyhow::Result<()> {
    // Without a device there is nothing to lock.
    Record::read(device.id)?;
    let lock = Lock::change_policy(device.id)?;
    let mut record = Record::read(device.id).inspect_err(|error| {
        // The device has ended meanwhile, and the lock's file with it: this one is new.
        if matches!(error, RecordError::Absent(_)) {
            lock.remove_file();
        }
    })?;
    change(&Disk::ublk(device.id.number()))?;
    record.policy = name;
    Ok(record.write()?)
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
