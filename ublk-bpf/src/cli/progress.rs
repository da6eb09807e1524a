//! How far a server is with something that takes long.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// How often a line is printed where lines cannot replace each other.
const EVERY: Duration = Duration::from_secs(10);
/// Cells of a bar.
const CELLS: usize = 24;

/// Lines on standard error: on a terminal each replaces the one before, elsewhere few are printed.
pub(super) struct Progress {
    is_terminal: bool,
    said: Option<Instant>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self {
            is_terminal: io::stderr().is_terminal(),
            said: None,
        }
    }

    /// Prints a line. If it begins with a percentage, a terminal shows that as a bar.
    pub(super) fn say(&mut self, line: &str) {
        let mut err = io::stderr().lock();
        // Who does not read it waits for the end.
        let _ = if self.is_terminal {
            self.said = Some(Instant::now());
            write!(err, "\r\x1b[K{}", with_bar(line)).and_then(|()| err.flush())
        } else if self.said.is_none_or(|said| said.elapsed() >= EVERY) {
            self.said = Some(Instant::now());
            writeln!(err, "{line}")
        } else {
            Ok(())
        };
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_terminal && self.said.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

fn with_bar(line: &str) -> String {
    let percent = line
        .split_once(" %")
        .and_then(|(percent, _)| percent.parse::<usize>().ok());
    let Some(percent) = percent.filter(|percent| *percent <= 100) else {
        return line.to_owned();
    };
    let full = CELLS * percent / 100;
    format!("[{}{}] {line}", "#".repeat(full), ".".repeat(CELLS - full))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentage_has_a_bar() {
        assert_eq!(with_bar("waits"), "waits");
        assert_eq!(with_bar("101 % of it"), "101 % of it");
        assert_eq!(
            with_bar("50 % written back"),
            "[############............] 50 % written back"
        );
        assert!(with_bar("100 %").starts_with("[########################] "));
    }
}
