//! The machine, each path once. The simulator (`tests/sim`) combines them.

use std::sync::atomic::AtomicU64;

use ublk_bpf_abi::{TakenVerdict, VerdictSlot};

use super::*;
use crate::queue::{Capabilities, Io, Tier, UserCopy};

pub(super) const CONFIG: QueueConfig = QueueConfig {
    depth: 4,
    staging_buffers: 1,
    staging_bytes: 1024,
    fill_buffers: 2,
    capacity: 1 << 20,
    logical_block: 512,
    read_only: false,
    lossy: false,
    backing: Backing::Storage(Capabilities {
        volatile_cache: true,
        discard: true,
        write_zeroes: true,
    }),
};

pub(super) const READ: u32 = 0;
pub(super) const WRITE: u32 = 1;
pub(super) const FLUSH: u32 = 2;
const WRITE_ZEROES: u32 = 5;
const FUA: u32 = 1 << 13;
pub(super) const PASSTHROUGH: u64 = 1;
const DROP: u64 = 3;
pub(super) const SLOW: u64 = 4;

fn machine() -> Machine<'static> {
    let mut machine = Machine::new(&CONFIG, Written::untracked()).expect("a good config");
    assert_eq!(effects(&mut machine), [Effect::Prepare { batch: 0 }]);
    assert_eq!(machine.batch(0).len(), 4);
    machine.handle(Event::Idle);
    machine.handle(Event::Prepared(0));
    let fetches = [Effect::Fetch { fetch: 0 }, Effect::Fetch { fetch: 1 }];
    assert_eq!(effects(&mut machine), fetches);
    machine
}

pub(super) fn effects(machine: &mut Machine<'_>) -> Vec<Effect> {
    std::iter::from_fn(|| machine.poll_effect()).collect()
}

/// A request of `nr_sectors` at sector 8, with this verdict about it.
pub(super) fn arrive(machine: &mut Machine<'_>, tag: u16, op_flags: u32, nr_sectors: u32, verdict: u64) {
    let op = match op_flags & 0xff {
        WRITE_ZEROES => 4,
        op => op,
    };
    let head = if verdict == 0 {
        0
    } else {
        VerdictSlot::head(verdict, op, nr_sectors)
    };
    let verdict = TakenVerdict {
        head,
        place: VerdictSlot::place(0, 8),
    };
    machine.handle(Event::Arrived(Arrival {
        tag,
        op_flags,
        nr_sectors,
        start_sector: 8,
        verdict,
    }));
}

pub(super) fn done(machine: &mut Machine<'_>, tag: u16, result: i32) -> Vec<Effect> {
    machine.handle(Event::IoDone { tag, result });
    effects(machine)
}

/// What is committed next, as (tag, result).
pub(super) fn committed(machine: &mut Machine<'_>) -> Vec<(u16, i32)> {
    machine.handle(Event::Idle);
    let commit = effects(machine).into_iter().find_map(|effect| match effect {
        Effect::Commit { batch, from } => Some((batch, from)),
        _ => None,
    });
    let Some((batch, from)) = commit else {
        return Vec::new();
    };
    let elements = &machine.batch(batch)[usize::from(from)..];
    let results: Vec<_> = elements
        .iter()
        .map(|element| (element.tag, element.result))
        .collect();
    let bytes = i32::try_from(results.len() * 8).expect("few");
    machine.handle(Event::Committed { batch, result: bytes });
    results
}

fn io(tag: u16, io: Io) -> Vec<Effect> {
    vec![Effect::Io { tag, io }]
}

fn read(offset: u64, at: u32, len: u32) -> Io {
    let from = Tier::Backing;
    Io::Read {
        from,
        offset,
        at,
        len,
    }
}

#[test]
fn passthrough_is_one_operation_and_no_copy() {
    let mut machine = machine();
    arrive(&mut machine, 2, READ, 8, PASSTHROUGH);
    assert_eq!(effects(&mut machine), io(2, read(4096, 0, 4096)));
    assert_eq!(done(&mut machine, 2, 4096), []);
    assert_eq!(committed(&mut machine), [(2, 4096)]);
    let counters = machine.counters();
    assert_eq!(
        (counters.passthrough, counters.completed, counters.io_submitted),
        (1, 1, 1)
    );
    assert_eq!((counters.user_copies, counters.commits, counters.slow), (0, 1, 0));
}

