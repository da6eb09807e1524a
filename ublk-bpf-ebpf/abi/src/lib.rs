//! What the classifier, the policies and the server agree on.
//!
//! Everything here crosses the line between BPF and user space through a map, a global or a function
//! argument, so every type is `#[repr(C)]` or `#[repr(u8)]` and has a fixed size. User space never reads
//! one of these enums straight from a map: it reads integers and parses them, because a map's content is
//! an input like any other ([`Verdict::parse`], [`Reason::parse`], [`Op::parse`]).
//!
//! BPF Type Format carries these names to `bpftool map dump`, so they are the operator's words too.
#![no_std]

/// Declares an enum that crosses the line as a number: its values, their numbers and the names that commands and
/// tables print, once.
macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident { $($(#[$value_doc:meta])* $value:ident = $number:literal, $text:literal;)+ }) => {
        $(#[$doc])*
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$value_doc])* $value = $number,)+
        }

        impl $name {
            /// How many values there are.
            pub const COUNT: usize = [$($text),+].len();

            /// Every value, in the order of its number.
            pub const ALL: [Self; Self::COUNT] = [$(Self::$value),+];

            /// The value of this number, if there is one.
            #[must_use]
            pub const fn parse(raw: u8) -> Option<Self> {
                Some(match raw {
                    $($number => Self::$value,)+
                    _ => return None,
                })
            }

            /// The name that commands and tables print.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$value => $text,)+
                }
            }
        }
    };
}

mod config;
mod counters;
mod decision;
mod index;
mod request;

pub use config::{CONFIG_GLOBAL, Config, Member, req_op};
pub use counters::{CacheCounters, Decisions, Reasons, ServerCounters};
pub use decision::{Decision, Priority, Reason, Verdict, VerdictSlot, hint};
pub use index::{BlockState, IndexEntry, REGIONS, regions};
pub use request::{FaultRange, Op, Request, request_flags};

/// Version of this interface. Pinned maps and programs of another version are not taken over.
pub const ABI_VERSION: u32 = 3;

/// Bytes in a sector, the unit of every address and length that the block layer and ublk speak of.
pub const SECTOR_SIZE: u64 = 512;

/// The name of each map as the BPF object, the pin directory and `bpftool` know it. At most 15 bytes.
pub mod map {
    /// `verdict[qid * depth + tag]`: array of [`VerdictSlot`](crate::VerdictSlot), mmapable.
    /// The classifier writes a slot, the server takes it.
    pub const VERDICTS: &str = "verdicts";
    /// `decisions[op]`: per-CPU array of [`Decisions`](crate::Decisions), counted by the classifier.
    pub const DECISIONS: &str = "decisions";
    /// `server[qid]`: array of [`ServerCounters`](crate::ServerCounters), mmapable, written by the server.
    pub const SERVER: &str = "server";
    /// Array of `u64`, mmapable: bit `b % 64` of word `b / 64` is set if block `b` may hold data, clear if
    /// the server knows that it reads as zeroes. Written by the server, read by the classifier.
    pub const WRITTEN: &str = "written";
    /// `index[block]`: array of [`IndexEntry`](crate::IndexEntry), mmapable: which blocks of the backing device are
    /// in the cache, and where. Written by the server, read by the classifier.
    pub const INDEX: &str = "index";
    /// Array of `u64`, mmapable, eight bytes of it for eight blocks: byte `block % 8` of word `block / 8` counts reads
    /// of the block. Counted by the classifier, halved by the server.
    pub const HEAT: &str = "heat";
    /// Array of one [`CacheCounters`](crate::CacheCounters), mmapable, written by the server.
    pub const CACHE: &str = "cache";
    /// `codes[code]`: per-CPU array of `u64`: how often a policy decided for this reason of its own.
    pub const CODES: &str = "codes";
    /// Array of one [`FaultRange`](crate::FaultRange), owned by the policy `fault`.
    pub const FAULT_RANGE: &str = "fault_range";
}

/// The function of the classifier that a policy object replaces (`freplace`).
pub const POLICY_FUNCTION: &str = "policy";

const _: () = {
    // No byte of `Config` is padding: it is handed over as bytes.
    assert!(core::mem::offset_of!(Config, reserved) + 4 == size_of::<Config>());
    assert!(size_of::<Config>() == 2 * 8 + (8 + request_flags::FROM_KERNEL) * 4);
    assert!(size_of::<Request>() == 40);
    assert!(size_of::<VerdictSlot>() == 16);
    assert!(size_of::<Decisions>() == Decisions::WORDS * 8);
    assert!(size_of::<ServerCounters>().is_multiple_of(8));
    assert!(size_of::<CacheCounters>().is_multiple_of(8));
    assert!(size_of::<IndexEntry>() == 8);
    assert!(core::mem::offset_of!(VerdictSlot, sector) == 8);
    assert!(size_of::<Reasons>() == 8 * Reason::COUNT);
    assert!(core::mem::offset_of!(Decisions, slow) == 8 * Decisions::word(Verdict::Slow, Reason::Default));
    assert!(core::mem::offset_of!(Decisions, sectors) == 8 * Decisions::SECTORS);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_parse_to_what_they_came_from() {
        for op in Op::ALL {
            assert_eq!(Op::parse(op as u8), Some(op));
        }
        for reason in Reason::ALL {
            assert_eq!(Reason::parse(reason as u8), Some(reason));
        }
        assert_eq!(Op::parse(6), None);
        assert_eq!(Reason::parse(8), None);
        assert_eq!(Verdict::parse(4), Some(Verdict::Slow));
        assert_eq!(Verdict::parse(5), None);
    }

    #[test]
    fn only_whole_answers_are_answers() {
        let drop = Decision::new(Verdict::Drop, Reason::Advisory);
        assert!(Decision::is_answer(drop.pack()));
        assert!(Decision::is_answer(drop.with_hints(hint::FAIL).pack()));
        assert!(!Decision::is_answer(drop.with_hints(1 << 5).pack()));
        assert!(Decision::is_answer(Decision::coded(Verdict::Hit, 7).pack()));
        assert!(!Decision::is_answer(
            Decision::new(Verdict::None, Reason::Default).pack()
        ));
        assert!(!Decision::is_answer(Decision::BAD_ANSWER.pack()));
        for raw in [0, 5, 0x0700 | 1, 1 << 24 | 1, u32::MAX] {
            assert!(!Decision::is_answer(raw), "{raw:#x}");
        }
    }

    #[test]
    fn head_is_the_slots_first_half() {
        let decision = Decision::new(Verdict::Drop, Reason::FaultRange).with_hints(hint::FAIL);
        let head = VerdictSlot::head(decision.pack(), Op::Discard as u32, 0x0102_0304);
        assert_eq!(head.to_le_bytes(), [3, 3, 1, 3, 4, 3, 2, 1]);
    }

    #[test]
    fn overlap_counts_whole_sectors_and_does_not_overflow() {
        let mut request = Request::new(Op::Read, 8, 8);
        assert!(request.overlaps(15, 15));
        assert!(!request.overlaps(16, 20));
        assert!(!request.overlaps(0, 7));
        assert!(request.overlaps(0, u64::MAX));
        request.sector = u64::MAX;
        assert!(request.overlaps(0, u64::MAX));
        request.nr_sectors = 0;
        assert!(!request.overlaps(0, u64::MAX));
    }
}
