//! Part `compared`: what an I/O costs with each peer and each of our modes, side by side on the instruction clock.
//!
//! Two guests are booted, one with one CPU and one with two, and may run at the same time: their clocks count
//! instructions, whatever the machine does. What they do is in `bench_guest::compared`.

mod floors;
mod page;
mod plot;
mod results;
mod table;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bench_guest::compared::Plan;
use bench_guest::compared::result::{Message, plural};
use host::{progress, setup, workspace};
use vm::{Config, Outcome, Sink};

use crate::{boot, obtain, report};
use results::Results;

/// Boots the guests, shows what they found and which floor is missed, and fails if one of ours could not be measured.
pub(crate) fn run(plan: &Plan) -> Result<ExitCode> {
    let started = Instant::now();
    let kernel = setup::guest()?;
    let mut guest = Config {
        icount: true,
        built: vec![boot::runner()?, vm::server()?],
        ..boot::machine()
    };
    obtain::peers()?.hand_to(&mut guest);
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
        let outcome = boot::run(&config, &kernel, &plan.arguments(), &mut collector)?;
        if outcome != Outcome::Exited(0) {
            // What it reported until then is shown.
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
    floors::print(&results);
    write(plan, &results, took)?;
    Ok(if results.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Writes the page; a partial run writes a temporary page instead.
fn write(plan: &Plan, results: &Results, took: Duration) -> Result<()> {
    let (section, pictures) = (page::section(results, took), plot::pictures(results)?);
    if plan.is_whole() && results.is_good() {
        for (name, svg) in &pictures {
            report::picture(name, svg)?;
        }
        report::replace(report::BENCHMARKS, "compared", &section)?;
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

/// Collects what a guest reports, and shows its progress.
struct Collector {
    messages: Vec<Message>,
    /// The received part of an incomplete line.
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

    #[test]
    fn lines_are_put_together_as_they_come() {
        let plan = Plan {
            quick: true,
            subjects: Vec::new(),
        };
        let mut collector = Collector::new(&plan, 1);
        let line = "bench-result: {\"Turn\":{\"subject\":\"brd\"}}\n";
        collector.out(&line.as_bytes()[..20]);
        assert!(collector.messages.is_empty());
        collector.out(&line.as_bytes()[20..]);
        assert_eq!(collector.messages.len(), 1);
    }
}
