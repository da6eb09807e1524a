//! `cargo xtask bench --guard`: fails when an I/O costs noticeably more than it did.
//!
//! A short run of what matters most, on the instruction clock, is compared with a file of this repository. What the
//! figures also depend on, the kernel and the tools, is in that file too: where they are not the
//! same, the comparison is made too, but less strictly.

mod baseline;

use std::cmp::Ordering;
use std::process::ExitCode;

use anyhow::Result;
use bench_guest::guard as cases;
use bench_guest::scale::Guest;

use crate::boot;
use baseline::{Baseline, Environment, Figures, UPDATE};
use host::{progress, setup};

/// The limit of a rise above the baseline, in per cent. Runs of the same program differ by about 0.5.
const LIMIT: u32 = 3;
/// The same if the kernel or a tool differs from the baseline's.
const LIMIT_ELSEWHERE: u32 = 10;

/// Measures; then compares with the baseline, or writes it.
pub(crate) fn run(update: bool) -> Result<ExitCode> {
    if !update {
        return Ok(if holds()? {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
    let measured = measure()?;
    let path = baseline::write(&measured)?;
    print!("{}", std::fs::read_to_string(&path)?);
    progress::note(&format!("wrote {}", path.display()));
    Ok(ExitCode::SUCCESS)
}

/// Measures, prints how that compares with the baseline, and gives whether nothing rose too much.
fn holds() -> Result<bool> {
    // First the checks that need no guest.
    let baseline = baseline::read()?;
    let comparison = Comparison::of(&baseline, &measure()?);
    print!("{}", comparison.text);
    Ok(comparison.risen == 0)
}

/// Measures in a guest.
fn measure() -> Result<Baseline> {
    let guest = Guest {
        cpus: 1,
        memory: "2G",
    };
    let figures = boot::output(&guest, false, &["guard"])?;
    Ok(Baseline {
        environment: Environment::of(&setup::guest()?.release)?,
        instructions: baseline::parse_figures(&figures)?,
    })
}

/// The result of a comparison.
struct Comparison {
    /// What is printed.
    text: String,
    /// Cases that cost too much more.
    risen: usize,
}

impl Comparison {
    fn of(baseline: &Baseline, measured: &Baseline) -> Self {
        let others = baseline.environment.differences(&measured.environment);
        let limit = if others.is_empty() { LIMIT } else { LIMIT_ELSEWHERE };
        let mut text = table(&baseline.instructions, &measured.instructions, limit);
        for other in &others {
            text.push_str(&format!("{other}\n"));
        }
        if !others.is_empty() {
            text.push_str(&format!(
                "so the limit is {limit} % and not {LIMIT}: `{UPDATE}` measures the baseline anew\n"
            ));
        }
        let count = |moved| {
            let pairs = pairs(&baseline.instructions, &measured.instructions);
            pairs
                .filter(|(_, was, is)| beyond(limit, *was, *is) == moved)
                .count()
        };
        let (risen, fallen) = (count(Ordering::Greater), count(Ordering::Less));
        if risen > 0 {
            text.push_str(&format!(
                "{} more than {limit} % more than {}; if that is meant: `{UPDATE}`\n",
                cost(risen),
                baseline::PATH
            ));
        }
        if fallen > 0 {
            text.push_str(&format!(
                "{} more than {limit} % less than {}, which may be lowered: `{UPDATE}`\n",
                cost(fallen),
                baseline::PATH
            ));
        }
        Self { text, risen }
    }
}

fn cost(cases: usize) -> String {
    if cases == 1 {
        "1 case costs".to_owned()
    } else {
        format!("{cases} cases cost")
    }
}

fn table(baseline: &Figures, measured: &Figures, limit: u32) -> String {
    let mut text = format!(
        "{:<24}{:>10}{:>10}{:>12}\n",
        "instructions per I/O", "baseline", "measured", "difference"
    );
    for (case, was, is) in pairs(baseline, measured) {
        let verdict = match beyond(limit, was, is) {
            Ordering::Greater => "  too much",
            Ordering::Less => "  less",
            Ordering::Equal => "  ok",
        };
        let change = (f64::from(is) / f64::from(was) - 1.0) * 100.0;
        text.push_str(&format!(
            "{case:<24}{was:>10}{is:>10}{change:>+10.1} %{verdict}\n"
        ));
    }
    text
}

/// Each case with what it cost and what it costs. Both have all cases: no figures are read otherwise.
fn pairs<'a>(
    baseline: &'a Figures,
    measured: &'a Figures,
) -> impl Iterator<Item = (&'static str, u32, u32)> + 'a {
    cases::names().filter_map(|case| Some((case, *baseline.get(case)?, *measured.get(case)?)))
}

/// Whether a cost moved by more than this many per cent, and in which direction.
fn beyond(limit: u32, was: u32, is: u32) -> Ordering {
    let (was, is) = (u64::from(was), u64::from(is) * 100);
    if is > was * u64::from(100 + limit) {
        Ordering::Greater
    } else if is < was * u64::from(100 - limit) {
        Ordering::Less
    } else {
        Ordering::Equal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every case costs so much, on this kernel.
    fn costs(instructions: u32, kernel: &str) -> Baseline {
        Baseline {
            environment: Environment {
                kernel: kernel.to_owned(),
                rustc: "rustc 1.95.0".to_owned(),
                qemu: "QEMU 7.2".to_owned(),
                fio: "fio-3.33".to_owned(),
            },
            instructions: cases::names()
                .map(|name| (name.to_owned(), instructions))
                .collect(),
        }
    }

    fn compared(instructions: u32, kernel: &str) -> (usize, String) {
        let comparison = Comparison::of(&costs(10_000, "7.3"), &costs(instructions, kernel));
        (comparison.risen, comparison.text)
    }

    #[test]
    fn three_per_cent_more_pass_and_no_more() {
        let all = cases::names().count();
        assert_eq!(compared(10_300, "7.3").0, 0);
        let (risen, text) = compared(10_301, "7.3");
        assert_eq!(risen, all);
        assert!(
            text.contains("+3.0 %  too much") && text.ends_with(&format!("if that is meant: `{UPDATE}`\n")),
            "{text}"
        );
    }

    #[test]
    fn a_fall_passes_and_is_said() {
        let (risen, text) = compared(9_600, "7.3");
        assert_eq!(risen, 0);
        assert!(
            text.contains("may be lowered") && text.contains("-4.0 %  less"),
            "{text}"
        );
        assert!(!compared(9_800, "7.3").1.contains("lowered"));
    }

    #[test]
    fn another_kernel_may_differ_by_ten_per_cent_and_is_said() {
        let (risen, text) = compared(11_000, "7.4");
        assert_eq!(risen, 0);
        assert!(
            text.contains("kernel: 7.4, and 7.3 in") && text.contains("the limit is 10 %"),
            "{text}"
        );
        assert!(text.contains(UPDATE), "{text}");
        assert_eq!(compared(11_001, "7.4").0, cases::names().count());
    }

    #[test]
    fn one_case_alone_is_found() {
        let mut measured = costs(10_000, "7.3");
        measured.instructions.insert("hit-4k".to_owned(), 10_400);
        let comparison = Comparison::of(&costs(10_000, "7.3"), &measured);
        assert_eq!(comparison.risen, 1);
        assert!(
            comparison.text.contains("1 case costs more than 3 %"),
            "{}",
            comparison.text
        );
        let hit = comparison.text.lines().find(|line| line.starts_with("hit-4k"));
        let words: Vec<&str> = hit.expect("a line").split_whitespace().collect();
        assert_eq!(words, ["hit-4k", "10000", "10400", "+4.0", "%", "too", "much"]);
    }
}
