//! Makes the verifier's refusal of a program readable.

use std::fmt;
use std::io;

use super::object::{Panic, PolicyObject};

/// Lines of the log before the refusal to show.
const LAST_LINES: usize = 12;
/// Lines of the kernel's own report to show.
const REPORT_LINES: usize = 48;
/// Characters of a source line to show.
const TEXT_CHARS: usize = 80;
/// The start of the explanation that newer kernels print.
const REPORT: &str = "Verification failed: ";
/// Prefixes of the statistics at the end of every log.
const STATISTICS: [&str; 5] = [
    "processed ",
    "verification time ",
    "stack depth ",
    "subprog ",
    "mark_precise: ",
];
/// Prefixes of the lines that show the verifier's state at the refusal.
const STATES: [&str; 2] = ["cur state:", "old state:"];
/// Source files of `core`, `aya-ebpf` and the SDK that are inlined everywhere: the calling line is the author's.
const INLINED: [&str; 16] = [
    "arith.rs",
    "array.rs",
    "cell.rs",
    "cmp.rs",
    "const_ptr.rs",
    "helpers.rs",
    "hint.rs",
    "index.rs",
    "int_macros.rs",
    "maps.rs",
    "mod.rs",
    "mut_ptr.rs",
    "non_null.rs",
    "option.rs",
    "range.rs",
    "uint_macros.rs",
];
/// A character that only lines of the SDK's macro contain.
const MACRO: &str = "$";
/// Hints by words of the reason.
const HINTS: [(&str, &str); 21] = [
    (FALLS_THROUGH, PANIC),
    (ENDLESS, LOOP),
    ("back-edge", LOOP),
    ("jumps is too complex", LENGTH),
    ("program is too large", LENGTH),
    ("or_null'", NULL),
    ("unbounded memory access", BOUNDS),
    ("invalid access to map value", BOUNDS),
    ("invalid access to memory", BOUNDS),
    ("memory range", BOUNDS),
    ("value is negative", BOUNDS),
    ("read from stack", PAST),
    ("write to stack", PAST),
    ("access to stack", PAST),
    ("cannot use helper", HELPER),
    ("unknown func", HELPER),
    ("invalid func", HELPER),
    ("variable-offset", PAST),
    ("read_ok", "a value is read that was never written"),
    (
        "stack size",
        "a policy has 512 bytes of stack: keep larger data in a map",
    ),
    (
        "GPL",
        "the helper is for GPL-compatible programs: use such a license in policy!",
    ),
];
/// The words of the verifier for a path without an end, as that to a panic is.
const FALLS_THROUGH: &str = "last insn is not an exit";
const ENDLESS: &str = "infinite loop";
/// Why a policy may panic, by what is in the name of the function of `core` that does.
const PANICS: [(&str, &str); 8] = [
    ("panic_bounds_check", PANIC_INDEX),
    ("slice", PANIC_INDEX),
    ("div_by_zero", PANIC_DIVISION),
    ("rem_by_zero", PANIC_DIVISION),
    ("div_overflow", PANIC_DIVISION),
    ("rem_overflow", PANIC_DIVISION),
    ("unwrap_failed", PANIC_NONE),
    ("expect_failed", PANIC_NONE),
];
const PANIC_INDEX: &str =
    "an index out of bounds panics there, which BPF cannot: use `get` and say what happens without";
const PANIC_DIVISION: &str =
    "a division by zero panics there, which BPF cannot: use `checked_div` or `checked_rem`";
const PANIC_NONE: &str =
    "`unwrap` or `expect` panics there, which BPF cannot: use `match`, `if let` or `unwrap_or`";
const PANIC: &str =
    "the program may panic (`list[i]`, `a / b`, unwrap), which BPF cannot: use get, checked_div or match";
const LOOP: &str = "the verifier sees no bound of the loop: limit its iterations by a constant";
const LENGTH: &str = "the verifier follows every path: use fewer iterations, or fewer branches in the loop";
const NULL: &str = "a lookup may find nothing: check for that (match, `if let`) before using its result";
const BOUNDS: &str =
    "the verifier knows no bound of an index or offset: compare it with the length (get) or mask it first";
const PAST: &str = "a pointer leaves the value that it points into, which may be a copy: use its fields, or `get` with an index";
const HELPER: &str = "a policy is a tracing program: it may only call the helpers of tracing programs";

/// The verifier refused a program.
#[derive(Debug)]
pub struct Refusal {
    /// The program, as the user named it.
    what: String,
    /// The line of the log with the reason.
    reason: String,
    /// Where.
    place: Box<Place>,
    /// The kernel's explanation, or the end of the log.
    details: Vec<String>,
}

/// Where a program was refused.
#[derive(Debug)]
struct Place {
    /// The line of the source, if the object names one.
    source: Option<SourceLine>,
    /// The next line of the author's, where the instruction is a library's that was inlined in between.
    until: Option<SourceLine>,
    /// The instruction, and whether its own line is a library's.
    at: Option<(usize, bool)>,
    /// Why it may panic at the source line, if that is what is refused.
    panic: Option<&'static str>,
}

