//! One run of fio by the clock on the wall.

use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use host::command;

use crate::fio::JobResult;

/// The table's first two lines.
pub(crate) const HEAD: &str = "\
| | | IOPS | MiB/s | mean, µs | 99 %, µs | 99.9 %, µs |
|---|---|--:|--:|--:|--:|--:|";

/// How the client reads or writes.
pub(crate) struct Load {
    pub(crate) name: &'static str,
    options: &'static [&'static str],
}

impl Load {
    pub(crate) const ALL: [Self; 8] = [
        Self {
            name: "4k random read, depth 1",
            options: &["--rw=randread", "--bs=4k", "--iodepth=1"],
        },
        Self {
            name: "4k random read, pread",
            options: &["--rw=randread", "--bs=4k", "--ioengine=psync"],
        },
        Self {
            name: "4k random read, depth 32",
            options: &["--rw=randread", "--bs=4k", "--iodepth=32"],
        },
        Self {
            name: "4k random read, depth 128",
            options: &["--rw=randread", "--bs=4k", "--iodepth=128"],
        },
        Self {
            name: "4k random write, depth 32",
            options: &["--rw=randwrite", "--bs=4k", "--iodepth=32"],
        },
        Self {
            name: "4k random write, each with fsync",
            options: &["--rw=randwrite", "--bs=4k", "--ioengine=psync", "--fsync=1"],
        },
        Self {
            name: "4k 70/30, depth 32",
            options: &["--rw=randrw", "--rwmixread=70", "--bs=4k", "--iodepth=32"],
        },
        Self {
            name: "1M sequential read, depth 8",
            options: &["--rw=read", "--bs=1M", "--iodepth=8"],
        },
    ];
}

/// What came of it.
#[derive(Debug, PartialEq)]
pub(crate) struct Measured {
    iops: f64,
    mib: f64,
    /// Of completion, in microseconds: the mean, and of all but 1 % and 0.1 %. Of the reads where there are any.
    latency: [f64; 3],
}

impl Measured {
    pub(crate) fn of(device: &Path, mib: u64, load: &Load, seconds: u32) -> Result<Self> {
        let mut fio = fio(device, mib);
        fio.args(load.options).args(["--time_based", "--norandommap"]);
        fio.arg(format!("--runtime={seconds}s"));
        fio.arg(format!("--ramp_time={}ms", seconds * 200));
        parse(&command::output(&mut fio)?)
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [mean, most, nearly_all] = self.latency;
        write!(
            f,
            "{:.0} | {:.1} | {mean:.1} | {most:.1} | {nearly_all:.1}",
            self.iops, self.mib
        )
    }
}

/// Writes the range once in order, and reads it at random until a cache has had the time to take it.
pub(crate) fn fill(device: &Path, mib: u64) -> Result<()> {
    let once = ["--rw=write", "--bs=1M", "--iodepth=8"];
    command::output(fio(device, mib).args(once))?;
    // dm-cache promotes what is read again.
    let again = ["--rw=randread", "--bs=64k", "--iodepth=32", "--loops=4"];
    command::output(fio(device, mib).args(again)).map(drop)
}

fn fio(device: &Path, mib: u64) -> Command {
    let mut fio = Command::new("fio");
    fio.args([
        "--name=native",
        "--direct=1",
        "--ioengine=io_uring",
        "--output-format=json",
    ]);
    fio.arg(format!("--filename={}", device.display()));
    fio.arg(format!("--size={mib}M"));
    fio
}

fn parse(text: &str) -> Result<Measured> {
    let job = JobResult::parse(text)?;
    let [iops, bytes] = ["iops", "bw_bytes"].map(|what| job.sum(what));
    let way = if job.number("/read/iops")? > 0.0 {
        "read"
    } else {
        "write"
    };
    let latency = ["mean", "percentile/99.000000", "percentile/99.900000"]
        .map(|what| job.number(&format!("/{way}/clat_ns/{what}")));
    let [mean, most, nearly_all] = latency;
    Ok(Measured {
        iops: iops?,
        mib: bytes? / f64::from(1 << 20),
        latency: [mean? / 1e3, most? / 1e3, nearly_all? / 1e3],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_read_from_fios_result() {
        let way = |iops: f64| {
            format!(
                "{{\"iops\":{iops},\"bw_bytes\":{},\"clat_ns\":{{\"mean\":2500.0,\
                 \"percentile\":{{\"99.000000\":9000,\"99.900000\":12000}}}}}}",
                iops * 4096.0
            )
        };
        let text = |error: u8| {
            format!(
                "fio: a note\n{{\"jobs\":[{{\"error\":{error},\"read\":{},\"write\":{}}}]}}",
                way(0.0),
                way(25600.0)
            )
        };
        let measured = parse(&text(0)).expect("read");
        assert_eq!(measured.to_string(), "25600 | 100.0 | 2.5 | 9.0 | 12.0");
        assert!(parse(&text(5)).is_err());
        assert!(parse("fio: nothing").is_err());
    }
}
