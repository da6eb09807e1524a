//! A driver that simulates: one or two machines over a model of ublk's batch mode, with faults, from a seed.
//!
//! [`run`] makes a [`World`] of its seed, lets clients send requests, carries the machine's effects out in a
//! random order with random faults, and checks after every step what [`queue`](crate::queue) promises:
//!
//! - a READ completes with success only if every byte of its pages was filled, with what the device may hold
//!   there (`sim/history.rs` says what that is for requests that overlap); pages start as another process's;
//! - a WRITE completes with success only if the device holds it; after a FLUSH, or with FUA, for good;
//! - a request fails only if something failed under it, and always if it asked for what the device is not;
//! - on a device without leave to lose data, no verdict changes any of this;
//! - no tag is committed that the server does not own, or with an operation in flight, or with any result but
//!   the exact length and a negative errno;
//! - no two operations use one tag or one staging buffer; each stays within its request, and is aligned;
//! - with a cache, nobody can tell: all of the above holds, whatever its device does, and the backing device alone is
//!   what clients left. What is in a slot that nobody writes is what the backing device has, at every server's end; no
//!   slot is filled that is in use; the promoter sleeps only when it has nothing to do;
//! - whatever happens, every request completes and every ending ends, within a bounded number of steps.
//!
//! # Faults that are legal, and why
//!
//! References are to `drivers/block/ublk_drv.c` and `io_uring/` of Linux 7.3.
//!
//! | fault | why it is legal |
//! |---|---|
//! | FETCH ends with `-ENOBUFS` | its buffer is used up (`__ublk_batch_dispatch`: no buffer was selected) |
//! | its tags go back to the end of the FIFO | the completion could not be posted (`ublk_batch_dispatch_fail`): the FIFO's order is no promise |
//! | FETCH ends without MORE after tags, or with a result of 0 | this driver does neither; its interface reserves both |
//! | FETCH fails with another errno | `ublk_handle_batch_fetch_cmd`: `-ENOMEM`. It passes: the model has at most eight in a row |
//! | FETCH is handed `-ENODEV` | STOP_DEV after the last request (`ublk_stop_dev`), QUIESCE_DEV at any time (`ublk_ctrl_quiesce_dev`) |
//! | one FETCH gets no `-ENODEV` | it was handing out tags then (`ublk_batch_cancel_queue` moves it back to its list) |
//! | a tag arrives before the COMMIT that gave it back is seen to complete | a FETCH in the same submission dispatches at once (`ublk_batch_attach`), and COMMIT's completion waits for the submission's end |
//! | COMMIT stops at an element | it is not the server's (`ublk_batch_commit_io_check`: `-EBUSY`). No path of this driver takes a tag from a living server, so the model invents one: the client's request fails, and its tag may carry another at once |
//! | COMMIT handles nothing | the elements could not be read (`-EFAULT`), or io_uring had no memory. At most eight in a row |
//! | `UBLK_IO_F_NEED_REG_BUF` | the ring's table has no room at that index, or no memory (`ublk_auto_buf_register`) |
//! | backend operations are short, end inside a block, fail, or come back with `-EAGAIN` or `-EINTR` | any file may; a device's direct I/O goes on at block boundaries only |
//! | a backend moves nothing, or claims more than was asked | a truncated file; the claim is no kernel's, and not to be believed |
//! | user copy is short or fails | the server's memory cannot be read or written (`ublk_copy_user_bvec`) |
//! | completions come in any order | io_uring promises none |
//! | verdicts are missing or stale | the classifier is skipped where it is running already on the CPU |
//! | verdicts are garbage or hostile | they come from a map and from a user's policy |
//! | descriptors ask for what the device does not serve | its parameters could be wrong; a server does not rely on that |
//! | the server dies; its requests are issued again, or fail | `ublk_ch_release_work_fn`; operations in flight may have happened or not |
//! | a read or write crosses a cache block | a kernel that does not keep `chunk_sectors` |
//! | operations on the cache device fail, once or from then on | any device may; no request may fail with it |
//! | the promoter's operations fail, come short, or come back with `-EAGAIN` or `-EINTR` | as any others |
//! | a server begins with the index of one that died, with what one saved, or with nothing | recovery, a clean stop, a power failure |
//! | the power fails | of each sector any version remains that was there since it was last made durable |

