//! A taken verdict, checked against the request that it claims to be about.

use ublk_bpf_abi::{Decision, Delay, Extent, Op, Priority, Reason, TakenVerdict, Verdict, VerdictSlot, hint};

use super::event::Arrival;
use crate::cache::Mode;

/// What the policy advises, if it is advice at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Advice {
    Passthrough,
    /// From the cache device, if the block is there.
    Hit,
    /// Complete without I/O; with an error if `fail`.
    Drop {
        fail: bool,
    },
    Slow,
}

/// What a verdict comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Advised {
    pub(super) advice: Advice,
    /// Bring the block into the cache, to stay like this.
    pub(super) promote: Option<Priority>,
    /// Do it with this read, as far as possible. Only with `promote`.
    pub(super) fill: Option<Extent>,
    /// Where it ends, if it is a write.
    pub(super) mode: Option<Mode>,
    /// To whom what it brings into the cache is accounted; 0: no tenant.
    pub(super) tenant: u8,
    /// How long it is kept before it is served.
    pub(super) delay: Delay,
}

impl Advised {
    /// No more than this.
    pub(super) const fn only(advice: Advice) -> Self {
        Self {
            advice,
            promote: None,
            fill: None,
            mode: None,
            tenant: 0,
            delay: Delay::NONE,
        }
    }
}

/// Why a taken verdict is no advice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoAdvice {
    /// The slot was empty: the classifier did not run for this request.
    Missing,
    /// It is about another request, such as the tag's previous one.
    Stale,
    /// No classifier of this version writes it, or it is a hit and there is no cache.
    Invalid,
}

/// Whether `taken` is the most frequent verdict for the `op` of `arrival`: a plain passthrough. [`check`] agrees, after more
/// checks.
#[inline(always)]
pub(super) fn is_plain_passthrough(taken: TakenVerdict, op: Op, arrival: &Arrival) -> bool {
    is_plain::<{ Decision::new(Verdict::Passthrough, Reason::Default).pack() }>(taken, op, arrival)
}

/// The same of a read that the policy found in the cache.
#[inline(always)]
pub(super) fn is_plain_hit(taken: TakenVerdict, arrival: &Arrival) -> bool {
    is_plain::<{ Decision::new(Verdict::Hit, Reason::Cached).pack() }>(taken, Op::Read, arrival)
}

/// Where the write of `arrival` ends, if that is all that the policy says of it, with whatever reason. [`check`] agrees, after
/// more checks.
#[inline(always)]
pub(super) fn plain_write(taken: TakenVerdict, arrival: &Arrival) -> Option<Mode> {
    const WRITE: u64 = (hint::WRITE as u64) << 16;
    // Every number that fits is a reason.
    const OPEN: u64 = (Reason::COUNT as u64 - 1) << 8 | (hint::FILL as u64) << 16;
    const _: () = assert!(Reason::COUNT.is_power_of_two());
    let plain = VerdictSlot::head(
        Verdict::Passthrough as u64 | WRITE,
        Op::Write as u32,
        arrival.nr_sectors,
    );
    let is_about_this = taken.head & !OPEN == plain && is_all_about(taken, arrival);
    is_about_this.then(|| mode(taken.head.to_le_bytes()[2])).flatten()
}

/// Where a write ends that has these hints, if they say so.
#[inline(always)]
fn mode(hints: u8) -> Option<Mode> {
    hint::write_mode(hints).map(Mode::from)
}

#[inline(always)]
fn is_plain<const DECISION: u64>(taken: TakenVerdict, op: Op, arrival: &Arrival) -> bool {
    taken.head == VerdictSlot::head(DECISION, op as u32, arrival.nr_sectors) && is_all_about(taken, arrival)
}

/// Whether the slot names the sector of `arrival`, and neither a tenant nor a delay.
#[inline(always)]
fn is_all_about(taken: TakenVerdict, arrival: &Arrival) -> bool {
    taken.place == VerdictSlot::place(0, arrival.start_sector)
}

/// The advice in `taken` for the request of `arrival`, which is an `op`. `has_cache`: the device has one.
#[inline]
pub(super) fn check(
    taken: TakenVerdict,
    op: Op,
    arrival: &Arrival,
    has_cache: bool,
) -> Result<Advised, NoAdvice> {
    // All but the decision itself in one comparison.
    let about_this = VerdictSlot::head(0, op as u32, arrival.nr_sectors);
    if (taken.head ^ about_this) >> DECISION_BITS != 0 || !taken.is_at(arrival.start_sector) {
        return Err(why_not(taken.head));
    }
    let advised = decision(taken.head, has_cache)?;
    Ok(Advised {
        tenant: taken.tenant(),
        delay: taken.delay(),
        ..advised
    })
}

