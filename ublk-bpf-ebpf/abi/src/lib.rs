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
    /// Array of one [`FaultRange`](crate::FaultRange), owned by the policy `fault`.
    pub const FAULT_RANGE: &str = "fault_range";
}

/// The name of the classifier's read-only global of type [`Config`].
pub const CONFIG_GLOBAL: &str = "CONFIG";

/// What the classifier is told when it is loaded, as one read-only global that the kernel freezes.
///
/// The verifier knows the values of a frozen map, so an offset read from here is a constant to it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// First 16 bytes of the disk's name (`gendisk.disk_name`), zero padded.
    pub disk_name: [u64; 2],
    /// [`ABI_VERSION`] of the loader.
    pub abi_version: u32,
    /// Tags in a hardware queue.
    pub depth: u32,
    /// Block size of [`map::WRITTEN`] as a power of two, in bytes; 0: the map says nothing.
    pub written_shift: u32,
    /// `req_flag_bits` of the running kernel, as masks, in the order of [`request_flags`]' first bits.
    pub flag_masks: [u32; request_flags::FROM_KERNEL],
    /// All of `flag_masks`.
    pub any_flag: u32,
    /// Where the running kernel's structures have what the classifier reads.
    pub offsets: Offsets,
    /// Zero; fills the last word.
    pub reserved: u32,
}

/// Byte offsets of structure members, resolved from the running kernel's BTF.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    /// `request.q`
    pub rq_q: u32,
    /// `request.mq_hctx`
    pub rq_mq_hctx: u32,
    /// `request.cmd_flags`
    pub rq_cmd_flags: u32,
    /// `request.tag`
    pub rq_tag: u32,
    /// `request.__data_len`
    pub rq_data_len: u32,
    /// `request.__sector`
    pub rq_sector: u32,
    /// `request_queue.disk`
    pub queue_disk: u32,
    /// `gendisk.disk_name`
    pub disk_name: u32,
    /// `blk_mq_hw_ctx.queue_num`
    pub hctx_queue_num: u32,
}

/// `REQ_OP_*` as the classifier knows them. The loader compares them with the running kernel's `enum req_op`.
pub mod req_op {
    /// `REQ_OP_READ`
    pub const READ: u32 = 0;
    /// `REQ_OP_WRITE`
    pub const WRITE: u32 = 1;
    /// `REQ_OP_FLUSH`
    pub const FLUSH: u32 = 2;
    /// `REQ_OP_DISCARD`
    pub const DISCARD: u32 = 3;
    /// `REQ_OP_WRITE_ZEROES`
    pub const WRITE_ZEROES: u32 = 9;
    /// The bits of `request.cmd_flags` that hold the operation (`REQ_OP_MASK`).
    pub const MASK: u32 = 0xff;
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

    /// The operation that the block layer calls by this number ([`req_op`]).
    #[must_use]
    #[inline(always)]
    pub const fn from_req_op(raw: u32) -> Self {
        match raw {
            req_op::READ => Self::Read,
            req_op::WRITE => Self::Write,
            req_op::FLUSH => Self::Flush,
            req_op::DISCARD => Self::Discard,
            req_op::WRITE_ZEROES => Self::WriteZeroes,
            _ => Self::Other,
        }
    }

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
    /// How many of the flags above come from the kernel, from bit 0 on.
    pub const FROM_KERNEL: usize = 6;
    /// Every block of the range is known by the server to read as zeroes ([`map::WRITTEN`](crate::map::WRITTEN)).
    /// Only ever set for reads.
    pub const NEVER_WRITTEN: u32 = 1 << 6;
}

/// A request as the policy sees it: the argument of [`POLICY_FUNCTION`].
///
/// The kernel matches a policy to the classifier by the shape of this type, so it is part of the interface.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// First sector (512 bytes). A flush has none: it is `u64::MAX` there.
    pub sector: u64,
    /// Length in sectors; 0 for a flush.
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

impl Request {
    /// The operation asked for.
    #[must_use]
    #[inline(always)]
    pub const fn op(&self) -> Op {
        match self.op {
            0 => Op::Read,
            1 => Op::Write,
            2 => Op::Flush,
            3 => Op::Discard,
            4 => Op::WriteZeroes,
            _ => Op::Other,
        }
    }

    /// Whether all of these bits of [`request_flags`] are set.
    #[must_use]
    #[inline(always)]
    pub const fn has(&self, flags: u32) -> bool {
        self.flags & flags == flags
    }

