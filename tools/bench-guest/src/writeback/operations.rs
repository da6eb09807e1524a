//! Counts what disks are asked to do. `/sys/block/*/stat` does not tell a write with FUA from another, and counts an
//! empty flush as a write, too.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, Result};

use crate::histogram::Histogram;

/// What a disk has done; or has done for each of some I/Os.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Operations {
    pub(crate) reads: f64,
    /// All writes.
    pub(crate) writes: f64,
    /// Those of them with FUA.
    pub(crate) forced: f64,
    /// KiB that were written.
    pub(crate) written: f64,
    pub(crate) flushes: f64,
}

/// A count that is going on; dropped, it ends.
pub(crate) struct Counting(Histogram);

impl Counting {
    /// Begins at 0. A disk is issued each request here, after merging.
    pub(crate) fn start() -> Result<Self> {
        Histogram::start("block/block_rq_issue", "keys=dev,rwbs:vals=bytes").map(Self)
    }

    /// What a disk has done so far.
    pub(crate) fn of(&self, disk: &str) -> Result<Operations> {
        let device = fs::metadata(disk)
            .with_context(|| format!("cannot read {disk}"))?
            .rdev();
        // As the kernel has it inside: the minor number is the lower 20 bits.
        let device = (u64::from(libc::major(device)) << 20) | u64::from(libc::minor(device));
        Ok(parse(&self.0.text()?, device))
    }
}

impl Operations {
    /// For each of so many I/Os.
    pub(crate) fn each(self, ios: f64) -> Self {
        Self {
            reads: self.reads / ios,
            writes: self.writes / ios,
            forced: self.forced / ios,
            written: self.written / ios,
            flushes: self.flushes / ios,
        }
    }

    /// In the order of the table's columns.
    pub(crate) fn all(self) -> [f64; 5] {
        [self.reads, self.writes, self.forced, self.written, self.flushes]
    }

    /// The same but writes with FUA, which are in `writes`, too: the table has no room for more columns.
    pub(crate) fn without_forced(self) -> [f64; 4] {
        [self.reads, self.writes, self.written, self.flushes]
    }

    fn add(&mut self, what: &str, count: f64, bytes: f64) {
        // blk_fill_rwbs() in kernel/trace/blktrace.c: the operation's letter, and then F for FUA. A flush is FF.
        match what.as_bytes() {
            [b'R', ..] => self.reads += count,
            [b'W', flags @ ..] => {
                self.writes += count;
                self.written += bytes / 1024.0;
                if flags.contains(&b'F') {
                    self.forced += count;
                }
            }
            [b'F', b'F', ..] => self.flushes += count,
            _ => {}
        }
    }
}

/// Adds lines such as `{ dev:  265289728, rwbs: WFS } hitcount:  100  bytes:  409600`.
fn parse(text: &str, device: u64) -> Operations {
    let mut operations = Operations::default();
    for line in text.lines() {
        if let Some((of, what, count, bytes)) = parse_line(line)
            && of == device
        {
            operations.add(what, count, bytes);
        }
    }
    operations
}

fn parse_line(line: &str) -> Option<(u64, &str, f64, f64)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let after = |name: &str| {
        let at = words.iter().position(|word| *word == name)?;
        words.get(at + 1).copied()
    };
    Some((
        after("dev:")?.trim_end_matches(',').parse().ok()?,
        after("rwbs:")?,
        after("hitcount:")?.parse().ok()?,
        after("bytes:")?.parse().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operations_of_one_disk_are_added() {
        let text = "# event histogram\n\n\
                    { dev:  265289728, rwbs: FF     } hitcount:         50  bytes:          0\n\
                    { dev:  265289728, rwbs: WFS    } hitcount:         25  bytes:     102400\n\
                    { dev:  265289728, rwbs: W      } hitcount:         75  bytes:     307200\n\
                    { dev:  265289728, rwbs: R      } hitcount:          5  bytes:      20480\n\
                    { dev:  265289729, rwbs: W      } hitcount:          9  bytes:          9\n\
                    \nTotals:\n    Hits: 164\n";
        let each = parse(text, 265_289_728).each(100.0);
        let expected = [0.05, 1.0, 0.25, 4.0, 0.5];
        for (value, expected) in each.all().into_iter().zip(expected) {
            assert!((value - expected).abs() < 1e-9, "{each:?}");
        }
        assert_eq!(parse(text, 1), Operations::default());
    }
}