#[test]
fn a_short_read_goes_on_at_a_block() {
    let mut machine = machine();
    arrive(&mut machine, 0, READ, 8, PASSTHROUGH);
    effects(&mut machine);
    assert_eq!(done(&mut machine, 0, 1000), io(0, read(4608, 512, 3584)));
    assert_eq!(done(&mut machine, 0, 3584), []);
    assert_eq!(committed(&mut machine), [(0, 4096)]);
    assert_eq!(machine.counters().short_io, 1);
}

#[test]
fn the_end_of_the_backing_and_a_claim_of_too_much_are_errors() {
    for result in [0, 4097, i32::MAX, -5] {
        let mut machine = machine();
        arrive(&mut machine, 0, READ, 8, PASSTHROUGH);
        effects(&mut machine);
        assert_eq!(done(&mut machine, 0, result), [], "{result}");
        assert_eq!(committed(&mut machine), [(0, -5)], "{result}");
        assert_eq!(machine.counters().io_errors, 1);
    }
}

#[test]
fn trying_again_ends() {
    let mut machine = machine();
    arrive(&mut machine, 0, WRITE | FUA, 1, PASSTHROUGH);
    let write = Io::Write {
        to: Tier::Backing,
        offset: 4096,
        at: 0,
        len: 512,
        durable: true,
    };
    assert_eq!(effects(&mut machine), io(0, write));
    let retries = (0..100)
        .take_while(|_| done(&mut machine, 0, -11) == io(0, write))
        .count();
    assert_eq!(retries, 16);
    assert_eq!(committed(&mut machine), [(0, -5)], "EAGAIN is not for the client");
}

#[test]
fn the_slow_path_copies_chunk_by_chunk() {
    let mut machine = machine();
    arrive(&mut machine, 1, WRITE, 3, SLOW);
    let staging = Staging(0);
    let copy_in = |skip, at, len| {
        Io::Copy(UserCopy::In {
            staging,
            skip,
            at,
            len,
        })
    };
    let store = |offset, len| Io::Store {
        to: Tier::Backing,
        offset,
        staging,
        skip: 0,
        len,
        durable: false,
    };
    assert_eq!(effects(&mut machine), io(1, copy_in(0, 0, 1024)));
    assert_eq!(done(&mut machine, 1, 1000), io(1, copy_in(1000, 1000, 24)));
    assert_eq!(done(&mut machine, 1, 24), io(1, store(4096, 1024)));
    assert_eq!(done(&mut machine, 1, 1024), io(1, copy_in(0, 1024, 512)));
    assert_eq!(done(&mut machine, 1, 512), io(1, store(5120, 512)));
    assert_eq!(done(&mut machine, 1, 512), []);
    assert_eq!(committed(&mut machine), [(1, 1536)]);
    let counters = machine.counters();
    assert_eq!(
        (counters.slow, counters.user_copies, counters.user_copy_bytes),
        (1, 3, 1536)
    );
}

#[test]
fn slow_requests_wait_for_a_buffer() {
    let mut machine = machine();
    arrive(&mut machine, 0, READ, 1, SLOW);
    arrive(&mut machine, 1, READ, 1, 0);
    assert_eq!(effects(&mut machine).len(), 1);
    assert_eq!(machine.counters().verdict_missing, 1);
    done(&mut machine, 0, 512);
    let Some(Effect::Io { tag: 1, .. }) = done(&mut machine, 0, 512).pop() else {
        panic!("the waiter has the buffer now")
    };
}

