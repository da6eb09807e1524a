//! `cargo xtask bench`: what an I/O costs, client, kernel and server together, counted in instructions.
//!
//! In a guest whose clock counts instructions, one nanosecond each, fio's I/Os per second repeat to within some two per
//! cent whatever else the machine does, and the instructions of an I/O are 1e9 divided by them.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::guest::{self, Config};
use crate::{command, progress, setup, vm};

/// The ram disk that passthrough is measured on.
const RAM_DISK: &str = "/dev/ram0";
const RAM_DISK_MIB: u32 = 512;
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
    let built = vec![vm::server()?, vm::this_program()?];
    setup::guest_tools()?;
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
    println!("random read, one queue, depth 128, instruction clock\n");
    println!(
        "{:<18}{:>6}{:>10}{:>12}{:>10}{:>11}",
        "backing", "block", "IOPS", "instr./I/O", "floor", "reference"
    );
    let mut reached = true;
    for case in &CASES {
        let iops = iops(case)?;
        let verdict = if iops >= f64::from(case.floor) {
            ""
        } else {
            "  below the floor"
        };
        reached &= verdict.is_empty();
        let Case {
            backing,
            block,
            floor,
            reference,
        } = case;
        println!(
            "{backing:<18}{block:>6}{iops:>10.0}{:>12.0}{floor:>10}{reference:>11}{verdict}",
            1e9 / iops
        );
    }
    Ok(if reached {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Makes a ram disk and leaves it empty: its reads clear pages and copy none, which at 64k takes half the instructions.
///
/// Whether the reference's ram disk was empty is not recorded. Its figure at 64k is one that only an empty one reaches:
/// a full one gave 25,000 here.
fn make_ram_disk() -> Result<()> {
    let size = format!("rd_size={}", RAM_DISK_MIB << 10);
    command::output(Command::new("modprobe").args(["brd", "rd_nr=1", &size])).map(drop)
}

fn iops(case: &Case) -> Result<f64> {
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
    let fio = || {
        let mut fio = Command::new("fio");
        fio.args(FIO)
            .arg(format!("--filename={device}"))
            .arg(format!("--bs={}", case.block));
        command::output(&mut fio)
    };
    // Measured: the first run within two seconds of the boot costs up to a tenth more, and none after it.
    fio()?;
    let text = fio()?;
    let id = device.trim_start_matches("/dev/ublkb");
    command::output(Command::new("ublk-bpf").args(["stop", id]))?;
    read_iops(&text)
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
    fn floors_are_within_a_twentieth_of_the_reference_or_so() {
        for case in &CASES {
            let share = f64::from(case.floor) / f64::from(case.reference);
            assert!((0.94..1.0).contains(&share), "{} {}", case.backing, case.block);
        }
    }
}
