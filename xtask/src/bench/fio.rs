//! fio's random reads, and what is made of several runs of them.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::command;

const FIO: [&str; 15] = [
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
    "--group_reporting",
    "--output-format=json",
];

/// What fio reads.
pub(super) struct Job<'a> {
    pub(super) device: &'a Path,
    /// Bytes a read, as fio takes them: `4k`.
    pub(super) block: &'a str,
    /// Only so much of the device, from its start, in MiB.
    pub(super) range_mib: Option<u64>,
}

/// Several measurements of the same.
#[derive(Debug, PartialEq)]
pub(super) struct Summary {
    pub(super) median: f64,
    /// The highest less the lowest, as a part of the median.
    pub(super) spread: f64,
}

impl Summary {
    pub(super) fn of(mut values: Vec<f64>) -> Result<Self> {
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

/// The I/Os per second of so many runs of 1 s each, after one that does not count.
pub(super) fn measure(job: &Job<'_>, runs: usize) -> Result<Summary> {
    // Measured: the first run within two seconds of the boot costs up to a tenth more, and none after it.
    iops(job).context("the run that does not count")?;
    let results = (0..runs).map(|_| iops(job)).collect::<Result<Vec<_>>>()?;
    Summary::of(results)
}

/// The I/Os per second of one run.
pub(super) fn iops(job: &Job<'_>) -> Result<f64> {
    iops_with(job, &[])
}

/// The same with further options of fio, which takes the later one where two contradict each other.
pub(super) fn iops_with(job: &Job<'_>, options: &[&str]) -> Result<f64> {
    let size = job.range_mib.map(|mib| format!("--size={mib}M"));
    let options: Vec<&str> = options.iter().copied().chain(size.as_deref()).collect();
    iops_of_all(&[job.device], job.block, &options)
}

/// Those of all these devices together, each read by a process of its own.
pub(super) fn iops_of_all(devices: &[&Path], block: &str, options: &[&str]) -> Result<f64> {
    let mut fio = Command::new("fio");
    fio.args(FIO).arg(format!("--bs={block}")).args(options);
    // What stands before the first name is about every job.
    for device in devices {
        fio.args(["--name=bench", &format!("--filename={}", device.display())]);
    }
    read_iops(&command::output(&mut fio)?)
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
}
