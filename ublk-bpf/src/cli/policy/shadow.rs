//! `ublk-bpf policy shadow` and `policy promote-shadow`.

use std::ffi::OsString;

use super::{say, wanted};
use crate::backend::parse_size;
use crate::cli::args::{DeviceArg, OutputFormat};
use crate::cli::output::{print, print_line};
use crate::observe;
use crate::policy::{self, Disk, PolicyError};
use crate::registry::Record;

/// Have a second policy answer every request without an effect, or show how its answers compare
///
/// The shadow sees each request as the device's policy sees it: the cache is as that policy has filled it. It costs the
/// submitter its own run time, and nothing once it is off. `ublk-bpf stats` shows the comparison too.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    device: DeviceArg,
    /// A built-in name or a BPF object file, as for `policy swap`; without it, show the comparison
    #[arg(value_name = "NAME|FILE.o", conflicts_with_all = ["off", "json"])]
    policy: Option<OsString>,
    /// Memory limit for the maps of a policy loaded from a file
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "64M", requires = "policy")]
    policy_memory: u64,
    /// Remove the shadow policy
    #[arg(long, conflicts_with = "json")]
    off: bool,
    #[command(flatten)]
    format: OutputFormat,
}

/// Attaches, removes or shows.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let disk = Disk::ublk(args.device.id.number());
    if let Some(name) = &args.policy {
        let (name, wanted) = wanted(args.device, name, args.policy_memory)?;
        let verified = alone(args, || policy::attach_shadow(&disk, &wanted, args.policy_memory))?;
        return say(args.device, &format!("shadow policy {name}"), verified);
    }
    if args.off {
        let existed = alone(args, || policy::detach_shadow(&disk))?;
        return existed.then_some(()).ok_or_else(|| no_shadow(&disk).into());
    }
    Record::read(args.device.id)?;
    let shadow = observe::stats(&disk)?.shadow.ok_or_else(|| no_shadow(&disk))?;
    if args.format.json {
        print_line(serde_json::to_string_pretty(&shadow)?)?;
    } else {
        print(shadow)?;
    }
    Ok(())
}

/// Makes the shadow the policy that decides.
pub(super) fn promote(device: DeviceArg) -> anyhow::Result<()> {
    let disk = Disk::ublk(device.id.number());
    let promoted = Record::change(device.id, |record| {
        let shadow = policy::promote_shadow(&disk)?;
        record.set_policy(&shadow.policy, shadow.policy_memory);
        Ok::<_, anyhow::Error>(shadow)
    })?;
    print_line(format_args!(
        "ublkb{}: policy {}, the shadow until now",
        device.id, promoted.policy
    ))?;
    Ok(())
}

/// One process at a time changes a device's policies.
fn alone<T>(args: &Args, change: impl FnOnce() -> Result<T, PolicyError>) -> anyhow::Result<T> {
    Record::change(args.device.id, |_| Ok(change()?))
}

fn no_shadow(disk: &Disk) -> PolicyError {
    PolicyError::NoShadow(disk.name().to_owned())
}
