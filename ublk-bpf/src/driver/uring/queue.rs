//! A hardware queue: one thread and one io_uring.
//!
//! [`run`] is the life of a queue's thread. Its loop carries out what the machine wants, enters the kernel once, and
//! passes on everything that has completed: one wake-up serves many requests, and one COMMIT returns many results.

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::time::Instant;

use ublk_bpf_abi::ServerCounters;

use super::super::host::{DeviceSpec, QueueError, QueueHost};
use super::copy;
use super::doorbell::{Doorbell, QueueBells};
use super::memory::{self, Memory};
use super::ring::{self, Ring};
use super::sqe::{self, Executor, Tagged};
use super::stop::Stop;
use crate::backend::{Access, RingOps};
use crate::cache::Sampler;
use crate::queue::{Arrival, Effect, FETCHES, FillBuffer, Io, Machine, QueueFailure, UserCopy};
use crate::sys::mmap::Descriptors;

/// Buffers of the server in the ring's table, after those of the requests.
const OWN_BUFFERS: u16 = 2;

/// `IORING_CQE_F_MORE` of `include/uapi/linux/io_uring.h`: the command will complete again.
const IORING_CQE_F_MORE: u32 = 1 << 1;

/// A queue of a device, and the descriptors that its ring shares with others.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueSpec<'e, 'w> {
    pub(super) queue: u16,
    pub(super) device: &'e DeviceSpec<'w>,
    /// Makes the queue give up.
    pub(super) stop: &'e Stop,
    /// Wakes the mover.
    pub(super) doorbell: &'e Doorbell,
    /// Wakes queues.
    pub(super) bells: &'e QueueBells,
}

impl QueueSpec<'_, '_> {
    /// The error of a step that failed in the system.
    fn cannot(&self, what: &'static str) -> impl FnOnce(io::Error) -> QueueError + use<> {
        let queue = self.queue;
        move |source| QueueError::System { queue, what, source }
    }
}

/// Serves the queue, from the calling thread, until the device or [`Stop`] ends it. Returns the last counters.
///
/// # Errors
/// If the queue cannot be set up, or the kernel refuses one of its commands for good.
pub(super) fn run<H: QueueHost>(
    spec: &QueueSpec<'_, '_>,
    host: &mut H,
) -> Result<ServerCounters, QueueError> {
    let device = spec.device;
    // The kernel reads and writes the memory and the machine's batches: both outlive the ring.
    let config = super::config::config(device);
    let staging = (config.staging_buffers, config.staging_bytes);
    let block_bytes = device.cache.map_or(0, |handles| 1 << handles.cache.shape().shift);
    let fills = (config.fill_buffers, block_bytes);
    let memory = Memory::map(device.depth, staging, fills).map_err(spec.cannot("get memory"))?;
    let machine = Machine::new(&config, device.written).map_err(|source| QueueError::Config {
        queue: spec.queue,
        source,
    })?;
    let machine = machine
        .with_cache(device.cache.map(|handles| handles.cache), spec.queue)
        .with_ends(device.ends)
        .with_capacity(device.sectors)
        .with_stopping(device.stopping);
    // After an error or a panic, operations may still be in flight: the memory is freed only after a good end.
    let mut kept = ManuallyDrop::new(Kept { memory, machine });
    let mut io = ring::build(device.depth).map_err(spec.cannot("make an io_uring"))?;
    let end = Queue::build(spec, &mut io, &mut kept, host).and_then(Queue::serve);
    drop(io);
    if end.is_ok() {
        drop(ManuallyDrop::into_inner(kept));
    }
    end
}

/// What the kernel may access as long as the ring exists.
struct Kept<'a> {
    memory: Memory,
    machine: Machine<'a>,
}

/// A queue in service.
struct Queue<'q, 'w, H> {
    spec: &'q QueueSpec<'q, 'w>,
    ring: Ring<'q>,
    machine: &'q mut Machine<'w>,
    memory: &'q mut Memory,
    descriptors: Descriptors,
    ops: RingOps,
    host: &'q mut H,
    /// The host knows that the queue is ready.
    is_ready: bool,
    failure: Option<QueueFailure>,
    /// A user copy was made since the machine was last idle.
    copied: bool,
    /// COMMITs that were pushed since the kernel was last asked to wait.
    commits: u32,
    /// The poll of the queue's bell is not out.
    must_poll_bell: bool,
    /// Where writes end in the cache.
    sampler: Option<Sampler<'w>>,
    start: Instant,
    finished: bool,
}

