//! Parts `scale` and `writeback`: sections whose rows the guests print. What is measured there is in
//! `bench_guest::scale` and `bench_guest::writeback`.

use std::process::ExitCode;

use anyhow::Result;
use bench_guest::scale::{Plan, Step};
use bench_guest::writeback::PLAN as WRITEBACK;
use bench_guest::writeback::beside::PLAN as BESIDE;

use crate::{boot, report};

/// Measures one step or all, in guests, and writes their sections.
pub(crate) fn run(step: Option<Step>) -> Result<ExitCode> {
    let steps = step.map_or(Step::ALL.to_vec(), |step| vec![step]);
    steps.into_iter().try_for_each(run_step)?;
    Ok(ExitCode::SUCCESS)
}

fn run_step(step: Step) -> Result<()> {
    let name = step.name();
    section(step.plan(), &format!("scale-{name}"), &["scale", name])
}

/// Measures what writes cost behind a write-back cache, and what clients notice of writing back, and writes their sections.
pub(crate) fn writeback() -> Result<ExitCode> {
    section(&BESIDE, "writeback-beside", &["writeback-beside"])?;
    section(&WRITEBACK, "writeback", &["writeback"])?;
    Ok(ExitCode::SUCCESS)
}

/// Measures a section's rows in its guests, with these arguments of the runner, and writes it.
fn section(plan: &Plan, name: &str, arguments: &[&str]) -> Result<()> {
    let mut rows = String::new();
    for guest in plan.guests {
        rows.push_str(&boot::output(guest, plan.needs_peers, arguments)?);
    }
    report::replace(report::BENCHMARKS, name, &plan.section(&rows))
}
