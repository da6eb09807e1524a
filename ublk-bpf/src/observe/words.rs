//! Decisions and requests in words.

use ublk_bpf_abi::{Decision, Extent, Op, Reason, Verdict, WriteMode, hint};

use super::amount::duration;

/// The hints of a decision, such as `fill block low` or `cold`.
pub(super) fn hint_words(hints: u8) -> Vec<String> {
    let priority = hint::priority(hints).name();
    let mut words = Vec::new();
    if let Some(mode) = hint::write_mode(hints) {
        words.push(mode.name().to_owned());
    }
    if let Some(extent) = hint::extent(hints) {
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
pub(super) fn meaning(op: Op, decision: &Decision) -> String {
    let what = match decision.verdict {
        Verdict::None => "the server's slow path",
        Verdict::Passthrough => "I/O between its own pages and the backing",
        Verdict::Hit => "served from the cache, as far as it is there",
        Verdict::Drop if decision.hints & hint::FAIL != 0 => "fails, on a device with --allow-lossy",
        Verdict::Drop => "completed without I/O, if no data is lost",
        Verdict::Slow => "copied through a buffer of the server's",
    };
    let mut told = what.to_owned();
    if !decision.delay.is_none() && op != Op::Flush {
        told = format!(
            "kept for {} first; {told}",
            duration(decision.delay.micros() * 1000)
        );
    }
    let mode = hint::write_mode(decision.hints).filter(|_| op == Op::Write);
    if let Some(mode) = mode {
        told.push_str(match mode {
            WriteMode::Back => "; it ends in the cache, if that writes back",
            WriteMode::Through => "; it ends there, and in the cache what is cached of it",
            WriteMode::Around => "; it ends there alone",
        });
    }
    if hint::extent(decision.hints).is_some() {
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
    use ublk_bpf_abi::Priority;

    #[test]
    fn hints_are_told_with_their_priority() {
        let fill = Decision::pass().fill(Extent::Around, Priority::Low).cold();
        assert_eq!(hint_words(fill.hints), ["fill around low", "cold"]);
        let promote = Decision::pass().promote(Priority::Pinned);
        assert_eq!(hint_words(promote.hints), ["promote pinned"]);
        assert_eq!(hint_words(promote.back().hints), ["back", "promote pinned"]);
        assert_eq!(hint_words(fill.around().hints), ["around", "cold"]);
        assert_eq!(hint_words(hint::FAIL), ["fail"]);
        assert!(hint_words(0).is_empty());
    }

    #[test]
    fn a_delay_comes_first_and_is_none_for_a_flush() {
        let delayed = Decision::hit().delayed(ublk_bpf_abi::Delay::from_micros(2048));
        let told = meaning(Op::Read, &delayed);
        assert_eq!(
            told,
            "kept for 2.0 ms first; served from the cache, as far as it is there"
        );
        assert!(!meaning(Op::Flush, &delayed).contains("kept"));
    }

    #[test]
    fn a_reason_of_the_policys_own_has_its_code() {
        assert_eq!(reason_word(Reason::User, 7), "user 7");
        assert_eq!(reason_word(Reason::User, 0), "user", "not known");
        assert_eq!(reason_word(Reason::Cached, 0), "cached");
    }
}