impl<'q, 'w, H: QueueHost> Queue<'q, 'w, H> {
    fn build(
        spec: &'q QueueSpec<'q, 'w>,
        io: &'q mut io_uring::IoUring,
        kept: &'q mut Kept<'w>,
        host: &'q mut H,
    ) -> Result<Self, QueueError> {
        let device = spec.device;
        let Kept { memory, machine } = kept;
        let mut ring = Ring::over(io);
        register_files(&ring, spec).map_err(spec.cannot("register files with its io_uring"))?;
        ring.submitter()
            .register_buffers_sparse(u32::from(device.depth + OWN_BUFFERS))
            .map_err(spec.cannot("register a buffer table with its io_uring"))?;
        if device.cache.is_some() {
            // SAFETY: `memory` outlives the ring, see `run`.
            unsafe { memory.register(ring.submitter(), device.depth) };
        }
        for (buffer, group) in memory.fetches.iter().zip(0..) {
            // SAFETY: `memory` outlives the ring, see `run`.
            unsafe { buffer.register(ring.submitter(), group) }
                .map_err(spec.cannot("register buffers for tags with its io_uring"))?;
        }
        let descriptors = Descriptors::map(device.device, spec.queue, device.depth, device.descriptor_bytes)
            .map_err(spec.cannot("map the device's request descriptors"))?;
        // SAFETY: the entry names no memory.
        unsafe { ring.push(&sqe::stop()) };
        // SAFETY: the entry names static memory.
        unsafe { ring.push(&sqe::tick(&sqe::TICK)) };
        let ops = match device.backend.access() {
            Access::Ring { ops, .. } => ops,
            Access::Nothing(_) => RingOps::default(),
        };
        Ok(Self {
            spec,
            ring,
            machine,
            memory,
            descriptors,
            ops,
            host,
            is_ready: false,
            failure: None,
            copied: false,
            commits: 0,
            must_poll_bell: device.cache.is_some(),
            sampler: device.cache.and_then(|handles| Sampler::new(handles.cache)),
            start: Instant::now(),
            finished: false,
        })
    }

    /// The main loop.
    fn serve(mut self) -> Result<ServerCounters, QueueError> {
        loop {
            let all_done = self.carry_out_effects();
            self.publish_counters();
            if self.finished {
                break;
            }
            let wanted = if all_done { self.wanted() } else { 0 };
            if let Some(sampler) = &mut self.sampler {
                let machine = &*self.machine;
                sampler.settle(|tag| machine.is_in_service(tag), || self.start.elapsed());
            }
            self.ring
                .enter(wanted)
                .map_err(self.spec.cannot("enter its io_uring"))?;
            self.take_completions();
            self.machine.idle();
        }
        match self.failure {
            Some(source) => Err(QueueError::Failed {
                queue: self.spec.queue,
                source,
            }),
            None => Ok(*self.machine.counters()),
        }
    }

    /// How many completions to wait for. A COMMIT completes within its submission, and its completion says nothing new, so
    /// the queue sleeps on until there is another: at depth 1, that saves entering the kernel once per request. Should the
    /// kernel refuse the COMMIT and no other completion come, that of [`sqe::tick`] does.
    #[inline]
    fn wanted(&mut self) -> u32 {
        let commits = std::mem::take(&mut self.commits);
        // A queue that ends may have no other completion to come.
        if self.machine.is_serving() { 1 + commits } else { 1 }
    }

    /// Turns effects into submissions. Returns `false` if the submission queue is full and must be submitted first.
    #[inline]
    fn carry_out_effects(&mut self) -> bool {
        while self.ring.has_room() {
            match self.machine.poll_effect() {
                None if std::mem::take(&mut self.must_poll_bell) => {
                    // SAFETY: the entry names no memory.
                    unsafe { self.ring.push(&sqe::bell()) };
                }
                // User copies complete at once: commit what they finished too.
                None if std::mem::take(&mut self.copied) => self.machine.idle(),
                None => return true,
                Some(Effect::Io { tag, io }) => self.carry_out(tag, io),
                Some(Effect::Fill { fill, io }) => {
                    let fills = &self.memory.fills;
                    let entry = sqe::fill(fill, io, |buffer, skip| fills.place(buffer, skip));
                    // SAFETY: the entry names a fill's buffer, which outlives the ring. A load has it to itself; while it
                    // is stored, it is only read.
                    unsafe { self.ring.push(&entry) };
                }
                Some(Effect::Commit { batch, from }) => {
                    let elements = &self.machine.batch(batch)[usize::from(from)..];
                    // SAFETY: the machine keeps the elements as they are until the COMMIT has completed, and
                    // outlives the ring.
                    unsafe { self.ring.push(&sqe::commit(self.spec.queue, batch, elements)) };
                    self.commits += 1;
                }
                Some(Effect::Fetch { fetch }) => self.fetch(fetch),
                Some(Effect::Prepare { batch }) => {
                    let elements = self.machine.batch(batch);
                    // SAFETY: as for COMMIT.
                    unsafe { self.ring.push(&sqe::prepare(self.spec.queue, elements)) };
                }
                // SAFETY: the entry names eight bytes of static memory.
                Some(Effect::Wake) => unsafe { self.ring.push(&sqe::wake()) },
                Some(Effect::Ring(queues)) => self.spec.bells.ring(queues, Some(self.spec.queue)),
                Some(Effect::Failed(failure)) => {
                    tracing::error!("queue {}: {failure}", self.spec.queue);
                    self.failure = Some(failure);
                }
                Some(Effect::Finished) => self.finished = true,
            }
        }
        false
    }

