//! Part `compared`: what an I/O costs with each peer and with each way of ours, side by side on the instruction clock.
//!
//! Two guests are booted, one with one CPU and one with two, and may run at the same time: their clocks count
//! instructions, whatever the machine does. In each, every subject has its turn, and then every one twice more; a turn makes the
//! device, runs fio on it case by case, and unmakes it. In the first turn a run before each counts the servers' system calls.

mod calls;
mod floors;
mod measure;
mod page;
mod plot;
mod result;
mod results;
mod table;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::peers::{self, FAST, SLOW};
use super::subject::{Kind, Shape, Subject};
use super::{RAM_DISK_MIB, in_guest, modes, report};
use host::{progress, workspace};
pub(super) use measure::RANGE_MIB;
use result::{Block, Case, Message, Pattern, plural};
use results::Results;
use vm::{Config, Outcome, Sink};

/// Tags of each of a device's queues.
const TAGS: u16 = 128;

/// What a boot leaves to be done later is done by then: a run within the first seconds cost up to twice as much. The
/// sleep takes no time, for the clock jumps to its end.
pub(super) const SETTLE: Duration = Duration::from_secs(10);

/// How much of the matrix is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Only random reads with one CPU at full depth, and each once.
    pub(super) quick: bool,
    /// Only these, and the raw devices that they are compared with; none: all.
    pub(super) subjects: Vec<String>,
}

/// Everything that can be measured, raw devices first.
pub(super) fn kinds() -> Vec<Kind> {
    [peers::kinds(), modes::kinds()].concat()
}

impl Plan {
    fn is_whole(&self) -> bool {
        !self.quick && self.subjects.is_empty()
    }

    fn kinds(&self) -> Vec<Kind> {
        let all = kinds();
        let is_chosen =
            |kind: &Kind| self.subjects.is_empty() || self.subjects.iter().any(|s| s == kind.name);
        let chosen: Vec<Kind> = all.iter().copied().filter(is_chosen).collect();
        let is_needed =
            |kind: &Kind| is_chosen(kind) || chosen.iter().any(|other| other.raw.name() == kind.name);
        all.into_iter().filter(is_needed).collect()
    }

    /// The machines that are booted.
    fn cpus(&self) -> &'static [u16] {
        if self.quick { &[1] } else { &[1, 2] }
    }

    /// Turns of each subject with so many CPUs.
    fn rounds(&self, cpus: u16) -> usize {
        if self.quick || cpus > 1 { 1 } else { 2 }
    }

    /// What is measured in a turn: all of it in the first one, and then what is shown first.
    fn cases(&self, cpus: u16, round: usize) -> Vec<Case> {
        let mut cases = self.all_cases(cpus);
        cases.retain(|case| round == 1 || table::is_headline(*case));
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

    /// What the guest's own call of this program is told.
    fn arguments(&self) -> Vec<String> {
        let only = [&["compared".to_owned()], &self.subjects[..]].concat().join(",");
        let mut arguments = vec!["--only".to_owned(), only];
        arguments.extend(self.quick.then(|| "--quick".to_owned()));
        arguments
    }
}

