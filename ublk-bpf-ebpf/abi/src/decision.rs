//! A policy's decision, and how it reaches the server.

use crate::Op;

numbered! {
    /// What the policy advises the server to do with a request. The server owns correctness.
    Verdict {
        /// The slot is empty: there is no advice for this request.
        None = 0, "none";
        /// Move the data between the request's pages and the backing device.
        Passthrough = 1, "passthrough";
        /// Serve a read from the cache device if the block is still cached; otherwise as `Passthrough`.
        Hit = 2, "hit";
        /// Complete without I/O, if no data is lost.
        Drop = 3, "drop";
        /// Hand it to the server's slow path, the only one that copies data.
        Slow = 4, "slow";
    }
}

numbered! {
    /// Why a policy chose its verdict.
    Reason {
        /// The policy's default.
        Default = 0, "default";
        /// A discard is advisory and may be dropped.
        Advisory = 1, "advisory";
        /// No block of the range was ever written: it reads as zeroes.
        NeverWritten = 2, "never-written";
        /// The range is configured to fail.
        FaultRange = 3, "fault-range";
        /// A reason that the policy defines; see [`Decision::code`].
        User = 4, "user";
        /// The block is in the cache.
        Cached = 5, "cached";
        /// Part of a long sequential run, which would fill the cache with data that is not read again.
        Sequential = 6, "sequential";
        /// The policy returned an invalid decision.
        BadAnswer = 7, "bad-answer";
    }
}

numbered! {
    /// How strongly to keep a block in the cache, set with [`hint::PROMOTE`].
    Priority {
        /// Kept according to how often it is read.
        Normal = 0, "normal";
        /// Evicted first.
        Low = 1, "low";
        /// Evicted only after all other blocks of the same heat.
        High = 2, "high";
        /// Not evicted, as long as at most three quarters of the cache are pinned.
        Pinned = 3, "pinned";
    }
}

/// A policy's decision, packed into the `u32` that [`POLICY_FUNCTION`](crate::POLICY_FUNCTION) returns:
/// verdict in bits 0..8, reason in bits 8..16, hints in bits 16..24, code in the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The advice.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// Bits of [`hint`].
    pub hints: u8,
    /// With [`Reason::User`]: the policy's own reason, counted in [`map::CODES`](crate::map::CODES). 0 with every
    /// other reason.
    pub code: u8,
}

/// Requests to the server in addition to the verdict.
pub mod hint {
    /// With [`Verdict::Drop`](crate::Verdict::Drop): fail the request with `EIO`.
    pub const FAIL: u8 = 1 << 0;
    /// Promote the request's block into the cache after the request. A block that is already cached takes the new
    /// [`Priority`](crate::Priority).
    pub const PROMOTE: u8 = 1 << 1;
    /// The bits that hold a [`Priority`](crate::Priority).
    pub const PRIORITY: u8 = 3 << PRIORITY_SHIFT;
    /// Lowest bit of [`PRIORITY`].
    pub const PRIORITY_SHIFT: u8 = 2;
    /// Do not count this read in the block's heat.
    pub const COLD: u8 = 1 << 4;
    /// All defined bits.
    pub const ALL: u8 = FAIL | PROMOTE | PRIORITY | COLD;
}

impl Decision {
    /// A decision without hints.
    #[must_use]
    pub const fn new(verdict: Verdict, reason: Reason) -> Self {
        Self {
            verdict,
            reason,
            hints: 0,
            code: 0,
        }
    }

    /// Pass through to the backing device, with the default reason.
    #[must_use]
    pub const fn pass() -> Self {
        Self::new(Verdict::Passthrough, Reason::Default)
    }

    /// Serve from the cache, because the block is cached.
    #[must_use]
    pub const fn hit() -> Self {
        Self::new(Verdict::Hit, Reason::Cached)
    }

    /// A decision with the policy's own reason `code`, counted in [`map::CODES`](crate::map::CODES).
    #[must_use]
    pub const fn coded(verdict: Verdict, code: u8) -> Self {
        Self {
            code,
            ..Self::new(verdict, Reason::User)
        }
    }

    /// Adds these [`hint`] bits.
    #[must_use]
    pub const fn with_hints(self, hints: u8) -> Self {
        Self {
            hints: self.hints | hints,
            ..self
        }
    }

    /// Also promotes the request's block into the cache, with this priority.
    #[must_use]
    pub const fn promote(self, priority: Priority) -> Self {
        let others = self.hints & !hint::PRIORITY;
        Self {
            hints: others | hint::PROMOTE | (priority as u8) << hint::PRIORITY_SHIFT,
            ..self
        }
    }

    /// Also keeps this read out of the block's heat.
    #[must_use]
    pub const fn cold(self) -> Self {
        self.with_hints(hint::COLD)
    }

    /// The number that [`POLICY_FUNCTION`](crate::POLICY_FUNCTION) returns.
    #[must_use]
    #[inline(always)]
    pub const fn pack(self) -> u32 {
        self.verdict as u32 | (self.reason as u32) << 8 | (self.hints as u32) << 16 | (self.code as u32) << 24
    }

    /// Whether this is a valid packed decision: a verdict other than [`Verdict::None`], a reason other than
    /// [`Reason::BadAnswer`], only defined hints, and a code only with [`Reason::User`].
    #[must_use]
    #[inline(always)]
    pub const fn is_answer(packed: u32) -> bool {
        let verdict = packed & 0xff;
        let reason = (packed >> 8) & 0xff;
        verdict >= Verdict::Passthrough as u32
            && verdict <= Verdict::Slow as u32
            && reason < Reason::BadAnswer as u32
            && packed >> 16 & 0xff & !(hint::ALL as u32) == 0
            && (packed >> 24 == 0 || reason == Reason::User as u32)
    }

    /// What the classifier substitutes for an invalid decision.
    pub const BAD_ANSWER: Self = Self::new(Verdict::Slow, Reason::BadAnswer);
}

/// The classifier's verdict for one tag, which the server takes (reads and clears) when the tag arrives.
///
/// The server clears the first eight bytes, [`head`](Self::head): a slot is empty if its verdict is [`Verdict::None`].
/// `op`, `nr_sectors` and `sector` identify the request. The server compares them with the descriptor: the kernel
/// skips a BPF program that is already running on the CPU, and the slot may then hold the verdict for the tag's
/// previous request.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerdictSlot {
    /// The advice.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// Bits of [`hint`].
    pub hints: u8,
    /// The operation.
    pub op: Op,
    /// The request's length in sectors.
    pub nr_sectors: u32,
    /// The request's first sector.
    pub sector: u64,
}

impl VerdictSlot {
    /// The first eight bytes of a slot, little endian. `packed` is a [valid](Decision::is_answer) packed
    /// [`Decision`] and `op` an [`Op`].
    #[must_use]
    #[inline(always)]
    pub const fn head(packed: u32, op: u32, nr_sectors: u32) -> u64 {
        // The first three bytes of a packed decision are those of the slot; its code is not stored, only counted.
        (packed & 0x00ff_ffff) as u64 | (op as u64) << 24 | (nr_sectors as u64) << 32
    }
}

/// A tag's [`VerdictSlot`] as the server took it: raw, not yet parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TakenVerdict {
    /// The slot's first eight bytes, [`VerdictSlot::head`]. Zero: empty.
    pub head: u64,
    /// The slot's `sector`.
    pub sector: u64,
}
