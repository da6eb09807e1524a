//! Part `profile`: where the instructions of an I/O go. How it is sampled in the guest is in `bench_guest::profile`.

mod page;
mod parts;

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use bench_guest::profile::stacks::{self, Counted};
use bench_guest::profile::{CASES, Case};
use host::{progress, setup};
use serde_json::Value;
use vm::{Config, Outcome};

use crate::{boot, obtain, report};

/// The result of a case.
struct Profile {
    case: &'static Case,
    /// Instructions of an I/O, without perf.
    instructions: f64,
    counted: Counted,
}

/// Boots the guest, and writes to the page what it measured.
pub(crate) fn run() -> Result<ExitCode> {
    obtain::profiler()?;
    let kernel = setup::guest()?;
    let config = Config {
        icount: true,
        built: vec![boot::runner()?, vm::server()?],
        programs: vec!["perf".to_owned()],
        ..boot::machine()
    };
    progress::note(&format!(
        "booting Linux {} on the instruction clock, to profile",
        kernel.release
    ));
    let mut collect = Collect(Vec::new());
    let outcome = boot::run(&config, &kernel, &["profile".to_owned()], &mut collect)?;
    if outcome != Outcome::Exited(0) {
        return Ok(vm::exit_code(&outcome));
    }
    let text = String::from_utf8_lossy(&collect.0);
    let profiles = text.lines().map(parse).collect::<Result<Vec<_>>>()?;
    ensure!(
        profiles.len() == CASES.len(),
        "the guest sent {} profiles of {}",
        profiles.len(),
        CASES.len()
    );
    let section = page::section(&profiles);
    println!("{section}");
    report::replace(report::BENCHMARKS, "profile", &section)?;
    for profile in &profiles {
        report::picture(&page::picture_name(profile.case), &page::flame_graph(profile)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn parse(line: &str) -> Result<Profile> {
    let value: Value =
        serde_json::from_str(line).with_context(|| format!("the guest sent no profile: {line}"))?;
    let name = value["case"].as_str().unwrap_or_default();
    let case = CASES.iter().find(|case| case.name == name);
    let stacks = value["stacks"].as_array().context("a profile without stacks")?;
    let counted = stacks.iter().map(|stack| stacks::unfold(stack.as_str()?));
    Ok(Profile {
        case: case.with_context(|| format!("an unknown case: {name}"))?,
        instructions: 1e9 / value["iops"].as_f64().context("a profile without IOPS")?,
        counted: counted
            .collect::<Option<_>>()
            .context("a profile with a stack that is none")?,
    })
}

/// Keeps what the guest measured, and passes its errors on.
struct Collect(Vec<u8>);

impl vm::Sink for Collect {
    fn out(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn err(&mut self, bytes: &[u8]) {
        vm::Inherit.err(bytes);
    }
}
