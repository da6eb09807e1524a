//! `cargo xtask setup`: obtains what is missing, says what it did, and is quick when nothing is.

use std::process::ExitCode;

use anyhow::Result;
use host::{progress, setup};

use crate::bench;

/// Options of `setup`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only say what is missing; exit status 1 if something is
    #[arg(long)]
    check: bool,
    /// Also obtain what the benchmark compares and profiles with, as `bench` does when it needs it
    #[arg(long)]
    peers: bool,
}

/// Obtains everything, or says what is missing.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.check {
        return check(options.peers);
    }
    // First what may need the user's hand.
    setup::guest_tools()?;
    setup::bpf_tools()?;
    setup::kernel_headers()?;
    setup::system()?;
    let kernel = setup::guest()?;
    if options.peers {
        bench::obtain()?;
    }
    progress::note(&format!(
        "ready: BPF objects can be built, and Linux {} boots in the guest",
        kernel.release
    ));
    Ok(ExitCode::SUCCESS)
}

fn check(with_peers: bool) -> Result<ExitCode> {
    let mut missing = setup::missing()?;
    if with_peers {
        missing.extend(bench::missing()?);
    }
    if missing.is_empty() {
        progress::note("nothing is missing");
        return Ok(ExitCode::SUCCESS);
    }
    progress::note(&format!(
        "missing: {}; `cargo xtask setup{}` obtains it",
        missing.join(", "),
        if with_peers { " --peers" } else { "" }
    ));
    Ok(ExitCode::FAILURE)
}
