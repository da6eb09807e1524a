//! The machine: the order in which the parts of the queue work.

use std::sync::atomic::{AtomicBool, AtomicU64};

use ublk_bpf_abi::{SECTOR_SIZE, ServerCounters};

use super::commit::{Batches, Element, Outcome, result_of};
use super::config::{Backing, BadConfig, QueueConfig};
use super::ends::Ends;
use super::event::{Arrival, Effect, Event, Io, QueueFailure, Staging};
use super::fill::{Fills, Wish};
use super::in_flight::{Buffer, Grain, InFlight, Next, Noted};
use super::legs::Legs;
use super::plan::{Class, Plan, Route, Terms, plan};
use super::request::{Action, BlockRequest, RequestLimits};
use super::staging::StagingPool;
use super::tag::{Owner, Tags};
use super::todo::{Todo, Todos, Wake};
use super::verdict::{self, Advice, Advised, NoAdvice};
use super::written::Written;
use crate::cache::{Cache, QueueSet};
use crate::errno::Errno;

mod back;
mod buffers;
mod cached;
mod commands;
mod cut;
mod delay;
mod ending;
mod fills;
mod grow;
mod plain;
mod progress;
mod wake;

/// The phases of a queue's life, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// PREP is not submitted yet, or in flight.
    Preparing,
    /// Tags come and go.
    Serving,
    /// The kernel has begun to cancel the queue: it serves and commits what it has, then ends.
    Stopping,
    /// It waits for operations in flight; requests that need another one stay uncommitted.
    Abandoning,
    /// It has ended.
    Finished,
}

/// One hardware queue: its requests, and the next step of each.
///
/// # The contract
///
/// 1. After [`new`](Self::new), the driver polls [`Effect`]s until there are none, then feeds [`Event`]s; after
///    each event, or after several, it polls again until there are none. It does effects in the order of the
///    polls; an operation that [`start_fast`](Self::start_fast) gives may go before them.
/// 2. Each effect has one answer, however late: `Prepare` has [`Event::Prepared`], `Io` has [`Event::IoDone`] for
///    its tag, `Fill` has [`Event::FillDone`] for its buffer, `Commit` has [`Event::Committed`] for its batch. `Fetch`
///    has any number of [`Event::Arrived`] and at most one [`Event::FetchEnded`]. No answer may come before its
///    effect was polled.
/// 3. Tags of one FETCH completion arrive in the order of its buffer. Between completions, any order is served:
///    that of the kernel's completion queue is natural. In particular a tag may arrive again before the COMMIT
///    that gave it back is seen to complete: the kernel hands tags out from within its submission.
/// 4. When the driver has no further event at hand, it says [`Event::Idle`], polls, and only then sleeps. Results
///    are committed then, or when every tag is ready, so that one COMMIT carries many.
/// 5. [`Effect::Commit`] names elements that [`batch`](Self::batch) gives; they stay where they are and as they
///    are until [`Event::Committed`] was given for them.
/// 6. Between taking completions from the kernel and the first event for one of them, the driver calls
///    [`look_at_ends`](Self::look_at_ends).
/// 7. A queue that [`Effect::Ring`] of another one names, or [`Cache::take_woken`] on the mover's thread, which asks
///    before it sleeps, is told [`Event::Rung`] at least once after that.
/// 8. [`Effect::Finished`] is the last effect, and no event may follow it.
///
/// A breach by the driver, or a kernel that hands out a tag it does not own, is a panic: to continue would complete the
/// wrong request.
///
/// # How it ends
///
/// A FETCH that ends with `-ENODEV` says that the kernel cancels the queue. STOP_DEV does so only after the disk
/// is gone, when no request remains (`ublk_stop_dev`); QUIESCE_DEV at any time, and a request that is here may
/// then still be committed, while those that did not leave the kernel's FIFO are issued again or failed when
/// `/dev/ublkcN` is closed (`ublk_ch_release_work_fn`). So the machine serves and commits what it has, issues no
/// FETCH again, and is finished at the first [`Event::Idle`] with nothing in flight. It does not wait for the other
/// FETCH to end: the kernel does not cancel one that is handing out tags at that moment
/// (`ublk_batch_cancel_queue` puts it back), and it would sleep until the ring is closed. Requests that it took
/// from the FIFO unseen are in the kernel's hands as if they were still there.
#[derive(Debug)]
pub struct Machine<'w> {
    limits: RequestLimits,
    terms: Terms<'w>,
    volatile_cache: bool,
    staging_bytes: u32,
    grain: Grain,
    phase: Phase,
    /// Why the queue failed, if it did.
    failure: Option<QueueFailure>,
    /// COMMIT does not work: results stay here.
    commit_dead: bool,
    tags: Tags,
    /// Tags that are waiting or in flight.
    in_service: u32,
    /// FETCH commands that ended since a tag arrived, and how many of those by an error.
    fetch_ends: u32,
    fetch_errors: u32,
    staging: StagingPool,
    batches: Batches,
    todos: Todos,
    fills: Fills,
    delays: delay::Delays,
    /// See [`with_stopping`](Self::with_stopping).
    stopping: &'w AtomicBool,
    cache: Option<&'w Cache<'w>>,
    /// The number of this queue.
    number: u16,
    ends: Ends<'w>,
    /// See [`with_capacity`](Self::with_capacity).
    sectors: &'w AtomicU64,
    /// The last known ends of the backing and the cache device.
    seen: [u64; 2],
    wake: Wake,
    /// The mover's wake-up is queued and not yet polled.
    is_waking: bool,
    /// Queues to ring for; not empty as long as that is queued and not yet polled.
    ring: QueueSet,
    /// Requests reported to the cache.
    reported: u64,
    counters: ServerCounters,
}

