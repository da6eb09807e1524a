//! What the classifier, the policies and the server agree on.
//!
//! Everything here crosses the line between BPF and user space through a map, a global or a function
//! argument, so every type is `#[repr(C)]` or `#[repr(u8)]` and has a fixed size. User space never reads
//! one of these enums straight from a map: it reads integers and parses them, because a map's content is
//! an input like any other ([`Verdict::parse`], [`Reason::parse`], [`Op::parse`]).
//!
//! BPF Type Format carries these names to `bpftool map dump`, so they are the operator's words too.
#![no_std]

/// Version of this interface. Pinned maps and programs of another version are not taken over.
pub const ABI_VERSION: u32 = 1;

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
}

/// The function of the classifier that a policy object replaces (`freplace`).
pub const POLICY_FUNCTION: &str = "policy";

/// What a request asks for. Dense, so that it can index [`map::DECISIONS`]; the kernel's own codes differ
/// between `REQ_OP_*` (block layer) and `UBLK_IO_OP_*` (ublk), and both are translated to this.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    /// Fill the request's pages from the device.
    Read = 0,
    /// Put the request's pages on the device.
    Write = 1,
    /// Make completed writes durable. Carries no data and no range.
    Flush = 2,
    /// The range's content is no longer needed. Carries no data.
    Discard = 3,
    /// The range reads as zeroes from now on. Carries no data.
    WriteZeroes = 4,
    /// Anything else that the block layer may issue; this device serves none of it.
    Other = 5,
}

impl Op {
    /// How many operations there are.
    pub const COUNT: usize = 6;

    /// Every operation, in the order of its number.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Read,
        Self::Write,
        Self::Flush,
        Self::Discard,
        Self::WriteZeroes,
        Self::Other,
    ];

    /// The operation of this number, if there is one.
    #[must_use]
    pub const fn parse(raw: u8) -> Option<Self> {
        Some(match raw {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Flush,
            3 => Self::Discard,
            4 => Self::WriteZeroes,
            5 => Self::Other,
            _ => return None,
        })
    }

    /// The name that commands and tables print.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::WriteZeroes => "write-zeroes",
            Self::Other => "other",
        }
    }
}

/// What the policy advises the server to do with a request. Advice: the server owns correctness.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// The slot is empty: no advice for the tag's present request.
    None = 0,
    /// Move the data between the request's own pages and the backing device.
    Passthrough = 1,
    /// The same with the cache device.
    Hit = 2,
    /// Complete at once, without I/O, if nothing is lost by it.
    Drop = 3,
    /// Let the server look at it: the only path that copies data.
    Slow = 4,
}

impl Verdict {
    /// How many verdicts there are, the empty one included.
    pub const COUNT: usize = 5;

    /// The verdict of this number, if there is one.
    #[must_use]
    pub const fn parse(raw: u8) -> Option<Self> {
        Some(match raw {
            0 => Self::None,
            1 => Self::Passthrough,
            2 => Self::Hit,
            3 => Self::Drop,
            4 => Self::Slow,
            _ => return None,
        })
    }

    /// The name that commands and tables print.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Passthrough => "passthrough",
            Self::Hit => "hit",
            Self::Drop => "drop",
            Self::Slow => "slow",
        }
    }
}

/// Why a policy came to its verdict.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The policy's ordinary answer.
    Default = 0,
    /// A discard, which is advisory and may be dropped.
    Advisory = 1,
    /// Every block of the range was never written and reads as zeroes.
    NeverWritten = 2,
    /// The range was chosen to fail.
    FaultRange = 3,
    /// A reason of a user's own policy.
    User = 4,
    /// The policy's answer was none: not a verdict, or a reason outside this list.
    BadAnswer = 5,
}

impl Reason {
    /// How many reasons there are.
    pub const COUNT: usize = 6;

    /// Every reason, in the order of its number.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Default,
        Self::Advisory,
        Self::NeverWritten,
        Self::FaultRange,
        Self::User,
        Self::BadAnswer,
    ];

    /// The reason of this number, if there is one.
    #[must_use]
    pub const fn parse(raw: u8) -> Option<Self> {
        Some(match raw {
            0 => Self::Default,
            1 => Self::Advisory,
            2 => Self::NeverWritten,
            3 => Self::FaultRange,
            4 => Self::User,
            5 => Self::BadAnswer,
            _ => return None,
        })
    }

    /// The name that commands and tables print.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Advisory => "advisory",
            Self::NeverWritten => "never-written",
            Self::FaultRange => "fault-range",
            Self::User => "user",
            Self::BadAnswer => "bad-answer",
        }
    }
}

/// Facts about a request that a policy may ask for.
pub mod request_flags {
    /// Force unit access: durable when it completes.
    pub const FUA: u32 = 1 << 0;
    /// File-system metadata.
    pub const META: u32 = 1 << 1;
    /// Someone waits for it.
    pub const SYNC: u32 = 1 << 2;
    /// Higher priority than most.
    pub const PRIO: u32 = 1 << 3;
    /// Read-ahead: nobody waits for it.
    pub const RAHEAD: u32 = 1 << 4;
    /// Write-zeroes that must keep its space allocated.
    pub const NOUNMAP: u32 = 1 << 5;
    /// Every block of the range is known by the server to read as zeroes ([`map::WRITTEN`](crate::map::WRITTEN)).
    pub const NEVER_WRITTEN: u32 = 1 << 6;
}