#[test]
fn a_read_may_be_dropped_only_where_it_is_zeroes() {
    let words = [AtomicU64::new(0)];
    let mut machine = Machine::new(&CONFIG, Written::new(&words, 12)).expect("a good config");
    machine.handle(Event::Prepared(0));
    effects(&mut machine);
    arrive(&mut machine, 0, READ, 8, DROP);
    assert_eq!(effects(&mut machine), io(0, Io::Zero { at: 0, len: 4096 }));
    arrive(&mut machine, 1, WRITE, 8, DROP);
    assert_eq!(
        effects(&mut machine).len(),
        1,
        "a write is not dropped, and marks its block"
    );
    arrive(&mut machine, 2, READ, 8, DROP);
    assert_eq!(effects(&mut machine), io(2, read(4096, 0, 4096)));
    assert_eq!(
        (machine.counters().dropped, machine.counters().drop_refused),
        (1, 2)
    );
}

#[test]
fn requests_without_data_succeed_with_zero() {
    let mut machine = machine();
    let device = Tier::Backing;
    arrive(&mut machine, 0, FLUSH, 0, PASSTHROUGH);
    assert_eq!(effects(&mut machine), io(0, Io::Flush { device }));
    done(&mut machine, 0, 0);
    arrive(&mut machine, 1, WRITE_ZEROES | FUA, 8, PASSTHROUGH);
    effects(&mut machine);
    assert_eq!(
        done(&mut machine, 1, 0),
        io(1, Io::Flush { device }),
        "durable zeroes"
    );
    done(&mut machine, 1, 0);
    assert_eq!(committed(&mut machine), [(0, 0), (1, 0)]);
}

#[test]
fn what_the_device_does_not_serve_is_refused_without_io() {
    let mut machine = machine();
    arrive(&mut machine, 0, 13, 8, PASSTHROUGH);
    arrive(&mut machine, 1, READ, 0, PASSTHROUGH);
    assert_eq!(effects(&mut machine), []);
    assert_eq!(committed(&mut machine), [(0, -95), (1, -22)]);
}

#[test]
fn a_full_batch_is_committed_without_idling() {
    let mut machine = machine();
    (0..4).for_each(|tag| arrive(&mut machine, tag, 255, 8, 0));
    assert_eq!(effects(&mut machine), [Effect::Commit { batch: 1, from: 0 }]);
    // All four arrive again before the completion is seen, and are ready again.
    (0..4).for_each(|tag| arrive(&mut machine, tag, 255, 8, 0));
    assert_eq!(effects(&mut machine), []);
    machine.handle(Event::Committed { batch: 1, result: 32 });
    assert_eq!(effects(&mut machine), [Effect::Commit { batch: 0, from: 0 }]);
}

#[test]
fn a_partial_commit_goes_on_behind_the_refused_element() {
    let mut machine = machine();
    (0..4).for_each(|tag| arrive(&mut machine, tag, 255, 8, 0));
    effects(&mut machine);
    machine.handle(Event::Committed { batch: 1, result: 8 });
    assert_eq!(effects(&mut machine), [Effect::Commit { batch: 1, from: 2 }]);
    machine.handle(Event::Committed { batch: 1, result: 16 });
    let counters = machine.counters();
    assert_eq!(
        (
            counters.partial_commits,
            counters.commit_refused,
            counters.commits
        ),
        (1, 1, 2)
    );
    arrive(&mut machine, 1, 255, 8, 0);
}

#[test]
fn a_fetch_that_ended_is_issued_again() {
    let mut machine = machine();
    for result in [-105, 0, 8, -12] {
        machine.handle(Event::FetchEnded { fetch: 1, result });
        assert_eq!(effects(&mut machine), [Effect::Fetch { fetch: 1 }], "{result}");
    }
    assert_eq!(machine.counters().fetches, 6);
}

#[test]
fn fetches_that_only_end_fail_the_queue() {
    for (result, most) in [(-12, 17), (-105, 1025)] {
        let mut machine = machine();
        for _ in 1..most {
            machine.handle(Event::FetchEnded { fetch: 0, result });
            assert_eq!(effects(&mut machine), [Effect::Fetch { fetch: 0 }]);
        }
        machine.handle(Event::FetchEnded { fetch: 0, result });
        let failure = QueueFailure::Fetch {
            fetch: 0,
            times: most,
            result,
        };
        assert_eq!(effects(&mut machine), [Effect::Failed(failure)]);
        machine.handle(Event::Idle);
        assert_eq!(effects(&mut machine), [Effect::Finished]);
    }
}

