//! Counts the system calls of processes, by the kernel's own histogram of them. Counting costs instructions: nothing
//! else is measured meanwhile.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The tracepoint that every system call passes. The guest has tracefs there.
const EVENT: &str = "/sys/kernel/tracing/events/raw_syscalls/sys_enter";
/// Counts by thread, as Documentation/trace/histogram.rst has it.
const TRIGGER: &str = "hist:keys=common_pid";

/// A running count; dropping it ends it.
pub(crate) struct Counting {
    event: PathBuf,
}

impl Counting {
    /// Begins at 0.
    pub(crate) fn start() -> Result<Self> {
        let event = PathBuf::from(EVENT);
        trigger(&event, TRIGGER).context("cannot count system calls")?;
        Ok(Self { event })
    }

    /// The calls of these threads so far.
    pub(crate) fn of(&self, threads: &[u32]) -> Result<u64> {
        let path = self.event.join("hist");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let counts = parse(&text);
        Ok(threads.iter().filter_map(|thread| counts.get(thread)).sum())
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        // One that stays keeps counting, and the next start reports it.
        let _ = trigger(&self.event, &format!("!{TRIGGER}"));
    }
}

fn trigger(event: &Path, text: &str) -> Result<()> {
    let path = event.join("trigger");
    fs::write(&path, text).with_context(|| format!("cannot write {text} to {}", path.display()))
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