/// Measures in this system, and tells the host.
pub(super) fn here(plan: &Plan) -> Result<()> {
    peers::make_ram_disks(RAM_DISK_MIB)?;
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

/// Makes a device, measures every case on it, and leaves nothing of it.
fn turn(kind: &Kind, round: usize, cases: &[Case]) -> Result<()> {
    let cpus = cases.first().context("there is no case")?.cpus;
    let name = kind.name.to_owned();
    Message::Turn { subject: name }.send()?;
    // Empty: reads of a ram disk that has been written to copy its pages, and drown the rest.
    for disk in [FAST, SLOW] {
        peers::empty(disk)?;
    }
    let subject = (kind.start)(Shape {
        queues: cpus,
        depth: TAGS,
    })?;
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

/// Boots the guests, shows what they found, and fails if a floor is not reached or one of ours could not be measured.
pub(super) fn run_on_host(plan: &Plan) -> Result<ExitCode> {
    let started = Instant::now();
    let kernel = host::setup::guest()?;
    let mut guest = Config {
        icount: true,
        built: vec![super::this_program()?, vm::server()?],
        ..super::machine()
    };
    super::obtain::peers()?.hand_to(&mut guest);
    let mut results = Results::new(plan.kinds());
    let boot = |cpus: u16| -> Result<Collector> {
        let mut collector = Collector::new(plan, cpus);
        let config = Config {
            cpus: u32::from(cpus),
            ..guest.clone()
        };
        progress::note(&format!(
            "booting Linux {} with {} on the instruction clock",
            kernel.release,
            plural(cpus, "CPU")
        ));
        let outcome = in_guest(&config, &kernel, &plan.arguments(), &mut collector)?;
        if outcome != Outcome::Exited(0) {
            // What it had told until then is shown.
            let ended = vm::describe(&outcome);
            collector.messages.push(Message::Ended(format!(
                "the guest with {} {ended}",
                plural(cpus, "CPU")
            )));
        }
        Ok(collector)
    };
    let boot = &boot;
    std::thread::scope(|scope| {
        let guests: Vec<_> = plan
            .cpus()
            .iter()
            .map(|&cpus| scope.spawn(move || boot(cpus)))
            .collect();
        for guest in guests {
            let collector = guest
                .join()
                .ok()
                .context("a thread that watched a guest died")??;
            results.take(collector.messages);
        }
        anyhow::Ok(())
    })?;
    let took = started.elapsed();
    print!("{}", table::text(&results));
    results.print_failures();
    let good = floors::print(&results) && results.is_good();
    write(plan, &results, took)?;
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Writes the page, or for less than the whole a page of its own that no one keeps.
fn write(plan: &Plan, results: &Results, took: Duration) -> Result<()> {
    let (section, pictures) = (page::section(results, took), plot::pictures(results)?);
    if plan.is_whole() && results.is_good() {
        for (name, svg) in &pictures {
            report::picture(name, svg)?;
        }
        report::replace("compared", &section)?;
        progress::note("written: docs/benchmarks.md");
        return Ok(());
    }
    let folder = workspace::target_dir()?.join("bench");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (name, text) in pictures
        .iter()
        .map(|(name, svg)| (format!("{name}.svg"), svg))
        .chain([("compared.md".to_owned(), &section)])
    {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    progress::note(&format!(
        "written: {} (docs/benchmarks.md is only written by a whole run in which none of ours failed)",
        folder.join("compared.md").display()
    ));
    Ok(())
}

/// Collects what a guest tells, and shows how far it is.
struct Collector {
    messages: Vec<Message>,
    /// What has come of a line that is not whole.
    line: Vec<u8>,
    cpus: u16,
    turns: usize,
    turns_of: usize,
}

impl Collector {
    fn new(plan: &Plan, cpus: u16) -> Self {
        Self {
            messages: Vec::new(),
            line: Vec::new(),
            cpus,
            turns: 0,
            turns_of: plan.kinds().len() * plan.rounds(cpus),
        }
    }

    fn take(&mut self, line: &str) {
        match Message::parse(line) {
            Ok(Some(message)) => {
                self.show(&message);
                self.messages.push(message);
            }
            Ok(None) => println!("{line}"),
            // Without it the tables have a gap that says so.
            Err(error) => progress::note(&format!("{error:#}")),
        }
    }

    fn show(&mut self, message: &Message) {
        match message {
            Message::Turn { subject } => {
                self.turns += 1;
                let cpus = plural(self.cpus, "CPU");
                progress::note(&format!(
                    "{cpus}, turn {} of {}: {subject}",
                    self.turns, self.turns_of
                ));
            }
            Message::Failed { subject, why } => progress::note(&format!("{subject} failed: {why}")),
            Message::Ended(why) => progress::note(why),
            Message::Version { .. } | Message::Run { .. } | Message::Calls { .. } => {}
        }
    }
}

impl Sink for Collector {
    fn out(&mut self, bytes: &[u8]) {
        self.line.extend_from_slice(bytes);
        while let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.line.drain(..=end).collect();
            self.take(String::from_utf8_lossy(&line).trim_end());
        }
    }

    fn err(&mut self, bytes: &[u8]) {
        vm::Inherit.err(bytes);
    }
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

    #[test]
    fn lines_are_put_together_as_they_come() {
        let mut collector = Collector::new(&plan(true, &[]), 1);
        let line = "bench-result: {\"Turn\":{\"subject\":\"brd\"}}\n";
        collector.out(&line.as_bytes()[..20]);
        assert!(collector.messages.is_empty());
        collector.out(&line.as_bytes()[20..]);
        assert_eq!(collector.messages.len(), 1);
    }
}
