//! The profile's section of docs/benchmarks.md, and its flame graphs.

use anyhow::{Context as _, Result};
use inferno::flamegraph::color::{MultiPalette, Palette};
use inferno::flamegraph::{self, Options};

use super::parts::{self, Part};
use super::{Case, Profile, stacks};
use bench_guest::profile::PERIODS;

/// Functions narrower than this, in per cent, are left out of a picture: their names would not fit.
const NARROWEST: f64 = 0.2;

/// The section's text.
pub(super) fn section(profiles: &[Profile]) -> String {
    let intro = format!(
        "4k random reads, one queue of depth 128, by fio's io_uring, on the instruction clock, one CPU: **null** (backing \
         `null:8G,unfilled`, policy passthrough), **passthrough** (to an empty ram disk) and **hit** (policy lru, all \
         that is read is in the cache, on a ram disk without pages). 4k random writes to what is dirty in the cache: \
         **write-back** (depth 32).\n\n\
         `cargo xtask bench --only profile` measures it: `perf record -e cpu-clock` samples the whole guest every \
         {} to {} ns in {} runs, which are as many instructions. The shares are those of the samples; the sum is 1e9 divided by the \
         IOPS of runs without perf. A sample goes to the part of its innermost function that \
         `tools/bench/src/profile/parts.rs` knows.",
        PERIODS[0],
        PERIODS[PERIODS.len() - 1],
        PERIODS.len()
    );
    let limits = "Limits: a sample that falls due while interrupts are off is taken where they come on again, so single \
                  functions such as `finish_task_switch` read high, and their callers low; user programs \
                  and BPF programs read up to a quarter lower than an exact count of their instructions. \
                  perf slows the sampled run, which may form slightly other batches. fio is stripped: its functions \
                  that are not exported are one block.";
    format!(
        "{intro}\n\n{}\n{limits}\n\n{}",
        table(profiles),
        pictures(profiles)
    )
}

fn table(profiles: &[Profile]) -> String {
    let mut table = "| part |".to_owned();
    for profile in profiles {
        table.push_str(&format!(" {}: instr. | % |", profile.case.title));
    }
    table.push_str(&format!("\n|---|{}\n", "---:|---:|".repeat(profiles.len())));
    for part in Part::ALL {
        table.push_str(&format!("| {} |", part.name()));
        for profile in profiles {
            let share = share(profile, part);
            table.push_str(&format!(
                " {:.0} | {:.1} |",
                share * profile.instructions,
                share * 100.0
            ));
        }
        table.push('\n');
    }
    table.push_str("| **sum** |");
    for profile in profiles {
        table.push_str(&format!(" **{:.0}** | 100 |", profile.instructions));
    }
    table.push('\n');
    table
}

fn pictures(profiles: &[Profile]) -> String {
    let links = profiles.iter().map(|profile| {
        let name = picture_name(profile.case);
        format!("![Flame graph of {}]({name}.svg)", profile.case.title)
    });
    links.collect::<Vec<_>>().join("\n\n")
}

/// The part of a profile's samples that are of this part.
fn share(profile: &Profile, part: Part) -> f64 {
    let all: u64 = profile.counted.values().sum();
    let of_part = profile
        .counted
        .iter()
        .filter(|(stack, _)| parts::of(stack) == part);
    let of_part: u64 = of_part.map(|(_, count)| count).sum();
    // Some ten thousand samples: exact.
    of_part as f64 / all as f64
}

pub(super) fn picture_name(case: &Case) -> String {
    format!("profile-{}", case.name)
}

/// The flame graph: as wide as the instructions that a function and what it calls took, orange in the kernel.
pub(super) fn flame_graph(profile: &Profile) -> Result<String> {
    let mut options = Options::default();
    options.title = format!(
        "4k random read, {}: {:.0} instructions an I/O",
        profile.case.title, profile.instructions
    );
    options.colors = Palette::Multi(MultiPalette::Java);
    options.hash = true;
    options.count_name = "samples".to_owned();
    options.min_width = NARROWEST;
    options.image_width = Some(1400);
    let lines: Vec<String> = profile
        .counted
        .iter()
        .map(|(stack, count)| stacks::fold(stack, *count))
        .collect();
    let mut svg = Vec::new();
    flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), &mut svg)
        .context("cannot draw the flame graph")?;
    String::from_utf8(svg).context("the flame graph is no text")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::CASES;

    fn profile() -> Profile {
        let lines = [
            "fio;[fio] 30",
            "fio;[fio];io_read_[k] 20",
            "ublkb0-q0;ublk_bpf::serve 50",
        ];
        Profile {
            case: &CASES[0],
            instructions: 6500.0,
            counted: lines.iter().filter_map(|line| stacks::unfold(line)).collect(),
        }
    }

    #[test]
    fn the_parts_add_up_to_the_whole() {
        let profile = profile();
        let sum: f64 = Part::ALL.iter().map(|part| share(&profile, *part)).sum();
        assert!((sum - 1.0).abs() < 1e-9, "{sum}");
        let table = table(&[profile]);
        for line in [
            "| client: fio itself | 1950 | 30.0 |",
            "| server: ublk-bpf itself | 3250 | 50.0 |",
            "| **sum** | **6500** | 100 |",
        ] {
            assert!(table.contains(line), "{line} is not in\n{table}");
        }
    }

    #[test]
    fn the_flame_graph_names_functions() {
        let svg = flame_graph(&profile()).expect("drawn");
        assert!(svg.contains("<svg") && svg.contains("io_read"), "{svg}");
    }
}
