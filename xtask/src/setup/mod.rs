//! `cargo xtask setup`: obtains what is missing, says what it did, and is quick when nothing is.
//!
//! Other subcommands call the part they need. Everything goes to the cache folder but the programs of Debian that
//! [`packages`] lists, which are installed.

pub(crate) mod kernel;
pub(crate) mod packages;

use std::process::ExitCode;

use anyhow::Result;

use crate::{cache, progress};
use kernel::Kernel;

/// Options of `setup`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only say what is missing; exit status 1 if something is
    #[arg(long)]
    check: bool,
}

/// Obtains everything, or says what is missing.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.check {
        return check();
    }
    guest_tools()?;
    let kernel = guest()?;
    progress::note(&format!("ready: Linux {} for the guest", kernel.release));
    Ok(ExitCode::SUCCESS)
}

/// What booting a guest needs: qemu, busybox, a kernel.
pub(crate) fn guest() -> Result<Kernel> {
    packages::obtain(&packages::GUEST)?;
    match kernel::present()? {
        Some(kernel) => Ok(kernel),
        None => {
            let _lock = cache::lock()?;
            kernel::obtain()
        }
    }
}

/// The programs that the demo and the tests run in the guest.
pub(crate) fn guest_tools() -> Result<()> {
    packages::obtain(packages::GUEST.iter().chain(&packages::TOOLS))
}

fn check() -> Result<ExitCode> {
    let mut missing: Vec<String> = packages::missing(packages::GUEST.iter().chain(&packages::TOOLS))
        .into_iter()
        .map(|package| format!("package {package}"))
        .collect();
    if kernel::present()?.is_none() {
        missing.push("a Linux >= 7.0 kernel for the guest".to_owned());
    }
    if missing.is_empty() {
        progress::note("nothing is missing");
        return Ok(ExitCode::SUCCESS);
    }
    progress::note(&format!(
        "missing: {}; `cargo xtask setup` obtains it",
        missing.join(", ")
    ));
    Ok(ExitCode::FAILURE)
}
