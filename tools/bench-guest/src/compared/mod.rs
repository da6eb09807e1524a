//! Part `compared`, in a guest: every subject has its turn, and then every one again; a turn makes the device, runs fio on
//! it case by case, and removes it. In the first turn a run before each counts the servers' system calls.

mod calls;
mod measure;
pub mod result;

use anyhow::{Context as _, Result};

use crate::modes;
use crate::peers::{self, FAST, SLOW};
use crate::sizes::{RANGE_MIB, SETTLE};
use crate::subject::{Kind, Shape, Subject};
use result::{Block, Case, Message, Pattern, plural};

/// Tags of each of a device's queues.
const TAGS: u16 = 128;

/// How much of the matrix is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Only random reads with one CPU at full depth, and each once.
    pub quick: bool,
    /// Only these, and the raw devices that they are compared with; none: all.
    pub subjects: Vec<String>,
}

/// Everything that can be measured, raw devices first.
pub fn kinds() -> Vec<Kind> {
    [peers::kinds(), modes::kinds()].concat()
}

impl Plan {
    /// Whether nothing is left out.
    pub fn is_whole(&self) -> bool {
        !self.quick && self.subjects.is_empty()
    }

    /// What is measured, raw devices first.
    pub fn kinds(&self) -> Vec<Kind> {
        let all = kinds();
        let is_chosen =
            |kind: &Kind| self.subjects.is_empty() || self.subjects.iter().any(|s| s == kind.name);
        let chosen: Vec<Kind> = all.iter().copied().filter(is_chosen).collect();
        let is_needed =
            |kind: &Kind| is_chosen(kind) || chosen.iter().any(|other| other.raw.name() == kind.name);
        all.into_iter().filter(is_needed).collect()
    }

    /// The machines that are booted.
    pub fn cpus(&self) -> &'static [u16] {
        if self.quick { &[1] } else { &[1, 2] }
    }

    /// Turns of each subject with this many CPUs.
    pub fn rounds(&self, cpus: u16) -> usize {
        if self.quick || cpus > 1 { 1 } else { 2 }
    }

    /// What is measured in a turn: all of it in the first one, and then what is shown first.
    fn cases(&self, cpus: u16, round: usize) -> Vec<Case> {
        let mut cases = self.all_cases(cpus);
        cases.retain(|case| round == 1 || result::is_headline(*case));
        cases
    }

    fn all_cases(&self, cpus: u16) -> Vec<Case> {
        let (patterns, depths): (&[Pattern], &[u16]) = if self.quick {
            (&[Pattern::RandomRead], &[128])
        } else {
            (&Pattern::ALL, &[1, 32, 128])
        };
        let mut cases = Vec::new();
        for &pattern in patterns {
            for block in Block::ALL {
                cases.extend(depths.iter().map(|&depth| Case {
                    cpus,
                    pattern,
                    block,
                    depth,
                }));
            }
        }
        cases
    }

    /// What the guest's program is told.
    pub fn arguments(&self) -> Vec<String> {
        let quick = self.quick.then(|| "--quick".to_owned());
        let subjects = self.subjects.iter().cloned();
        std::iter::once("compared".to_owned())
            .chain(quick)
            .chain(subjects)
            .collect()
    }
}

/// Measures everything of the plan in this system, and tells the host.
pub fn measure_all(plan: &Plan) -> Result<()> {
    std::thread::sleep(SETTLE);
    let cpus = u16::try_from(std::thread::available_parallelism()?.get())?;
    let mut kinds = plan.kinds();
    for kind in &kinds {
        let version = (kind.version)().unwrap_or_else(|error| format!("unknown: {error:#}"));
        let subject = kind.name.to_owned();
        Message::Version { subject, version }.send()?;
    }
    for round in 1..=plan.rounds(cpus) {
        let mut failed = Vec::new();
        for kind in &kinds {
            let subject = kind.name.to_owned();
            if let Err(error) = turn(kind, round, &plan.cases(cpus, round)) {
                let why = format!("with {}: {error:#}", plural(cpus, "CPU"));
                Message::Failed { subject, why }.send()?;
                failed.push(kind.name);
            }
        }
        kinds.retain(|kind| !failed.contains(&kind.name));
    }
    Ok(())
}

