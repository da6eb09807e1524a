//! `cargo xtask dist`: what is shipped, in `target/dist`: the stripped program, manual pages, completions, and a Debian
//! package of them.

mod package;

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use host::{build, command, progress, workspace};

/// Options of `dist`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only the manual pages and completions
    #[arg(long)]
    pages: bool,
}

/// Builds everything, and says where it is.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let folder = workspace::target_dir()?.join("dist");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    build::objects()?;
    write_pages(&folder)?;
    if options.pages {
        return Ok(ExitCode::SUCCESS);
    }
    let program = folder.join("ublk-bpf");
    strip(&build::program("ublk-bpf", &["--release", "--locked"])?, &program)?;
    let package = package::build(workspace::root()?, &folder, &program)?;
    progress::note(&format!("made {}", package.display()));
    Ok(ExitCode::SUCCESS)
}

/// Manual pages in `man`, completions in `completions`.
fn write_pages(folder: &Path) -> Result<()> {
    for old in ["man", "completions"].map(|name| folder.join(name)) {
        if old.exists() {
            fs::remove_dir_all(&old).with_context(|| format!("cannot remove {}", old.display()))?;
        }
    }
    let mut cargo = workspace::cargo()?;
    let writer = [
        "run",
        "--quiet",
        "--locked",
        "--package",
        "ublk-bpf",
        "--example",
        "pages",
        "--",
    ];
    command::run(cargo.args(writer).arg(folder))
}

/// Copies the program without its symbols.
fn strip(program: &Path, to: &Path) -> Result<()> {
    command::run(Command::new("strip").arg("-o").args([to, program]))
}
