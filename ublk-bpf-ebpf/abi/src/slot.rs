//! How a decision reaches the server: the slot of a request's tag.

#[cfg(doc)]
use crate::{Decision, hint};
use crate::{Delay, Op, Reason, Verdict};

/// The classifier's verdict for one tag, which the server takes (reads and clears) when the tag arrives.
///
/// The server clears the first eight bytes, [`head`](Self::head): a slot is empty if its verdict is [`Verdict::None`].
/// `op`, `nr_sectors` and the sector identify the request. The server compares them with the descriptor: the kernel
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
    /// To whom what the request brings into the cache is accounted; 0: no tenant.
    pub tenant: u8,
    /// How long the server keeps the request first, as a number: [`Delay::number`].
    pub delay: u8,
    /// The low 16 bits of the request's first sector.
    pub sector_low: u16,
    /// The next 32 bits.
    pub sector_high: u32,
}

impl VerdictSlot {
    /// The first eight bytes of a slot, little endian. `packed` is a [valid](Decision::is_answer) packed
    /// [`Decision`] and `op` an [`Op`].
    #[must_use]
    #[inline(always)]
    pub const fn head(packed: u64, op: u32, nr_sectors: u32) -> u64 {
        // The first three bytes of a packed decision are those of the slot; its code is not stored, only counted.
        (packed & 0x00ff_ffff) | (op as u64) << 24 | (nr_sectors as u64) << 32
    }

    /// The last eight bytes of a slot. Two sectors that are a multiple of 128 PiB apart have the same.
    #[must_use]
    #[inline(always)]
    pub const fn place(packed: u64, sector: u64) -> u64 {
        sector << 16 | packed >> 48
    }
}

/// A tag's [`VerdictSlot`] as the server took it: raw, not yet parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TakenVerdict {
    /// The slot's first eight bytes, [`VerdictSlot::head`]. Zero: empty.
    pub head: u64,
    /// Its last eight bytes, [`VerdictSlot::place`].
    pub place: u64,
}

impl TakenVerdict {
    /// Whether the slot names this sector.
    #[must_use]
    #[inline(always)]
    pub const fn is_at(self, sector: u64) -> bool {
        self.place >> 16 == sector << 16 >> 16
    }

    /// To whom what the request brings into the cache is accounted; 0: no tenant.
    #[must_use]
    #[inline(always)]
    pub const fn tenant(self) -> u8 {
        self.place.to_le_bytes()[0]
    }

    /// How long the request is to be kept.
    #[must_use]
    #[inline(always)]
    pub const fn delay(self) -> Delay {
        Delay::from_number(self.place.to_le_bytes()[1])
    }

    /// The same without a delay.
    #[must_use]
    pub const fn without_delay(self) -> Self {
        Self {
            place: self.place & !0xff00,
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Decision;

    #[test]
    fn a_slot_has_tenant_and_delay_beside_its_sector() {
        let delay = Delay::from_micros(5000);
        let decision = Decision::pass().owned_by(7).delayed(delay);
        assert_eq!(Decision::unpack(decision.pack()), Some(decision));
        assert!(Decision::is_answer(decision.pack()));
        let at = |sector| TakenVerdict {
            head: 1,
            place: VerdictSlot::place(decision.pack(), sector),
        };
        for sector in [0, 8, (1 << 48) - 1, u64::MAX] {
            let taken = at(sector);
            assert!(taken.is_at(sector) && !taken.is_at(sector ^ 1));
            assert_eq!((taken.tenant(), taken.delay()), (7, delay));
            assert_eq!(
                taken.without_delay().place,
                VerdictSlot::place(decision.delayed(Delay::NONE).pack(), sector)
            );
        }
        for bit in 32..48 {
            assert!(!Decision::is_answer(decision.pack() | 1 << bit));
            assert_eq!(Decision::unpack(decision.pack() | 1 << bit), None);
        }
    }
}
