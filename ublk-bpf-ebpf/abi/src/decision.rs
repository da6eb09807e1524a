//! A policy's decision.

use crate::{Delay, Op};

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

numbered! {
    /// Where a write ends on a device with a cache, set in [`hint::WRITE`]. It is advice: a write of what is dirty already
    /// goes to the slot, and where `Back` is not possible, it becomes `Through`.
    WriteMode {
        /// In the cache alone. The server writes it to the backing device later.
        Back = 1, "back";
        /// On the backing device, and in the cache as far as the block is there.
        Through = 2, "through";
        /// On the backing device alone. What the cache has of its range is no longer valid.
        Around = 3, "around";
    }
}

/// A policy's decision, packed into the `u64` that [`POLICY_FUNCTION`](crate::POLICY_FUNCTION) returns:
/// verdict in bits 0..8, reason in bits 8..16, hints in bits 16..24, code in bits 24..32, tenant in bits 48..56, delay in
/// bits 56..64. The others are zero.
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
    /// To whom the server accounts what the request brings into the cache, in [`map::USAGE`](crate::map::USAGE). 0: no
    /// tenant.
    pub tenant: u8,
    /// How long the server keeps the request before it serves it.
    pub delay: Delay,
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
    /// The bits of [`FILL`] hold a [`WriteMode`](crate::WriteMode) instead, which is not 0: where this write ends. Fills
    /// are for reads.
    pub const WRITE: u8 = 1 << 7;

    /// Whether the bits mean something: all do, but for [`WRITE`] without a mode.
    #[must_use]
    #[inline(always)]
    pub const fn is_defined(hints: u8) -> bool {
        hints & (WRITE | FILL) != WRITE
    }

    /// How strongly to keep a block that is brought into the cache.
    #[must_use]
    #[inline(always)]
    pub const fn priority(hints: u8) -> crate::Priority {
        match crate::Priority::parse((hints & PRIORITY) >> PRIORITY_SHIFT) {
            Some(priority) => priority,
            // Two bits are always one.
            None => crate::Priority::Normal,
        }
    }

    /// How much of its block a read fills, if it does.
    #[must_use]
    #[inline(always)]
    pub const fn extent(hints: u8) -> Option<crate::Extent> {
        if hints & WRITE != 0 {
            return None;
        }
        crate::Extent::parse((hints & FILL) >> FILL_SHIFT)
    }

    /// Where a write ends, if the policy says so.
    #[must_use]
    #[inline(always)]
    pub const fn write_mode(hints: u8) -> Option<crate::WriteMode> {
        if hints & WRITE == 0 {
            return None;
        }
        crate::WriteMode::parse((hints & FILL) >> FILL_SHIFT)
    }

    /// Whether the block is to be brought into the cache, by a promotion or a fill.
    #[must_use]
    #[inline(always)]
    pub const fn caches(hints: u8) -> bool {
        hints & PROMOTE != 0 || (hints & FILL != 0 && hints & WRITE == 0)
    }
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
            tenant: 0,
            delay: Delay::NONE,
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

    /// The same decision for the policy's own reason `code`, counted in [`map::CODES`](crate::map::CODES).
    #[must_use]
    pub fn because(self, code: impl Into<u8>) -> Self {
        Self {
            reason: Reason::User,
            code: code.into(),
            ..self
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
        let others = self.hints & !(hint::FILL | hint::WRITE | hint::PRIORITY | hint::PROMOTE);
        Self {
            hints: others | (extent as u8) << hint::FILL_SHIFT | (priority as u8) << hint::PRIORITY_SHIFT,
            ..self
        }
    }

    /// Also lets this write end in the cache alone: it is answered when the slot has it, and reaches the backing device
    /// later. Without write-back, or where the cache cannot take it, it goes [through](Self::through).
    ///
    /// This and the next two are for writes: they replace a [`fill`](Self::fill), and have no effect on other operations.
    /// A write whose decision has none of them ends as the cache's mode says.
    #[must_use]
    pub const fn back(self) -> Self {
        self.write(WriteMode::Back)
    }

    /// Also writes to the backing device, and to the cache what is cached of the block. See [`back`](Self::back).
    #[must_use]
    pub const fn through(self) -> Self {
        self.write(WriteMode::Through)
    }

    /// Also writes to the backing device alone; what was cached of the range no longer is. What is dirty goes to the cache
    /// nevertheless. See [`back`](Self::back).
    #[must_use]
    pub const fn around(self) -> Self {
        self.write(WriteMode::Around)
    }

    const fn write(self, mode: WriteMode) -> Self {
        let others = self.hints & !hint::FILL;
        Self {
            hints: others | hint::WRITE | (mode as u8) << hint::FILL_SHIFT,
            ..self
        }
    }

    /// Also keeps this read out of the block's heat.
    #[must_use]
    pub const fn cold(self) -> Self {
        self.with_hints(hint::COLD)
    }

    /// The same without bringing anything into the cache: no fill, no promotion, and a write, which `op` may be,
    /// goes around.
    #[must_use]
    pub const fn uncached(self, op: u32) -> Self {
        let without = hint::FILL | hint::PROMOTE | hint::PRIORITY | hint::WRITE;
        let plain = Self {
            hints: self.hints & !without,
            ..self
        };
        if op == Op::Write as u32 {
            plain.around()
        } else {
            plain
        }
    }

    /// Also has the server keep the request for so long before it serves it, as the rest of the decision says. The request
    /// keeps its tag meanwhile. A flush is not to be delayed: what it promises is promised to all.
    #[must_use]
    #[inline(always)]
    pub const fn delayed(self, delay: Delay) -> Self {
        Self { delay, ..self }
    }

    /// Also accounts to this tenant, 1 to 255, what the request brings into the cache.
    #[must_use]
    #[inline(always)]
    pub const fn owned_by(self, tenant: u8) -> Self {
        Self { tenant, ..self }
    }

    /// The number that [`POLICY_FUNCTION`](crate::POLICY_FUNCTION) returns.
    #[must_use]
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        self.verdict as u64
            | (self.reason as u64) << 8
            | (self.hints as u64) << 16
            | (self.code as u64) << 24
            | (self.tenant as u64) << 48
            | (self.delay.number() as u64) << 56
    }

    /// Whether this is a valid packed decision: a verdict other than [`Verdict::None`], a reason other than
    /// [`Reason::BadAnswer`], only defined hints, a code only with [`Reason::User`], and no bit set that has no meaning.
    #[must_use]
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the parts are taken from their bits"
    )]
    pub const fn is_answer(packed: u64) -> bool {
        let verdict = packed & 0xff;
        let reason = (packed >> 8) & 0xff;
        verdict >= Verdict::Passthrough as u64
            && verdict <= Verdict::Slow as u64
            && reason < Reason::BadAnswer as u64
            && hint::is_defined(packed.to_le_bytes()[2])
            && (packed as u32 >> 24 == 0 || reason == Reason::User as u64)
            && (packed >> 32) as u16 == 0
    }

    /// The decision that this number packs, if each of its parts is defined: [`Self::BAD_ANSWER`] too.
    #[must_use]
    pub const fn unpack(packed: u64) -> Option<Self> {
        let [verdict, reason, hints, code, 0, 0, tenant, delay] = packed.to_le_bytes() else {
            return None;
        };
        match (Verdict::parse(verdict), Reason::parse(reason)) {
            (Some(verdict), Some(reason)) if hint::is_defined(hints) => Some(Self {
                verdict,
                reason,
                hints,
                code,
                tenant,
                delay: Delay::from_number(delay),
            }),
            _ => None,
        }
    }

    /// What the classifier substitutes for an invalid decision.
    pub const BAD_ANSWER: Self = Self::new(Verdict::Slow, Reason::BadAnswer);
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
        let nothing = Decision::pass().with_hints(hint::WRITE).pack();
        assert!(!Decision::is_answer(nothing));
        assert_eq!(Extent::parse(0), None);
        assert_eq!(Decision::unpack(fill.pack()), Some(fill));
        assert_eq!(Decision::unpack(nothing), None);
        assert_eq!(
            Decision::unpack(Decision::BAD_ANSWER.pack()),
            Some(Decision::BAD_ANSWER)
        );
    }

    #[test]
    fn where_a_write_ends_takes_the_place_of_a_fill_alone() {
        let fill = Decision::pass().fill(Extent::Around, Priority::High);
        for (decision, mode) in [
            (fill.back(), WriteMode::Back),
            (fill.through(), WriteMode::Through),
            (fill.back().around(), WriteMode::Around),
        ] {
            assert_eq!(hint::write_mode(decision.hints), Some(mode));
            assert_eq!(hint::extent(decision.hints), None);
            assert!(!hint::caches(decision.hints));
            assert_eq!(
                decision.hints & hint::PRIORITY,
                fill.hints & hint::PRIORITY,
                "a promotion may follow"
            );
            assert!(hint::caches(decision.promote(Priority::Low).hints));
            assert!(Decision::is_answer(decision.pack()));
            assert_eq!(Decision::unpack(decision.pack()), Some(decision));
        }
        assert_eq!(fill.back().fill(Extent::Around, Priority::High), fill);
        assert_eq!(
            (hint::write_mode(fill.hints), hint::caches(fill.hints)),
            (None, true)
        );
        assert!(!hint::caches(0) && !hint::is_defined(hint::WRITE));
    }

    /// Objects that were built before writes had modes must mean the same as then.
    #[test]
    fn no_hints_of_before_name_a_mode() {
        for hints in 0..hint::WRITE {
            assert!(hint::is_defined(hints));
            assert_eq!(hint::write_mode(hints), None);
            assert_eq!(hint::extent(hints), Extent::parse(hints >> hint::FILL_SHIFT));
        }
    }
}