mod backend;
mod bug;
mod cache;
mod client;
mod disk;
mod fault;
mod history;
mod kernel;
mod life;
mod pattern;
mod plant;
mod rng;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use ublk_bpf_abi::{CacheCounters, ServerCounters};

pub use bug::Bug;
pub use fault::{Fault, FaultCounts};
pub use world::{CacheWorld, World};

use crate::cache::Cache;
use crate::queue::{Arrival, BadConfig, Effect, Element, Event, Machine, Written};
use backend::Op;
use cache::{Maps, Side};
use disk::Disk;
use history::History;
use kernel::{Cqe, Kernel, MOST_IN_A_ROW, Place};
use life::Ending;
use rng::Rng;

/// Steps without a request completed or a server ended, at most: everything that waits is chosen again and again.
const MOST_STEPS: u32 = 50_000;

/// What to simulate.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Repeats a run.
    pub seed: u64,
    /// Requests that clients send.
    pub requests: u64,
    /// The world; that of the seed if there is none.
    pub world: Option<World>,
    /// A bug to put in.
    pub bug: Option<Bug>,
}

/// What a run without a violation did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Requests that were completed.
    pub requests: u64,
    /// Operations that the machine issued.
    pub operations: u64,
    /// Faults that were injected.
    pub faults: FaultCounts,
    /// What the machines counted.
    pub counters: ServerCounters,
    /// What the promoters counted.
    pub cache: CacheCounters,
}

impl Report {
    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.operations += other.operations;
        self.faults.add(&other.faults);
        self.counters.add(&other.counters);
        self.cache.add(&other.cache);
    }
}

/// A promise that was broken.
#[derive(Clone, Debug, thiserror::Error)]
#[error("seed {seed}, step {step}: {what}\n{world:?}")]
pub struct Violation {
    /// Repeats it.
    pub seed: u64,
    /// When.
    pub step: u64,
    /// What happened.
    pub what: String,
    /// Where.
    pub world: World,
}

/// `Err`: what was found.
type Check = Result<(), String>;

/// Simulates.
///
/// # Errors
/// The first violation. A panic of the machine is one.
pub fn run(options: &Options) -> Result<Report, Box<Violation>> {
    let world = options.world.unwrap_or_else(|| World::random(options.seed));
    let blocks = ((world.sectors() * 512) >> world.written_shift) + 1;
    let words: Vec<AtomicU64> = (0..=blocks / 64).map(|_| AtomicU64::new(0)).collect();
    let violation = |step, what| {
        Box::new(Violation {
            seed: options.seed,
            step,
            what,
            world,
        })
    };
    let maps = Maps::new(&world);
    let places = cache::places(&world);
    let side = Side::new(&world, &maps, &places);
    let mut sim = Sim::new(options, &world, &words, side).map_err(|error| violation(0, error.to_string()))?;
    let outcome = catch_unwind(AssertUnwindSafe(|| sim.run(options.requests)));
    match outcome {
        Ok(Ok(())) => Ok(sim.report()),
        Ok(Err(what)) => Err(violation(sim.now, what)),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("a panic");
            Err(violation(sim.now, format!("the machine panicked: {text}")))
        }
    }
}

/// A 64-bit number as an index; everything here is small.
const fn index(n: u64) -> usize {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "sizes of a simulated device fit any machine"
    )]
    {
        n as usize
    }
}

/// A hardware queue: the kernel's half, and the server's.
#[derive(Debug)]
struct Queue<'w> {
    kernel: Kernel,
    machine: Machine<'w>,
    staging: Vec<Vec<u8>>,
    /// Operations that are out.
    ops: Vec<Op>,
    finished: bool,
}

impl<'w> Queue<'w> {
    fn new(world: &World, machine: Machine<'w>) -> Self {
        Self {
            kernel: Kernel::new(world),
            machine,
            staging: Self::new_staging(world),
            ops: Vec::new(),
            finished: false,
        }
    }