/// A line of a program's source, as the object's type information has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SourceLine {
    pub(super) text: String,
    /// `file:line`, without the folder.
    pub(super) place: String,
}

impl Refusal {
    /// Parses a verifier's log. If it has no reason, `errno` is the reason.
    #[must_use]
    pub fn from_log(what: &str, errno: &io::Error, log: &str) -> Self {
        let lines: Vec<&str> = log
            .lines()
            .map(str::trim_end)
            .filter(|line| !starts_with_any(line, &STATISTICS))
            .collect();
        let report_at = lines.iter().position(|line| line.starts_with(REPORT));
        let (code, report) = lines.split_at(report_at.unwrap_or(lines.len()));
        let code: Vec<&str> = code.iter().copied().filter(|line| !line.is_empty()).collect();
        let reason = code.iter().rev().find(|line| !starts_with_any(line, &STATES));
        let details = if report.is_empty() {
            &code[code.len().saturating_sub(LAST_LINES)..]
        } else {
            &report[..report.len().min(REPORT_LINES)]
        };
        Self {
            what: what.to_owned(),
            reason: reason.map_or_else(|| errno.to_string(), |line| (*line).to_owned()),
            place: Box::new(Place {
                source: SourceLine::last(&code),
                until: None,
                at: instruction(&code),
                panic: None,
            }),
            details: details.iter().map(|&line| line.to_owned()).collect(),
        }
    }

    /// The same with what the object's own line information says of the place.
    pub(super) fn explained(mut self, object: &PolicyObject) -> Self {
        let is_fall = self.reason.contains(FALLS_THROUGH);
        let is_loop = self.reason.contains(ENDLESS);
        let panics = object.panics();
        let place = &mut self.place;
        let is_it = |panic: &&Panic| is_fall || is_loop && place.source.as_ref() == Some(&panic.source);
        if let Some(panic) = panics.iter().find(is_it) {
            place.panic = Some(panic_hint(&panic.function));
            place.source = Some(panic.source.clone());
        } else if let Some((at, true)) = place.at {
            let after = object.line_after(at);
            place.until = after.filter(|line| Some(line) != place.source.as_ref());
        }
        self
    }

    /// The line of the log with the reason.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// A hint for a frequent reason.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        let hint = HINTS.iter().find(|(words, _)| self.reason.contains(words));
        self.place.panic.or(hint.map(|&(_, hint)| hint))
    }

    /// The kernel's explanation if there is one, else the log's last lines.
    #[must_use]
    pub fn details(&self) -> &[String] {
        &self.details
    }
}

/// The last instruction in the log, and whether the source line that it belongs to is a library's.
fn instruction(code: &[&str]) -> Option<(usize, bool)> {
    let number = |line: &&str| line.split_once(": (")?.0.parse().ok();
    let at = code.iter().rev().find_map(number)?;
    let line = code.iter().rev().find_map(|line| SourceLine::parse(line))?;
    Some((at, line.is_inlined()))
}

/// Why a policy may panic, by the mangled name of the function that does.
pub(super) fn panic_hint(function: &str) -> &'static str {
    let hint = PANICS.iter().find(|(words, _)| function.contains(words));
    hint.map_or(PANIC, |&(_, hint)| hint)
}

fn starts_with_any(line: &str, starts: &[&str]) -> bool {
    starts.iter().any(|start| line.starts_with(start))
}

impl SourceLine {
    /// The last line of the author's source in the log.
    fn last(code: &[&str]) -> Option<Self> {
        let sources = code.iter().rev().filter_map(|line| Self::parse(line));
        sources.into_iter().find(|source| !source.is_inlined())
    }

    fn parse(line: &str) -> Option<Self> {
        let (text, place) = line.strip_prefix("; ")?.rsplit_once(" @ ")?;
        Some(Self {
            text: text.trim().to_owned(),
            place: place.to_owned(),
        })
    }

    /// Whether it belongs to a library and was inlined.
    pub(super) fn is_inlined(&self) -> bool {
        let file = self.place.split(':').next();
        self.text.contains(MACRO) || file.is_some_and(|file| INLINED.contains(&file))
    }
}

impl fmt::Display for SourceLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: String = self.text.chars().take(TEXT_CHARS).collect();
        let more = if shown.len() < self.text.len() { "..." } else { "" };
        write!(f, "{}: `{shown}{more}`", self.place)
    }
}

