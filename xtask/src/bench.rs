//! `cargo xtask bench`: runs the benchmark, `tools/bench`, which is built when it is asked for.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use host::{command, workspace};

/// Options of `bench`: all are the benchmark's own.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Options {
    /// See `cargo xtask bench --help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    arguments: Vec<String>,
}

/// Runs it with these options.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut bench = program()?;
    let status = bench.args(&options.arguments).status();
    let status = status.with_context(|| format!("cannot start `{}`", command::line(&bench)))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Whether no I/O costs noticeably more than it did.
pub(crate) fn guard_holds() -> Result<bool> {
    let mut bench = program()?;
    let status = bench.arg("--guard").status();
    Ok(status.context("cannot start cargo")?.success())
}

/// Obtains what the benchmark compares and profiles with.
pub(crate) fn obtain() -> Result<()> {
    command::run(program()?.arg("--obtain"))
}

/// What of that is missing, in words.
pub(crate) fn missing() -> Result<Vec<String>> {
    let said = command::output(program()?.arg("--missing"))?;
    Ok(said.lines().map(str::to_owned).collect())
}

fn program() -> Result<Command> {
    let mut cargo = workspace::cargo()?;
    cargo.args(["run", "--quiet", "--package", "bench", "--"]);
    Ok(cargo)
}
