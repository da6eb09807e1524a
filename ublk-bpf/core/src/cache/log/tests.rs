//! The log on a model of a device that loses power.

mod crash;
mod damage;
mod device;

use std::collections::BTreeMap;

use device::{Crash, Device};

use super::*;

const SLOTS: u32 = 600;
const BLOCKS: u64 = 900;
const SEAL: LogSeal = LogSeal {
    cache_id: [7; 16],
    log_id: 1,
};

/// The smallest log, behind two pages of others: three pages an area, and transactions of two blocks.
fn layout() -> LogLayout {
    LogLayout::new(8192, SLOTS, 0)
}

fn entry(slot: u32, block: u32, dirty: u16) -> LogEntry {
    LogEntry { slot, block, dirty }
}

/// Slot by slot, what a log is to say.
type State = BTreeMap<u32, LogEntry>;

fn dirty(state: &State) -> Vec<LogEntry> {
    state.values().copied().filter(|entry| entry.dirty != 0).collect()
}

/// A log with its device, used in the order that it asks for.
struct Running {
    device: Device,
    log: Log,
    state: State,
}

impl Running {
    fn new(mut device: Device, mut log: Log, state: State) -> Result<Self, (Device, Crash)> {
        let mut checkpoint = log.begin_checkpoint();
        let mut entries = dirty(&state).into_iter();
        let mut buffer = vec![0; LOG_PAGE];
        let written = (|| {
            while let Some(placed) = checkpoint.append(&mut entries, &mut buffer) {
                device.write(placed, &buffer)?;
            }
            device.flush()?;
            let placed = checkpoint.head(&mut buffer);
            device.write_durably(placed, &buffer)
        })();
        match written {
            Ok(()) => log.end_checkpoint(&checkpoint),
            Err(crash) => return Err((device, crash)),
        }
        Ok(Self { device, log, state })
    }

    fn empty() -> Self {
        Self::new(Device::new(&layout()), Log::new(layout(), SEAL), State::new())
            .unwrap_or_else(|_| unreachable!())
    }

    fn append(&mut self, entries: &[LogEntry]) {
        let mut buffer = vec![0; LOG_BUFFER];
        let placed = self.log.append(entries, &mut buffer).unwrap();
        self.device.write_durably(placed, &buffer).unwrap();
        self.state
            .extend(entries.iter().map(|&entry| (entry.slot, entry)));
    }

    fn checkpoint(&mut self) {
        let mut checkpoint = self.log.begin_checkpoint();
        let mut entries = dirty(&self.state).into_iter();
        let mut buffer = vec![0; LOG_PAGE];
        while let Some(placed) = checkpoint.append(&mut entries, &mut buffer) {
            self.device.write(placed, &buffer).unwrap();
        }
        self.device.flush().unwrap();
        let placed = checkpoint.head(&mut buffer);
        self.device.write_durably(placed, &buffer).unwrap();
        self.log.end_checkpoint(&checkpoint);
    }

    fn replay(&mut self) -> Result<Vec<LogEntry>, String> {
        let replayed = replay(&mut self.device, &layout(), &SEAL, BLOCKS);
        replayed
            .map(|found| found.dirty)
            .map_err(|error| error.to_string())
    }

    fn assert_replays(&mut self) {
        assert_eq!(self.replay().unwrap(), dirty(&self.state));
    }
}

/// Entries of so many slots from this one on, each with the block of its number.
fn slots(from: u32, count: u32, dirty: u16) -> Vec<LogEntry> {
    (from..from + count)
        .map(|slot| entry(slot, slot, dirty))
        .collect()
}

#[test]
fn an_empty_log_says_that_nothing_is_dirty() {
    assert_eq!(Running::empty().replay().unwrap(), []);
}

#[test]
fn the_last_entry_of_a_slot_counts() {
    let mut running = Running::empty();
    running.append(&slots(0, 3, 0x8001));
    running.append(&[entry(1, 1, 0), entry(2, 2, 0xffff)]);
    running.append(&[entry(1, 899, 4)]);
    assert_eq!(
        running.replay().unwrap(),
        [entry(0, 0, 0x8001), entry(1, 899, 4), entry(2, 2, 0xffff)]
    );
}

#[test]
fn a_transaction_has_as_many_entries_as_it_says() {
    let mut running = Running::empty();
    assert_eq!(running.log.max_entries(), 504);
    for count in [1, 251, 252, 253, 504] {
        running.append(&slots(600 - count, count, 1));
        running.assert_replays();
        running.checkpoint();
    }
    let large = Log::new(LogLayout::new(0, 1 << 20, 16 << 10), SEAL);
    assert_eq!(large.max_entries(), 64 * 252);
}

#[test]
fn a_full_log_goes_on_after_a_checkpoint() {
    let mut running = Running::empty();
    let mut buffer = vec![0; LOG_BUFFER];
    for nth in 0..8 {
        assert_eq!(running.log.is_half_full(), nth > 4);
        running.append(&slots(nth, 1, 1));
    }
    let one = slots(9, 1, 1);
    assert_eq!(running.log.append(&one, &mut buffer), Err(Full));
    running.assert_replays();
    running.checkpoint();
    assert!(!running.log.is_half_full());
    running.append(&one);
    running.assert_replays();
}

