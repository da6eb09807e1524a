//! Decisions and requests in words.

use ublk_bpf_abi::{Decision, Extent, Priority, Reason, Verdict, hint};

/// The hints of a decision, such as `fill block low` or `cold`.
pub(super) fn hint_words(hints: u8) -> Vec<String> {
    let priority = Priority::parse((hints & hint::PRIORITY) >> hint::PRIORITY_SHIFT);
    let priority = priority.unwrap_or(Priority::Normal).name();
    let extent = Extent::parse((hints & hint::FILL) >> hint::FILL_SHIFT);
    let mut words = Vec::new();
    if let Some(extent) = extent {
        let extent = match extent {
            Extent::Request => "request",
            Extent::Around => "around",
            Extent::Block => "block",
        };
        words.push(format!("fill {extent} {priority}"));
    } else if hints & hint::PROMOTE != 0 {
        words.push(format!("promote {priority}"));
    }
    if hints & hint::COLD != 0 {
        words.push("cold".to_owned());
    }
    if hints & hint::FAIL != 0 {
        words.push("fail".to_owned());
    }
    words
}

/// A decision's reason; the policy's own with its code, if that is known.
pub(super) fn reason_word(reason: Reason, code: u8) -> String {
    match (reason, code) {
        (Reason::User, 1..) => format!("{} {code}", reason.name()),
        _ => reason.name().to_owned(),
    }
}

/// What the server does with a request of this decision, if nothing speaks against it.
pub(super) fn meaning(decision: &Decision) -> String {
    let what = match decision.verdict {
        Verdict::None => "the server's slow path",
        Verdict::Passthrough => "I/O between its own pages and the backing",
        Verdict::Hit => "served from the cache, as far as it is there",
        Verdict::Drop if decision.hints & hint::FAIL != 0 => "fails, on a device with --allow-lossy",
        Verdict::Drop => "completed without I/O, if no data is lost",
        Verdict::Slow => "copied through a buffer of the server's",
    };
    let mut told = what.to_owned();
    if decision.hints & hint::FILL != 0 {
        told.push_str("; what is missing fills the cache");
    } else if decision.hints & hint::PROMOTE != 0 {
        told.push_str("; then its block is brought into the cache");
    }
    told
}

/// The name without what could confuse a terminal.
pub(super) fn task_name(comm: &[u8; 16]) -> String {
    let end = comm.iter().position(|&byte| byte == 0).unwrap_or(comm.len());
    String::from_utf8_lossy(&comm[..end])
        .chars()
        .map(|c| {
            if c.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_are_told_with_their_priority() {
        let fill = Decision::pass().fill(Extent::Around, Priority::Low).cold();
        assert_eq!(hint_words(fill.hints), ["fill around low", "cold"]);
        let promote = Decision::pass().promote(Priority::Pinned);
        assert_eq!(hint_words(promote.hints), ["promote pinned"]);
        assert_eq!(hint_words(hint::FAIL), ["fail"]);
        assert!(hint_words(0).is_empty());
    }

    #[test]
    fn a_reason_of_the_policys_own_has_its_code() {
        assert_eq!(reason_word(Reason::User, 7), "user 7");
        assert_eq!(reason_word(Reason::User, 0), "user", "not known");
        assert_eq!(reason_word(Reason::Cached, 0), "cached");
    }
}
