//! The results as the page's section.

use std::fmt::Write as _;
use std::time::Duration;

use super::floors;
use super::plot::PICTURES;
use super::results::{Cell, Results, calls};
use bench_guest::compared::result::headline;
use bench_guest::compared::result::{Block, Case, plural};

/// The page's text about how this was measured.
const HOW: &str = "\
Each figure is the total cost of an I/O: of the client (fio), the kernel and the server. It is measured in a guest whose
clock counts instructions, one nanosecond each, so that it repeats from run to run and from machine to machine: **IOPS
are 1e9 divided by the instructions of an I/O** (*instr.*). They show how much work an I/O takes, not how fast a real
machine does it: an instruction that misses the CPU's caches counts as one that does not.

- **Raw device:** the lower bound. For subjects that end in memory it is `brd`, the kernel's RAM disk; for those that
  keep nothing (`...null`, `...drop`, and nbdkit with its null plugin) it is `null_blk`. *Added* is the cost beyond it.
- **All in one boot and by turns:** each subject is created, measured and removed, then all of them again for the cases
  of the first table, which show the better of the two and how far apart they were (*spread*). All other cases are
  measured once.
- **Each in its fastest mode:** rublk copies nothing (user copy for its null, which does not look at the data, zero copy
  for its loop); kublk has four modes, one request at a time or in batches, with copies or with automatic buffers
  (`zc`).
- **Server:** the server's part of the CPUs' time. **Calls:** its system calls for an I/O, counted with one CPU in a run of
  their own.
- RAM disks are empty when they are read (a page that was never written is cleared for the reader, not copied) and full
  when they are written (no page is allocated).
- With two CPUs, two queues and two readers, one on each CPU, the clock counts the instructions of both. So IOPS do not
  double there: what they show is whether an I/O takes more instructions than with one.
- Sequential I/Os that are submitted together are merged by the block layer where the device has a queue. fio counts them
  as they were before.";

/// What each of our modes is.
const MODES: &str = "\
`ublk-bpf-null` passes everything to a backing that keeps nothing and leaves the reader's pages as they are, as kublk's
null does; `ublk-bpf-drop` has the policy `sparse` on memory that nothing was written to, so that reads are filled with
zeroes without I/O; `ublk-bpf-brd` passes everything to a RAM disk; `ublk-bpf-hit` has a RAM disk as the cache of
another, which holds all that is read.";

/// The section `compared` of docs/benchmarks.md.
pub(super) fn section(results: &Results, took: Duration) -> String {
    let mut text = format!("{HOW}\n\n{MODES}\n");
    text.push_str("\n## Random reads, one queue, depth 128\n\n");
    text.push_str(&headlines(results));
    for (name, what) in PICTURES {
        let _ = write!(text, "\n![{what}]({name}.svg)\n");
    }
    text.push_str("\n## What must be reached\n\n");
    text.push_str(&floors(results));
    text.push_str("\n## Every case\n\n");
    text.push_str(&matrix(results));
    text.push_str("\n## What was measured\n\n");
    text.push_str(&versions(results));
    let minutes = took.as_secs().div_ceil(60);
    let _ = write!(
        text,
        "\n## Repeating it\n\n`cargo xtask bench --only compared` measures all this and writes this page; it took {minutes} minutes \
         here.\n`cargo xtask bench --quick` measures the first table alone, and `--only NAME,NAME` some of the subjects \
         (`--list` names them);\nneither touches this page.\n{}",
        idle(results)
    );
    text
}

/// Both sizes side by side.
fn headlines(results: &Results) -> String {
    let mut text = String::from(
        "| | 4k: IOPS | spread | instr. | added | server | calls | 64k: IOPS | spread | instr. | added | server | calls |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for subject in results.subjects() {
        let _ = write!(text, "| {}", styled(subject));
        for block in Block::ALL {
            let cell = results.cell(subject, headline(block));
            text.push_str(&cell.map_or_else(|| " |".repeat(6), |cell| wide(&cell)));
        }
        text.push_str(" |\n");
    }
    text
}

/// Ours are in bold.
fn styled(subject: &str) -> String {
    if subject.starts_with("ublk-bpf") {
        format!("**{subject}**")
    } else {
        subject.to_owned()
    }
}