impl<'w> Machine<'w> {
    /// A machine whose first effect is [`Effect::Prepare`]. `written` is what the server knows to read as zeroes.
    ///
    /// # Errors
    /// A field of `config` that is out of its range.
    pub fn new(config: &QueueConfig, written: Written<'w>) -> Result<Self, BadConfig> {
        config.check()?;
        let limits = RequestLimits {
            capacity: config.capacity,
            reach: config.capacity,
            block_mask: u64::from(config.logical_block) / SECTOR_SIZE - 1,
            read_only: config.read_only,
        };
        let volatile_cache = match config.backing {
            Backing::Null { .. } => false,
            Backing::Storage(storage) => storage.volatile_cache,
        };
        let mut machine = Self {
            limits,
            terms: Terms {
                backing: config.backing,
                lossy: config.lossy,
                written,
            },
            volatile_cache,
            staging_bytes: config.staging_bytes,
            grain: Grain {
                block_mask: config.logical_block - 1,
                cache_shift: 0,
            },
            phase: Phase::Preparing,
            failure: None,
            commit_dead: false,
            tags: Tags::new(config.depth),
            in_service: 0,
            fetch_ends: 0,
            fetch_errors: 0,
            staging: StagingPool::new(config.staging_buffers, config.depth),
            batches: Batches::new(config.depth),
            todos: Todos::new(config.depth, config.fill_buffers),
            fills: Fills::new(config.fill_buffers, config.depth),
            delays: delay::Delays::new(config.depth),
            stopping: &delay::STAYS,
            cache: None,
            number: 0,
            ends: Ends::fixed(),
            sectors: &grow::FIXED,
            seen: [u64::MAX; 2],
            wake: Wake::NONE,
            is_waking: false,
            ring: QueueSet::default(),
            reported: 0,
            counters: ServerCounters::default(),
        };
        let batch = machine.batches.prepare();
        machine.todos.push(Todo::Prepare(batch));
        Ok(machine)
    }

    /// The same machine, for queue `number` of a device with a cache. Call it before anything else.
    #[must_use]
    pub fn with_cache(mut self, cache: Option<&'w Cache<'w>>, number: u16) -> Self {
        self.grain.cache_shift = cache.map_or(0, |cache| cache.shape().shift);
        // What ends in a slot is durable after a commit.
        self.volatile_cache |= cache.is_some_and(Cache::has_writeback);
        (self.cache, self.number) = (cache, number);
        self
    }

    /// The same machine, on files that others may truncate. Call it before anything else.
    #[must_use]
    pub fn with_ends(mut self, ends: Ends<'w>) -> Self {
        self.ends = ends;
        self
    }

    /// Takes an event in. The methods that it calls may be called instead.
    #[inline]
    pub fn handle(&mut self, event: Event) {
        match event {
            Event::Prepared(result) => self.prepared(result),
            Event::Arrived(arrival) => self.arrived(arrival),
            Event::FetchEnded { fetch, result } => self.fetch_ended(fetch, result),
            Event::IoDone { tag, result } => self.io_done(tag, result),
            Event::FillDone { fill, result } => self.fill_done(fill, result),
            Event::Rung => self.look_again(),
            Event::Committed { batch, result } => self.committed(batch, result),
            Event::Idle => self.idle(),
            Event::Abandon => self.abandon(),
        }
    }

