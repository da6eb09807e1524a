//! Part `scale`: how cost and memory grow. What is measured in the guests is in `bench_guest::scale`.

use std::process::ExitCode;

use anyhow::Result;
use bench_guest::scale::Step;

use crate::{boot, report};

/// Measures one step or all, in guests, and writes their sections.
pub(crate) fn run(step: Option<Step>) -> Result<ExitCode> {
    let steps = step.map_or(Step::ALL.to_vec(), |step| vec![step]);
    steps.into_iter().try_for_each(run_step)?;
    Ok(ExitCode::SUCCESS)
}

fn run_step(step: Step) -> Result<()> {
    let plan = step.plan();
    let mut rows = String::new();
    for guest in plan.guests {
        let what = format!("with {} CPUs, for how cost grows: {}", guest.cpus, step.name());
        rows.push_str(&boot::output(guest, &what, &["scale", step.name()])?);
    }
    report::replace(
        report::BENCHMARKS,
        &format!("scale-{}", step.name()),
        &plan.section(&rows),
    )
}