fn wide(cell: &Cell) -> String {
    format!(
        " | {} | {:.1} % | {} | {} | {:.0} % | {}",
        grouped(cell.iops.median),
        cell.iops.spread * 100.0,
        grouped(cell.instructions),
        added(cell),
        cell.server * 100.0,
        calls(cell, 2)
    )
}

fn added(cell: &Cell) -> String {
    cell.added.map_or_else(String::new, grouped)
}

/// `12,345`.
fn grouped(number: f64) -> String {
    let digits = format!("{:.0}", number.abs());
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    if number < -0.5 { format!("-{text}") } else { text }
}

fn floors(results: &Results) -> String {
    let mut text = String::from("| | | IOPS | at least | |\n|---|---|--:|--:|---|\n");
    for verdict in floors::verdicts(results) {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} |",
            verdict.subject,
            verdict.block,
            grouped(verdict.iops),
            grouped(verdict.floor),
            verdict.word()
        );
    }
    text
}

/// A table to unfold for each pattern, size and number of CPUs, with all depths side by side. It leaves out the IOPS,
/// which follow from the instructions: no line of the page may be too long.
fn matrix(results: &Results) -> String {
    let mut text = String::new();
    let cases = results.cases();
    for depths in cases.chunk_by(|one, next| {
        Case {
            depth: next.depth,
            ..*one
        } == *next
    }) {
        let first = depths[0];
        let _ = write!(
            text,
            "<details><summary>{}, {}, {} and {}, by depth</summary>\n\n|",
            first.pattern,
            first.block,
            plural(first.cpus, "queue"),
            plural(first.cpus, "CPU")
        );
        for case in depths {
            let _ = write!(text, " | {}: instr. | added | server | calls", case.depth);
        }
        let _ = writeln!(text, " |\n|---{}|", "|--:".repeat(4 * depths.len()));
        for subject in results.subjects() {
            let _ = write!(text, "| {}", styled(subject));
            for case in depths {
                let cell = results.cell(subject, *case);
                text.push_str(&cell.map_or_else(|| " |".repeat(4), |cell| narrow(&cell)));
            }
            text.push_str(" |\n");
        }
        text.push_str("\n</details>\n");
    }
    text
}

fn narrow(cell: &Cell) -> String {
    format!(
        " | {} | {} | {:.0} % | {}",
        grouped(cell.instructions),
        added(cell),
        cell.server * 100.0,
        calls(cell, 2)
    )
}

fn versions(results: &Results) -> String {
    let mut text = String::from("| | version | how it is made |\n|---|---|---|\n");
    for kind in &results.kinds {
        let version = results.versions.get(kind.name).map_or("", String::as_str);
        let _ = writeln!(text, "| {} | {version} | {} |", styled(kind.name), kind.options);
    }
    for (subject, why) in &results.failures {
        let _ = write!(
            text,
            "\nNot measured: {}, {}.\n",
            styled(subject),
            why.replace('\n', " ")
        );
    }
    text
}

/// The clock jumps over the time in which nothing runs, which an I/O must not be charged with.
fn idle(results: &Results) -> String {
    let most = results
        .cells()
        .filter(|(_, case, _)| case.cpus == 1)
        .max_by(|(.., one), (.., other)| one.waits.total_cmp(&other.waits));
    most.map_or_else(String::new, |(subject, case, cell)| {
        format!(
            "\nThe clock also counts time in which nothing runs. With one CPU it was at most {:.1} % of a run, beyond what there\n\
             is with the raw device ({subject}, {case}); up to 10 % are fio's own, which waits for its end in steps of 10 ms.\n",
            cell.waits * 100.0
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::results;
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        for (number, text) in [
            (0.2, "0"),
            (999.6, "1,000"),
            (1_234_567.0, "1,234,567"),
            (-1_234.0, "-1,234"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn every_row_is_as_long_as_its_heading() {
        let section = section(&results(), Duration::from_secs(61));
        let mut columns = None;
        for line in section.lines() {
            let bars = line.starts_with('|').then(|| line.matches('|').count());
            if let (Some(heading), Some(bars)) = (columns, bars) {
                assert_eq!(bars, heading, "{line}");
            }
            columns = columns.filter(|_| bars.is_some()).or(bars);
        }
        assert!(section.contains("**ublk-bpf-brd** | 100,000"), "{section}");
        assert!(section.contains("it took 2 minutes"));
    }
}