#[test]
fn a_checkpoint_makes_room_for_the_largest_transaction_wherever_it_is() {
    let mut running = Running::empty();
    for lap in 0..40 {
        running.append(&slots(lap, 1, 1));
        running.checkpoint();
        for _ in 0..2 {
            running.append(&slots(lap, 504, 3));
            running.checkpoint();
            running.assert_replays();
        }
    }
}

#[test]
fn what_does_not_fit_into_the_lap_goes_to_the_next() {
    let mut running = Running::empty();
    let mut buffer = vec![0; LOG_BUFFER];
    running.append(&slots(0, 504, 1));
    running.append(&slots(0, 504, 2));
    running.append(&slots(0, 504, 3));
    running.append(&slots(0, 1, 4));
    running.checkpoint();
    let placed = running.log.append(&slots(0, 504, 5), &mut buffer).unwrap();
    assert_eq!(placed.offset, layout().log_offset);
    running.device.write_durably(placed, &buffer).unwrap();
    running
        .state
        .extend(slots(0, 504, 5).into_iter().map(|entry| (entry.slot, entry)));
    running.assert_replays();
    running.append(&slots(7, 1, 0));
    running.assert_replays();
}

#[test]
fn a_slot_is_in_another_block_when_the_log_has_said_that_it_is_clean() {
    let mut running = Running::empty();
    running.append(&[entry(5, 70, 1)]);
    // The checkpoint finds the block in its first slot; then it moves to one that the checkpoint finds later.
    let mut checkpoint = running.log.begin_checkpoint();
    let mut buffer = vec![0; LOG_PAGE];
    let placed = checkpoint
        .append(&mut dirty(&running.state).into_iter(), &mut buffer)
        .unwrap();
    running.device.write_durably(placed, &buffer).unwrap();
    running.append(&[entry(5, 70, 0)]);
    running.append(&[entry(6, 70, 2)]);
    let rest = vec![entry(6, 70, 2)];
    let placed = checkpoint.append(&mut rest.into_iter(), &mut buffer).unwrap();
    running.device.write_durably(placed, &buffer).unwrap();
    let placed = checkpoint.head(&mut buffer);
    running.device.write_durably(placed, &buffer).unwrap();
    running.log.end_checkpoint(&checkpoint);
    assert_eq!(running.replay().unwrap(), [entry(6, 70, 2)]);
}

#[test]
fn a_checkpoint_that_failed_after_its_head_was_written_does_not_count() {
    let mut running = Running::empty();
    let mut buffer = vec![0; LOG_PAGE];
    running.append(&slots(0, 504, 1));
    let mut failed = running.log.begin_checkpoint();
    let mut entries = slots(0, 504, 1).into_iter();
    while let Some(placed) = failed.append(&mut entries, &mut buffer) {
        running.device.write_durably(placed, &buffer).unwrap();
    }
    let placed = failed.head(&mut buffer);
    running.device.write_durably(placed, &buffer).unwrap();
    running.assert_replays();
    // The next one has begun to overwrite it.
    running.append(&slots(0, 252, 0));
    let mut next = running.log.begin_checkpoint();
    let placed = next
        .append(&mut slots(252, 252, 1).into_iter(), &mut buffer)
        .unwrap();
    running.device.write_durably(placed, &buffer).unwrap();
    running.assert_replays();
}

#[test]
fn what_a_torn_transaction_left_does_not_complete_another() {
    let mut running = Running::empty();
    let mut buffer = vec![0; LOG_BUFFER];
    running.append(&slots(0, 1, 1));
    running.log.append(&slots(90, 504, 1), &mut buffer).unwrap();
    let second = Placed {
        offset: layout().log_page(2),
        length: LOG_PAGE,
    };
    running.device.write_durably(second, &buffer[LOG_PAGE..]).unwrap();
    let replayed = replay(&mut running.device, &layout(), &SEAL, BLOCKS).unwrap();
    assert_eq!(replayed.dirty, slots(0, 1, 1));
    let seal = LogSeal { log_id: 2, ..SEAL };
    let state = State::from([(0, entry(0, 0, 1))]);
    let next = Running::new(running.device, replayed.previous.successor(seal), state);
    let Ok(mut next) = next else { unreachable!() };
    next.append(&slots(0, 1, 1));
    // Of the same transaction in the new log only the first block comes to the device.
    next.log.append(&slots(90, 504, 2), &mut buffer).unwrap();
    let first = Placed {
        offset: layout().log_page(1),
        length: LOG_PAGE,
    };
    next.device.write_durably(first, &buffer).unwrap();
    let replayed = replay(&mut next.device, &layout(), &seal, BLOCKS).unwrap();
    assert_eq!(replayed.dirty, slots(0, 1, 1));
}

#[test]
fn a_start_leaves_all_that_the_log_before_needs() {
    let mut running = Running::empty();
    running.append(&slots(0, 300, 1));
    running.checkpoint();
    running.append(&slots(10, 1, 0));
    for log_id in 2..6 {
        let replayed = replay(&mut running.device, &layout(), &SEAL, BLOCKS).unwrap();
        let seal = LogSeal { log_id, ..SEAL };
        let next = Running::new(running.device, replayed.previous.successor(seal), running.state);
        let Ok(next) = next else { unreachable!() };
        // The superblock was not written.
        running = Running {
            log: running.log,
            ..next
        };
        running.assert_replays();
    }
}
