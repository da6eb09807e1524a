//! What the verifier says when it refuses a program, made readable.

use std::fmt;
use std::io;

/// How many of the lines before the refusal are worth showing.
const LAST_LINES: usize = 12;
/// How long a report of the kernel's own may be.
const REPORT_LINES: usize = 48;
/// Where newer kernels begin to explain the refusal in sentences.
const REPORT: &str = "Verification failed: ";
/// How the lines begin that end every log and say nothing about why.
const STATISTICS: [&str; 5] = [
    "processed ",
    "verification time ",
    "stack depth ",
    "subprog ",
    "mark_precise: ",
];

/// The verifier refused a program.
#[derive(Debug)]
pub struct Refusal {
    /// Which program, in the operator's words.
    what: String,
    /// The line that says why.
    reason: String,
    /// `file:line` of the source, if the object names one.
    place: Option<String>,
    /// The kernel's explanation, or what the verifier looked at last.
    details: Vec<String>,
}

impl Refusal {
    /// Reads a verifier's log. `errno` stands in for a reason where the log has none.
    #[must_use]
    pub fn from_log(what: &str, errno: &io::Error, log: &str) -> Self {
        let is_statistics = |line: &str| STATISTICS.iter().any(|start| line.starts_with(start));
        let lines: Vec<&str> = log
            .lines()
            .map(str::trim_end)
            .filter(|line| !is_statistics(line))
            .collect();
        let report_at = lines.iter().position(|line| line.starts_with(REPORT));
        let (code, report) = lines.split_at(report_at.unwrap_or(lines.len()));
        let code: Vec<&str> = code.iter().copied().filter(|line| !line.is_empty()).collect();
        let place = code
            .iter()
            .rev()
            .find_map(|line| line.strip_prefix("; ")?.rsplit_once(" @ "));
        let details = if report.is_empty() {
            &code[code.len().saturating_sub(LAST_LINES)..]
        } else {
            &report[..report.len().min(REPORT_LINES)]
        };
        Self {
            what: what.to_owned(),
            reason: code
                .last()
                .map_or_else(|| errno.to_string(), |line| (*line).to_owned()),
            place: place.map(|(_, place)| place.to_owned()),
            details: details.iter().map(|&line| line.to_owned()).collect(),
        }
    }

    /// The line of the log that says why.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// The kernel's explanation where it gives one, else the log's last lines.
    #[must_use]
    pub fn details(&self) -> &[String] {
        &self.details
    }
}

/// One line that says why, and the details below it where they say more.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the kernel's verifier refused {}: {}", self.what, self.reason)?;
        if let Some(place) = &self.place {
            write!(f, " ({place})")?;
        }
        if self.details.len() > 1 {
            for line in self.details.join("\n").trim_end().lines() {
                write!(f, "\n  {line}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "\
func#0 @0
0: R1=mem_or_null(id=1,sz=24) R10=fp0
; request.op @ policy.rs:9
0: (61) r0 = *(u32 *)(r1 +16)
R1 invalid mem access 'mem_or_null'
verification time 61 usec
stack depth 0
processed 1 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
";

    const NEW: &str = "\
; request.op @ policy.rs:9
0: (61) r0 = *(u32 *)(r1 +16)
R1 invalid mem access 'mem_or_null'

Verification failed: Register Type Safety: Invalid dereference

Reason:
  R1 may be NULL here.

verification time 775 usec
subprog 0 (policy) main insns_self 1 insns_total 1 stack 0
";

    fn refusal(log: &str) -> String {
        Refusal::from_log("policy a.o", &io::Error::from_raw_os_error(libc::E2BIG), log).to_string()
    }

    const HEAD: &str =
        "the kernel's verifier refused policy a.o: R1 invalid mem access 'mem_or_null' (policy.rs:9)\n";

    #[test]
    fn the_reason_comes_first_and_the_last_lines_follow() {
        let text = refusal(OLD);
        assert!(text.starts_with(HEAD), "{text}");
        assert!(
            text.ends_with("\n  R1 invalid mem access 'mem_or_null'"),
            "{text}"
        );
        assert!(text.contains("\n  0: (61) r0"), "{text}");
    }

    #[test]
    fn a_report_of_the_kernels_own_takes_the_last_lines_place() {
        let text = refusal(NEW);
        assert!(text.starts_with(HEAD), "{text}");
        assert!(text.ends_with("\n  Reason:\n    R1 may be NULL here."), "{text}");
        assert!(!text.contains("(61)"), "{text}");
    }

    #[test]
    fn an_empty_log_leaves_the_errno() {
        let text = refusal("processed 0 insns\n");
        assert_eq!(
            text,
            "the kernel's verifier refused policy a.o: Argument list too long (os error 7)"
        );
    }
}