#[test]
fn a_cancelled_queue_serves_and_commits_what_it_has() {
    let mut machine = machine();
    arrive(&mut machine, 0, READ, 8, PASSTHROUGH);
    effects(&mut machine);
    machine.handle(Event::FetchEnded {
        fetch: 0,
        result: -19,
    });
    // The other FETCH is not cancelled yet, and brings another.
    arrive(&mut machine, 1, READ, 8, PASSTHROUGH);
    assert_eq!(effects(&mut machine).len(), 1);
    machine.handle(Event::Idle);
    assert_eq!(effects(&mut machine), []);
    done(&mut machine, 0, 4096);
    done(&mut machine, 1, 4096);
    assert_eq!(committed(&mut machine), [(0, 4096), (1, 4096)]);
    machine.handle(Event::Idle);
    machine.handle(Event::Idle);
    assert_eq!(effects(&mut machine), [Effect::Finished]);
}

#[test]
fn an_abandoned_queue_leaves_what_is_not_finished() {
    let mut machine = machine();
    arrive(&mut machine, 0, READ, 8, PASSTHROUGH);
    arrive(&mut machine, 1, READ, 1, SLOW);
    arrive(&mut machine, 2, READ, 1, SLOW);
    effects(&mut machine);
    machine.handle(Event::Abandon);
    arrive(&mut machine, 3, READ, 8, PASSTHROUGH);
    machine.handle(Event::Idle);
    assert_eq!(effects(&mut machine), [], "two operations are in flight");
    assert_eq!(
        done(&mut machine, 1, 512),
        [],
        "it was loaded, and is not copied out"
    );
    assert_eq!(done(&mut machine, 0, 4096), []);
    assert_eq!(committed(&mut machine), [(0, 4096)]);
    machine.handle(Event::Idle);
    assert_eq!(effects(&mut machine), [Effect::Finished]);
}

#[test]
fn a_refused_prep_fails_or_ends_the_queue() {
    for (result, failed) in [(-16, true), (-19, false)] {
        let mut machine = Machine::new(&CONFIG, Written::untracked()).expect("a good config");
        effects(&mut machine);
        machine.handle(Event::Prepared(result));
        machine.handle(Event::Idle);
        let effects = effects(&mut machine);
        assert_eq!(
            effects.contains(&Effect::Failed(QueueFailure::Prepare(Errno::EBUSY))),
            failed
        );
        assert_eq!(effects.last(), Some(&Effect::Finished));
    }
}

#[test]
fn a_commit_that_cannot_work_fails_the_queue() {
    let mut machine = machine();
    arrive(&mut machine, 0, 255, 8, 0);
    arrive(&mut machine, 1, READ, 8, PASSTHROUGH);
    machine.handle(Event::Idle);
    assert_eq!(effects(&mut machine).len(), 2);
    machine.handle(Event::Committed {
        batch: 1,
        result: -22,
    });
    assert_eq!(
        effects(&mut machine),
        [Effect::Failed(QueueFailure::Commit(Errno::EINVAL))]
    );
    machine.handle(Event::Idle);
    assert_eq!(effects(&mut machine), [], "one operation is in flight");
    done(&mut machine, 1, 4096);
    machine.handle(Event::Idle);
    assert_eq!(effects(&mut machine), [Effect::Finished]);
}

#[test]
fn zeroes_that_cannot_unmap_are_written_in_place() {
    let mut machine = machine();
    arrive(&mut machine, 1, WRITE_ZEROES, 8, PASSTHROUGH);
    let zeroes = |keep_allocated| {
        let io = Io::WriteZeroes {
            device: Tier::Backing,
            offset: 4096,
            len: 4096,
            keep_allocated,
        };
        [Effect::Io { tag: 1, io }]
    };
    assert_eq!(effects(&mut machine), zeroes(false));
    assert_eq!(done(&mut machine, 1, -95), zeroes(true));
    assert_eq!(done(&mut machine, 1, -95), []);
    assert_eq!(committed(&mut machine), [(1, -95)]);
}
