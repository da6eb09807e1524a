//! `cargo xtask bench`: what an I/O costs, and how often the cache hits.
//!
//! The cost is that of client, kernel and server together, counted in instructions. In a guest whose clock counts
//! instructions, one nanosecond each, fio's I/Os per second repeat to within some two per cent whatever else the machine
//! does, and the instructions of an I/O are 1e9 divided by them. What is printed is the median of several runs, after
//! one that does not count: the first after a start reads low.
//!
//! Hit ratios are measured in another guest, on the ordinary clock: dm-cache, with which ours is compared, works by it.

mod boot;
mod cost;
mod counts;
mod discard;
mod fio;
pub(crate) mod guard;
mod hits;
mod load;
mod ours;
mod peers;
mod ratio;
mod report;
mod scale;
mod subject;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::guest::{self, Config, Outcome};
use crate::{progress, setup, vm};

/// The size of each ram disk, sparse: of the backing, the fast device and dm-cache's metadata.
const RAM_DISK_MIB: u64 = 1024;
/// A measurement says nothing before its end.
const GUEST_SILENCE: Duration = Duration::from_secs(600);

/// Options of `bench`.
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("what").args(["only", "guard"])))]
pub(crate) struct Options {
    /// Measure only this
    #[arg(long, value_name = "WHAT")]
    only: Option<Part>,
    /// Measure only what ublk-bpf's cache is compared with
    #[arg(long)]
    peers: bool,
    /// Only a short run, which fails where an I/O costs more than xtask/baseline.toml says
    #[arg(long, conflicts_with = "peers")]
    guard: bool,
    /// Write what the guard measures to xtask/baseline.toml
    #[arg(long, requires = "guard", conflicts_with = "here")]
    update: bool,
    /// Of what is about scale, measure only this
    #[arg(long, value_name = "WHAT")]
    step: Option<scale::Step>,
    /// Measure in this system, with the ublk-bpf on the PATH
    #[arg(long, hide = true, requires = "what")]
    here: bool,
}

/// What can be measured, each in a guest of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Instructions per I/O
    Cost,
    /// Hit ratios of the cache, with and without a scan
    Ratio,
    /// How cost and memory grow, to a section each of docs/benchmarks.md
    Scale,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Cost => "cost",
            Self::Ratio => "ratio",
            Self::Scale => "scale",
        }
    }
}

/// Measures, and fails if a floor is not reached or a claim does not hold.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.guard && options.here {
        peers::make_ram_disks(RAM_DISK_MIB)?;
        guard::measure_here()?;
        return Ok(ExitCode::SUCCESS);
    }
    if options.guard {
        return guard::run(options.update);
    }
    if options.only == Some(Part::Scale) {
        return scale::run(options.step, options.here);
    }
    if let (true, Some(part)) = (options.here, options.only) {
        return measure(part, options.peers);
    }
    setup::guest_tools()?;
    let mut code = ExitCode::SUCCESS;
    for part in options
        .only
        .map_or(vec![Part::Cost, Part::Ratio], |part| vec![part])
    {
        let outcome = in_guest(part, options.peers)?;
        if outcome != Outcome::Exited(0) {
            code = vm::exit_code(&outcome);
        }
    }
    Ok(code)
}

fn in_guest(part: Part, peers: bool) -> Result<Outcome> {
    let mut built = vec![vm::this_program()?];
    if !peers {
        built.push(vm::server()?);
    }
    let kernel = setup::guest()?;
    let config = Config {
        cpus: if part == Part::Cost { 1 } else { 2 },
        icount: part == Part::Cost,
        memory: "4G".to_owned(),
        silence: Some(GUEST_SILENCE),
        built,
        ..Config::default()
    };
    let clock = match part {
        Part::Cost => "on the instruction clock",
        Part::Ratio | Part::Scale => "for the hit ratios",
    };
    progress::note(&format!("booting Linux {} {clock}", kernel.release));
    let mut argv = [vm::GUEST_XTASK, "bench", "--here", "--only", part.name()]
        .map(str::to_owned)
        .to_vec();
    argv.extend(peers.then(|| "--peers".to_owned()));
    guest::run(&config, &kernel, &argv, &mut guest::Inherit)
}

fn measure(part: Part, peers: bool) -> Result<ExitCode> {
    peers::make_ram_disks(RAM_DISK_MIB)?;
    let missed = match part {
        Part::Cost if peers => hits::table(peers)?,
        Part::Cost => {
            let missed = cost::table()?;
            println!();
            missed + hits::table(peers)?
        }
        Part::Ratio => ratio::table(peers)?,
        Part::Scale => bail!("scale is measured by its steps"),
    };
    let (what, all) = match part {
        Part::Cost => ("floors missed", "every floor was reached"),
        Part::Ratio | Part::Scale => ("claims that do not hold", "every claim holds"),
    };
    match missed {
        _ if peers => {}
        0 => println!("\n{all}"),
        n => println!("\n{n} {what}"),
    }
    Ok(if missed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
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

    #[test]
    fn the_guest_is_told_which_part_is_meant() {
        for part in Part::value_variants() {
            let line = Line::try_parse_from(["bench", "--here", "--only", part.name()]).expect("parses");
            assert_eq!(line.options.only, Some(*part));
        }
        assert!(Line::try_parse_from(["bench", "--here"]).is_err());
    }
}
