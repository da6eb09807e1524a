//! One run of fio on a device, and what its servers did meanwhile.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};

use super::calls::Counting;
use super::result::{Case, Sample};
use crate::busy::run_time;
use crate::fio::{self, Job, Run};
use crate::sizes::RANGE_MIB;
use crate::subject::Subject;

/// A run's length: 1 s gives the same within half a per cent, and takes twice as long. fio counts its time in whole
/// milliseconds.
const LENGTH: &str = "200ms";
/// The length of a run whose I/Os are only divided by something.
const SHORT: &str = "50ms";
/// I/Os that fio submits at once and takes at once, where the depth allows it.
const BATCH: u16 = 32;

/// A run that counts.
pub(crate) fn sample(subject: &dyn Subject, case: Case) -> Result<Sample> {
    let before = run_times(subject)?;
    let (started, busy) = (Instant::now(), run_time()?);
    let run = run(subject.path(), case, LENGTH)?;
    let idle = (started.elapsed() * u32::from(case.cpus)).saturating_sub(run_time()? - busy);
    let after = run_times(subject)?;
    // A thread that is new has run for nothing before; of one that has ended only what it ran before is known.
    let nanoseconds: u64 = after
        .iter()
        .map(|(thread, time)| time - before.get(thread).unwrap_or(&0).min(time))
        .sum();
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds of a second")]
    let seconds = nanoseconds as f64 / 1e9;
    Ok(Sample {
        iops: run.iops,
        server: seconds / run.seconds / f64::from(case.cpus),
        idle: idle.as_secs_f64() / run.seconds / f64::from(case.cpus),
    })
}

/// The system calls of the servers for an I/O.
pub(crate) fn calls(subject: &dyn Subject, case: Case) -> Result<f64> {
    let counting = Counting::start()?;
    let run = run(subject.path(), case, SHORT)?;
    let threads: Vec<u32> = run_times(subject)?.into_keys().collect();
    #[expect(clippy::cast_precision_loss, reason = "calls of a second")]
    let calls = counting.of(&threads)? as f64;
    Ok(calls / run.ios)
}

fn run(device: &Path, case: Case, length: &str) -> Result<Run> {
    let job = Job {
        devices: &[device],
        block: &case.block.to_string(),
        range_mib: Some(RANGE_MIB / u64::from(case.cpus)),
    };
    let options = options(case, length);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    fio::run(&job, &options).with_context(|| case.to_string())
}

fn options(case: Case, length: &str) -> Vec<String> {
    // At most half of what is in flight: fio has something to submit while the rest is served.
    let batch = (case.depth / 2).clamp(1, BATCH);
    let mut options = vec![
        format!("--rw={}", case.pattern.fio()),
        format!("--runtime={length}"),
        format!("--iodepth={}", case.depth),
        format!("--iodepth_batch={batch}"),
        format!("--iodepth_batch_complete_min={batch}"),
    ];
    if case.cpus > 1 {
        options.extend([
            format!("--numjobs={}", case.cpus),
            format!("--offset_increment={}M", RANGE_MIB / u64::from(case.cpus)),
            format!("--cpus_allowed=0-{}", case.cpus - 1),
            "--cpus_allowed_policy=split".to_owned(),
        ]);
    }
    options
}

/// For how long, in nanoseconds, each thread of the servers has run.
fn run_times(subject: &dyn Subject) -> Result<BTreeMap<u32, u64>> {
    let mut times = BTreeMap::new();
    for server in subject.servers() {
        let folder = format!("/proc/{server}/task");
        let threads = fs::read_dir(&folder).with_context(|| format!("a server has ended: no {folder}"))?;
        for thread in threads {
            let thread = thread?;
            // A worker thread may end at any time.
            let Ok(text) = fs::read_to_string(thread.path().join("schedstat")) else {
                continue;
            };
            let id = thread.file_name().to_string_lossy().parse()?;
            times.insert(id, first_number(&text)?);
        }
    }
    Ok(times)
}

fn first_number(text: &str) -> Result<u64> {
    let word = text.split_whitespace().next().unwrap_or_default();
    word.parse()
        .with_context(|| format!("a thread's schedstat begins with no number: {text}"))
}

#[cfg(test)]
mod tests {
    use super::super::result::{Block, Pattern};
    use super::*;

    #[test]
    fn fio_is_never_asked_for_more_at_once_than_may_be_in_flight() {
        let batch = |depth| {
            let case = Case {
                cpus: 1,
                pattern: Pattern::RandomRead,
                block: Block::Small,
                depth,
            };
            options(case, SHORT)
                .iter()
                .find_map(|option| option.strip_prefix("--iodepth_batch=").map(str::to_owned))
        };
        for (depth, expected) in [(1, "1"), (2, "1"), (32, "16"), (128, "32")] {
            assert_eq!(batch(depth).as_deref(), Some(expected), "{depth}");
        }
    }

    #[test]
    fn a_threads_time_is_the_first_number() {
        assert_eq!(first_number("123456 789 3\n").expect("read"), 123_456);
        assert!(first_number("").is_err());
    }
}
