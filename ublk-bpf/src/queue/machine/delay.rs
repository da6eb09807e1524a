//! Requests that the policy has the server keep for a while before it serves them.
//!
//! A request is kept in slices of time, each an operation of its tag: a device that is being stopped, or left to another
//! server, waits for no more than one.

use std::sync::atomic::{AtomicBool, Ordering};

use ublk_bpf_abi::Delay;

use super::{Action, Advised, Arrival, BlockRequest, InFlight, Io, Machine, Phase, Todo};

/// The longest slice, in microseconds.
const SLICE_MICROS: u32 = 100_000;

/// For a device that is not stopped as long as it has requests.
pub(super) static STAYS: AtomicBool = AtomicBool::new(false);

/// A request that is kept.
#[derive(Clone, Copy, Debug)]
struct Kept {
    arrival: Arrival,
    /// Microseconds after the present slice.
    left: u64,
}

/// The requests that are kept, by tag.
#[derive(Debug)]
pub(super) struct Delays(Box<[Option<Kept>]>);

impl Delays {
    /// For `depth` tags, none of which is kept.
    pub(super) fn new(depth: u16) -> Self {
        Self(vec![None; usize::from(depth)].into_boxed_slice())
    }

    pub(super) fn keep(&self, tag: u16) -> bool {
        self.0.get(usize::from(tag)).is_some_and(Option::is_some)
    }
}

impl<'w> Machine<'w> {
    /// The same machine, for a device that is about to be stopped once this is set: its requests are kept no longer. Call it
    /// before anything else.
    #[must_use]
    pub fn with_stopping(mut self, stopping: &'w AtomicBool) -> Self {
        self.stopping = stopping;
        self
    }

    /// How long a request that has arrived is kept, if it is. A flush is not: what it promises is promised to all.
    pub(super) fn delay_of(&self, request: &BlockRequest, advised: &Advised) -> Option<Delay> {
        let may = request.action != Action::Flush && !self.stopping.load(Ordering::Relaxed);
        (may && !advised.delay.is_none()).then_some(advised.delay)
    }

    /// Keeps a request that has arrived.
    #[cold]
    pub(super) fn keep(&mut self, arrival: &Arrival, delay: Delay) {
        self.counters.delayed += 1;
        self.counters.delay_micros += delay.micros();
        // It has no operation of its own yet: the tag's slot has what its previous request left.
        self.tags.expect_in_flight(arrival.tag).in_flight = InFlight::IDLE;
        self.delays.0[usize::from(arrival.tag)] = Some(Kept {
            arrival: Arrival {
                verdict: arrival.verdict.without_delay(),
                ..*arrival
            },
            left: delay.micros(),
        });
        self.todos.push(Todo::Delay(arrival.tag));
    }

    /// Keeps a request for the next slice of its delay.
    #[cold]
    pub(super) fn slice(&mut self, tag: u16) -> Io {
        let mut micros = 0;
        if let Some(kept) = &mut self.delays.0[usize::from(tag)] {
            micros = u32::try_from(kept.left).unwrap_or(SLICE_MICROS).min(SLICE_MICROS);
            kept.left -= u64::from(micros);
        }
        Io::Delay { micros }
    }

