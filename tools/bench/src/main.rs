//! `cargo xtask bench`: what an I/O costs, and how often the cache hits.
//!
//! The cost is that of client, kernel and server together, counted in instructions. In a guest whose clock counts
//! instructions, one nanosecond each, fio's I/Os per second repeat whatever else the machine does, and the
//! instructions of an I/O are 1e9 divided by them.
//!
//! What is measured has parts, each a module with its own guests: a new one gets a line in [`Part`] and in the two
//! matches on it. Hit ratios are measured on the ordinary clock: dm-cache, with which ours is compared, works by it.

mod boot;
mod compared;
mod guard;
mod native;
mod obtain;
mod profile;
mod report;
mod scale;
mod traces;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use bench_guest::compared::{Plan, kinds};
use clap::{Parser, ValueEnum};
use host::{progress, setup};
use vm::Config;

/// Options of `bench`.
#[derive(Parser)]
#[command(
    bin_name = "cargo xtask bench",
    about = "Measure what an I/O costs, in instructions, and compare with what it may cost",
    max_term_width = 110
)]
struct Options {
    /// Measure only these: parts, or subjects of the part `compared`
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// Measure in five minutes what `compared` begins with: random reads, one queue, depth 128
    #[arg(long)]
    quick: bool,
    /// Say what can be measured
    #[arg(long)]
    list: bool,
    /// Only a short run, which fails where an I/O costs more than xtask/baseline.toml says
    #[arg(long, conflicts_with = "quick")]
    guard: bool,
    /// Write what the guard measures to xtask/baseline.toml
    #[arg(long, requires = "guard")]
    update: bool,
    /// Of the part `scale`, measure only this
    #[arg(long, value_name = "WHAT")]
    step: Option<bench_guest::scale::Step>,
    /// The folder of the part `traces`: block traces, in a format that `ublk-bpf replay` reads
    #[arg(long, value_name = "DIR")]
    traces: Option<PathBuf>,
    /// Measure on disks of this machine, as root and by the clock on the wall: a backing, and a cache device if there is
    /// one. Needs Linux >= 7.0
    #[arg(long, value_name = "DEVICE", num_args = 1..=2, conflicts_with_all = ["only", "quick", "guard"])]
    native: Vec<String>,
    /// Overwrite them, whatever they hold
    #[arg(long, requires = "native")]
    destroy_data: bool,
    /// How many seconds each load runs on them
    #[arg(long, value_name = "N", default_value_t = 10, requires = "native")]
    seconds: u32,
    /// How many MiB of them are read and written, half of a device at most
    #[arg(long, value_name = "N", default_value_t = 4096, requires = "native")]
    mib: u64,
    /// Obtain what is compared and profiled with, and nothing else
    #[arg(long, hide = true)]
    obtain: bool,
    /// Say what of it is missing
    #[arg(long, hide = true)]
    missing: bool,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Instructions per I/O, of ublk-bpf and its peers
    Compared,
    /// Hit ratios of the cache, with and without a scan
    Ratio,
    /// Where the instructions of an I/O go
    Profile,
    /// How cost and memory grow with queues, depth, size and devices
    Scale,
    /// What a write costs behind a write-back cache, in instructions and operations of both devices
    Writeback,
    /// What the cache saves on traces of requests, beside libCacheSim's algorithms (needs --traces)
    Traces,
    /// Whether everything that ublk-bpf is compared with works
    #[value(hide = true)]
    Peers,
    /// Whether --native works, on the RAM disks of a guest
    #[value(hide = true)]
    Native,
}

impl Part {
    fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    fn is_hidden(self) -> bool {
        self.to_possible_value().is_some_and(|value| value.is_hide_set())
    }

    fn about(self) -> String {
        let value = self.to_possible_value();
        let help = value.as_ref().and_then(|value| value.get_help());
        help.map_or_else(String::new, ToString::to_string)
    }
}

/// What is to be measured.
#[derive(Debug, PartialEq, Eq)]
struct Selection {
    parts: Vec<Part>,
    /// Of [`Part::Compared`]; none: all.
    subjects: Vec<String>,
}

impl Selection {
    fn of(options: &Options) -> Result<Self> {
        let mut selection = Self {
            parts: Vec::new(),
            subjects: Vec::new(),
        };
        for name in &options.only {
            if let Ok(part) = Part::from_str(name, false) {
                selection.add(part);
            } else if kinds().iter().any(|kind| kind.name == name) {
                selection.add(Part::Compared);
                selection.subjects.push(name.clone());
            } else {
                bail!("there is no {name} to measure: see `cargo xtask bench --list`");
            }
        }
        if options.quick && options.only.is_empty() {
            selection.add(Part::Compared);
        } else if options.only.is_empty() {
            let parts = Part::value_variants().iter().copied();
            let has_traces = options.traces.is_some();
            let parts = parts.filter(|&part| part != Part::Traces || has_traces);
            selection.parts = parts.filter(|part| !part.is_hidden()).collect();
        }
        Ok(selection)
    }

