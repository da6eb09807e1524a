//! Measures one part of the benchmark in this system, with the `ublk-bpf` on the PATH: see `cargo xtask bench`.

use std::process::ExitCode;

use anyhow::Result;
use bench_guest::sizes::RAM_DISK_MIB;
use bench_guest::{compared, guard, native, peers, profile, ratio, scale, writeback};
use clap::Parser;

/// What is measured.
#[derive(Parser)]
#[command(about = "Measures one part of the benchmark in this system")]
enum Part {
    /// Instructions per I/O, of ublk-bpf and its peers
    Compared {
        /// Only random reads, one queue, depth 128
        #[arg(long)]
        quick: bool,
        /// Only these, and the raw devices that they are compared with
        subjects: Vec<String>,
    },
    /// Hit ratios of the cache, with and without a scan
    Ratio,
    /// Where the instructions of an I/O go
    Profile,
    /// How cost and memory grow
    Scale {
        /// With what
        step: scale::Step,
    },
    /// What a write costs behind a write-back cache
    Writeback,
    /// What clients notice of writing back
    WritebackBeside,
    /// What fio measures on disks of this machine, by the clock on the wall
    Native(native::Options),
    /// Whether everything that ublk-bpf is compared with works
    Peers,
    /// What the guard compares with its baseline
    Guard,
}

fn main() -> ExitCode {
    match measure(Part::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(part: Part) -> Result<ExitCode> {
    if !matches!(
        part,
        Part::Scale { .. } | Part::Writeback | Part::WritebackBeside | Part::Native(_)
    ) {
        peers::make_ram_disks(RAM_DISK_MIB)?;
    }
    match part {
        Part::Compared { quick, subjects } => compared::measure_all(&compared::Plan { quick, subjects })?,
        Part::Ratio => {
            return Ok(verdict(
                ratio::table()?,
                "every claim holds",
                "claims that do not hold",
            ));
        }
        Part::Profile => profile::measure_all()?,
        Part::Scale { step } => step.plan().measure()?,
        Part::Writeback => writeback::PLAN.measure()?,
        Part::WritebackBeside => writeback::beside::PLAN.measure()?,
        Part::Native(options) => native::measure(&options)?,
        Part::Peers => {
            let good = "all of them work, and leave nothing behind";
            return Ok(verdict(peers::table(), good, "do not work"));
        }
        Part::Guard => guard::measure()?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The exit status of a table with this many bad lines.
fn verdict(bad: usize, good: &str, wrong: &str) -> ExitCode {
    if bad == 0 {
        println!("\n{good}");
        ExitCode::SUCCESS
    } else {
        println!("\n{bad} {wrong}");
        ExitCode::FAILURE
    }
}
