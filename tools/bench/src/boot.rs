//! Guests in which the benchmark's runner, `bench-guest`, measures.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use bench_guest::scale::Guest;
use host::setup::kernel::Kernel;
use host::{build, progress, setup};
use vm::{Config, Inherit, Outcome, Sink};

use crate::obtain;

/// Where the guest has the runner.
const RUNNER: &str = "/usr/local/bin/bench-guest";
/// A measurement says nothing before its end.
const SILENCE: Duration = Duration::from_secs(600);

/// The runner, built, and where the guest has it.
pub(crate) fn runner() -> Result<(PathBuf, String)> {
    Ok((build::program("bench-guest", &["--quiet"])?, RUNNER.to_owned()))
}

/// What every guest of the benchmark has, beside its CPUs and programs.
pub(crate) fn machine() -> Config {
    Config {
        memory: "4G".to_owned(),
        silence: Some(SILENCE),
        ..Config::default()
    }
}

/// Boots a guest and runs the runner in it.
pub(crate) fn run(
    config: &Config,
    kernel: &Kernel,
    arguments: &[String],
    sink: &mut dyn Sink,
) -> Result<Outcome> {
    vm::run(config, kernel, &[&[RUNNER.to_owned()], arguments].concat(), sink)
}

/// Has the runner measure in a guest whose clock counts instructions, and gives what it printed.
pub(crate) fn output(guest: &Guest, needs_peers: bool, arguments: &[&str]) -> Result<String> {
    setup::guest_tools()?;
    let built = vec![runner()?, vm::server()?];
    let kernel = setup::guest()?;
    let mut config = Config {
        cpus: guest.cpus,
        memory: guest.memory.to_owned(),
        icount: true,
        built,
        ..machine()
    };
    if needs_peers {
        obtain::peers()?.hand_to(&mut config);
    }
    let what = arguments.join(" ");
    progress::note(&format!(
        "booting Linux {} on the instruction clock, CPUs {}: {what}",
        kernel.release, guest.cpus
    ));
    let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
    let mut said = Said::default();
    let outcome = run(&config, &kernel, &arguments, &mut said)?;
    ensure!(
        outcome == Outcome::Exited(0),
        "cannot measure {what}: {}",
        vm::describe(&outcome)
    );
    Ok(String::from_utf8_lossy(&said.0).into_owned())
}

/// Passes everything on, and keeps what is printed.
#[derive(Default)]
struct Said(Vec<u8>);

impl Sink for Said {
    fn out(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        Inherit.out(bytes);
    }

    fn err(&mut self, bytes: &[u8]) {
        Inherit.err(bytes);
    }
}