    /// Whether the request touches a sector of `first..=last`. A request without sectors touches none.
    #[must_use]
    #[inline(always)]
    pub const fn overlaps(&self, first: u64, last: u64) -> bool {
        if self.nr_sectors == 0 {
            return false;
        }
        let end = self.sector.saturating_add(self.nr_sectors as u64 - 1);
        self.sector <= last && first <= end
    }
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
    #[inline(always)]
    pub const fn pack(self) -> u32 {
        self.verdict as u32 | (self.reason as u32) << 8 | (self.hints as u32) << 16
    }

    /// Whether this number is an answer that a policy may give: a verdict other than [`Verdict::None`], a
    /// reason other than [`Reason::BadAnswer`], known hints, and nothing else.
    #[must_use]
    #[inline(always)]
    pub const fn is_answer(packed: u32) -> bool {
        let verdict = packed & 0xff;
        let reason = (packed >> 8) & 0xff;
        verdict >= Verdict::Passthrough as u32
            && verdict <= Verdict::Slow as u32
            && reason < Reason::BadAnswer as u32
            && packed >> 16 & !(hint::ALL as u32) == 0
    }

    /// What the classifier makes of a policy's answer that is none.
    pub const BAD_ANSWER: Self = Self::new(Verdict::Slow, Reason::BadAnswer);
}

/// Which requests the policy `fault` fails: those of the chosen operations that touch the range.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultRange {
    /// First sector of the range.
    pub first_sector: u64,
    /// Last sector of the range.
    pub last_sector: u64,
    /// Bit `op` set: requests of that [`Op`] fail. 0: none do.
    pub ops: u64,
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
    /// Bits of [`hint`].
    pub hints: u8,
    /// What the request asks for.
    pub op: Op,
    /// The request's length in sectors.
    pub nr_sectors: u32,
    /// The request's first sector.
    pub sector: u64,
}

impl VerdictSlot {
    /// The first eight bytes of a slot, little endian, of a packed [`Decision`] about a request. `packed` is an
    /// [answer](Decision::is_answer) and `op` an [`Op`].
    #[must_use]
    #[inline(always)]
    pub const fn head(packed: u32, op: u32, nr_sectors: u32) -> u64 {
        // A packed decision has the slot's first three bytes as the slot has them.
        packed as u64 | (op as u64) << 24 | (nr_sectors as u64) << 32
    }
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
    /// Sectors of all these requests.
    pub sectors: u64,
    /// The operation, so that a dump says what each entry is.
    pub op: Op,
}

impl Decisions {
    /// Index of the first reason's counter, in words: the verdicts stand before it, from [`Verdict::Passthrough`]
    /// on, and the reasons from here on in the order of their numbers.
    pub const FIRST_REASON: usize = Verdict::COUNT - 1;
    /// Index of `sectors`, in words.
    pub const SECTORS: usize = Self::FIRST_REASON + Reason::COUNT;
    /// How many words this type has, `op` included.
    pub const WORDS: usize = Self::SECTORS + 2;
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

            /// The counters with these values, in the order of [`Self::FIELDS`].
            #[must_use]
            pub const fn from_values(values: [u64; Self::FIELDS.len()]) -> Self {
                let [$($name,)+] = values;
                Self { $($name,)+ }
            }

            /// Adds the counts of another queue.
            pub const fn add(&mut self, other: &Self) {
                $(self.$name = self.$name.wrapping_add(other.$name);)+
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
    // No byte of `Config` is padding: it is handed over as bytes.
    assert!(size_of::<Config>() == 96);
    assert!(size_of::<Offsets>() == 9 * 4);
    assert!(size_of::<Request>() == 24);
    assert!(size_of::<VerdictSlot>() == 16);
    assert!(size_of::<Decisions>() == Decisions::WORDS * 8);
    assert!(size_of::<ServerCounters>().is_multiple_of(8));
    assert!(core::mem::offset_of!(VerdictSlot, sector) == 8);
    assert!(core::mem::offset_of!(Decisions, why_default) == 8 * Decisions::FIRST_REASON);
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
        assert_eq!(Reason::parse(6), None);
        assert_eq!(Verdict::parse(4), Some(Verdict::Slow));
        assert_eq!(Verdict::parse(5), None);
    }

    #[test]
    fn only_whole_answers_are_answers() {
        let drop = Decision::new(Verdict::Drop, Reason::Advisory);
        assert!(Decision::is_answer(drop.pack()));
        assert!(Decision::is_answer(drop.with_hints(hint::FAIL).pack()));
        assert!(!Decision::is_answer(drop.with_hints(2).pack()));
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
        let mut request = Request {
            sector: 8,
            nr_sectors: 8,
            flags: 0,
            op: 0,
            qid: 0,
            tag: 0,
        };
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
