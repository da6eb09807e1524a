//! The interface between the classifier, the policies and the server.
//!
//! Everything here crosses between BPF and user space in a map, a global or a function argument, so every type is
//! `#[repr(C)]` or `#[repr(u8)]` and has a fixed size. User space never reads one of these enums directly from a
//! map. It reads integers and parses them, because map contents are untrusted input ([`Verdict::parse`],
//! [`Reason::parse`], [`Op::parse`]).
//!
//! BTF carries these names to `bpftool map dump`, so they are part of the user interface.
#![no_std]

/// Declares an enum that crosses between BPF and user space as a number, with its values, their numbers and the names
/// that commands print.
macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident { $($(#[$value_doc:meta])* $value:ident = $number:literal, $text:literal;)+ }) => {
        $(#[$doc])*
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$value_doc])* $value = $number,)+
        }

        impl $name {
            /// Number of values.
            pub const COUNT: usize = [$($text),+].len();

            /// All values, in numeric order.
            pub const ALL: [Self; Self::COUNT] = [$(Self::$value),+];

            /// The value with this number, if there is one.
            #[must_use]
            pub const fn parse(raw: u8) -> Option<Self> {
                Some(match raw {
                    $($number => Self::$value,)+
                    _ => return None,
                })
            }

            /// The name that commands print.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$value => $text,)+
                }
            }
        }
    };
}

mod asked;
mod compared;
mod config;
mod counters;
mod decision;
mod delay;
mod histograms;
mod index;
mod request;
mod slot;
mod state;
mod trace;

pub use asked::{ANSWERED, ASKED, ASKER_GLOBAL, Question};
pub use compared::{AboutShadow, Compared};
pub use config::{CONFIG_GLOBAL, Config, Member, WATCH_GLOBAL, WatchedFile, WatchedFiles, req_op};
pub use counters::{CacheCounters, Decisions, Reasons, ServerCounters};
pub use decision::{Decision, Extent, Priority, Reason, Verdict, WriteMode, hint};
pub use delay::Delay;
pub use histograms::{Issue, Latencies, Latency, Sizes, log2};
pub use index::{BlockState, DirtyEntry, IndexEntry, REGIONS, regions};
pub use request::{FaultRange, Op, Request, request_flags};
pub use slot::{TakenVerdict, VerdictSlot};
pub use state::CacheState;
pub use trace::{EndedRecord, TraceRecord};

/// Version of this interface. A server does not take over pinned maps and programs of another version.
pub const ABI_VERSION: u32 = 5;

/// Version of the part of this interface that a policy's object is compiled with: [`Request`], the packed [`Decision`]
/// and the meaning of their numbers.
///
/// It changes when an object that was built before would misread a request or be misread, and not when something is
/// added at the end of [`Request`] or to what a [`Decision`] may say. An object states it as a little-endian number in
/// [`POLICY_ABI_SECTION`].
pub const POLICY_ABI_VERSION: u32 = 2;

/// The section of a policy's object with its [`POLICY_ABI_VERSION`].
pub const POLICY_ABI_SECTION: &str = "ublk_bpf_abi";

/// The variable of a policy's object that lists its own reasons: an array of an enum, whose names its type information
/// has.
pub const POLICY_REASONS: &str = "UBLK_BPF_REASONS";

/// Bytes in a sector, the unit of all addresses and lengths in the block layer and ublk.
pub const SECTOR_SIZE: u64 = 512;

/// Map names, as used in the BPF object, the pin directory and `bpftool`. At most 15 bytes.
pub mod map {
    /// `verdict[qid * depth + tag]`: array of [`VerdictSlot`](crate::VerdictSlot), mmapable.
    /// The classifier fills a slot, the server takes it.
    pub const VERDICTS: &str = "verdicts";
    /// `decisions[op]`: per-CPU array of [`Decisions`](crate::Decisions), written by the classifier.
    pub const DECISIONS: &str = "decisions";
    /// `server[qid]`: array of [`ServerCounters`](crate::ServerCounters), mmapable, written by the server.
    pub const SERVER: &str = "server";
    /// Array of `u64`, mmapable: bit `b % 64` of word `b / 64` is set if block `b` may hold data and clear if
    /// it is known to read as zeroes. Written by the server, read by the classifier.
    pub const WRITTEN: &str = "written";
    /// `index[block]`: array of [`IndexEntry`](crate::IndexEntry), mmapable: which blocks of the backing device are
    /// cached, and in which slot. Written by the server, read by the classifier.
    pub const INDEX: &str = "index";
    /// Array of `u64`, mmapable, one byte per block: byte `block % 8` of word `block / 8` counts reads of the block.
    /// Incremented by the classifier, halved periodically by the server.
    pub const HEAT: &str = "heat";
    /// `dirty[slot]`: array of [`DirtyEntry`](crate::DirtyEntry), mmapable, of the server alone: what of each slot the
    /// backing device lacks. It is pinned so that the next server knows. One entry without write-back.
    pub const DIRTY: &str = "dirty";
    /// Array of `u64`, mmapable, of the server alone, one byte per slot: byte `slot % 8` of word `slot / 8` is the tenant that
    /// the slot is accounted to ([`Decision::tenant`](crate::Decision::tenant)). One word without a cache.
    pub const TENANTS: &str = "tenants";
    /// `usage[tenant]`: array of `u64`, mmapable: slots of each tenant. Written by the server, read by policies: the map of this
    /// name of a policy object is this one.
    pub const USAGE: &str = "ublk_usage";
    /// Array of one [`CacheCounters`](crate::CacheCounters), mmapable, written by the server.
    pub const CACHE: &str = "cache";
    /// Array of one [`CacheState`](crate::CacheState), written by the server, read by policies alone: the map of this name of
    /// a policy object is this one.
    pub const STATE: &str = "ublk_cache";
    /// `codes[code]`: per-CPU array of `u64`: number of decisions with this reason of the policy's own.
    pub const CODES: &str = "codes";
    /// `issues[qid * depth + tag]`: array of [`Issue`](crate::Issue), of the histograms' two programs.
    pub const ISSUES: &str = "issues";
    /// `latencies[op]`: per-CPU array of [`Latencies`](crate::Latencies).
    pub const LATENCIES: &str = "latencies";
    /// `sizes[op]`: per-CPU array of [`Sizes`](crate::Sizes).
    pub const SIZES: &str = "sizes";
    /// Ring of [`TraceRecord`](crate::TraceRecord)s, the recorder's.
    pub const RECORDS: &str = "records";
    /// Per-CPU array of one `u64`: requests for which [`RECORDS`] had no room.
    pub const DROPPED: &str = "dropped";
    /// `issued[qid * depth + tag]`: array of [`TraceRecord`](crate::TraceRecord)s, the tracer's: requests that have not
    /// ended; a time of 0: none.
    pub const ISSUED: &str = "issued";
    /// Ring of [`EndedRecord`](crate::EndedRecord)s, the tracer's.
    pub const ENDED: &str = "ended";
    /// Array of one `u64`: the tracer traces one request in so many, chosen at random.
    pub const EVERY: &str = "every";
    /// Array of one [`Question`](crate::Question), the asker's.
    pub const QUESTION: &str = "question";
    /// `compared[op]`: per-CPU array of [`Compared`](crate::Compared), the shadow's.
    pub const COMPARED: &str = "compared";
    /// `shadow_codes[code]`: as [`CODES`], of the shadow policy.
    pub const SHADOW_CODES: &str = "shadow_codes";
    /// Array of one [`AboutShadow`](crate::AboutShadow).
    pub const ABOUT: &str = "about";
    /// Array of one [`FaultRange`](crate::FaultRange), owned by the policy `fault`.
    pub const FAULT_RANGE: &str = "fault_range";
}

