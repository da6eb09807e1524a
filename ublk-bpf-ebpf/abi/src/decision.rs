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
    /// How strongly to keep a block in the cache, set with [`hint::PROMOTE`] or [`hint::FILL`].
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

/// How much of its block a read that misses brings into the cache, set in [`hint::FILL`]. It is counted in regions,
/// sixteenths of a block. The server reads no more than this from the backing device, and less where a part is cached
/// already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Extent {
    /// The regions that the request touches.
    Request = 1,
    /// The aligned quarters of the block that the request touches.
    Around = 2,
    /// The whole block.
    Block = 3,
}

impl Extent {
    /// The extent with this number; 0 stands for no fill.
    #[must_use]
    #[inline(always)]
    pub const fn parse(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Request),
            2 => Some(Self::Around),
            3 => Some(Self::Block),
            _ => None,
        }
    }

    /// The regions that a fill of this extent covers for a request that touches `regions`, one bit each.
    #[must_use]
    pub const fn cover(self, regions: u16) -> u16 {
        match self {
            Self::Request => regions,
            Self::Around => {
                // One bit for each quarter, in its lowest region, then spread over its four regions.
                let pairs = regions | regions >> 1;
                let quarters = (pairs | pairs >> 2) & 0x1111;
                quarters * 0xf
            }
            Self::Block => u16::MAX,
        }
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
    /// The bits that hold an [`Extent`](crate::Extent), or 0: bring that much of the block into the cache with this
    /// read, from the same read of the backing device. Where that is not possible, it has the effect of [`PROMOTE`].
    pub const FILL: u8 = 3 << FILL_SHIFT;
    /// Lowest bit of [`FILL`].
    pub const FILL_SHIFT: u8 = 5;
    /// All defined bits.
    pub const ALL: u8 = FAIL | PROMOTE | PRIORITY | COLD | FILL;
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

    /// Also promotes the request's block into the cache after the request, with this priority.
    #[must_use]
    pub const fn promote(self, priority: Priority) -> Self {
        let others = self.hints & !hint::PRIORITY;
        Self {
            hints: others | hint::PROMOTE | (priority as u8) << hint::PRIORITY_SHIFT,
            ..self
        }
    }

    /// Also serves this read through the cache: what is cached comes from there, and what is not is read from the
    /// backing device once, for the request and, with the rest of `extent`, for the cache. The block gets this priority.
    ///
    /// Replaces [`promote`](Self::promote), which it falls back to if the server has no room for the fill. It has no
    /// effect on operations other than reads.
    #[must_use]
    pub const fn fill(self, extent: Extent, priority: Priority) -> Self {
        let others = self.hints & !(hint::FILL | hint::PRIORITY | hint::PROMOTE);
        Self {
            hints: others | (extent as u8) << hint::FILL_SHIFT | (priority as u8) << hint::PRIORITY_SHIFT,
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

    /// The decision that this number packs, if each of its parts is defined: [`Self::BAD_ANSWER`] too.
    #[must_use]
    pub const fn unpack(packed: u32) -> Option<Self> {
        let [verdict, reason, hints, code] = packed.to_le_bytes();
        match (Verdict::parse(verdict), Reason::parse(reason)) {
            (Some(verdict), Some(reason)) if hints & !hint::ALL == 0 => Some(Self {
                verdict,
                reason,
                hints,
                code,
            }),
            _ => None,
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extent_covers_the_regions_or_quarters_of_a_request() {
        assert_eq!(Extent::Request.cover(0b0110), 0b0110);
        assert_eq!(Extent::Around.cover(0b0110), 0x000f);
        assert_eq!(Extent::Around.cover(0b0001_1000), 0x00ff);
        assert_eq!(Extent::Around.cover(1 << 15), 0xf000);
        assert_eq!(Extent::Block.cover(1), u16::MAX);
        for bit in 0..16 {
            assert_eq!(Extent::Around.cover(1 << bit), 0xf << (bit & !3));
        }
    }

    #[test]
    fn a_fill_takes_the_place_of_a_promotion() {
        let fill = Decision::pass()
            .promote(Priority::Pinned)
            .fill(Extent::Around, Priority::Low)
            .cold();
        assert_eq!(fill.hints & hint::PROMOTE, 0);
        assert_eq!(
            Extent::parse((fill.hints & hint::FILL) >> hint::FILL_SHIFT),
            Some(Extent::Around)
        );
        assert_eq!(
            (fill.hints & hint::PRIORITY) >> hint::PRIORITY_SHIFT,
            Priority::Low as u8
        );
        assert!(Decision::is_answer(fill.pack()));
        assert!(!Decision::is_answer(fill.with_hints(1 << 7).pack()));
        assert_eq!(Extent::parse(0), None);
        assert_eq!(Decision::unpack(fill.pack()), Some(fill));
        assert_eq!(Decision::unpack(fill.with_hints(1 << 7).pack()), None);
        assert_eq!(
            Decision::unpack(Decision::BAD_ANSWER.pack()),
            Some(Decision::BAD_ANSWER)
        );
    }
}
