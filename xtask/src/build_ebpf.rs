//! `cargo xtask build-ebpf`: see [`host::build`].

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use host::build;

/// Options of `build-ebpf`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Build the policy crate in this folder instead (may be given several times)
    #[arg(long = "policy", value_name = "PATH")]
    policies: Vec<PathBuf>,
}

/// Builds and says where the objects are.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut objects = Vec::new();
    for policy in &options.policies {
        objects.extend(build::policy(policy)?);
    }
    if options.policies.is_empty() {
        objects = build::objects()?;
    }
    for object in objects {
        let bytes = object.metadata().map_or(0, |meta| meta.len());
        println!("{} ({} KiB)", object.display(), bytes.div_ceil(1024));
    }
    Ok(ExitCode::SUCCESS)
}