    /// The staging buffers of a new server.
    fn new_staging(world: &World) -> Vec<Vec<u8>> {
        let bytes = index(u64::from(world.config().staging_bytes));
        vec![vec![pattern::POISON; bytes]; usize::from(world.staging_buffers)]
    }
}

/// A run.
#[derive(Debug)]
struct Sim<'w> {
    world: &'w World,
    words: &'w [AtomicU64],
    bug: Option<Bug>,
    rng: Rng,
    counts: FaultCounts,
    /// The queue where something happens.
    queue: Queue<'w>,
    others: Vec<Queue<'w>>,
    cache: Option<Side<'w>>,
    disk: Disk,
    history: History,
    ending: Ending,
    /// Steps so far: the clock of the history.
    now: u64,
    idle_steps: u32,
    last_id: u64,
    submitted: u64,
    completed: u64,
    issued: u64,
    /// What machines that are gone counted.
    counters: ServerCounters,
}

impl<'w> Sim<'w> {
    fn new(
        options: &Options,
        world: &'w World,
        words: &'w [AtomicU64],
        cache: Option<Side<'w>>,
    ) -> Result<Self, BadConfig> {
        let machine = || Self::new_machine(world, words, options.bug, cache.as_ref().map(|side| side.cache));
        let queue = || machine().map(|machine| Queue::new(world, machine));
        let others = (1..world.queues).map(|_| queue()).collect::<Result<_, _>>()?;
        let filled = u64::from(world.prefilled && world.storage().is_some());
        let content = vec![filled; index(world.sectors())];
        let sim = Self {
            world,
            words,
            bug: options.bug,
            rng: Rng::new(options.seed ^ 0x5eed),
            counts: FaultCounts::default(),
            queue: queue()?,
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
        };
        sim.mark_what_is_there();
        Ok(sim)
    }

    fn new_machine(
        world: &World,
        words: &'w [AtomicU64],
        bug: Option<Bug>,
        cache: Option<&'w Cache<'w>>,
    ) -> Result<Machine<'w>, BadConfig> {
        let mut config = world.config();
        config.lossy |= bug == Some(Bug::ObeyDrops);
        let machine = Machine::new(&config, Written::new(words, world.written_shift))?;
        Ok(machine.with_cache(cache))
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Something came to an end.
    fn progress(&mut self) {
        self.idle_steps = 0;
    }

