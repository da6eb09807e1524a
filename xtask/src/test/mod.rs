//! `cargo xtask test`: unit and simulation tests on this machine, those that need ublk in guests, and in one more guest
//! whether an I/O costs more than it did. All of it at the same time: a guest's CPUs share one of this machine's.

mod guests;
mod programs;
mod sections;
mod tally;

use std::io::{IsTerminal as _, Read as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow, bail};

use crate::bench;
use host::{build, command, setup, workspace};
use sections::Sections;
use tally::Tally;

/// The package whose tests need ublk.
const GUEST_PACKAGE: &str = "ublk-bpf-guest";
/// Tells the tests of the command line which binary is meant: then the one that the guest gets is tested here too.
const BINARY_VARIABLE: &str = "UBLK_BPF_BINARY";

/// Options of `test`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only the tests that run on this machine
    #[arg(long, conflicts_with = "guest")]
    host: bool,
    /// Only the tests that run in the guest
    #[arg(long)]
    guest: bool,
    /// Of the guest's test programs, only this one (may be given several times)
    #[arg(long = "program", value_name = "NAME", conflicts_with = "host")]
    programs: Vec<String>,
    /// Only tests with this in their name
    filter: Option<String>,
}

impl Options {
    /// Everything.
    pub(crate) fn all() -> Self {
        Self {
            host: false,
            guest: false,
            programs: Vec::new(),
            filter: None,
        }
    }
}

/// Runs the tests and prints how many passed and failed.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let (host, guest) = (!options.guest && options.programs.is_empty(), !options.host);
    let filter = options.filter.as_deref();
    if guest {
        setup::guest_tools()?;
    }
    if host {
        setup::kernel_headers()?;
    }
    let server = if guest { Some(vm::server()?) } else { None };
    build::objects()?;
    let programs = programs::obtain(options)?;
    let mut tally = Tally::default();
    std::thread::scope(|scope| {
        let here = scope.spawn(|| {
            let mut tally = Tally::default();
            if host {
                tally = on_host(filter, server.as_ref(), !guest)?;
            }
            if host && guest && filter.is_none() {
                cost(&mut tally);
            }
            Ok::<_, anyhow::Error>(tally)
        });
        if let Some(server) = server.clone() {
            tally = guests::run(filter, server, programs, !host)?;
        }
        tally.absorb(here.join().map_err(|_| anyhow!("the tests' thread panicked"))??);
        Ok::<_, anyhow::Error>(())
    })?;
    println!();
    for name in &tally.failures {
        println!("failed: {name}");
    }
    println!("{}", tally.counts);
    Ok(if tally.counts.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs this machine's tests. cargo's own words and the tests' come by one pipe, so that they stay in order.
fn on_host(filter: Option<&str>, server: Option<&(PathBuf, String)>, live: bool) -> Result<Tally> {
    let (mut output, input) = std::io::pipe().context("cannot make a pipe")?;
    let mut cargo = workspace::cargo()?;
    cargo
        .args(["test", "--workspace", "--exclude", GUEST_PACKAGE])
        .arg("--no-fail-fast")
        .args(filter)
        .stdout(input.try_clone()?)
        .stderr(input);
    if let Some((path, _)) = server {
        cargo.env(BINARY_VARIABLE, path);
    }
    if std::io::stdout().is_terminal() {
        cargo.env("CARGO_TERM_COLOR", "always");
    }
    let line = command::line(&cargo);
    let mut child = cargo.spawn().context("cannot start cargo")?;
    // It holds the pipe's other end, which has to be closed for the output to end.
    drop(cargo);
    let (mut tally, mut sections) = (Tally::default(), Sections::new(live));
    let mut buffer = [0; 16 * 1024];
    loop {
        match output.read(&mut buffer)? {
            0 => break,
            n => {
                tally.feed(&buffer[..n]);
                sections.feed(&buffer[..n]);
            }
        }
    }
    let status = child.wait()?;
    if !status.success() && tally.counts.failed == 0 {
        bail!("`{line}` failed: {status}");
    }
    Ok(tally)
}

/// Counts as one test that an I/O costs no more than it did.
fn cost(tally: &mut Tally) {
    match bench::guard_holds() {
        Ok(true) => tally.counts.passed += 1,
        Ok(false) => tally.fail("instructions per I/O (cargo xtask bench --guard)"),
        Err(error) => tally.fail(&format!("cargo xtask bench --guard: {error:#}")),
    }
}