    fn carry_out(&mut self, tag: u16, io: Io) {
        let staging = &self.memory.staging;
        let cache = self.spec.device.cache;
        let record = || cache.map_or(std::ptr::null(), |handles| handles.cache.record());
        let place = |buffer, skip| staging.place(buffer, skip);
        match sqe::executor(tag, io, self.ops, place, record) {
            // SAFETY: the entry names the request's registered pages, which the kernel checks, or a staging
            // buffer, which belongs to this tag until its operation has completed and outlives the ring, or the log's record,
            // which belongs to the request that leads the commit and is as long as the cache, which outlives the ring too.
            Executor::Ring(entry) => unsafe { self.ring.push(&entry) },
            Executor::Copy(copy) => self.copy(tag, copy),
            Executor::Timer(micros) => {
                let entry = sqe::timer(tag, self.memory.delay(tag, micros));
                // SAFETY: the entry names the tag's time, which stays as it is until the timer has ended, and outlives the
                // ring.
                unsafe { self.ring.push(&entry) };
            }
        }
    }

    /// Makes a user copy, which completes at once.
    #[cold]
    fn copy(&mut self, tag: u16, copy: UserCopy) {
        let device = self.spec.device.device;
        let position = |at| copy::position(self.spec.queue, tag, at);
        let staging = &self.memory.staging;
        let result = match copy {
            UserCopy::Out {
                staging: buffer,
                skip,
                at,
                len,
            } => {
                let len = len.min(staging.room(skip));
                // SAFETY: the buffer is this tag's, and has at least `len` bytes from `skip`.
                unsafe { copy::to_request(device, position(at), staging.address(buffer.0, skip), len) }
            }
            UserCopy::Filled { fill, skip, at, len } => {
                let fills = &self.memory.fills;
                let len = len.min(fills.room(skip));
                // SAFETY: the buffer has at least `len` bytes from `skip`, which were loaded, and which nothing writes to
                // before this copy has completed.
                unsafe { copy::to_request(device, position(at), fills.address(fill.0, skip), len) }
            }
            UserCopy::In {
                staging: buffer,
                skip,
                at,
                len,
            } => {
                let len = len.min(staging.room(skip));
                // SAFETY: as above, and nothing else accesses it until the copy completes.
                unsafe { copy::from_request(device, position(at), staging.address(buffer.0, skip), len) }
            }
            UserCopy::Zero { at, len } => {
                let zeroes = self.memory.zeroes();
                let len = len.min(u32::try_from(zeroes.len()).unwrap_or(u32::MAX));
                // SAFETY: `zeroes` has at least `len` bytes.
                unsafe { copy::to_request(device, position(at), zeroes.as_ptr(), len) }
            }
        };
        self.copied = true;
        self.machine.io_done(tag, result);
    }

    fn fetch(&mut self, fetch: u8) {
        self.memory.fetches[usize::from(fetch)].give();
        // SAFETY: the entry names a group of provided buffers, whose memory outlives the ring.
        unsafe { self.ring.push(&sqe::fetch(self.spec.queue, fetch)) };
    }

    #[inline]
    fn publish_counters(&mut self) {
        self.machine.counters_mut().enters = self.ring.enters;
        self.host.publish(self.machine.counters());
    }

    /// Passes every completion to the machine.
    #[inline]
    fn take_completions(&mut self) {
        self.machine.look_at_ends();
        while let Some(completion) = self.ring.next_completion() {
            let (of, result) = (completion.user_data(), completion.result());
            // Nearly every one is a request's.
            match Tagged::tag_of(of) {
                Some(tag) => self.machine.io_done(tag, result),
                None => self.command_completed(of, result, completion.flags()),
            }
        }
    }

