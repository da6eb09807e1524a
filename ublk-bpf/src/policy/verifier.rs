//! What the verifier says when it refuses a program, made readable.

use std::fmt;

/// How many of the log's last lines are worth showing.
const LAST_LINES: usize = 12;

/// The verifier refused a program.
#[derive(Debug)]
pub struct Refusal {
    /// Which program, in the operator's words.
    what: String,
    /// The line that says why.
    reason: String,
    /// The source line that it is about, if the object names one.
    source_line: Option<String>,
    /// What the verifier looked at last.
    last_lines: Vec<String>,
}

impl Refusal {
    /// Reads a verifier's log. `errno` stands in for a reason where the log has none.
    #[must_use]
    pub fn from_log(what: &str, errno: &std::io::Error, log: &str) -> Self {
        let lines: Vec<&str> = log
            .lines()
            .map(str::trim_end)
            .filter(|line| is_about_code(line))
            .collect();
        let reason = lines
            .last()
            .map_or_else(|| errno.to_string(), |line| (*line).to_owned());
        let source_line = lines
            .iter()
            .rev()
            .find_map(|line| line.strip_prefix("; "))
            .map(str::to_owned);
        let last_lines = lines[lines.len().saturating_sub(LAST_LINES)..]
            .iter()
            .map(|&line| line.to_owned());
        Self {
            what: what.to_owned(),
            reason,
            source_line,
            last_lines: last_lines.collect(),
        }
    }

    /// The line of the log that says why.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// The last lines of the log, in order.
    #[must_use]
    pub fn last_lines(&self) -> &[String] {
        &self.last_lines
    }
}

/// Statistics and blank lines end every log; they say nothing about why.
fn is_about_code(line: &str) -> bool {
    let statistics = [
        "processed ",
        "verification time ",
        "stack depth ",
        "mark_precise:",
    ];
    !line.is_empty() && !statistics.iter().any(|start| line.starts_with(start))
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the kernel's verifier refused {}: {}", self.what, self.reason)?;
        if let Some(line) = &self.source_line {
            write!(f, " (at `{line}`)")?;
        }
        if self.last_lines.len() > 1 {
            write!(f, "\nthe verifier's last lines:")?;
        }
        for line in self.last_lines.iter().filter(|_| self.last_lines.len() > 1) {
            write!(f, "\n  {line}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
func#0 @0
0: R1=mem_or_null(id=1,sz=24) R10=fp0
; request.op @ policy.rs:9
0: (61) r0 = *(u32 *)(r1 +16)
R1 invalid mem access 'mem_or_null'
verification time 61 usec
stack depth 0
processed 1 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
";

    #[test]
    fn the_reason_comes_first() {
        let errno = std::io::Error::from_raw_os_error(13);
        let refusal = Refusal::from_log("policy a.o", &errno, LOG);
        assert_eq!(refusal.reason(), "R1 invalid mem access 'mem_or_null'");
        let text = refusal.to_string();
        assert_eq!(
            text.lines().next().unwrap(),
            "the kernel's verifier refused policy a.o: R1 invalid mem access 'mem_or_null' \
             (at `request.op @ policy.rs:9`)"
        );
        assert!(!text.contains("processed"));
    }

    #[test]
    fn an_empty_log_leaves_the_errno() {
        let errno = std::io::Error::from_raw_os_error(libc::E2BIG);
        assert!(
            Refusal::from_log("x", &errno, "")
                .to_string()
                .contains("Argument list too long")
        );
    }
}
