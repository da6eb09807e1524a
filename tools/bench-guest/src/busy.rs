//! What an I/O costs where the system may also wait: the guest's clock goes on while nothing runs.
//!
//! A load is run twice, for a short and for a longer time. What starting and ending fio takes is the same in both, so
//! that the difference is the I/Os' alone; and only the time counts in which something ran.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::fio::{self, Job};

const SHORT: &str = "--runtime=100ms";
const LONG: &str = "--runtime=400ms";

/// What a load took of the CPUs.
#[derive(Clone, Copy, Debug)]
struct Took {
    /// I/Os.
    ios: f64,
    /// Nanoseconds, which are instructions, in which something ran.
    busy: f64,
}

impl Took {
    /// Instructions per I/O of what came after `short`.
    fn since(self, short: Self) -> Result<f64> {
        let ios = self.ios - short.ios;
        ensure!(ios > 0.0, "a longer run made no more I/Os");
        Ok((self.busy - short.busy) / ios)
    }
}

/// Instructions per I/O, without the time in which nothing ran.
pub fn cost(job: &Job<'_>, options: &[&str]) -> Result<f64> {
    let run = |length| took(job, &[options, &[length]].concat());
    // The first run after a start costs more.
    run(SHORT)?;
    let short = run(SHORT)?;
    run(LONG)?.since(short)
}

fn took(job: &Job<'_>, options: &[&str]) -> Result<Took> {
    let before = run_time()?;
    let ios = fio::run(job, options)?.ios;
    let busy = run_time()?.saturating_sub(before);
    Ok(Took {
        ios,
        busy: busy.as_secs_f64() * 1e9,
    })
}

/// For how long all CPUs together have run anything; an interrupt of an idle CPU is not in it.
pub(crate) fn run_time() -> Result<Duration> {
    let path = "/proc/schedstat";
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    parse(&text).with_context(|| format!("{path} has no CPU's run time: {text}"))
}

/// The seventh number of each CPU's line, as Documentation/scheduler/sched-stats.rst has it.
fn parse(text: &str) -> Option<Duration> {
    let times = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let cpu = words.next()?.strip_prefix("cpu")?;
        cpu.parse::<u32>().ok()?;
        words.nth(6)?.parse().ok()
    });
    times.map(Duration::from_nanos).reduce(|sum, time| sum + time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fio_takes_for_itself_cancels_out() {
        let took = |ios: u32| Took {
            ios: f64::from(ios),
            busy: 30e6 + f64::from(ios) * 9000.0,
        };
        let cost = took(5000).since(took(1000)).expect("more I/Os");
        assert!((cost - 9000.0).abs() < 1e-6, "{cost}");
        assert!(took(10).since(took(10)).is_err());
    }

    #[test]
    fn the_run_times_of_all_cpus_are_added() {
        let text = "version 17\ntimestamp 4294892921\ncpu0 0 0 0 0 0 0 2366 4875 2873\ndomain0 MC 3 1 2 3\n\
                    cpu1 0 0 0 0 0 0 34 5 6\n";
        assert_eq!(parse(text), Some(Duration::from_nanos(2400)));
        assert_eq!(parse("version 17\n"), None);
    }
}