    fn report(&self) -> Report {
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
    fn run(&mut self, requests: u64) -> Check {
        self.each(Self::poll)?;
        while self.completed < requests || self.completed < self.submitted {
            self.step(self.submitted < requests)?;
        }
        self.stop_for_good()?;
        self.check_device()
    }

    /// Does something in each queue.
    fn each(&mut self, mut what: impl FnMut(&mut Self) -> Check) -> Check {
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
    fn step(&mut self, more_requests: bool) -> Check {
        self.now += 1;
        self.idle_steps += 1;
        if self.idle_steps > MOST_STEPS {
            return Err(format!(
                "nothing goes on any more: {} operations are out",
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

    /// Whether every queue has ended, and then the promoter.
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
            let Some(cqe) = self.queue.kernel.cq.pop_front() else {
                self.queue.machine.handle(Event::Idle);
                break;
            };
            let event = self.event_of(cqe);
            let before = event.as_ref().map(|event| self.plant(event));
            let mut at_once = None;
            match event {
                // Either way will do, at any time.
                Some(Event::Arrived(arrival)) if self.rng.chance(500) => {
                    let io = self.queue.machine.arrived_at_once(&arrival);
                    at_once = io.map(|direct| (arrival.tag, direct.into()));
                }
                Some(event) => self.queue.machine.handle(event),
                None => {}
            }
            if let Some(before) = before {
                self.planted(&before);
            }
            if let Some((tag, io)) = at_once {
                self.issue(tag, io)?;
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
            Cqe::Committed { batch, result } => Event::Committed { batch, result },
            Cqe::Tag(tag) => {
                let slot = self.queue.kernel.tag(tag);
                slot.place = Place::Server;
                let verdict = std::mem::replace(&mut slot.verdict.head, 0);
                let verdict = crate::queue::TakenVerdict {
                    head: verdict,
                    sector: slot.verdict.sector,
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
    fn poll(&mut self) -> Check {
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
                Effect::Io { tag, io } => self.issue(tag, io)?,
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

    /// PREP: every tag once.
    fn prepare(&mut self, batch: u8) -> Check {
        let elements = self.queue.machine.batch(batch);
        let all = elements
            .iter()
            .zip(0..)
            .all(|(element, tag)| element.tag == tag && element.buf_index == tag);
        if !all || elements.len() != usize::from(self.world.depth) {
            return Err("PREP does not name every tag once".into());
        }
        self.queue.kernel.cq.push_back(Cqe::Prepared(0));
        Ok(())
    }

    /// COMMIT, as `ublk_handle_batch_commit_cmd` does it.
    fn commit(&mut self, batch: u8, from: u16) -> Check {
        let from = match self.bug {
            Some(Bug::RecommitRefused) => usize::from(from).saturating_sub(1),
            _ => usize::from(from),
        };
        let elements: Vec<Element> = self
            .queue
            .machine
            .batch(batch)
            .get(from..)
            .unwrap_or_default()
            .to_vec();
        if elements.is_empty() {
            return Err("a COMMIT of nothing".into());
        }
        let rate = self.world.commit_faults;
        if self.queue.kernel.commit_errors < MOST_IN_A_ROW && self.rng.chance(rate) {
            self.counts.hit(Fault::CommitAgain);
            self.queue.kernel.commit_errors += 1;
            let result = self.rng.pick(&[-11, -4, -12, -14]);
            self.queue.kernel.cq.push_back(Cqe::Committed { batch, result });
            return Ok(());
        }
        self.queue.kernel.commit_errors = 0;
        let mut handled = 0;
        for element in &elements {
            self.check_element(element)?;
            if self.rng.chance(rate) {
                self.revoke(element.tag)?;
                break;
            }
            let short = if self.bug == Some(Bug::CommitShort) && element.result > 512 {
                512
            } else {
                0
            };
            self.check_result(element.tag, element.result - short)?;
            self.complete(element.tag, element.result - short)?;
            handled += 1;
        }
        let result = if handled == 0 {
            -16
        } else {
            i32::try_from(handled * 8).unwrap_or(0)
        };
        let late = self.rng.chance(400);
        let given_back = elements[..handled].iter().map(|element| element.tag);
        self.queue
            .kernel
            .committed(Cqe::Committed { batch, result }, given_back, late);
        Ok(())
    }

    /// An element must be for a tag that the server owns and is through with.
    fn check_element(&mut self, element: &Element) -> Check {
        let tag = element.tag;
        let Some(slot) = self.queue.kernel.tags.get(usize::from(tag)) else {
            return Err(format!("COMMIT of tag {tag}, which is none"));
        };
        if slot.place != Place::Server || element.buf_index != tag {
            return Err(format!("COMMIT of {element:?}, which is {:?}", slot.place));
        }
        if let Some(op) = self.queue.ops.iter().find(|op| op.tag == tag) {
            return Err(format!("COMMIT of tag {tag} with {:?} in flight", op.io));
        }
        Ok(())
    }

    /// The kernel fails a request and takes its tag, which makes COMMIT stop there.
    fn revoke(&mut self, tag: u16) -> Check {
        self.counts.hit(Fault::PartialCommit);
        self.queue.kernel.tag(tag).request.excused = true;
        self.complete(tag, -5)?;
        if self.ending == Ending::None && self.rng.chance(500) {
            self.submit_on(tag);
        }
        Ok(())
    }

    /// Nothing but the exact length, or an error.
    fn check_result(&mut self, tag: u16, result: i32) -> Check {
        let request = &self.queue.kernel.tag(tag).request;
        if result >= 0 && index(u64::from(result.unsigned_abs())) != request.pages.len() && !request.bad {
            return Err(format!(
                "tag {tag} is committed with {result} of {} bytes",
                request.pages.len()
            ));
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
