//! `cargo xtask ci`: what must hold before a change is taken.

use std::process::{Command, ExitCode};

use anyhow::Result;

use host::{build, command, progress, workspace};

use crate::test;

/// Options of `ci`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// All but the tests, where `cargo xtask test` is run beside this
    #[arg(long)]
    no_test: bool,
}

/// Checks one thing after the other and stops at the first that does not hold.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    check("format", workspace::cargo()?.args(["fmt", "--all", "--check"]))?;
    build::objects()?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    check("clippy", workspace::cargo()?.args(clippy))?;
    // The classifier's and the policies' programs would overwrite one another's pages with those of the libraries.
    let doc = [
        "doc",
        "--workspace",
        "--no-deps",
        "--document-private-items",
        "--lib",
    ];
    check(
        "documentation",
        workspace::cargo()?.args(doc).env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    if options.no_test {
        return Ok(ExitCode::SUCCESS);
    }
    test::run(&test::Options::all())
}

fn check(what: &str, command: &mut Command) -> Result<()> {
    progress::note(&format!("checking: {what}"));
    command::run(command)
}
