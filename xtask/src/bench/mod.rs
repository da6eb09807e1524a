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
mod counts;
mod discard;
mod fio;
pub(crate) mod guard;
mod hits;
mod load;
mod modes;
pub(crate) mod obtain;
mod ours;
mod peers;
mod profile;
mod ratio;
mod report;
mod scale;
mod subject;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use host::setup::kernel::Kernel;
use host::{progress, setup};
use vm::{Config, Outcome, Sink};

/// The size of each ram disk, sparse: of the backing, the fast device and dm-cache's metadata.
const RAM_DISK_MIB: u64 = 1024;
/// Where the guest has this program.
const GUEST_XTASK: &str = "/usr/local/bin/xtask";
/// A measurement says nothing before its end.
const GUEST_SILENCE: Duration = Duration::from_secs(600);

/// Options of `bench`.
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("what").args(["only", "guard"])))]
pub(crate) struct Options {
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
    #[arg(long, requires = "guard", conflicts_with = "here")]
    update: bool,
    /// Of the part `scale`, measure only this
    #[arg(long, value_name = "WHAT")]
    step: Option<scale::Step>,
    /// Measure the one part in this system, with the ublk-bpf on the PATH
    #[arg(long, hide = true, requires = "what")]
    here: bool,
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
    /// Whether everything that ublk-bpf is compared with works
    #[value(hide = true)]
    Peers,
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
            } else if compared::kinds().iter().any(|kind| kind.name == name) {
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
            selection.parts = parts.filter(|part| !part.is_hidden()).collect();
        }
        Ok(selection)
    }

    fn add(&mut self, part: Part) {
        if !self.parts.contains(&part) {
            self.parts.push(part);
        }
    }

    fn plan(&self, options: &Options) -> compared::Plan {
        compared::Plan {
            quick: options.quick,
            subjects: self.subjects.clone(),
        }
    }
}

/// Measures, and fails if a floor is not reached or a claim does not hold.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.list {
        list();
        return Ok(ExitCode::SUCCESS);
    }
    if options.guard {
        return run_guard(options);
    }
    let selection = Selection::of(options)?;
    let plan = selection.plan(options);
    if options.here {
        return here(options, &selection, &plan);
    }
    setup::guest_tools()?;
    let mut code = ExitCode::SUCCESS;
    for part in &selection.parts {
        let result = match part {
            Part::Compared => compared::run_on_host(&plan)?,
            Part::Ratio => ratio_on_host()?,
            Part::Profile => profile::run_on_host()?,
            Part::Scale => scale::run_on_host(options.step)?,
            Part::Peers => peers_on_host()?,
        };
        if result != ExitCode::SUCCESS {
            code = result;
        }
    }
    Ok(code)
}

fn run_guard(options: &Options) -> Result<ExitCode> {
    if !options.here {
        return guard::run(options.update);
    }
    peers::make_ram_disks(RAM_DISK_MIB)?;
    guard::measure_here()?;
    Ok(ExitCode::SUCCESS)
}

/// Measures in the guest, which was booted for one part.
fn here(options: &Options, selection: &Selection, plan: &compared::Plan) -> Result<ExitCode> {
    let [part] = selection.parts[..] else {
        bail!("one part at a time is measured here");
    };
    match part {
        Part::Compared => compared::here(plan).map(|()| ExitCode::SUCCESS),
        Part::Ratio => ratio_here(),
        Part::Profile => profile::here().map(|()| ExitCode::SUCCESS),
        Part::Scale => scale::here(options.step).map(|()| ExitCode::SUCCESS),
        Part::Peers => peers_here(),
    }
}

fn list() {
    println!("parts:");
    for part in Part::value_variants().iter().filter(|part| !part.is_hidden()) {
        println!("  {:<24}{}", part.name(), part.about());
    }
    println!("subjects of the part {}:", Part::Compared.name());
    for kind in compared::kinds() {
        println!("  {}", kind.name);
    }
}

/// This program, and where the guest has it.
fn this_program() -> Result<(PathBuf, String)> {
    let path = std::env::current_exe().context("cannot find out where this program is")?;
    Ok((path, GUEST_XTASK.to_owned()))
}

/// What every guest of the benchmark has, beside its CPUs and programs.
fn machine() -> Config {
    Config {
        memory: "4G".to_owned(),
        silence: Some(GUEST_SILENCE),
        ..Config::default()
    }
}

/// Boots a guest and runs this program's `bench --here` in it.
fn in_guest(config: &Config, kernel: &Kernel, arguments: &[String], sink: &mut dyn Sink) -> Result<Outcome> {
    let argv = [GUEST_XTASK, "bench", "--here"].map(str::to_owned);
    vm::run(config, kernel, &[&argv[..], arguments].concat(), sink)
}

fn ratio_on_host() -> Result<ExitCode> {
    let kernel = setup::guest()?;
    let config = Config {
        cpus: 2,
        built: vec![this_program()?, vm::server()?],
        ..machine()
    };
    progress::note(&format!("booting Linux {} for the hit ratios", kernel.release));
    let only = ["--only".to_owned(), Part::Ratio.name()];
    let outcome = in_guest(&config, &kernel, &only, &mut vm::Inherit)?;
    Ok(vm::exit_code(&outcome))
}

fn peers_on_host() -> Result<ExitCode> {
    let kernel = setup::guest()?;
    let mut config = Config {
        icount: true,
        built: vec![this_program()?],
        ..machine()
    };
    obtain::peers()?.hand_to(&mut config);
    progress::note(&format!(
        "booting Linux {} on the instruction clock",
        kernel.release
    ));
    let only = ["--only".to_owned(), Part::Peers.name()];
    let outcome = in_guest(&config, &kernel, &only, &mut vm::Inherit)?;
    Ok(vm::exit_code(&outcome))
}

fn peers_here() -> Result<ExitCode> {
    peers::make_ram_disks(RAM_DISK_MIB)?;
    match peers::table() {
        0 => println!("\nall of them work, and leave nothing behind"),
        n => {
            println!("\n{n} do not work");
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn ratio_here() -> Result<ExitCode> {
    peers::make_ram_disks(RAM_DISK_MIB)?;
    match ratio::table()? {
        0 => println!("\nevery claim holds"),
        n => {
            println!("\n{n} claims that do not hold");
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn selection(line: &[&str]) -> Result<Selection> {
        let line = Line::try_parse_from([&["bench"], line].concat())?;
        Selection::of(&line.options)
    }

    #[test]
    fn parts_and_subjects_are_told_apart() {
        let all = selection(&[]).expect("selected");
        assert_eq!(
            all.parts,
            [Part::Compared, Part::Ratio, Part::Profile, Part::Scale]
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
        let mut names: Vec<String> = compared::kinds()
            .iter()
            .map(|kind| kind.name.to_owned())
            .collect();
        names.extend(Part::value_variants().iter().map(|part| part.name()));
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn the_guest_is_told_which_part_is_meant() {
        for part in Part::value_variants() {
            let parts = selection(&["--here", "--only", &part.name()])
                .expect("selected")
                .parts;
            assert_eq!(parts, [*part]);
        }
        assert!(selection(&["--here"]).is_err());
    }
}