/// Bits of a slot's head that hold the decision: verdict, reason and hints. The rest says what it is about.
const DECISION_BITS: u32 = 24;

/// The decision in a slot's head.
#[inline]
fn decision(head: u64, has_cache: bool) -> Result<Advised, NoAdvice> {
    let [verdict, reason, hints, ..] = head.to_le_bytes();
    if Reason::parse(reason).is_none() || !hint::is_defined(hints) {
        return Err(why_not(head));
    }
    let advice = match Verdict::parse(verdict) {
        Some(Verdict::Passthrough) => Advice::Passthrough,
        Some(Verdict::Hit) if has_cache => Advice::Hit,
        Some(Verdict::Drop) => Advice::Drop {
            fail: hints & hint::FAIL != 0,
        },
        Some(Verdict::Slow) => Advice::Slow,
        Some(Verdict::None | Verdict::Hit) | None => return Err(why_not(head)),
    };
    let mut advised = Advised::only(advice);
    if has_cache {
        if hint::caches(hints) {
            advised.promote = Some(hint::priority(hints));
        }
        advised.fill = hint::extent(hints);
        advised.mode = mode(hints);
    }
    Ok(advised)
}

/// Why a head that is no advice for a request is none.
#[cold]
fn why_not(head: u64) -> NoAdvice {
    let [verdict, reason, hints, op, ..] = head.to_le_bytes();
    let decides = matches!(
        Verdict::parse(verdict),
        Some(Verdict::Passthrough | Verdict::Drop | Verdict::Slow)
    );
    if head == 0 {
        NoAdvice::Missing
    } else if decides && Reason::parse(reason).is_some() && Op::parse(op).is_some() && hint::is_defined(hints)
    {
        NoAdvice::Stale
    } else {
        NoAdvice::Invalid
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn taken(verdict: u8, reason: u8, op: u8, hints: u8, nr_sectors: u32, sector: u64) -> TakenVerdict {
        let [n0, n1, n2, n3] = nr_sectors.to_le_bytes();
        TakenVerdict {
            head: u64::from_le_bytes([verdict, reason, hints, op, n0, n1, n2, n3]),
            place: VerdictSlot::place(0, sector),
        }
    }

    fn checked(verdict: TakenVerdict) -> Result<Advice, NoAdvice> {
        let arrival = Arrival {
            tag: 3,
            op_flags: 0,
            nr_sectors: 8,
            start_sector: 64,
            verdict,
        };
        check(verdict, Op::Read, &arrival, false).map(|advised| advised.advice)
    }

    #[test]
    fn advice_about_this_request_is_taken() {
        assert_eq!(checked(taken(1, 0, 0, 0, 8, 64)), Ok(Advice::Passthrough));
        assert_eq!(
            checked(taken(3, 2, 0, 0, 8, 64)),
            Ok(Advice::Drop { fail: false })
        );
        assert_eq!(
            checked(taken(3, 3, 0, hint::FAIL, 8, 64)),
            Ok(Advice::Drop { fail: true })
        );
        assert_eq!(checked(taken(4, 0, 0, 0, 8, 64)), Ok(Advice::Slow));
    }

    #[test]
    fn a_cache_makes_hits_and_promotions_advice() {
        let arrival = Arrival {
            tag: 3,
            op_flags: 0,
            nr_sectors: 8,
            start_sector: 64,
            verdict: taken(0, 0, 0, 0, 0, 0),
        };
        let advised = |verdict: u8, hints: u8, has_cache| {
            check(taken(verdict, 0, 0, hints, 8, 64), Op::Read, &arrival, has_cache)
        };
        let high = Decision::new(Verdict::Passthrough, Reason::Default).promote(Priority::High);
        let of = |advice, promote| {
            Ok(Advised {
                promote,
                ..Advised::only(advice)
            })
        };
        assert_eq!(advised(2, 0, true), of(Advice::Hit, None));
        assert_eq!(
            advised(1, high.hints, true),
            of(Advice::Passthrough, Some(Priority::High))
        );
        assert_eq!(advised(1, high.hints, false), of(Advice::Passthrough, None));
        assert_eq!(advised(2, 0, false), Err(NoAdvice::Invalid));
        let fill = Decision::pass().fill(Extent::Around, Priority::Low);
        assert_eq!(
            advised(1, fill.hints, true),
            Ok(Advised {
                advice: Advice::Passthrough,
                promote: Some(Priority::Low),
                fill: Some(Extent::Around),
                ..Advised::only(Advice::Passthrough)
            })
        );
        assert_eq!(advised(1, fill.hints, false), of(Advice::Passthrough, None));
    }

    #[test]
    fn a_policy_may_say_where_a_write_ends() {
        let pass = Decision::new(Verdict::Passthrough, Reason::Sequential);
        for (decision, mode) in [
            (pass.back(), Mode::WriteBack),
            (pass.through(), Mode::WriteThrough),
            (pass.around(), Mode::WriteAround),
        ] {
            let head = |decision: Decision| VerdictSlot::head(decision.pack(), Op::Write as u32, 8);
            let arrival = |head, sector| Arrival {
                tag: 3,
                op_flags: 1,
                nr_sectors: 8,
                start_sector: 64,
                verdict: TakenVerdict {
                    head,
                    place: VerdictSlot::place(0, sector),
                },
            };
            let of = |arrival: &Arrival| {
                let advised = check(arrival.verdict, Op::Write, arrival, true).expect("it is advice");
                (advised.mode, advised.promote, advised.fill)
            };
            let plain = arrival(head(decision), 64);
            assert_eq!(of(&plain), (Some(mode), None, None));
            assert_eq!(plain_write(plain.verdict, &plain), Some(mode));
            let promoted = arrival(head(decision.promote(Priority::Low)), 64);
            assert_eq!(of(&promoted), (Some(mode), Some(Priority::Low), None));
            for other in [
                promoted,
                arrival(head(decision), 65),
                arrival(head(decision) + (1 << 32), 64),
                arrival(head(pass), 64),
                arrival(head(pass.fill(Extent::Around, Priority::Normal)), 64),
                arrival(head(pass.with_hints(hint::WRITE)), 64),
                arrival(head(Decision::coded(Verdict::Slow, 1).back()), 64),
            ] {
                assert_eq!(plain_write(other.verdict, &other), None, "{other:?}");
            }
        }
    }

    #[test]
    fn an_empty_slot_is_missing() {
        assert_eq!(checked(taken(0, 0, 0, 0, 0, 64)), Err(NoAdvice::Missing));
    }

    #[test]
    fn advice_about_another_request_is_stale() {
        for other in [
            taken(1, 0, 1, 0, 8, 64),
            taken(1, 0, 0, 0, 9, 64),
            taken(1, 0, 0, 0, 8, 65),
        ] {
            assert_eq!(checked(other), Err(NoAdvice::Stale));
        }
    }

    #[test]
    fn what_no_classifier_writes_is_invalid() {
        let bad = [
            taken(0, 1, 0, 0, 8, 64), // no verdict, but not empty
            taken(2, 0, 0, 0, 8, 64), // a hit without a cache
            taken(5, 0, 0, 0, 8, 64),
            taken(1, 8, 0, 0, 8, 64),
            taken(1, 0, 6, 0, 8, 64),
            taken(1, 0, 0, 1 << 7, 8, 64),
        ];
        for verdict in bad {
            assert_eq!(checked(verdict), Err(NoAdvice::Invalid));
        }
    }

    proptest! {
        /// What the short way takes for advice, the long one does too.
        #[test]
        fn a_plain_write_is_advice(head: u64, others in prop::bits::u64::masked(0xe7ff_ff00)) {
            let plain = VerdictSlot::head(Decision::pass().back().pack(), Op::Write as u32, 8);
            for head in [head, plain ^ others] {
                let verdict = TakenVerdict { head, place: VerdictSlot::place(0, 64) };
                let arrival = Arrival { tag: 3, op_flags: 1, nr_sectors: 8, start_sector: 64, verdict };
                if let Some(mode) = plain_write(verdict, &arrival) {
                    let advised = check(verdict, Op::Write, &arrival, true);
                    prop_assert_eq!(advised, Ok(Advised { mode: Some(mode), ..Advised::only(Advice::Passthrough) }));
                }
            }
        }

        /// Whatever is in the slot: advice comes only from one that names exactly this request.
        #[test]
        fn garbage_never_becomes_advice_for_another_request(head: u64, place: u64) {
            let verdict = TakenVerdict { head, place };
            if checked(verdict).is_ok() {
                prop_assert_eq!(place >> 16, 64);
                prop_assert_eq!(head >> 32, 8);
                prop_assert_eq!((head >> 24) & 0xff, 0);
            }
        }
    }
}
