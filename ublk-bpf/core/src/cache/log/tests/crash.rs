//! Power losses in the middle of everything, one after the other.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

/// A slot, a block and regions that somebody wants to be dirty.
type Wish = (u32, u32, u16);

#[derive(Clone, Debug)]
enum Op {
    Commit(Vec<Wish>),
    /// With commits between its blocks; the first one is in flight when it begins.
    Checkpoint(Vec<Vec<Wish>>),
}

/// What is done until the power is lost, in a step and with pages chosen by a seed.
#[derive(Clone, Debug)]
struct Session {
    ops: Vec<Op>,
    step: usize,
    seed: u64,
}

fn wishes() -> impl Strategy<Value = Vec<Wish>> {
    let wish = (0..SLOTS, 0..900_u32, prop_oneof![Just(0), any::<u16>()]);
    prop_oneof![
        prop::collection::vec(wish.clone(), 1..4),
        prop::collection::vec(wish, 1..504),
        // Runs of slots, so that checkpoints have several blocks.
        (0..SLOTS - 504, 1..504_u32, any::<u16>())
            .prop_map(|(from, count, dirty)| (from..from + count).map(|slot| (slot, slot, dirty)).collect()),
    ]
}

fn sessions() -> impl Strategy<Value = Vec<Session>> {
    let op = prop_oneof![
        4 => wishes().prop_map(Op::Commit),
        1 => prop::collection::vec(wishes(), 0..3).prop_map(Op::Checkpoint),
    ];
    let session = (prop::collection::vec(op, 0..24), 0..80_usize, any::<u64>());
    let session = session.prop_map(|(ops, step, seed)| Session { ops, step, seed });
    prop::collection::vec(session, 1..6)
}

/// What of the wishes the rules allow: a dirty slot keeps its block, and a block is dirty in one slot, until the log has said
/// that it is clean.
fn allowed(state: &State, wishes: &[Wish]) -> Vec<LogEntry> {
    let held = dirty(state);
    let blocks: HashMap<u32, u32> = held.iter().map(|entry| (entry.slot, entry.block)).collect();
    let mut owners: HashMap<u32, u32> = held.iter().map(|entry| (entry.block, entry.slot)).collect();
    let mut changed = BTreeMap::new();
    for &(slot, block, dirty) in wishes {
        let block = blocks.get(&slot).copied().unwrap_or(block);
        let owner = *owners.entry(block).or_insert(slot);
        let dirty = if owner == slot { dirty } else { 0 };
        changed.entry(slot).or_insert(entry(slot, block, dirty));
    }
    changed.into_values().collect()
}

/// What may be there after a crash: the state, or with what was in flight.
struct Expected {
    state: State,
    in_flight: Vec<LogEntry>,
}

struct Driver<'a> {
    running: &'a mut Running,
    in_flight: Vec<LogEntry>,
    buffer: Vec<u8>,
}