    /// The next thing to do, if there is one.
    #[inline(always)]
    pub fn poll_effect(&mut self) -> Option<Effect> {
        Some(match self.todos.pop()? {
            Todo::Io(tag) => Effect::Io {
                tag,
                io: self.issue(tag),
            },
            Todo::Delay(tag) => Effect::Io {
                tag,
                io: self.slice(tag),
            },
            Todo::Fill(fill) => self.issue_fill(fill)?,
            Todo::Commit(batch) => {
                self.counters.commits += 1;
                Effect::Commit {
                    batch,
                    from: self.batches.from(),
                }
            }
            Todo::Fetch(fetch) => {
                self.counters.fetches += 1;
                Effect::Fetch { fetch }
            }
            Todo::Prepare(batch) => Effect::Prepare { batch },
            Todo::Wake => {
                self.is_waking = false;
                Effect::Wake
            }
            Todo::Ring => Effect::Ring(std::mem::take(&mut self.ring)),
            Todo::Failed => Effect::Failed(self.failure?),
            Todo::Finished => Effect::Finished,
        })
    }

    /// The elements of a batch, at an address that does not change.
    #[inline]
    #[must_use]
    pub fn batch(&self, batch: u8) -> &[Element] {
        self.batches.elements(batch)
    }

    /// The counters so far.
    #[inline]
    #[must_use]
    pub fn counters(&self) -> &ServerCounters {
        &self.counters
    }

    /// The same, for what only the driver can count: `enters` and `fetch_batches`.
    #[inline]
    pub fn counters_mut(&mut self) -> &mut ServerCounters {
        &mut self.counters
    }

