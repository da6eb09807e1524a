//! `cargo xtask bench`: what an I/O costs, client, kernel and server together, counted in instructions.
//!
//! In a guest whose clock counts instructions, one nanosecond each, fio's I/Os per second repeat to within some two per
//! cent whatever else the machine does, and the instructions of an I/O are 1e9 divided by them. What is printed is the
//! median of several runs, after one that does not count: the first after a start reads low.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::guest::{self, Config};
use crate::{command, progress, setup, vm};

/// The ram disk that passthrough is measured on.
const RAM_DISK: &str = "/dev/ram0";
const RAM_DISK_MIB: u32 = 512;
/// Runs of fio that count, for each case.
const RUNS: usize = 5;
const FIO: [&str; 15] = [
    "--name=bench",
    "--rw=randread",
    "--direct=1",
    "--ioengine=io_uring",
    "--fixedbufs",
    "--registerfiles",
    "--norandommap",
    "--gtod_reduce=1",
    "--random_generator=lfsr",
    "--iodepth=64",
    "--iodepth_batch=32",
    "--iodepth_batch_complete_min=32",
    "--runtime=1",
    "--time_based",
    "--output-format=json",
];

/// Options of `bench`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Measure in this system, with the ublk-bpf on the PATH
    #[arg(long, hide = true)]
    here: bool,
}

/// One measurement: what is read, and what is asked of it.
struct Case {
    backing: &'static str,
    block: &'static str,
    /// I/Os per second that must be reached: within five per cent of the reference.
    floor: u32,
    /// What the kernel's reference server reaches, which classifies nothing.
    reference: u32,
}

const NULL: &str = "null:8G,unfilled";

const CASES: [Case; 4] = [
    Case {
        backing: NULL,
        block: "4k",
        floor: 148_000,
        reference: 152_500,
    },
    Case {
        backing: NULL,
        block: "64k",
        floor: 125_000,
        reference: 129_100,
    },
    Case {
        backing: RAM_DISK,
        block: "4k",
        floor: 104_000,
        reference: 110_000,
    },
    Case {
        backing: RAM_DISK,
        block: "64k",
        floor: 47_000,
        reference: 49_300,
    },
];

/// Measures, and fails if a floor is not reached.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.here {
        return measure();
    }
    setup::guest_tools()?;
    let built = vec![vm::server()?, vm::this_program()?];
    let kernel = setup::guest()?;
    let config = Config {
        icount: true,
        memory: "4G".to_owned(),
        built,
        ..Config::default()
    };
    progress::note(&format!(
        "booting Linux {} on the instruction clock",
        kernel.release
    ));
    let argv = [vm::GUEST_XTASK, "bench", "--here"].map(str::to_owned);
    let outcome = guest::run(&config, &kernel, &argv, &mut guest::Inherit)?;
    Ok(vm::exit_code(&outcome))
}