impl Driver<'_> {
    fn op(&mut self, op: &Op) -> Result<(), Crash> {
        match op {
            Op::Commit(wishes) => self.commit(wishes),
            Op::Checkpoint(between) => self.checkpoint(between),
        }
    }

    fn commit(&mut self, wishes: &[Wish]) -> Result<(), Crash> {
        let entries = allowed(&self.running.state, wishes);
        let placed = match self.running.log.append(&entries, &mut self.buffer) {
            Ok(placed) => placed,
            Err(Full) => {
                self.checkpoint(&[])?;
                self.running.log.append(&entries, &mut self.buffer).unwrap()
            }
        };
        self.finish(placed, entries)
    }

    fn finish(&mut self, placed: Placed, entries: Vec<LogEntry>) -> Result<(), Crash> {
        self.in_flight.clone_from(&entries);
        self.running.device.write_durably(placed, &self.buffer)?;
        self.in_flight.clear();
        self.running
            .state
            .extend(entries.into_iter().map(|entry| (entry.slot, entry)));
        Ok(())
    }

    fn checkpoint(&mut self, between: &[Vec<Wish>]) -> Result<(), Crash> {
        let mut commits = between.iter();
        let flying = commits.next().and_then(|wishes| {
            let entries = allowed(&self.running.state, wishes);
            let placed = self.running.log.append(&entries, &mut self.buffer).ok()?;
            Some((placed, entries))
        });
        let mut checkpoint = self.running.log.begin_checkpoint();
        // What is in flight is neither dirty nor clean: the log may say the one or the other.
        let mut logged = self.running.state.clone();
        for entry in flying.iter().flat_map(|(_, entries)| entries) {
            let dirty = logged.get(&entry.slot).map_or(0, |before| before.dirty);
            logged.insert(
                entry.slot,
                LogEntry {
                    dirty: entry.dirty | dirty,
                    ..*entry
                },
            );
        }
        let mut page = vec![0; LOG_PAGE];
        let mut next = self.part(&mut checkpoint, &logged, 0, &mut page)?;
        if let Some((placed, entries)) = flying {
            self.finish(placed, entries)?;
        }
        while let Some(slot) = next {
            if let Some(wishes) = commits.next() {
                let entries = allowed(&self.running.state, wishes);
                if let Ok(placed) = self.running.log.append(&entries, &mut self.buffer) {
                    self.finish(placed, entries)?;
                }
            }
            let logged = self.running.state.clone();
            next = self.part(&mut checkpoint, &logged, slot, &mut page)?;
        }
        self.running.device.flush()?;
        let placed = checkpoint.head(&mut page);
        self.running.device.write_durably(placed, &page)?;
        self.running.log.end_checkpoint(&checkpoint);
        Ok(())
    }

    /// A block of the checkpoint, from this slot on; says where the next one begins.
    fn part(
        &mut self,
        checkpoint: &mut Checkpoint,
        logged: &State,
        from: u32,
        page: &mut [u8],
    ) -> Result<Option<u32>, Crash> {
        let mut last = from;
        let entries = logged.range(from..).map(|(_, &entry)| entry);
        let mut entries = entries
            .filter(|entry| entry.dirty != 0)
            .inspect(|entry| last = entry.slot + 1);
        let Some(placed) = checkpoint.append(&mut entries, page) else {
            return Ok(None);
        };
        self.running.device.write(placed, page)?;
        Ok(Some(last))
    }
}

/// Runs a session until the power is lost; what may be there then.
fn run(running: &mut Running, session: &Session) -> Expected {
    let mut one = Driver {
        running,
        in_flight: Vec::new(),
        buffer: vec![0; LOG_BUFFER],
    };
    let ended = session.ops.iter().try_for_each(|op| one.op(op));
    let in_flight = one.in_flight;
    if ended.is_ok() {
        // Not lost, but at the end of the session.
        running.device.lose_power(0, session.seed);
        running.device.flush().unwrap_err();
    }
    Expected {
        state: running.state.clone(),
        in_flight,
    }
}

/// What the log says must be one of the two.
fn found(expected: Expected, dirty_found: &[LogEntry]) -> State {
    let mut with = expected.state.clone();
    with.extend(expected.in_flight.iter().map(|&entry| (entry.slot, entry)));
    if dirty_found == dirty(&with) {
        return with;
    }
    assert_eq!(dirty_found, dirty(&expected.state));
    expected.state
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_power_loss_loses_what_was_committed_or_makes_up_more(sessions in sessions()) {
        let mut running = Running::empty();
        let mut log_id = SEAL.log_id;
        for session in sessions {
            running.device.lose_power(session.step, session.seed);
            let expected = run(&mut running, &session);
            let seal = LogSeal { log_id, ..SEAL };
            let replayed = replay(&mut running.device, &layout(), &seal, BLOCKS).unwrap();
            let state = found(expected, &replayed.dirty);
            // The start after it loses power too, in one of its first steps, and is then done again.
            running.device.lose_power(session.step % 4, session.seed.rotate_left(7));
            let mut device = running.device;
            let mut again = false;
            running = loop {
                let replayed = replay(&mut device, &layout(), &seal, BLOCKS).unwrap();
                prop_assert_eq!(&replayed.dirty, &dirty(&state));
                log_id += 1;
                let next = LogSeal { log_id, ..SEAL };
                match Running::new(device, replayed.previous.successor(next), state.clone()) {
                    Ok(running) => break running,
                    Err((crashed, Crash)) => {
                        prop_assert!(!again);
                        (device, again) = (crashed, true);
                    }
                }
            };
        }
    }
}
