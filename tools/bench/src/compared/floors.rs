//! What must be reached: random reads, one queue, depth 128, policy and counters on.

use super::results::Results;
use bench_guest::compared::result::Block;
use bench_guest::compared::result::headline;

/// A mode of ours, and the I/Os per second that it must reach with small and with large reads.
const FLOORS: [(&str, [(Block, f64); 2]); 3] = [
    (
        "ublk-bpf-null",
        [(Block::Small, 158_000.0), (Block::Large, 135_000.0)],
    ),
    (
        "ublk-bpf-brd",
        [(Block::Small, 111_000.0), (Block::Large, 49_500.0)],
    ),
    (
        "ublk-bpf-hit",
        [(Block::Small, 109_000.0), (Block::Large, 48_500.0)],
    ),
];

/// A floor, and what was measured.
#[derive(Debug, PartialEq)]
pub(super) struct Verdict {
    pub(super) subject: &'static str,
    pub(super) block: Block,
    pub(super) floor: f64,
    pub(super) iops: f64,
}

impl Verdict {
    pub(super) fn is_reached(&self) -> bool {
        self.iops >= self.floor
    }

    /// `reached`, or `missed`.
    pub(super) fn word(&self) -> &'static str {
        if self.is_reached() { "reached" } else { "missed" }
    }
}

/// Of what was measured.
pub(super) fn verdicts(results: &Results) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for (subject, floors) in FLOORS {
        for (block, floor) in floors {
            let cell = results.cell(subject, headline(block));
            verdicts.extend(cell.map(|cell| Verdict {
                subject,
                block,
                floor,
                iops: cell.iops.median,
            }));
        }
    }
    verdicts
}

/// Says of each whether it was reached, and at the end how many were not.
pub(super) fn print(results: &Results) {
    let verdicts = verdicts(results);
    for verdict in &verdicts {
        println!(
            "floor: {:<16}{:>5}{:>10.0} of {:>7.0} IOPS: {}",
            verdict.subject,
            verdict.block.to_string(),
            verdict.iops,
            verdict.floor,
            verdict.word()
        );
    }
    let missed = verdicts.iter().filter(|verdict| !verdict.is_reached()).count();
    if missed > 0 {
        println!("{missed} of {} floors are missed", verdicts.len());
    }
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::results;
    use super::*;

    #[test]
    fn a_floor_is_judged_where_it_was_measured() {
        let verdicts = verdicts(&results());
        assert_eq!(verdicts.len(), 1, "{verdicts:?}");
        assert_eq!(verdicts[0].word(), "missed");
        let better = Verdict {
            iops: 111_000.0,
            ..verdicts.into_iter().next().expect("one")
        };
        assert_eq!(better.word(), "reached");
    }
}