/// A request as the policy sees it: the argument of [`POLICY_FUNCTION`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// First sector (512 bytes).
    pub sector: u64,
    /// Length in sectors.
    pub nr_sectors: u32,
    /// Bits of [`request_flags`].
    pub flags: u32,
    /// An [`Op`] by number.
    pub op: u32,
    /// Hardware queue.
    pub qid: u16,
    /// Tag within the queue.
    pub tag: u16,
}

/// What the policy answers, packed into the `u32` that [`POLICY_FUNCTION`] returns:
/// verdict in bits 0..8, reason in bits 8..16, hints in bits 16..24, zero in the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The advice.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// Bits of [`hint`].
    pub hints: u8,
}

/// What a policy asks for beside its verdict.
pub mod hint {
    /// With [`Verdict::Drop`](crate::Verdict::Drop): complete with an error (`EIO`), not with success.
    pub const FAIL: u8 = 1 << 0;
    /// Every bit that means something.
    pub const ALL: u8 = FAIL;
}

impl Decision {
    /// A decision without hints.
    #[must_use]
    pub const fn new(verdict: Verdict, reason: Reason) -> Self {
        Self {
            verdict,
            reason,
            hints: 0,
        }
    }

    /// The decision with these [`hint`] bits.
    #[must_use]
    pub const fn with_hints(self, hints: u8) -> Self {
        Self { hints, ..self }
    }

    /// The number that [`POLICY_FUNCTION`] returns.
    #[must_use]
    pub const fn pack(self) -> u32 {
        self.verdict as u32 | (self.reason as u32) << 8 | (self.hints as u32) << 16
    }
}

/// The classifier's advice for one tag, taken (read and cleared) by the server when the tag arrives.
///
/// The first eight bytes are `head`, which the server swaps for zero: an empty slot is one whose verdict is
/// [`Verdict::None`]. `op`, `nr_sectors` and `sector` say which request it is about; the server compares
/// them with the descriptor, because the kernel skips a BPF program that already runs on the CPU, and a
/// slot may then hold the advice for the tag's previous request.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerdictSlot {
    /// The advice.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// What the request asks for.
    pub op: Op,
    /// Bits of [`hint`].
    pub hints: u8,
    /// The request's length in sectors.
    pub nr_sectors: u32,
    /// The request's first sector.
    pub sector: u64,
}

/// How often the classifier decided what, for one operation on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decisions {
    /// Requests that it advised to pass through.
    pub passthrough: u64,
    /// Requests that it found in the cache.
    pub hit: u64,
    /// Requests that it advised to drop.
    pub drop: u64,
    /// Requests that it left to the server.
    pub slow: u64,
    /// Sectors of all these requests.
    pub sectors: u64,
    /// The same requests by [`Reason::Default`].
    pub why_default: u64,
    /// By [`Reason::Advisory`].
    pub why_advisory: u64,
    /// By [`Reason::NeverWritten`].
    pub why_never_written: u64,
    /// By [`Reason::FaultRange`].
    pub why_fault_range: u64,
    /// By [`Reason::User`].
    pub why_user: u64,
    /// By [`Reason::BadAnswer`].
    pub why_bad_answer: u64,
    /// The operation, so that a dump says what each entry is.
    pub op: Op,
}

/// Declares [`ServerCounters`] once: the struct, its field names and its descriptions feed every output.
macro_rules! server_counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// What the server did on one hardware queue since the device was made. Only ever grows.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct ServerCounters {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl ServerCounters {
            /// Each counter's name and description, in the order of the struct.
            pub const FIELDS: &'static [(&'static str, &'static str)] =
                &[$((stringify!($name), concat!($($doc),+)),)+];

            /// The values, in the order of [`Self::FIELDS`].
            #[must_use]
            pub const fn values(&self) -> [u64; Self::FIELDS.len()] {
                [$(self.$name,)+]
            }

            /// Adds the counts of another queue.
            pub const fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)+
            }
        }
    };
}

server_counters! {
    /// Requests that arrived from the kernel.
    arrived,
    /// Requests completed with success.
    completed,
    /// Requests completed with an error.
    failed,
    /// Requests served between their own pages and the backing device.
    passthrough,
    /// Requests completed without I/O because the policy said so and nothing was lost by it.
    dropped,
    /// Requests served by the slow path.
    slow,
    /// Tags that came without a verdict: the classifier was not run for them.
    verdict_missing,
    /// Verdicts that were about another request than the descriptor's.
    verdict_stale,
    /// Verdicts that are none: a number out of range, or a hit without a cache.
    verdict_invalid,
    /// Drops that would have lost data, so the request was served in full.
    drop_refused,
    /// Requests whose pages could not be registered with the ring, served by copy.
    unregistered,
    /// Copies between a request's pages and the server's memory.
    user_copies,
    /// Bytes of these copies.
    user_copy_bytes,
    /// Backend reads and writes that came back short and were continued.
    short_io,
    /// Backend operations that failed.
    io_errors,
    /// Backend operations submitted.
    io_submitted,
    /// COMMIT commands submitted.
    commits,
    /// COMMIT commands that stopped early and were resubmitted behind the failing element.
    partial_commits,
    /// Elements that the kernel refused to commit.
    commit_refused,
    /// FETCH commands issued, the first ones included.
    fetches,
    /// Completions of FETCH that brought tags.
    fetch_batches,
    /// Times that the thread entered the kernel for its ring.
    enters,
}

const _: () = {
    assert!(size_of::<Request>() == 24);
    assert!(size_of::<VerdictSlot>() == 16);
    assert!(size_of::<Decisions>() == 12 * 8);
    assert!(size_of::<ServerCounters>() % 8 == 0);
};
