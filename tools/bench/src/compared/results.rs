//! All measurements, and what is derived from them.

use std::collections::BTreeMap;

use bench_guest::compared::result::{Case, Message, Sample};
use bench_guest::fio::Summary;
use bench_guest::modes;
use bench_guest::subject::Kind;

/// What the guests reported.
#[derive(Default)]
pub(super) struct Results {
    /// In the order of tables.
    pub(super) kinds: Vec<Kind>,
    pub(super) versions: BTreeMap<String, String>,
    /// What could not be measured, and why.
    pub(super) failures: Vec<(String, String)>,
    /// Why guests ended too early.
    ended: Vec<String>,
    samples: BTreeMap<(String, Case), Vec<Sample>>,
    calls: BTreeMap<(String, Case), f64>,
}

/// What was found for one subject and case.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cell {
    pub(super) iops: Summary,
    /// Instructions of an I/O: client, kernel and servers.
    pub(super) instructions: f64,
    /// Instructions more than the raw device takes; none for a raw device.
    pub(super) added: Option<f64>,
    /// The servers' part of the CPUs' time.
    pub(super) server: f64,
    /// The part of the time in which nothing ran, beyond that with the raw device: fio itself sleeps before and after.
    pub(super) waits: f64,
    /// System calls of the servers for an I/O, where they were counted.
    pub(super) calls: Option<f64>,
}

impl Results {
    pub(super) fn new(kinds: Vec<Kind>) -> Self {
        Self {
            kinds,
            ..Self::default()
        }
    }

    pub(super) fn take(&mut self, messages: Vec<Message>) {
        for message in messages {
            match message {
                Message::Version { subject, version } => {
                    self.versions.insert(subject, version);
                }
                Message::Run {
                    subject,
                    case,
                    sample,
                } => self.samples.entry((subject, case)).or_default().push(sample),
                Message::Calls {
                    subject,
                    case,
                    per_io,
                } => {
                    self.calls.insert((subject, case), per_io);
                }
                Message::Failed { subject, why } => self.failures.push((subject, why)),
                Message::Ended(why) => self.ended.push(why),
                Message::Turn { .. } => {}
            }
        }
    }

    /// In the order of tables.
    pub(super) fn subjects(&self) -> impl Iterator<Item = &'static str> {
        self.kinds.iter().map(|kind| kind.name)
    }

    /// What was found; none if this was not measured.
    pub(super) fn cell(&self, subject: &str, case: Case) -> Option<Cell> {
        let samples = self.samples.get(&(subject.to_owned(), case))?;
        let iops = summary(samples, |sample| sample.iops)?;
        let server = summary(samples, |sample| sample.server)?.median;
        let raw = self.kinds.iter().find(|kind| kind.name == subject)?.raw.name();
        let raw_samples = self.samples.get(&(raw.to_owned(), case));
        let raw_median = |value| raw_samples.and_then(|samples| Some(summary(samples, value)?.median));
        let added = (raw != subject)
            .then(|| raw_median(|sample| sample.iops))
            .flatten()
            .map(|raw| 1e9 / iops.median - 1e9 / raw);
        let idle = summary(samples, |sample| sample.idle)?.median;
        Some(Cell {
            iops,
            instructions: 1e9 / iops.median,
            added,
            server,
            waits: idle - raw_median(|sample| sample.idle).unwrap_or(idle),
            calls: self.calls.get(&(subject.to_owned(), case)).copied(),
        })
    }

    /// All cases that were measured, in order.
    pub(super) fn cases(&self) -> Vec<Case> {
        let mut cases: Vec<Case> = self.samples.keys().map(|(_, case)| *case).collect();
        cases.sort();
        cases.dedup();
        cases
    }

    /// All that was found.
    pub(super) fn cells(&self) -> impl Iterator<Item = (&str, Case, Cell)> {
        self.samples
            .keys()
            .filter_map(|(subject, case)| Some((subject.as_str(), *case, self.cell(subject, *case)?)))
    }

    /// Says which subjects could not be measured.
    pub(super) fn print_failures(&self) {
        for (subject, why) in &self.failures {
            println!("not measured: {subject}: {why}");
        }
        for why in &self.ended {
            println!("not everything was measured: {why}");
        }
    }

    /// Whether everything of ours was measured. A peer may be unable to do something; its row is missing, and says why.
    pub(super) fn is_good(&self) -> bool {
        let ours = modes::kinds();
        let is_ours = |subject: &str| ours.iter().any(|kind| kind.name == subject);
        self.ended.is_empty() && !self.failures.iter().any(|(subject, _)| is_ours(subject))
    }
}

fn summary(samples: &[Sample], value: fn(&Sample) -> f64) -> Option<Summary> {
    Summary::of(samples.iter().map(value).collect()).ok()
}

/// System calls per I/O with this many decimal places, or a dash.
pub(super) fn calls(cell: &Cell, places: usize) -> String {
    let number = |calls| format!("{calls:.places$}");
    cell.calls.map_or_else(|| "-".to_owned(), number)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use bench_guest::compared::result::{Block, Pattern};

    pub(in super::super) const CASE: Case = Case {
        cpus: 1,
        pattern: Pattern::RandomRead,
        block: Block::Small,
        depth: 128,
    };

    /// Three subjects: one takes as many instructions as the raw device, the other twice as many.
    pub(in super::super) fn results() -> Results {
        let names = ["brd", "dm-linear", "ublk-bpf-brd"];
        let kinds = bench_guest::compared::kinds().into_iter();
        let mut results = Results::new(kinds.filter(|kind| names.contains(&kind.name)).collect());
        for (subject, iops, server) in [
            (names[0], 200_000.0, 0.0),
            (names[1], 200_000.0, 0.0),
            (names[2], 100_000.0, 0.25),
        ] {
            let subject = subject.to_owned();
            let run = |iops| Message::Run {
                subject: subject.clone(),
                case: CASE,
                sample: Sample {
                    iops,
                    server,
                    idle: server + 1.0,
                },
            };
            results.take(vec![
                Message::Version {
                    subject: subject.clone(),
                    version: "Linux 7.3".to_owned(),
                },
                run(iops),
                run(iops * 1.01),
                Message::Calls {
                    subject: subject.clone(),
                    case: CASE,
                    per_io: 0.25,
                },
                run(iops * 0.99),
            ]);
        }
        results
    }

    #[test]
    fn only_a_failure_of_ours_makes_a_run_bad() {
        let mut results = results();
        let failed = |subject: &str| Message::Failed {
            subject: subject.to_owned(),
            why: "it cannot".to_owned(),
        };
        results.take(vec![failed("dm-linear")]);
        assert!(results.is_good());
        results.take(vec![failed("ublk-bpf-brd")]);
        assert!(!results.is_good());
    }

    #[test]
    fn a_guest_that_ended_too_early_makes_a_run_bad() {
        let mut results = results();
        results.take(vec![Message::Ended("it died".to_owned())]);
        assert!(!results.is_good());
    }

    #[test]
    fn what_is_added_is_what_the_raw_device_does_not_take() {
        let results = results();
        let ours = results.cell("ublk-bpf-brd", CASE).expect("measured");
        assert!((ours.instructions - 10_000.0).abs() < 1e-6);
        assert!((ours.added.expect("has a raw device") - 5_000.0).abs() < 1e-6);
        assert!((ours.iops.spread - 0.02).abs() < 1e-6);
        assert!((ours.waits - 0.25).abs() < 1e-9);
        assert_eq!(results.cell("brd", CASE).expect("measured").added, None);
        assert_eq!(results.cell("brd", Case { depth: 1, ..CASE }), None);
    }
}
