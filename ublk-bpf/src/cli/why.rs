//! `ublk-bpf why`.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, anyhow, ensure};
use serde::Serialize;

use super::args::{DeviceArg, OutputFormat};
use super::output::print_line;
use super::table;
use crate::observe::{self, Cached, ExplainedBlock, PolicyAnswer, SectorRange, TraceLine, Why};
use crate::path_text::ShowPath as _;
use crate::policy::Disk;
use crate::registry::Record;
use crate::trace::Reader;

/// The last requests of a trace that are printed.
const LAST: usize = 10;

/// Explain what happens to a request of these sectors, and why
///
/// Shows what the cache's index holds of the sectors' block and how often it was read, and what the device's policy
/// answers now to a read and to a write. The answers are those of the attached program with its own maps: a policy that
/// counts requests counts these two as well. Flags and I/O priority of the two requests are not set, and their task is
/// this command in its own cgroup; --task gives it another name.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    device: DeviceArg,
    /// The first sector, in units of 512 bytes
    #[arg(value_name = "SECTOR")]
    sector: u64,
    /// Sectors of the request
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), default_value_t = 8)]
    length: u32,
    /// The task's name that the policy sees, at most 15 bytes
    #[arg(long, value_name = "NAME", value_parser = task_name, default_value = "ublk-bpf")]
    task: CString,
    /// Show the last decisions about this block too, from a trace of the device that is or was recorded
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    #[command(flatten)]
    format: OutputFormat,
}

/// What is printed as JSON.
#[derive(Serialize)]
struct Report {
    device: String,
    policy: String,
    #[serde(flatten)]
    why: Why,
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<Vec<TraceLine>>,
}

/// Prints what is known of the sectors.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let record = Record::read(args.device.id)?;
    let disk = Disk::ublk(args.device.id.number());
    let range = SectorRange {
        sector: args.sector,
        nr_sectors: args.length,
    };
    let why = explain(&disk, &record, range, &args.task)?;
    let block = why.block.as_ref().map_or(range, |block| block.sectors);
    let last = args.trace.as_deref().map(|file| last_of(file, &record, block));
    let report = Report {
        device: disk.name().to_owned(),
        policy: record.policy,
        last: last.transpose()?,
        why,
    };
    if args.format.json {
        print_line(serde_json::to_string_pretty(&report)?)?;
    } else {
        print_report(&report)?;
    }
    Ok(())
}

/// Asks in a thread of its own, which takes the task's name.
fn explain(disk: &Disk, record: &Record, range: SectorRange, task: &CString) -> anyhow::Result<Why> {
    let asked = thread::scope(|scope| {
        scope
            .spawn(|| observe::why(disk, record.sectors, range, task))
            .join()
    });
    Ok(asked.map_err(|_| anyhow!("the thread that asks the policy has panicked"))??)
}

/// The last requests of the trace that touch these sectors.
fn last_of(file: &Path, record: &Record, of: SectorRange) -> anyhow::Result<Vec<TraceLine>> {
    let unreadable = || format!("cannot read {}", file.shown());
    let reader = Reader::open(file).with_context(unreadable)?;
    let sectors = reader.header().device_sectors;
    ensure!(
        sectors == record.sectors,
        "{} is a trace of a device of {sectors} sectors, and this one has {}",
        file.shown(),
        record.sectors
    );
    let mut last = std::collections::VecDeque::with_capacity(LAST + 1);
    for request in reader {
        let request = request.with_context(unreadable)?;
        if request.sector < of.end() && of.sector < request.sector.saturating_add(request.nr_sectors.into()) {
            last.push_back(TraceLine::new(&request));
            if last.len() > LAST {
                last.pop_front();
            }
        }
    }
    Ok(last.into())
}

fn print_report(report: &Report) -> anyhow::Result<()> {
    let why = &report.why;
    let mut facts = vec![("sectors", sectors(why.range))];
    match &why.block {
        Some(block) => facts.extend(block_facts(block)),
        None => facts.push(("cache", "none".to_owned())),
    }
    if let Some(never) = why.never_written {
        let told = if never {
            "no: it was never written and reads as zeroes"
        } else {
            "yes, or a part of it"
        };
        facts.push(("holds data", told.to_owned()));
    }
    facts.push(("policy", report.policy.clone()));
    facts.extend(why.answers.iter().map(|answer| (answer.op, words(answer))));
    table::print_facts(&facts)?;
    if let Some(last) = &report.last {
        print_line(format_args!("\nlast requests of this block in the trace"))?;
        for line in last {
            print_line(line)?;
        }
    }
    Ok(())
}

fn block_facts(block: &ExplainedBlock) -> Vec<(&'static str, String)> {
    let slot = block.slot.map(|slot| format!(" in slot {slot}"));
    let writes = match block.writers {
        0 => String::new(),
        1 => ", 1 write in flight".to_owned(),
        more => format!(", {more} writes in flight"),
    };
    let regions: String = block
        .valid
        .map(|valid| if valid { '#' } else { '.' })
        .iter()
        .collect();
    let cached = match block.cached {
        Cached::Whole => "these sectors: yes",
        Cached::Part => "these sectors: in part, or not while they are stored",
        Cached::No => "no",
    };
    vec![
        ("block", format!("{}: {}", block.number, sectors(block.sectors))),
        (
            "state",
            format!("{}{}{writes}", block.state.name(), slot.unwrap_or_default()),
        ),
        ("regions", format!("{regions}  (# can be served from the slot)")),
        ("heat", format!("{} recent reads", block.heat)),
        ("cached", cached.to_owned()),
    ]
}

fn sectors(range: SectorRange) -> String {
    format!("{} to {}", range.sector, range.end() - 1)
}

fn words(answer: &PolicyAnswer) -> String {
    let code = if answer.code == 0 {
        String::new()
    } else {
        format!(" {}", answer.code)
    };
    let hints = if answer.hints.is_empty() {
        String::new()
    } else {
        format!(", {}", answer.hints.join(", "))
    };
    format!(
        "{} ({}{code}{hints}): {}",
        answer.verdict, answer.reason, answer.meaning
    )
}

fn task_name(text: &str) -> Result<CString, String> {
    CString::new(text)
        .ok()
        .filter(|name| (1..=15).contains(&name.count_bytes()))
        .ok_or_else(|| "a task's name has 1 to 15 bytes".to_owned())
}

#[cfg(test)]
mod tests {
    use ublk_bpf_abi::BlockState;

    use super::*;

    #[test]
    fn a_block_is_told_with_its_regions() {
        let range = |sector, nr_sectors| SectorRange { sector, nr_sectors };
        let block = ExplainedBlock {
            number: 2,
            sectors: range(256, 128),
            state: BlockState::Present,
            slot: Some(7),
            writers: 1,
            valid: std::array::from_fn(|region| region < 4),
            heat: 3,
            cached: Cached::Part,
        };
        let facts = block_facts(&block);
        assert_eq!(facts[0].1, "2: 256 to 383");
        assert_eq!(facts[1].1, "present in slot 7, 1 write in flight");
        assert!(facts[2].1.starts_with("####............ "), "{}", facts[2].1);
    }

    #[test]
    fn a_task_has_a_name_that_the_kernel_keeps() {
        assert!(task_name("fio").is_ok() && task_name("a-name-of-15-by").is_ok());
        assert!(task_name("").is_err() && task_name("a-name-of-16-byt").is_err());
    }
}