    #[inline(never)]
    fn command_completed(&mut self, of: u64, result: i32, flags: u32) {
        match Tagged::parse(of) {
            Some(Tagged::Fetch(fetch)) => self.fetched(fetch, result, flags & IORING_CQE_F_MORE != 0),
            Some(Tagged::Commit(batch)) => self.machine.committed(batch, result),
            Some(Tagged::Prepare) => self.prepared(result),
            Some(Tagged::Stop) => self.machine.abandon(),
            Some(Tagged::Wake | Tagged::Tick) => {}
            Some(Tagged::Fill(fill)) => self.machine.fill_done(FillBuffer(fill), result),
            Some(Tagged::Rung) => self.rung(flags & IORING_CQE_F_MORE != 0),
            Some(Tagged::Io(tag)) => self.machine.io_done(tag, result),
            None => tracing::error!(
                "queue {}: completion of an unknown entry {of:#x}, result {result}",
                self.spec.queue
            ),
        }
    }

    /// Another thread rang. Without `more`, the poll has ended.
    fn rung(&mut self, more: bool) {
        self.machine.look_again();
        self.must_poll_bell |= !more;
    }

    fn prepared(&mut self, result: i32) {
        self.machine.prepared(result);
        if result >= 0 && !self.is_ready {
            self.is_ready = true;
            self.host.ready();
        }
    }

    #[inline]
    fn fetched(&mut self, fetch: u8, result: i32, more: bool) {
        if let Ok(bytes @ 1..) = u32::try_from(result) {
            self.arrived(fetch, bytes);
        }
        if !more {
            self.machine.fetch_ended(fetch, result);
        }
    }

    /// Passes each tag of a FETCH completion to the machine, with its descriptor and verdict.
    #[inline(never)]
    fn arrived(&mut self, fetch: u8, bytes: u32) {
        self.machine.counters_mut().fetch_batches += 1;
        let Some(tags) = self.memory.fetches[usize::from(fetch)].take(bytes) else {
            tracing::error!(
                "queue {}: FETCH claims {bytes} bytes that its buffer cannot hold",
                self.spec.queue
            );
            return self.machine.abandon();
        };
        if let Some(sampler) = &mut self.sampler
            && let Some(tag) = tags.clone().next()
        {
            sampler.arrived(bytes / 2, tag, || self.start.elapsed());
        }
        for tag in tags {
            let Some(descriptor) = self.descriptors.read(tag) else {
                self.report_unknown(tag);
                continue;
            };
            let arrival = Arrival {
                tag,
                op_flags: descriptor.op_flags,
                nr_sectors: descriptor.nr_sectors,
                start_sector: descriptor.start_sector,
                verdict: self.host.take_verdict(tag),
            };
            let Some(direct) = self.machine.start_fast(&arrival) else {
                continue;
            };
            // SAFETY: the entry names the request's registered pages, which the kernel checks.
            let pushed = unsafe { self.ring.try_push(&sqe::direct(tag, &direct)) };
            if !pushed {
                self.machine.requeue(tag);
            }
        }
    }

    #[cold]
    fn report_unknown(&self, tag: u16) {
        let queue = self.spec.queue;
        tracing::error!("queue {queue}: FETCH brought tag {tag}, which the queue does not have");
    }
}

/// Registers the files that entries name by number, in the order of [`sqe::file`]. A file that the device does not have
/// is an empty place in the table: an operation on it would fail.
fn register_files(ring: &Ring<'_>, spec: &QueueSpec<'_, '_>) -> io::Result<()> {
    let device = spec.device;
    let zero = File::open("/dev/zero")?;
    let mut files = [-1; sqe::file::COUNT];
    files[sqe::file::UBLK as usize] = device.device.as_raw_fd();
    if let Access::Ring { file, .. } = device.backend.access() {
        files[sqe::file::BACKING as usize] = file.as_raw_fd();
    }
    files[sqe::file::ZERO as usize] = zero.as_raw_fd();
    files[sqe::file::STOP as usize] = spec.stop.as_raw_fd();
    if let Some(handles) = device.cache {
        files[sqe::file::CACHE as usize] = handles.device.as_raw_fd();
    }
    files[sqe::file::DOORBELL as usize] = spec.doorbell.as_raw_fd();
    files[sqe::file::BELL as usize] = spec.bells.of(spec.queue);
    ring.submitter().register_files(&files)
}

const _: () = assert!(FETCHES as usize == memory::FETCH_BUFFERS);
