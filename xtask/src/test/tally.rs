//! Counts tests by the closing lines that `cargo test` and test programs print.

use std::ops::AddAssign;

/// Tests by how they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) passed: u64,
    pub(super) failed: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// Reads a test program's output as it comes.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) counts: Counts,
    /// The names of the tests that failed.
    pub(super) failures: Vec<String>,
    unfinished: Vec<u8>,
    running: Option<String>,
}

impl Tally {
    /// Takes what was printed.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte != b'\n' {
                self.unfinished.push(byte);
                continue;
            }
            let line = String::from_utf8_lossy(&self.unfinished).into_owned();
            self.unfinished.clear();
            if let Some(counts) = closing_line(&line) {
                self.counts += counts;
            } else if let Some(name) = failed_test(&line) {
                self.failures.push(name.to_owned());
            }
        }
        let line = String::from_utf8_lossy(&self.unfinished);
        // The harness prints `test NAME ... ` before it runs a test, and ends the line after it.
        self.running = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... "))
            .map(|(name, _)| name.to_owned());
    }

    /// Counts a failure that is no test's own.
    pub(super) fn fail(&mut self, what: &str) {
        self.counts.failed += 1;
        self.failures.push(what.to_owned());
    }

    /// Adds what another counted.
    pub(super) fn absorb(&mut self, other: Self) {
        self.counts += other.counts;
        self.failures.extend(other.failures);
    }

    /// The test that has begun and not ended.
    pub(super) fn running(&self) -> Option<&str> {
        self.running.as_deref()
    }
}

/// The name in `test a::b ... FAILED`.
fn failed_test(line: &str) -> Option<&str> {
    let (name, result) = line.strip_prefix("test ")?.split_once(" ... ")?;
    result.ends_with("FAILED").then_some(name)
}

/// The counts in `test result: FAILED. 26 passed; 1 failed; 0 ignored; ...`.
fn closing_line(line: &str) -> Option<Counts> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut result = Counts::default();
    for field in counts.split("; ") {
        match field.split_once(' ')? {
            (number, "passed") => result.passed = number.parse().ok()?,
            (number, "failed") => result.failed = number.parse().ok()?,
            _ => {}
        }
    }
    Some(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "
running 2 tests
test a::one ... ok
test b::two ... FAILED

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 3 filtered out; finished in 0.07s

running 1 test
test c ... ok
test result: ok. 26 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.00s
";

    #[test]
    fn closing_lines_are_added_up_however_they_are_cut() {
        for size in [1, 7, OUTPUT.len()] {
            let mut tally = Tally::default();
            OUTPUT.as_bytes().chunks(size).for_each(|piece| tally.feed(piece));
            assert_eq!(
                tally.counts,
                Counts {
                    passed: 27,
                    failed: 1
                }
            );
            assert_eq!(tally.counts.to_string(), "27 passed, 1 failed");
            assert_eq!(tally.failures, ["b::two"]);
            assert_eq!(tally.running(), None);
        }
    }

    #[test]
    fn the_test_that_hangs_is_known() {
        let mut tally = Tally::default();
        tally.feed(b"running 2 tests\ntest a::one ... ok\ntest b::tw");
        assert_eq!(tally.running(), None);
        tally.feed(b"o ... ");
        assert_eq!(tally.running(), Some("b::two"));
    }

    #[test]
    fn other_lines_count_nothing() {
        assert_eq!(closing_line("test result: unknown"), None);
        assert_eq!(closing_line("result: ok. 1 passed; 0 failed"), None);
    }
}
