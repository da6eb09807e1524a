//! What a policy answers, and how the answer reaches the server.

use crate::Op;

numbered! {
    /// What the policy advises the server to do with a request. Advice: the server owns correctness.
    Verdict {
        /// The slot is empty: no advice for the tag's present request.
        None = 0, "none";
        /// Move the data between the request's own pages and the backing device.
        Passthrough = 1, "passthrough";
        /// The same with the cache device, if the block is there when the server looks; if not, as `Passthrough`.
        Hit = 2, "hit";
        /// Complete at once, without I/O, if nothing is lost by it.
        Drop = 3, "drop";
        /// Let the server look at it: the only path that copies data.
        Slow = 4, "slow";
    }
}

numbered! {
    /// Why a policy came to its verdict.
    Reason {
        /// The policy's ordinary answer.
        Default = 0, "default";
        /// A discard, which is advisory and may be dropped.
        Advisory = 1, "advisory";
        /// Every block of the range was never written and reads as zeroes.
        NeverWritten = 2, "never-written";
        /// The range was chosen to fail.
        FaultRange = 3, "fault-range";
        /// A reason of a user's own policy.
        User = 4, "user";
        /// The block is in the cache.
        Cached = 5, "cached";
        /// It is part of a long sequential run, which would fill the cache with what is not read again.
        Sequential = 6, "sequential";
        /// The policy's answer was none: not a verdict, or a reason outside this list.
        BadAnswer = 7, "bad-answer";
    }
}

numbered! {
    /// How long a block shall stay in the cache, given with [`hint::PROMOTE`].
    Priority {
        /// As its reads deserve.
        Normal = 0, "normal";
        /// The first to go.
        Low = 1, "low";
        /// Goes only where all others of its heat have gone.
        High = 2, "high";
        /// Stays as long as no more than three quarters of the cache ask for that.
        Pinned = 3, "pinned";
    }
}

/// What the policy answers, packed into the `u32` that [`POLICY_FUNCTION`](crate::POLICY_FUNCTION) returns:
/// verdict in bits 0..8, reason in bits 8..16, hints in bits 16..24, code in the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The advice.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// Bits of [`hint`].
    pub hints: u8,
    /// With [`Reason::User`]: a reason of the policy's own, which is counted in
    /// [`map::CODES`](crate::map::CODES). 0 with every other reason.
    pub code: u8,
}

/// What a policy asks for beside its verdict.
pub mod hint {
    /// With [`Verdict::Drop`](crate::Verdict::Drop): complete with an error (`EIO`), not with success.
    pub const FAIL: u8 = 1 << 0;
    /// Bring the request's block into the cache, behind the request. A block that is there gets the
    /// [`Priority`](crate::Priority) that comes with it.
    pub const PROMOTE: u8 = 1 << 1;
    /// The bits that hold a [`Priority`](crate::Priority).
    pub const PRIORITY: u8 = 3 << PRIORITY_SHIFT;
    /// Where they start.
    pub const PRIORITY_SHIFT: u8 = 2;
    /// Do not count this read in its block's heat.
    pub const COLD: u8 = 1 << 4;
    /// Every bit that means something.
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

    /// To the backing device, for no particular reason.
    #[must_use]
    pub const fn pass() -> Self {
        Self::new(Verdict::Passthrough, Reason::Default)
    }

    /// From the cache, because the block is there.
    #[must_use]
    pub const fn hit() -> Self {
        Self::new(Verdict::Hit, Reason::Cached)
    }

    /// A decision for a reason of the policy's own, which is counted under this number.
    #[must_use]
    pub const fn coded(verdict: Verdict, code: u8) -> Self {
        Self {
            code,
            ..Self::new(verdict, Reason::User)
        }
    }

    /// The decision with these [`hint`] bits, and those that it has.
    #[must_use]
    pub const fn with_hints(self, hints: u8) -> Self {
        Self {
            hints: self.hints | hints,
            ..self
        }
    }

    /// The decision, and the request's block is to come into the cache and to stay there like this.
    #[must_use]
    pub const fn promote(self, priority: Priority) -> Self {
        let others = self.hints & !hint::PRIORITY;
        Self {
            hints: others | hint::PROMOTE | (priority as u8) << hint::PRIORITY_SHIFT,
            ..self
        }
    }

    /// The decision, and this read is not to count in its block's heat.
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

    /// Whether this number is an answer that a policy may give: a verdict other than [`Verdict::None`], a
    /// reason other than [`Reason::BadAnswer`], known hints, and a code only with [`Reason::User`].
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

    /// What the classifier makes of a policy's answer that is none.
    pub const BAD_ANSWER: Self = Self::new(Verdict::Slow, Reason::BadAnswer);
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
        // A packed decision has the slot's first three bytes as the slot has them; its code is only counted.
        (packed & 0x00ff_ffff) as u64 | (op as u64) << 24 | (nr_sectors as u64) << 32
    }
}