    /// Whether the kernel has FETCH commands of this queue, so that more is to come.
    #[inline]
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.phase == Phase::Serving
    }

    /// Whether there is such a tag, and its request has arrived, is not kept, and has no result yet.
    #[must_use]
    pub fn is_in_service(&self, tag: u16) -> bool {
        self.tags.serve(tag) && !self.delays.keep(tag)
    }

    /// [`Event::Arrived`].
    #[inline(never)]
    pub fn arrived(&mut self, arrival: Arrival) {
        if self.accept(&arrival).is_some() {
            self.todos.push(Todo::Io(arrival.tag));
        }
    }

    /// [`Event::Idle`].
    #[inline]
    pub fn idle(&mut self) {
        // First: it may finish requests.
        if let Some(cache) = self.cache {
            self.flush_hints(cache);
        }
        self.commit();
        if self.phase >= Phase::Stopping {
            self.finish_queue();
        }
    }

    /// Any request, with any verdict.
    #[inline(never)]
    fn accept_slow(&mut self, arrival: Arrival) {
        let parsed = BlockRequest::parse(&arrival, &self.limits);
        let mut request = match parsed.or_else(|errno| self.parse_again(&arrival, errno)) {
            Ok(request) => request,
            Err(errno) => return self.refuse(arrival.tag, errno),
        };
        let op = request.action.op();
        let advised = match verdict::check(arrival.verdict, op, &arrival, self.cache.is_some()) {
            Ok(advised) => advised,
            Err(why) => self.without_advice(why),
        };
        if let Some(delay) = self.delay_of(&request, &advised) {
            return self.keep(&arrival, delay);
        }
        (request.mode, request.tenant) = (advised.mode, advised.tenant);
        if self.asks_the_cache(&request, &advised) {
            return self.read_cached(arrival.tag, &request, Wish::of(&advised));
        }
        let plan = plan(&request, advised.advice, &self.terms);
        self.start(arrival.tag, &request, &plan);
        // What has no data has no block.
        let promote = advised.promote.filter(|_| request.action.has_data());
        self.note_promotion(arrival.tag, promote);
    }

    /// Starts a request.
    #[inline(never)]
    fn start(&mut self, tag: u16, request: &BlockRequest, plan: &Plan) {
        self.count(request, plan);
        if request.action == Action::Flush
            && !matches!(plan.route, Route::Fail(_))
            && let Some(cache) = self.written_back()
        {
            return self.start_flush(cache, tag, request);
        }
        match plan.route {
            Route::Nothing => {
                self.forget_dropped(request);
                // A request with data succeeds with its whole length.
                let data = if request.action.has_data() {
                    request.length
                } else {
                    0
                };
                let data = u32::try_from(data).unwrap_or(u32::MAX);
                return self.finish(tag, data, Outcome::Moved(data));
            }
            Route::Fail(errno) => return self.refuse(tag, errno),
            Route::Direct | Route::Copy | Route::Zero | Route::Device => {}
        }
        if request.action == Action::Write {
            self.terms.written.mark(request.offset, request.length);
        }
        let is_change = !matches!(request.action, Action::Read | Action::Flush);
        if self.cache.is_some() && (is_change || self.may_be_dirty(request)) {
            self.start_change(tag, request, plan.route);
        } else {
            self.begin(tag, request, plan.route, (Legs::Backing, 0));
        }
    }

    /// Begins a request with these legs. If one goes to the slot, that is so far behind the position on the backing device.
    fn begin(&mut self, tag: u16, request: &BlockRequest, route: Route, (legs, slot_delta): (Legs, u64)) {
        // Data for two devices is copied from the client's pages once: the client may change them at any time.
        let is_twofold = matches!(legs, Legs::Through(_));
        let route = if is_twofold { Route::Copy } else { route };
        let mut in_flight = InFlight::new(request, route, self.volatile_cache, self.staging_bytes);
        in_flight.change(legs, slot_delta);
        self.tags.slot(tag).in_flight = in_flight;
        if route == Route::Copy {
            self.stage(tag);
        } else {
            self.todos.push(Todo::Io(tag));
        }
    }

    /// The advice for a request without a valid verdict. Counts why it has none.
    #[cold]
    fn without_advice(&mut self, why: NoAdvice) -> Advised {
        match why {
            NoAdvice::Missing => self.counters.verdict_missing += 1,
            NoAdvice::Stale => self.counters.verdict_stale += 1,
            NoAdvice::Invalid => self.counters.verdict_invalid += 1,
        }
        Advised::only(Advice::Slow)
    }

    #[inline]
    fn count(&mut self, request: &BlockRequest, plan: &Plan) {
        match plan.class {
            Class::Passthrough => self.counters.passthrough += 1,
            Class::Dropped => self.counters.dropped += 1,
            Class::Slow => self.counters.slow += 1,
        }
        self.counters.drop_refused += u64::from(plan.refused);
        self.counters.unregistered += u64::from(request.action.has_data() && !request.registered);
    }

    /// The operation that a tag's request is at.
    #[inline(always)]
    fn issue(&mut self, tag: u16) -> Io {
        let io = self.tags.in_flight(tag).io(self.grain);
        match io {
            Io::Copy(_) => self.counters.user_copies += 1,
            _ => self.counters.io_submitted += 1,
        }
        io
    }

    /// Any operation, with any result.
    #[inline(never)]
    fn complete_slow(&mut self, tag: u16, result: i32) {
        if self.slice_done(tag) {
            return;
        }
        let in_flight = &self.tags.expect_in_flight(tag).in_flight;
        if in_flight.committed().is_some() {
            self.commit_io_done(tag, result);
        } else if in_flight.is_cut() {
            self.cut_done(tag, result);
        } else if in_flight.is_whole(result) {
            let (data, served) = (in_flight.data(), in_flight.served());
            if let (Some(cache), Some(owed)) = (self.cache, in_flight.flushed()) {
                cache.backing_flushed(owed);
            }
            self.finish(tag, data, Outcome::Moved(served));
        } else {
            self.advance(tag, result);
        }
    }

    /// Fails a request before any operation was issued for it.
    #[cold]
    fn refuse(&mut self, tag: u16, errno: Errno) {
        self.tags.expect_in_flight(tag).in_flight = InFlight::IDLE;
        self.finish(tag, 0, Outcome::Failed(errno));
    }

    /// A request of `data` bytes has its outcome.
    fn finish(&mut self, tag: u16, data: u32, outcome: Outcome) {
        let result = result_of(data, outcome);
        let in_flight = &self.tags.expect_in_flight(tag).in_flight;
        let is_buffered = in_flight.buffer.is_some();
        let scope = self.scope_of(tag).filter(|_| result >= 0);
        let in_flight = &self.tags.expect_in_flight(tag).in_flight;
        if in_flight.concerns_cache() {
            self.release_cache(tag, result >= 0);
        }
        if is_buffered {
            self.release_buffer(tag);
        }
        if let (Some(scope), Some(cache)) = (scope, self.cache) {
            return self.commit_for(cache, tag, data, scope);
        }
        self.answer(tag, result);
    }

    /// Submits the results that are ready, unless a COMMIT is in flight.
    #[inline]
    fn commit(&mut self) {
        if self.commit_dead {
            return;
        }
        if let Some(batch) = self.batches.send() {
            self.todos.push(Todo::Commit(batch));
        }
    }
}

#[cfg(test)]
mod tests;