/// One line: the reason, the source line and a hint. `{:#}` adds the details, if there are more.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the kernel's verifier refused {}: {}", self.what, self.reason)?;
        match (&self.place.source, &self.place.until) {
            (Some(source), Some(until)) => write!(f, " (between {source} and {until})")?,
            (Some(source), None) => write!(f, " ({source})")?,
            (None, _) => {}
        }
        if let Some(hint) = self.hint() {
            write!(f, "; {hint}")?;
        }
        if f.alternate() && self.details.len() > 1 {
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

    fn refused(log: &str) -> Refusal {
        Refusal::from_log("policy a.o", &io::Error::from_raw_os_error(libc::E2BIG), log)
    }

    const HEAD: &str = "the kernel's verifier refused policy a.o: R1 invalid mem access 'mem_or_null' (policy.rs:9: `request.op`); a lookup may";

    #[test]
    fn the_reason_comes_first_and_the_last_lines_follow() {
        let refusal = refused(OLD);
        assert!(refusal.to_string().starts_with(HEAD), "{refusal}");
        assert_eq!(refusal.to_string().lines().count(), 1);
        let text = format!("{refusal:#}");
        assert!(
            text.ends_with("\n  R1 invalid mem access 'mem_or_null'"),
            "{text}"
        );
        assert!(text.contains("\n  0: (61) r0"), "{text}");
    }

    #[test]
    fn a_report_of_the_kernels_own_takes_the_last_lines_place() {
        let text = format!("{:#}", refused(NEW));
        assert!(text.starts_with(HEAD), "{text}");
        assert!(text.ends_with("\n  Reason:\n    R1 may be NULL here."), "{text}");
        assert!(!text.contains("(61)"), "{text}");
    }

    #[test]
    fn an_empty_log_leaves_the_errno() {
        assert_eq!(
            refused("processed 0 insns\n").to_string(),
            "the kernel's verifier refused policy a.o: Argument list too long (os error 7)"
        );
    }

    /// The ends of what Linux 7.3 said of the policies in `tests/policies/src/refused`.
    const RECORDED: [(&str, &str, Option<&str>, &str); 6] = [
        (
            "; intrinsics::volatile_load(src) @ mod.rs:2091\n\
             3: (79) r2 = *(u64 *)(r1 +0)\n\
             ; while unsafe { sector.read_volatile() } == 7 {} @ endless.rs:9\n\
             infinite loop detected at insn 4\n\
             cur state: R0=1 R1=mem(id=1,sz=40) R2=scalar() R10=fp0\n\
             old state: R0=1 R1=mem(id=1,sz=40) R2=scalar() R10=fp0\n\
             verification time 1278 usec\n\
             stack depth max 0\n",
            "infinite loop detected at insn 4",
            Some("endless.rs:9"),
            LOOP,
        ),
        (
            "; if black_box(request.sector) >> (n & 31) & 1 == 1 { @ long.rs:11\n\
             20: (15) if r5 == 0x0 goto pc-15      ; R5=1\n\
             ; Some(request) => $decide(request).pack(), @ lib.rs:57\n\
             6: (04) w3 += 1                       ; R3=8189\n\
             ; if self.start < self.end { @ range.rs:772\n\
             The sequence of 8193 jumps is too complex.\n",
            "The sequence of 8193 jumps is too complex.",
            Some("long.rs:11"),
            LENGTH,
        ),
        (
            "; fun(map, key) @ helpers.rs:10\n\
             7: (18) r1 = 0xff11000005f32600       ; R1=map_ptr(map=limits,ks=4,vs=8)\n\
             9: (85) call bpf_map_lookup_elem#1    ; R0=map_value_or_null(id=2,map=limits,ks=4,vs=8)\n\
             ; intrinsics::volatile_load(src) @ mod.rs:2091\n\
             10: (79) r1 = *(u64 *)(r0 +0)\n\
             R0 invalid mem access 'map_value_or_null'\n\n\
             Verification failed: Register Type Safety: Invalid dereference\n",
            "R0 invalid mem access 'map_value_or_null'",
            None,
            NULL,
        ),
        (
            "; slice_get_unchecked(slice, self) @ index.rs:253\n\
             15: (0f) r1 += r7\n\
             ; if request.sector < unsafe { *limits.get_unchecked(request.op as usize) } { @ bounds.rs:18\n\
             16: (79) r1 = *(u64 *)(r1 +0)\n\
             R1 unbounded memory access, make sure to bounds check any such access\n",
            "R1 unbounded memory access, make sure to bounds check any such access",
            Some("bounds.rs:18"),
            BOUNDS,
        ),
        (
            "last insn is not an exit or jmp\n\n\
             Verification failed: Program Structure: Subprogram can fall through\n",
            "last insn is not an exit or jmp",
            None,
            PANIC,
        ),
        (
            "; fun(ifindex, flags) @ helpers.rs:207\n\
             3: (b7) r2 = 0                        ; R2=0\n\
             4: (85) call bpf_redirect#23\n\
             program of this type cannot use helper bpf_redirect#23\n",
            "program of this type cannot use helper bpf_redirect#23",
            None,
            HELPER,
        ),
    ];

    #[test]
    fn usual_mistakes_are_placed_and_explained() {
        for (log, reason, place, hint) in RECORDED {
            let refusal = refused(log);
            assert_eq!(refusal.reason(), reason);
            let found = refusal.place.source.as_ref().map(|source| source.place.as_str());
            assert_eq!(found, place, "{refusal}");
            assert_eq!(refusal.hint(), Some(hint), "{refusal}");
        }
    }
}
