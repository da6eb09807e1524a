//! Runs fio, with random reads unless something else is asked for, and parses its result.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use host::command;

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
pub struct Job<'a> {
    /// Each is read by a process of its own.
    pub devices: &'a [&'a Path],
    /// Bytes a read, as fio takes them: `4k`.
    pub block: &'a str,
    /// Only so much of the device, from its start, in MiB.
    pub range_mib: Option<u64>,
}

/// Several measurements of the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// The value in the middle.
    pub median: f64,
    /// The highest less the lowest, as a part of the median.
    pub spread: f64,
}

impl Summary {
    /// Of at least one value.
    pub fn of(mut values: Vec<f64>) -> Result<Self> {
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

/// What one run of fio gave.
#[derive(Debug, PartialEq)]
pub struct Run {
    /// I/Os per second.
    pub iops: f64,
    /// I/Os.
    pub ios: f64,
    /// How long they took.
    pub seconds: f64,
}

/// Runs fio once. Of options that contradict each other it takes the later one: these, not the usual ones.
pub fn run(job: &Job<'_>, options: &[&str]) -> Result<Run> {
    parse(&command::output(&mut command(job, options))?)
}

/// What [`run`] runs.
pub fn command(job: &Job<'_>, options: &[&str]) -> Command {
    let mut fio = Command::new("fio");
    fio.args(FIO)
        .arg(format!("--bs={}", job.block))
        .args(job.range_mib.map(|mib| format!("--size={mib}M")))
        .args(options);
    // What stands before the first name is about every job.
    for device in job.devices {
        fio.args(["--name=bench", &format!("--filename={}", device.display())]);
    }
    fio
}

/// What fio printed of its first job.
pub(crate) struct JobResult(Value);

impl JobResult {
    /// Of a run that met no error.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        // Notes may come before the JSON.
        let json = &text[text.find('{').context("fio printed no result")?..];
        let mut result: Value = serde_json::from_str(json).context("fio's result is no JSON")?;
        let job = Self(result["jobs"][0].take());
        ensure!(job.number("/error")? == 0.0, "fio reports an error");
        Ok(job)
    }

    /// The number at a path of JSON.
    pub(crate) fn number(&self, path: &str) -> Result<f64> {
        let value = self.0.pointer(path).and_then(Value::as_f64);
        value.with_context(|| format!("fio's result has no number {path}"))
    }

    /// One of the numbers of reads, and of writes, together.
    pub(crate) fn sum(&self, what: &str) -> Result<f64> {
        Ok(self.number(&format!("/read/{what}"))? + self.number(&format!("/write/{what}"))?)
    }
}

fn parse(text: &str) -> Result<Run> {
    let job = JobResult::parse(text)?;
    let run = Run {
        iops: job.sum("iops")?,
        ios: job.sum("total_ios")?,
        // Milliseconds; one of the two is 0 where only the other is done.
        seconds: job.number("/read/runtime")?.max(job.number("/write/runtime")?) / 1e3,
    };
    ensure!(run.iops > 0.0 && run.seconds > 0.0, "fio's result names no IOPS");
    Ok(run)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(error: u8, iops: f64) -> String {
        format!(
            "note: something\n{{\"jobs\":[{{\"error\":{error},\
             \"read\":{{\"iops\":{iops},\"total_ios\":15250,\"runtime\":100}},\
             \"write\":{{\"iops\":0,\"total_ios\":0,\"runtime\":0}}}}]}}"
        )
    }

    #[test]
    fn a_run_is_read_from_fios_result() {
        let run = parse(&result(0, 152_500.5)).expect("read");
        let expected = Run {
            iops: 152_500.5,
            ios: 15_250.0,
            seconds: 0.1,
        };
        assert_eq!(run, expected);
        assert!(parse(&result(5, 1.0)).is_err());
        assert!(parse(&result(0, 0.0)).is_err());
        assert!(parse("fio: nothing").is_err());
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