    fn add(&mut self, part: Part) {
        if !self.parts.contains(&part) {
            self.parts.push(part);
        }
    }

    fn plan(&self, options: &Options) -> Plan {
        Plan {
            quick: options.quick,
            subjects: self.subjects.clone(),
        }
    }
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures, and fails if something could not be measured, a claim does not hold or the guard finds a cost that rose.
fn run(options: &Options) -> Result<ExitCode> {
    if options.list {
        list();
        return Ok(ExitCode::SUCCESS);
    }
    if options.missing {
        obtain::missing()?.iter().for_each(|name| println!("{name}"));
        return Ok(ExitCode::SUCCESS);
    }
    if options.obtain {
        obtain::algorithms()?;
        obtain::profiler()?;
        obtain::peers()?;
        return Ok(ExitCode::SUCCESS);
    }
    if options.guard {
        return guard::run(options.update);
    }
    if !options.native.is_empty() {
        let numbers = [("--seconds", options.seconds.into()), ("--mib", options.mib)];
        return native::run(&options.native, options.destroy_data, &numbers);
    }
    measure(options)
}

/// Measures the parts that are asked for.
fn measure(options: &Options) -> Result<ExitCode> {
    let selection = Selection::of(options)?;
    if selection.parts != [Part::Traces] {
        setup::guest_tools()?;
    }
    let mut code = ExitCode::SUCCESS;
    for part in &selection.parts {
        let result = match part {
            Part::Compared => compared::run(&selection.plan(options))?,
            Part::Ratio => ratio()?,
            Part::Profile => profile::run()?,
            Part::Scale => scale::run(options.step)?,
            Part::Writeback => scale::writeback()?,
            Part::Traces => traces::run(options.traces.as_deref())?,
            Part::Peers => peers()?,
            Part::Native => native::in_guest()?,
        };
        if result != ExitCode::SUCCESS {
            code = result;
        }
    }
    Ok(code)
}

fn list() {
    println!("parts:");
    for part in Part::value_variants().iter().filter(|part| !part.is_hidden()) {
        println!("  {:<24}{}", part.name(), part.about());
    }
    println!("subjects of the part {}:", Part::Compared.name());
    for kind in kinds() {
        println!("  {}", kind.name);
    }
}

fn ratio() -> Result<ExitCode> {
    let kernel = setup::guest()?;
    let config = Config {
        cpus: 2,
        built: vec![boot::runner()?, vm::server()?],
        ..boot::machine()
    };
    progress::note(&format!("booting Linux {} for the hit ratios", kernel.release));
    let arguments = [Part::Ratio.name()];
    let outcome = boot::run(&config, &kernel, &arguments, &mut vm::Inherit)?;
    Ok(vm::exit_code(&outcome))
}

fn peers() -> Result<ExitCode> {
    let kernel = setup::guest()?;
    let mut config = Config {
        icount: true,
        built: vec![boot::runner()?],
        ..boot::machine()
    };
    obtain::peers()?.hand_to(&mut config);
    progress::note(&format!(
        "booting Linux {} on the instruction clock",
        kernel.release
    ));
    let arguments = [Part::Peers.name()];
    let outcome = boot::run(&config, &kernel, &arguments, &mut vm::Inherit)?;
    Ok(vm::exit_code(&outcome))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(line: &[&str]) -> Result<Selection> {
        Selection::of(&Options::try_parse_from([&["bench"], line].concat())?)
    }

    #[test]
    fn parts_and_subjects_are_told_apart() {
        let all = selection(&[]).expect("selected");
        assert_eq!(
            all.parts,
            [
                Part::Compared,
                Part::Ratio,
                Part::Profile,
                Part::Scale,
                Part::Writeback
            ]
        );
        let some = selection(&["--only", "brd,ublk-bpf-hit"]).expect("selected");
        assert_eq!(some.parts, [Part::Compared]);
        assert_eq!(some.subjects, ["brd", "ublk-bpf-hit"]);
        assert_eq!(selection(&["--quick"]).expect("selected").parts, [Part::Compared]);
        let error = selection(&["--only", "nothing"]).expect_err("no such name");
        assert!(error.to_string().contains("--list"), "{error}");
    }

    #[test]
    fn no_subject_is_called_like_a_part_or_another() {
        let mut names: Vec<String> = kinds().iter().map(|kind| kind.name.to_owned()).collect();
        names.extend(Part::value_variants().iter().map(|part| part.name()));
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