    /// If the tag's request is kept, a slice of its delay has ended. Returns whether it is.
    #[cold]
    pub(super) fn slice_done(&mut self, tag: u16) -> bool {
        let Some(kept) = self.delays.0[usize::from(tag)].take() else {
            return false;
        };
        if self.phase >= Phase::Abandoning {
            self.abandon_request(tag);
        } else if kept.left > 0 && !self.stopping.load(Ordering::Relaxed) {
            self.delays.0[usize::from(tag)] = Some(kept);
            self.todos.push(Todo::Delay(tag));
        } else {
            self.accept_slow(kept.arrival);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use ublk_bpf_abi::{Decision, TakenVerdict, VerdictSlot};

    use super::super::tests::{CONFIG, READ, committed, effects};
    use super::*;
    use crate::queue::{Effect, Event, Written};

    /// `ETIME`, as a timer ends.
    const TIME: i32 = -62;
    const FLUSH: u32 = 2;

    fn machine(stopping: &AtomicBool) -> Machine<'_> {
        let machine = Machine::new(&CONFIG, Written::untracked()).expect("a good config");
        let mut machine = machine.with_stopping(stopping);
        effects(&mut machine);
        machine.handle(Event::Prepared(0));
        effects(&mut machine);
        machine
    }

    fn arrive(machine: &mut Machine<'_>, op: u32, micros: u64) -> Vec<Effect> {
        let packed = Decision::pass().delayed(Delay::from_micros(micros)).pack();
        let (nr_sectors, sector) = if op == FLUSH { (0, 0) } else { (8, 16) };
        machine.handle(Event::Arrived(Arrival {
            tag: 0,
            op_flags: op,
            nr_sectors,
            start_sector: sector,
            verdict: TakenVerdict {
                head: VerdictSlot::head(packed, op, nr_sectors),
                place: VerdictSlot::place(packed, sector),
            },
        }));
        effects(machine)
    }

    fn done(machine: &mut Machine<'_>, result: i32) -> Vec<Effect> {
        machine.handle(Event::IoDone { tag: 0, result });
        effects(machine)
    }

    fn delay(micros: u32) -> Vec<Effect> {
        let io = Io::Delay { micros };
        vec![Effect::Io { tag: 0, io }]
    }

    fn read() -> Vec<Effect> {
        let (offset, at, len) = (8192, 0, 4096);
        let from = crate::queue::Tier::Backing;
        let io = Io::Read {
            from,
            offset,
            at,
            len,
        };
        vec![Effect::Io { tag: 0, io }]
    }

    #[test]
    fn a_request_is_served_after_its_delay_in_slices() {
        let stays = AtomicBool::new(false);
        let mut machine = machine(&stays);
        assert_eq!(arrive(&mut machine, READ, 212_992), delay(SLICE_MICROS));
        assert!(
            !machine.is_in_service(0),
            "it is no sample of how long requests are served"
        );
        assert_eq!(done(&mut machine, TIME), delay(SLICE_MICROS));
        assert_eq!(done(&mut machine, TIME), delay(12_992));
        assert_eq!(done(&mut machine, TIME), read());
        assert!(machine.is_in_service(0));
        assert_eq!(done(&mut machine, 4096), []);
        assert_eq!(committed(&mut machine), [(0, 4096)]);
        let counters = machine.counters();
        assert_eq!(
            (counters.delayed, counters.delay_micros, counters.passthrough),
            (1, 212_992, 1)
        );
    }

    #[test]
    fn a_device_that_is_stopped_waits_for_one_slice() {
        let stopping = AtomicBool::new(false);
        let mut machine = machine(&stopping);
        assert_eq!(arrive(&mut machine, READ, u64::MAX), delay(SLICE_MICROS));
        stopping.store(true, Ordering::Relaxed);
        assert_eq!(done(&mut machine, TIME), read());
        assert_eq!(done(&mut machine, 4096), []);
        assert_eq!(committed(&mut machine), [(0, 4096)]);
        assert_eq!(
            arrive(&mut machine, READ, u64::MAX),
            read(),
            "none is kept from now on"
        );
    }

    #[test]
    fn a_request_that_is_kept_is_left_to_the_next_server() {
        let stays = AtomicBool::new(false);
        let mut machine = machine(&stays);
        assert_eq!(arrive(&mut machine, READ, 300_000), delay(SLICE_MICROS));
        machine.handle(Event::Abandon);
        assert_eq!(effects(&mut machine), []);
        assert_eq!(done(&mut machine, TIME), []);
        machine.handle(Event::Idle);
        assert_eq!(effects(&mut machine), [Effect::Finished]);
    }

    #[test]
    fn a_flush_is_not_kept() {
        let stays = AtomicBool::new(false);
        let mut machine = machine(&stays);
        let flush = Io::Flush {
            device: crate::queue::Tier::Backing,
        };
        let io = vec![Effect::Io { tag: 0, io: flush }];
        assert_eq!(arrive(&mut machine, FLUSH, 300_000), io);
        assert_eq!(machine.counters().delayed, 0);
    }
}