/// Starts a subject on empty disks, without a scheduler.
pub(crate) fn start_anew(kind: &Kind, shape: Shape) -> Result<Box<dyn Subject>> {
    // Empty: reads of a ram disk that has been written to copy its pages, and drown the rest.
    for disk in [FAST, SLOW] {
        peers::empty(disk)?;
    }
    let subject = (kind.start)(shape)?;
    // None of those compared is slower for having mq-deadline.
    peers::schedule(subject.path(), "none")?;
    Ok(subject)
}

/// Makes a device, measures every case on it, and leaves nothing of it.
fn turn(kind: &Kind, round: usize, cases: &[Case]) -> Result<()> {
    let cpus = cases.first().context("there is no case")?.cpus;
    let name = kind.name.to_owned();
    Message::Turn { subject: name }.send()?;
    let subject = start_anew(
        kind,
        Shape {
            queues: cpus,
            depth: TAGS,
        },
    )?;
    let (writes, reads): (Vec<Case>, Vec<Case>) = cases.iter().partition(|case| case.pattern.writes());
    run(kind, subject.as_ref(), round, &reads)?;
    subject.check()?;
    if !writes.is_empty() {
        // The first write to a page of a ram disk allocates it.
        peers::fill(&subject.path().to_string_lossy(), RANGE_MIB)?;
        run(kind, subject.as_ref(), round, &writes)?;
    }
    Ok(())
}

fn run(kind: &Kind, subject: &dyn Subject, round: usize, cases: &[Case]) -> Result<()> {
    let name = || kind.name.to_owned();
    for (number, &case) in cases.iter().enumerate() {
        // The first run after a start costs more, too, and this one's I/Os per second do not count.
        if number == 0 || (round == 1 && case.cpus == 1) {
            let per_io = measure::calls(subject, case)?;
            let subject = name();
            Message::Calls {
                subject,
                case,
                per_io,
            }
            .send()?;
        }
        let sample = measure::sample(subject, case)?;
        let subject = name();
        Message::Run {
            subject,
            case,
            sample,
        }
        .send()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(quick: bool, subjects: &[&str]) -> Plan {
        Plan {
            quick,
            subjects: subjects.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    #[test]
    fn a_chosen_subject_brings_its_raw_device() {
        let names = |subjects| {
            let kinds = plan(false, subjects).kinds();
            kinds.into_iter().map(|kind| kind.name).collect::<Vec<_>>()
        };
        assert_eq!(names(&["ublk-bpf-hit"]), ["brd", "ublk-bpf-hit"]);
        assert_eq!(names(&["ublk-bpf-drop"]), ["null_blk", "ublk-bpf-drop"]);
        assert_eq!(names(&["brd"]), ["brd"]);
        assert_eq!(names(&[]).len(), kinds().len());
    }

    #[test]
    fn every_raw_device_is_there_and_its_own() {
        let kinds = kinds();
        for kind in &kinds {
            let raw = kinds.iter().find(|other| other.name == kind.raw.name());
            assert_eq!(raw.expect("there").raw, kind.raw, "{}", kind.name);
        }
    }

    #[test]
    fn the_quick_cases_are_some_of_the_whole() {
        let whole = plan(false, &[]).cases(1, 1);
        let quick = plan(true, &[]).cases(1, 1);
        assert_eq!((whole.len(), quick.len()), (24, 2));
        assert!(quick.iter().all(|case| whole.contains(case)));
        assert_eq!(
            plan(false, &[]).cases(1, 2),
            quick,
            "again is measured what is shown first"
        );
    }
}
