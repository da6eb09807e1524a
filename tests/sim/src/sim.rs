//! A run: queues over the simulated kernel, stepped in a random order.

use std::sync::atomic::{AtomicU64, Ordering};

use ublk_bpf::cache::Cache;
use ublk_bpf::queue::{Arrival, BadConfig, Effect, Event, Machine, Written};
use ublk_bpf_abi::{ServerCounters, TakenVerdict};

use super::cache::Side;
use super::disk::Disk;
use super::fault::Fault;
use super::fills::{FillMemory, FillOp};
use super::history::History;
use super::kernel::{Cqe, Kernel, Place};
use super::life::Ending;
use super::op::Op;
use super::rng::Rng;
use super::{Bug, Check, FaultCounts, Report, RunOptions, World, index, pattern};

/// Steps without a request completed or a server ended, at most: everything that waits is chosen again and again.
const MAX_STEPS: u32 = 50_000;

/// A hardware queue: the kernel's half, and the server's.
#[derive(Debug)]
pub(super) struct Queue<'w> {
    /// Its number.
    pub(super) number: u16,
    pub(super) kernel: Kernel,
    pub(super) machine: Machine<'w>,
    pub(super) staging: Vec<Vec<u8>>,
    /// Operations that are out.
    pub(super) ops: Vec<Op>,
    /// Operations of fills that are out.
    pub(super) fills: Vec<FillOp>,
    pub(super) fill_memory: Vec<FillMemory>,
    /// Another thread has rung for it.
    pub(super) is_rung: bool,
    pub(super) finished: bool,
}

impl<'w> Queue<'w> {
    pub(super) fn new(world: &World, number: u16, machine: Machine<'w>) -> Self {
        Self {
            number,
            kernel: Kernel::new(world),
            machine,
            staging: Self::new_staging(world),
            ops: Vec::new(),
            fills: Vec::new(),
            fill_memory: FillMemory::of(world),
            is_rung: false,
            finished: false,
        }
    }

    /// The staging buffers of a new server.
    pub(super) fn new_staging(world: &World) -> Vec<Vec<u8>> {
        let bytes = index(u64::from(world.config().staging_bytes));
        vec![vec![pattern::POISON; bytes]; usize::from(world.staging_buffers)]
    }
}

/// A run.
#[derive(Debug)]
pub(super) struct Sim<'w> {
    pub(super) world: &'w World,
    pub(super) words: &'w [AtomicU64],
    pub(super) bug: Option<Bug>,
    pub(super) rng: Rng,
    pub(super) counts: FaultCounts,
    /// The queue where something happens.
    pub(super) queue: Queue<'w>,
    pub(super) others: Vec<Queue<'w>>,
    pub(super) cache: Option<Side<'w>>,
    pub(super) disk: Disk,
    pub(super) history: History,
    pub(super) ending: Ending,
    /// Steps so far: the clock of the history.
    pub(super) now: u64,
    pub(super) idle_steps: u32,
    pub(super) last_id: u64,
    pub(super) submitted: u64,
    pub(super) completed: u64,
    pub(super) issued: u64,
    /// What machines that are gone counted.
    pub(super) counters: ServerCounters,
    /// The next operation of a tag is forgotten.
    forgets: bool,
}

impl<'w> Sim<'w> {
    pub(super) fn new(
        options: &RunOptions,
        world: &'w World,
        words: &'w [AtomicU64],
        cache: Option<Side<'w>>,
    ) -> Result<Self, BadConfig> {
        let of = cache.as_ref().map(|side| side.cache);
        let queue = |number| {
            Self::new_machine(world, words, options.bug, of, number)
                .map(|machine| Queue::new(world, number, machine))
        };
        let others = (1..u16::from(world.queues))
            .map(queue)
            .collect::<Result<_, _>>()?;
        let filled = u64::from(world.prefilled && world.storage().is_some());
        let content = vec![filled; index(world.sectors())];
        let sim = Self {
            world,
            words,
            bug: options.bug,
            rng: Rng::new(options.seed ^ 0x5eed),
            counts: FaultCounts::default(),
            queue: queue(0)?,
            others,
            cache,
            history: History::new(content.iter().copied()),
            disk: Disk::new(content, world.volatile_cache()),
            ending: Ending::None,
            now: 1,
            idle_steps: 0,
            last_id: 1,
            submitted: 0,
            completed: 0,
            issued: 0,
            counters: ServerCounters::default(),
            forgets: false,
        };
        sim.mark_what_is_there();
        Ok(sim)
    }

