//! Counts the system calls of processes.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::histogram::Histogram;

/// A running count; dropping it ends it.
pub(crate) struct Counting(Histogram);

impl Counting {
    /// Begins at 0, by thread. Every system call passes this tracepoint.
    pub(crate) fn start() -> Result<Self> {
        Histogram::start("raw_syscalls/sys_enter", "keys=common_pid").map(Self)
    }

    /// The calls of these threads so far.
    pub(crate) fn of(&self, threads: &[u32]) -> Result<u64> {
        let counts = parse(&self.0.text()?);
        Ok(threads.iter().filter_map(|thread| counts.get(thread)).sum())
    }
}

/// Reads lines such as `{ common_pid:        123 } hitcount:         45`.
fn parse(text: &str) -> BTreeMap<u32, u64> {
    let line = |line: &str| {
        let (thread, count) = line.strip_prefix("{ common_pid:")?.split_once('}')?;
        let count = count.trim().strip_prefix("hitcount:")?;
        Some((thread.trim().parse().ok()?, count.trim().parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_the_histogram() {
        let text = "# event histogram\n#\n# trigger info: hist:keys=common_pid:vals=hitcount:size=2048 [active]\n#\n\n\
                    { common_pid:        123 } hitcount:          1\n\
                    { common_pid:         77 } hitcount:       4500\n\nTotals:\n    Hits: 4501\n    Entries: 2\n";
        assert_eq!(parse(text), BTreeMap::from([(123, 1), (77, 4500)]));
    }
}
