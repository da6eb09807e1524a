//! The command line: one module a subcommand.
//!
//! An error is one line on standard error that starts with `ublk-bpf:`. The exit status is 2 if
//! the command line itself is wrong and 1 for everything else.

mod args;
mod cache;
mod check;
mod choice;
mod config;
mod configured;
mod devices;
mod error;
mod features;
mod handover;
mod list;
mod output;
mod policy;
mod progress;
mod quota;
mod reload;
mod replay;
mod resize;
mod run;
mod set;
mod show;
mod stats;
mod stop;
mod table;
mod top;
mod trace;
mod why;

use std::process::ExitCode;

use clap::{ArgAction, CommandFactory as _, Parser, Subcommand};

use crate::log;

const EXAMPLES: &str = "\
Examples:
  ublk-bpf check                              what of this machine is fit to serve devices
  ublk-bpf run                                a 1 GiB memory device, until Ctrl-C
  ublk-bpf run --backing disk.img --daemon    a file-backed device, in the background
  ublk-bpf run --config disks.toml --daemon   several devices in one process
  ublk-bpf list                               the running devices
  ublk-bpf stats 0 --watch                    statistics of ublkb0, every second
  ublk-bpf top                                all devices, on the whole terminal
  ublk-bpf policy swap 0 sparse               change the policy of the running device
  ublk-bpf set 0 promote-limit=20M            change an option of the running device
  ublk-bpf reload                             make the devices what their changed file describes
  ublk-bpf why 0 4096                         what happens to a read of sector 4096, and why
  ublk-bpf trace 0 --slower-than 5ms          the requests that take longer than 5 ms, as they end
  ublk-bpf replay disk.trace                  what a cache would save, by a trace of requests
  ublk-bpf stop 0

A device ID is written 0, ublkb0, /dev/ublkb0, or as the name that `run --name` gave it. The exit \
status is 2 for a wrong command line, 1 for any other failure.";

/// A ublk block device whose every request is classified by an eBPF program before the server sees it.
#[derive(Debug, Parser)]
#[command(name = "ublk-bpf", version, max_term_width = 110, after_help = EXAMPLES)]
#[command(subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    /// Log more to standard error: -v progress, -vv details, -vvv everything (or set RUST_LOG)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::Args>),
    List(list::Args),
    Show(show::Args),
    Stats(stats::Args),
    Top(top::Args),
    Check(check::Args),
    Features(features::Args),
    Policy(policy::Args),
    Cache(cache::Args),
    Quota(quota::Args),
    Set(set::Args),
    Reload(reload::Args),
    Resize(resize::Args),
    Handover(handover::Args),
    Why(why::Args),
    Trace(trace::Args),
    Replay(replay::Args),
    Stop(stop::Args),
}

/// The command line's description, from which manual pages and completions are made.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the command that the process was started with, and says how it ended.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return error::usage(&error),
    };
    crate::sys::process::protect_new_files();
    log::start(cli.verbose);
    let result = match cli.command {
        Command::Run(args) => run::run(*args),
        Command::List(args) => list::run(&args),
        Command::Show(args) => show::run(&args),
        Command::Stats(args) => stats::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Features(args) => features::run(&args),
        Command::Policy(args) => policy::run(&args),
        Command::Cache(args) => cache::run(&args),
        Command::Quota(args) => quota::run(&args),
        Command::Set(args) => set::run(&args),
        Command::Reload(args) => reload::run(&args),
        Command::Resize(args) => resize::run(&args),
        Command::Handover(args) => handover::run(&args),
        Command::Why(args) => why::run(&args),
        Command::Trace(args) => trace::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Stop(args) => stop::run(&args),
    };
    let status = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error::failure(&error),
    };
    log::flush();
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }
}