/// Tenants that a policy may name, 0 included, which is none: the entries of [`map::USAGE`].
pub const TENANTS: u32 = 256;

/// The function of the classifier that a policy object replaces (`freplace`).
pub const POLICY_FUNCTION: &str = "policy";

const _: () = {
    // `Config` has no padding: it is passed as bytes.
    assert!(core::mem::offset_of!(Config, uncounted) + 4 == size_of::<Config>());
    assert!(size_of::<Config>() == 2 * 8 + (8 + request_flags::FROM_KERNEL) * 4);
    assert!(size_of::<Request>() == 40);
    assert!(size_of::<VerdictSlot>() == 16);
    assert!(size_of::<Decisions>() == Decisions::WORDS * 8);
    assert!(size_of::<ServerCounters>().is_multiple_of(8));
    assert!(size_of::<CacheCounters>().is_multiple_of(8));
    assert!(size_of::<Latencies>() == Latencies::WORDS * 8);
    assert!(core::mem::offset_of!(Latencies, slow) == Verdict::Slow as usize * Latency::WORDS * 8);
    assert!(size_of::<Sizes>() == Sizes::WORDS * 8);
    assert!(size_of::<IndexEntry>() == 8);
    assert!(size_of::<CacheState>() == 8);
    assert!(core::mem::offset_of!(VerdictSlot, tenant) == 8);
    assert!(size_of::<TraceRecord>() == 64);
    assert!(core::mem::offset_of!(TraceRecord, op_and_advice) == 20);
    assert!(core::mem::offset_of!(TraceRecord, comm) == 48);
    assert!(size_of::<EndedRecord>() == 80);
    assert!(size_of::<Question>() == 56);
    assert!(size_of::<Compared>() == 8 * Compared::WORDS);
    assert!(core::mem::offset_of!(Compared, cached) == 8 * Compared::CACHED);
    assert!(size_of::<AboutShadow>() == 4096);
    assert!(size_of::<Reasons>() == 8 * Reason::COUNT);
    assert!(core::mem::offset_of!(Decisions, slow) == 8 * Decisions::word(Verdict::Slow, Reason::Default));
    assert!(core::mem::offset_of!(Decisions, sectors) == 8 * Decisions::SECTORS);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_parses_to_its_value() {
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
    fn only_valid_decisions_are_accepted() {
        let drop = Decision::new(Verdict::Drop, Reason::Advisory);
        assert!(Decision::is_answer(drop.pack()));
        assert!(Decision::is_answer(drop.with_hints(hint::FAIL).pack()));
        assert!(!Decision::is_answer(drop.with_hints(1 << 7).pack()));
        assert!(Decision::is_answer(Decision::coded(Verdict::Hit, 7).pack()));
        assert!(!Decision::is_answer(
            Decision::new(Verdict::None, Reason::Default).pack()
        ));
        assert!(!Decision::is_answer(Decision::BAD_ANSWER.pack()));
        for raw in [0, 5, 0x0700 | 1, 1 << 24 | 1, 1 << 32 | 1, u64::MAX] {
            assert!(!Decision::is_answer(raw), "{raw:#x}");
        }
    }

    #[test]
    fn a_bucket_is_a_power_of_two() {
        assert_eq!(log2(0), 0);
        for bit in 0..u64::BITS {
            let first = 1_u64 << bit;
            assert_eq!(log2(first), bit);
            assert_eq!(log2(first | (first - 1)), bit);
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