fn measure() -> Result<ExitCode> {
    make_ram_disk()?;
    println!(
        "random read, one queue of depth 128, policy passthrough, on the instruction clock (1 ns each);"
    );
    println!("the median of {RUNS} runs of 1 s, and how far apart the lowest and the highest are;");
    println!("{RAM_DISK} is empty: its reads clear pages and copy none");
    println!("(reference: the kernel's own server, which classifies nothing)\n");
    println!(
        "{:<18}{:>5}{:>10}{:>9}{:>13}{:>10}{:>11}",
        "backing", "block", "IOPS", "spread", "instr./I/O", "floor", "reference"
    );
    let mut missed = 0;
    for case in &CASES {
        let result = Summary::of(runs(case)?)?;
        let reached = result.median >= f64::from(case.floor);
        missed += u32::from(!reached);
        println!("{}", line(case, &result, reached));
    }
    match missed {
        0 => println!("\nevery floor was reached"),
        n => println!("\n{n} of {} floors missed", CASES.len()),
    }
    Ok(if missed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn line(case: &Case, result: &Summary, reached: bool) -> String {
    let spread = format!("{:.1} %", result.spread * 100.0);
    format!(
        "{:<18}{:>5}{:>10.0}{spread:>9}{:>13.0}{:>10}{:>11}  {}",
        case.backing,
        case.block,
        result.median,
        1e9 / result.median,
        case.floor,
        case.reference,
        if reached { "ok" } else { "missed" }
    )
}

/// Several measurements of the same.
#[derive(Debug, PartialEq)]
struct Summary {
    median: f64,
    /// The highest less the lowest, as a part of the median.
    spread: f64,
}

impl Summary {
    fn of(mut values: Vec<f64>) -> Result<Self> {
        values.sort_by(f64::total_cmp);
        let median = *values.get(values.len() / 2).context("nothing was measured")?;
        let spread = values
            .first()
            .zip(values.last())
            .map_or(0.0, |(low, high)| high - low);
        Ok(Self {
            median,
            spread: spread / median,
        })
    }
}

/// Makes a ram disk and leaves it empty: its reads clear pages and copy none, which at 64k takes half the instructions.
///
/// Whether the reference's ram disk was empty is not recorded. Its figure at 64k is one that only an empty one reaches:
/// a full one gave 25,000 here.
fn make_ram_disk() -> Result<()> {
    let size = format!("rd_size={}", RAM_DISK_MIB << 10);
    command::output(Command::new("modprobe").args(["brd", "rd_nr=1", &size])).map(drop)
}

/// The I/Os per second of each run of a case.
fn runs(case: &Case) -> Result<Vec<f64>> {
    let run = [
        "run",
        "--backing",
        case.backing,
        "--queues",
        "1",
        "--depth",
        "128",
        "--policy",
        "passthrough",
        "--daemon",
    ];
    let said = command::output(Command::new("ublk-bpf").args(run))?;
    let device = said.split_whitespace().next().unwrap_or_default();
    ensure!(
        Path::new(device).exists(),
        "ublk-bpf named no device, but said: {said}"
    );
    let mut fio = Command::new("fio");
    fio.args(FIO)
        .args([format!("--filename={device}"), format!("--bs={}", case.block)]);
    // Measured: the first run within two seconds of the boot costs up to a tenth more, and none after it.
    command::output(&mut fio).context("the run that does not count")?;
    let results = (0..RUNS).map(|_| read_iops(&command::output(&mut fio)?));
    let results = results.collect::<Result<Vec<_>>>()?;
    let id = device.trim_start_matches("/dev/ublkb");
    command::output(Command::new("ublk-bpf").args(["stop", id]))?;
    Ok(results)
}

fn read_iops(text: &str) -> Result<f64> {
    // Notes may come before the JSON.
    let json = &text[text.find('{').context("fio printed no result")?..];
    let result: Value = serde_json::from_str(json).context("fio's result is no JSON")?;
    let number = |path: &str| result.pointer(path).and_then(Value::as_f64);
    ensure!(number("/jobs/0/error") == Some(0.0), "fio reports an error");
    number("/jobs/0/read/iops")
        .filter(|iops| *iops > 0.0)
        .context("fio's result names no IOPS")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iops_are_read_from_fios_result() {
        let text = "note: something\n{\"jobs\":[{\"error\":0,\"read\":{\"iops\":152500.5}}]}";
        assert!((read_iops(text).expect("read") - 152_500.5).abs() < f64::EPSILON);
        assert!(read_iops("{\"jobs\":[{\"error\":5,\"read\":{\"iops\":1}}]}").is_err());
        assert!(read_iops("fio: nothing").is_err());
    }

    #[test]
    fn one_odd_run_does_not_move_the_median() {
        let summary = Summary::of(vec![100.0, 101.0, 50.0, 99.0, 100.0]).expect("five values");
        assert_eq!(
            summary,
            Summary {
                median: 100.0,
                spread: 0.51
            }
        );
        assert!(Summary::of(Vec::new()).is_err());
    }

    #[test]
    fn a_line_says_whether_the_floor_was_reached() {
        let summary = Summary {
            median: 125_000.0,
            spread: 0.012,
        };
        let words = |reached| {
            let line = line(&CASES[0], &summary, reached);
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        let expected = "null:8G,unfilled 4k 125000 1.2 % 8000 148000 152500 missed";
        assert_eq!(words(false), expected.split(' ').collect::<Vec<_>>());
        assert_eq!(words(true).last().map(String::as_str), Some("ok"));
    }

    #[test]
    fn floors_are_within_a_twentieth_of_the_reference_or_so() {
        for case in &CASES {
            let share = f64::from(case.floor) / f64::from(case.reference);
            assert!((0.94..1.0).contains(&share), "{} {}", case.backing, case.block);
        }
    }
}