    pub(super) fn new_machine(
        world: &World,
        words: &'w [AtomicU64],
        bug: Option<Bug>,
        cache: Option<&'w Cache<'w>>,
        number: u16,
    ) -> Result<Machine<'w>, BadConfig> {
        let mut config = world.config();
        config.lossy |= bug == Some(Bug::ObeyDrops);
        let machine = Machine::new(&config, Written::new(words, world.written_shift))?;
        Ok(machine.with_cache(cache, number))
    }

    pub(super) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Something came to an end.
    pub(super) fn progress(&mut self) {
        self.idle_steps = 0;
    }

    pub(super) fn report(&self) -> Report {
        let mut counters = self.counters;
        for queue in std::iter::once(&self.queue).chain(&self.others) {
            counters.add(queue.machine.counters());
        }
        Report {
            requests: self.completed,
            operations: self.issued,
            faults: self.counts,
            counters,
            cache: self.cache.as_ref().map(Side::counters).unwrap_or_default(),
        }
    }

    /// Everything: requests come and go, then the device is stopped and looked at.
    pub(super) fn run(&mut self, requests: u64) -> Check {
        self.each(Self::poll)?;
        while self.completed < requests || self.completed < self.submitted {
            self.step(self.submitted < requests)?;
        }
        self.stop_for_good()?;
        self.check_device()
    }

    /// Does something in each queue.
    pub(super) fn each(&mut self, mut what: impl FnMut(&mut Self) -> Check) -> Check {
        for _ in 0..=self.others.len() {
            what(self)?;
            self.turn();
        }
        Ok(())
    }

    /// The next queue is the one where something happens.
    fn turn(&mut self) {
        for other in &mut self.others {
            std::mem::swap(&mut self.queue, other);
        }
    }

    /// Something happens.
    pub(super) fn step(&mut self, more_requests: bool) -> Check {
        self.now += 1;
        self.idle_steps += 1;
        if self.idle_steps > MAX_STEPS {
            return Err(format!(
                "nothing makes progress: {} operations are out",
                self.queue.ops.len()
            ));
        }
        if !self.others.is_empty() && self.rng.chance(500) {
            self.turn();
        }
        let kinds = if self.cache.is_some() { 22 } else { 16 };
        match self.rng.below(kinds) {
            16.. => self.promote()?,
            15 => self.maybe_end()?,
            _ if self.queue.finished => {}
            0..=3 if more_requests && self.ending == Ending::None => self.submit(),
            0..=5 => self
                .queue
                .kernel
                .dispatch(self.world, &mut self.rng, &mut self.counts),
            6..=9 => self.execute()?,
            10 => self.queue.kernel.post_late(),
            _ => self.deliver()?,
        }
        if self.has_finished()? {
            self.close()
        } else {
            Ok(())
        }
    }

    /// Whether every queue has ended, and then the mover.
    fn has_finished(&mut self) -> Result<bool, String> {
        let queues_have = self.queue.finished && self.others.iter().all(|queue| queue.finished);
        match &mut self.cache {
            Some(side) if queues_have => side.stop(),
            _ => Ok(queues_have),
        }
    }

    /// The machine is told of some completions, or that there are none.
    fn deliver(&mut self) -> Check {
        for _ in 0..=self.rng.below(8) {
            if self.queue.is_rung && self.rng.chance(500) {
                self.queue.is_rung = false;
                self.queue.machine.handle(Event::Rung);
            }
            let Some(cqe) = self.queue.kernel.cq.pop_front() else {
                self.queue.machine.handle(Event::Idle);
                break;
            };
            let event = self.event_of(cqe);
            let before = event.as_ref().map(|event| self.plant(event));
            let mut at_once = None;
            match event {
                Some(event @ Event::FillDone { result, .. })
                    if self.bug == Some(Bug::ForgetWaiter) && result < 0 =>
                {
                    self.poll()?;
                    self.queue.machine.handle(event);
                    self.forgets = true;
                    self.poll()?;
                    self.forgets = false;
                }
                // Either way will do, at any time.
                Some(Event::Arrived(arrival)) if self.rng.chance(500) => {
                    let io = self.queue.machine.start_fast(&arrival);
                    at_once = io.map(|direct| (arrival.tag, direct.into()));
                }
                Some(event) => self.queue.machine.handle(event),
                None => {}
            }
            if let Some(before) = before {
                self.planted(&before);
            }
            match at_once {
                Some((tag, _)) if self.rng.chance(200) => {
                    self.counts.hit(Fault::Requeued);
                    self.queue.machine.requeue(tag);
                }
                Some((tag, io)) => self.issue(tag, io)?,
                None => {}
            }
            if self.bug == Some(Bug::ForgetWritten) {
                self.words
                    .iter()
                    .for_each(|word| word.store(0, Ordering::Relaxed));
            }
            if self.rng.chance(500) {
                self.poll()?;
            }
        }
        self.poll()
    }

    /// What the driver makes of a completion.
    fn event_of(&mut self, cqe: Cqe) -> Option<Event> {
        Some(match cqe {
            Cqe::Prepared(result) => Event::Prepared(result),
            Cqe::FetchEnded { fetch, result } => Event::FetchEnded { fetch, result },
            Cqe::IoDone { tag, result } => Event::IoDone { tag, result },
            Cqe::FillDone { fill, result } => Event::FillDone { fill, result },
            Cqe::Committed { batch, result } => Event::Committed { batch, result },
            Cqe::Tag(tag) => {
                let slot = self.queue.kernel.tag(tag);
                slot.place = Place::Server;
                let verdict = std::mem::replace(&mut slot.verdict.head, 0);
                let verdict = TakenVerdict {
                    head: verdict,
                    place: slot.verdict.place,
                };
                let request = &slot.request;
                let arrival = Arrival {
                    tag,
                    op_flags: request.op_flags,
                    nr_sectors: request.nr_sectors,
                    start_sector: request.sector,
                    verdict,
                };
                if self.bug == Some(Bug::LoseTag) && self.rng.chance(10) {
                    return None;
                }
                Event::Arrived(arrival)
            }
        })
    }

    /// The machine's effects are carried out.
    pub(super) fn poll(&mut self) -> Check {
        while let Some(effect) = self.queue.machine.poll_effect() {
            if self.queue.finished {
                return Err(format!("{effect:?} after the queue had finished"));
            }
            match effect {
                Effect::Prepare { batch } => self.prepare(batch)?,
                Effect::Fetch { .. } if self.bug == Some(Bug::ForgetFetch) && self.rng.chance(300) => {}
                Effect::Fetch { fetch } => {
                    self.queue.kernel.fetch(
                        fetch,
                        self.world.fetch_faults,
                        &mut self.rng,
                        &mut self.counts,
                    )?;
                }
                Effect::Io { .. } if std::mem::take(&mut self.forgets) => {}
                Effect::Io { tag, io } => self.issue(tag, io)?,
                Effect::Fill { fill, io } => self.issue_fill_op(fill, io)?,
                Effect::Ring(queues) => self.ring(queues, Some(self.queue.number)),
                Effect::Commit { batch, from } => self.commit(batch, from)?,
                Effect::Wake if self.bug == Some(Bug::ForgetToWake) => {}
                Effect::Wake => self.cache.iter_mut().for_each(Side::wake),
                Effect::Failed(failure) => return Err(format!("the queue failed: {failure}")),
                Effect::Finished => self.queue.finished = true,
            }
        }
        if self.bug == Some(Bug::EndEarly) && self.ending == Ending::Quiesce {
            self.queue.finished = true;
        }
        Ok(())
    }

    /// What the device holds at last must be what its clients left there.
    fn check_device(&mut self) -> Check {
        self.now += 1;
        for sector in 0..self.disk.sectors() {
            let found = self.disk.read(sector);
            if !self.world.lossy && !self.history.may_read(sector, found, self.now) {
                return Err(format!("sector {sector} was left as request {found} wrote it"));
            }
        }
        Ok(())
    }
}
