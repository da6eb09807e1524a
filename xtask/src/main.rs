//! The project's chores, as `cargo xtask SUBCOMMAND`.
//!
//! A subcommand is a module with its `Options` and a `run`; what several of them share stands beside them:
//! the cache folder, the set-up of what is missing, the guest. Nothing here is needed to *use* ublk-bpf.

mod bench;
mod build_ebpf;
mod ci;
mod demo;
mod dist;
mod setup;
mod test;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

/// What can be asked for.
#[derive(Parser)]
#[command(
    bin_name = "cargo xtask",
    about = "The project's chores",
    max_term_width = 110
)]
enum Chore {
    /// Obtain what is missing: bpf-linker, rust-src, qemu, a kernel for the guest
    Setup(setup::Options),
    /// Build the classifier and the policies to BPF objects in target/ebpf/
    BuildEbpf(build_ebpf::Options),
    /// Show the main job from end to end, with everything set up that it needs
    Demo(demo::Options),
    /// Build what is shipped to target/dist: the program, manual pages, completions and a Debian package
    Dist(dist::Options),
    /// Run every test: on this machine, and in the guest those that need ublk
    Test(test::Options),
    /// Check the format, clippy and the documentation, build the BPF objects and run the tests
    Ci(ci::Options),
    /// Measure what an I/O costs, in instructions, and compare with what it may cost
    Bench(bench::Options),
    /// Run a command in a guest with a Linux >= 7.0 kernel
    Vm(vm::Options),
}

fn main() -> ExitCode {
    match dispatch(Chore::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(chore: Chore) -> Result<ExitCode> {
    match chore {
        Chore::Setup(options) => setup::run(&options),
        Chore::BuildEbpf(options) => build_ebpf::run(&options),
        Chore::Demo(options) => demo::run(&options),
        Chore::Dist(options) => dist::run(&options),
        Chore::Test(options) => test::run(&options),
        Chore::Ci(options) => ci::run(&options),
        Chore::Bench(options) => bench::run(&options),
        Chore::Vm(options) => vm::run(options),
    }
}
