//! The real driver: one thread and one io_uring for a hardware queue.
//!
//! [`run_queue`] is the whole life of a queue thread. Its main loop carries out what the machine wants, enters
//! the kernel once, and tells the machine everything that has happened meanwhile: the kernel is woken once for
//! many requests, and many results go back in one commit.

mod copy;
mod doorbell;
mod fetch;
mod memory;
mod promote;
mod ring;
mod sqe;
mod stop;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd};

use ublk_bpf_abi::ServerCounters;

use self::memory::Memory;
use self::ring::Ring;
use self::sqe::{BackendOps, Tagged};
use crate::backend::{Backend, Kind, NullReads};
use crate::cache::{Cache, Mode};
use crate::queue::{
    Arrival, Backing, BadConfig, Capabilities, Config, Effect, Ends, FETCHES, Io, Machine, QueueFailure,
    TakenVerdict, Written,
};
use crate::sys::mmap::Descriptors;

pub use self::doorbell::Doorbell;
pub use self::promote::{PromoterSpec, run_promoter};
pub use self::stop::Stop;

/// Staging buffers of a queue, as far as the slow path alone uses them; what has none waits.
const STAGING_BUFFERS: u16 = 8;
/// Bytes of each.
const STAGING_BYTES: u32 = 128 << 10;
/// Bytes of a queue's staging buffers where every write of a cached block uses one.
const WRITE_THROUGH_BYTES: u32 = 8 << 20;

/// `IORING_CQE_F_MORE` of `include/uapi/linux/io_uring.h`: the command will complete again.
const IORING_CQE_F_MORE: u32 = 1 << 1;

/// What a queue thread needs to know.
#[derive(Clone, Copy, Debug)]
pub struct QueueSpec<'a> {
    /// Which hardware queue of the device.
    pub queue: u16,
    /// Its tags: 1 to 4096, as the device's info says.
    pub depth: u16,
    /// Bytes from one descriptor to the next (`io_desc_size` of the device's info).
    pub descriptor_bytes: u16,
    /// `/dev/ublkcN`.
    pub device: BorrowedFd<'a>,
    /// Where the bytes are.
    pub backend: &'a Backend,
    /// What the server knows to read as zeroes.
    pub written: Written<'a>,
    /// The cache, if there is one.
    pub cache: Option<CacheHandles<'a>>,
    /// Where the files of backing and cache end by now.
    pub ends: Ends<'a>,
    /// The policy may lose data and fail requests (`--allow-lossy`).
    pub lossy: bool,
    /// Ends the queue before the kernel does.
    pub stop: &'a Stop,
}

/// What a queue has to do with a cache.
#[derive(Clone, Copy, Debug)]
pub struct CacheHandles<'a> {
    /// Which blocks are in it.
    pub cache: &'a Cache<'a>,
    /// The device that they are on.
    pub device: &'a File,
    /// Wakes who promotes.
    pub doorbell: &'a Doorbell,
}

/// Why a queue thread ended other than by the device's end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something that the queue needs could not be had, or the ring stopped working.
    #[error("queue {queue}: cannot {what}: {source}")]
    System {
        /// Which queue.
        queue: u16,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The queue was to be made of something that makes none.
    #[error("queue {queue}: {source}")]
    Config {
        /// Which queue.
        queue: u16,
        /// What is wrong.
        source: BadConfig,
    },
    /// The kernel refused a command for good.
    #[error("queue {queue}: {source}")]
    Failed {
        /// Which queue.
        queue: u16,
        /// What it refused.
        source: QueueFailure,
    },
}

/// Serves one hardware queue until the device ends, from the calling thread, which it keeps.
///
/// `take_verdict` takes what the classifier left for a tag that has arrived, and leaves nothing. `publish` is
/// called with the counters each time before the thread may sleep, and at the end. `ready` is called once the
/// kernel has every tag: when all queues are ready, the device can start. Returns the last counters.
///
/// # Errors
/// If the queue cannot be made, or the kernel refuses to go on with it.
pub fn run_queue(
    spec: &QueueSpec<'_>,
    take_verdict: impl FnMut(u16) -> TakenVerdict,
    publish: impl FnMut(&ServerCounters),
    ready: impl FnOnce(),
) -> Result<ServerCounters, Error> {
    let queue = spec.queue;
    let failed = |what| move |source| Error::System { queue, what, source };
    // The kernel reads and writes the memory and the machine's batches: both outlive the ring.
    let config = config(spec);
    let memory = Memory::map(config.staging_buffers, config.staging_bytes).map_err(failed("get memory"))?;
    let machine = Machine::new(&config, spec.written).map_err(|source| Error::Config { queue, source })?;
    let machine = machine
        .with_cache(spec.cache.map(|handles| handles.cache))
        .with_ends(spec.ends);
    // After an error or a panic operations may be under way still, and nobody waits for them any more: it is let go of
    // only after a good end.
    let mut kept = ManuallyDrop::new(Kept { memory, machine });
    let mut io = ring::build(spec.depth).map_err(failed("make an io_uring"))?;
    let end = Queue::build(spec, &mut io, &mut kept, (take_verdict, publish, ready)).and_then(Queue::serve);
    drop(io);
    if end.is_ok() {
        drop(ManuallyDrop::into_inner(kept));
    }
    end
}

/// What the kernel may access as long as the ring is there.
struct Kept<'a> {
    memory: Memory,
    machine: Machine<'a>,
}

fn config(spec: &QueueSpec<'_>) -> Config {
    let facts = spec.backend.facts();
    let backing = match spec.backend.kind() {
        Kind::Null(reads) => Backing::Null {
            filled: reads == NullReads::Zeroes,
        },
        Kind::File | Kind::Block | Kind::Memory => Backing::Storage(Capabilities {
            volatile_cache: facts.volatile_cache,
            discard: facts.discard.is_some(),
            write_zeroes: facts.write_zeroes.is_some(),
        }),
    };
    let (staging_buffers, staging_bytes) = staging(spec);
    Config {
        depth: spec.depth,
        staging_buffers,
        staging_bytes,
        capacity: facts.sectors,
        logical_block: facts.logical_block,
        read_only: facts.read_only,
        lossy: spec.lossy,
        backing,
    }
}

/// Staging buffers of a queue, and bytes of each. A write-through is copied once and goes to both devices from there, so
/// each tag has a buffer that holds what it can write, as far as there is room for so many.
fn staging(spec: &QueueSpec<'_>) -> (u16, u32) {
    let shape = spec.cache.map(|ops| *ops.cache.shape());
    match shape.filter(|shape| shape.mode == Mode::WriteThrough) {
        Some(shape) => {
            let bytes = (1 << shape.shift).min(STAGING_BYTES);
            let buffers = u16::try_from(WRITE_THROUGH_BYTES / bytes).unwrap_or(u16::MAX);
            (buffers.min(spec.depth).max(STAGING_BUFFERS), bytes)
        }
        None => (STAGING_BUFFERS, STAGING_BYTES),
    }
}

/// A queue in service.
struct Queue<'q, 'w, V, P, R> {
    spec: &'q QueueSpec<'w>,
    ring: Ring<'q>,
    machine: &'q mut Machine<'w>,
    memory: &'q mut Memory,
    descriptors: Descriptors,
    ops: BackendOps,
    take_verdict: V,
    publish: P,
    /// Called once, and gone then.
    ready: Option<R>,
    failure: Option<QueueFailure>,
    /// A user copy was made since the machine was last told that there is nothing further.
    copied: bool,
    finished: bool,
}

impl<'q, 'w, V, P, R> Queue<'q, 'w, V, P, R>
where
    V: FnMut(u16) -> TakenVerdict,
    P: FnMut(&ServerCounters),
    R: FnOnce(),
{
    fn build(
        spec: &'q QueueSpec<'w>,
        io: &'q mut io_uring::IoUring,
        kept: &'q mut Kept<'w>,
        (take_verdict, publish, ready): (V, P, R),
    ) -> Result<Self, Error> {
        let failed = |what| {
            move |source| Error::System {
                queue: spec.queue,
                what,
                source,
            }
        };
        let Kept { memory, machine } = kept;
        let mut ring = Ring::over(io);
        register_files(&ring, spec).map_err(failed("register files with its io_uring"))?;
        ring.submitter()
            .register_buffers_sparse(u32::from(spec.depth))
            .map_err(failed("register a buffer table with its io_uring"))?;
        for (buffer, group) in memory.fetches.iter().zip(0..) {
            // SAFETY: `memory` outlives the ring, see `run_queue`.
            unsafe { buffer.register(ring.submitter(), group) }
                .map_err(failed("register buffers for tags with its io_uring"))?;
        }
        let descriptors = Descriptors::map(spec.device, spec.queue, spec.depth, spec.descriptor_bytes)
            .map_err(failed("map the device's request descriptors"))?;
        // SAFETY: the entry names no memory.
        unsafe { ring.push(&sqe::stop()) };
        let ops = BackendOps::of(spec.backend.facts());
        Ok(Self {
            spec,
            ring,
            machine,
            memory,
            descriptors,
            ops,
            take_verdict,
            publish,
            ready: Some(ready),
            failure: None,
            copied: false,
            finished: false,
        })
    }

    /// The main loop.
    fn serve(mut self) -> Result<ServerCounters, Error> {
        loop {
            let all_done = self.carry_out_effects();
            self.publish_counters();
            if self.finished {
                break;
            }
            self.ring.enter(all_done).map_err(|source| Error::System {
                queue: self.spec.queue,
                what: "enter its io_uring",
                source,
            })?;
            self.take_completions();
            self.machine.idle();
        }
        match self.failure {
            Some(source) => Err(Error::Failed {
                queue: self.spec.queue,
                source,
            }),
            None => Ok(*self.machine.counters()),
        }
    }

    /// Turns effects into submissions; returns whether that was all of them, or else the submission queue is
    /// full and has to be submitted first.
    #[inline]
    fn carry_out_effects(&mut self) -> bool {
        while self.ring.has_room() {
            match self.machine.poll_effect() {
                // User copies are answered on the spot: what they have finished is to be committed too.
                None if std::mem::take(&mut self.copied) => self.machine.idle(),
                None => return true,
                Some(Effect::Io { tag, io }) => self.carry_out(tag, io),
                Some(Effect::Commit { batch, from }) => {
                    let elements = &self.machine.batch(batch)[usize::from(from)..];
                    // SAFETY: the machine keeps the elements as they are until the COMMIT has completed, and
                    // outlives the ring.
                    unsafe { self.ring.push(&sqe::commit(self.spec.queue, batch, elements)) };
                }
                Some(Effect::Fetch { fetch }) => self.fetch(fetch),
                Some(Effect::Prepare { batch }) => {
                    let elements = self.machine.batch(batch);
                    // SAFETY: as for COMMIT.
                    unsafe { self.ring.push(&sqe::prepare(self.spec.queue, elements)) };
                }
                // SAFETY: the entry names eight bytes that are always there.
                Some(Effect::Wake) => unsafe { self.ring.push(&sqe::wake()) },
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
        match sqe::operation(tag, io, self.ops, |buffer, skip| staging.address(buffer, skip)) {
            // SAFETY: the entry names the request's registered pages, which the kernel checks, or a staging
            // buffer, which belongs to this tag until its operation has completed and outlives the ring.
            Some(entry) => unsafe { self.ring.push(&entry) },
            None => self.copy(tag, io),
        }
    }

    /// Makes a user copy, and tells the machine at once.
    #[cold]
    fn copy(&mut self, tag: u16, io: Io) {
        let device = self.spec.device;
        let position = |at| copy::position(self.spec.queue, tag, at);
        let staging = &self.memory.staging;
        let result = match io {
            Io::CopyOut {
                staging: buffer,
                skip,
                at,
                len,
            } => {
                let len = len.min(staging.room(skip));
                // SAFETY: the buffer is this tag's, and has at least `len` bytes from `skip`.
                unsafe { copy::to_request(device, position(at), staging.address(buffer.0, skip), len) }
            }
            Io::CopyIn {
                staging: buffer,
                skip,
                at,
                len,
            } => {
                let len = len.min(staging.room(skip));
                // SAFETY: as above, and nobody else accesses it until the machine hears of the copy.
                unsafe { copy::from_request(device, position(at), staging.address(buffer.0, skip), len) }
            }
            Io::CopyZero { at, len } => {
                let zeroes = self.memory.zeroes();
                let len = len.min(u32::try_from(zeroes.len()).unwrap_or(u32::MAX));
                // SAFETY: `zeroes` has at least `len` bytes.
                unsafe { copy::to_request(device, position(at), zeroes.as_ptr(), len) }
            }
            _ => unreachable!("{io:?} is the ring's"),
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
        (self.publish)(self.machine.counters());
    }

    /// Tells the machine everything that has happened.
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
            Some(Tagged::Wake) => {}
            Some(Tagged::Io(tag)) => self.machine.io_done(tag, result),
            None => tracing::error!(
                "queue {}: a completion of nothing that was submitted: {of:#x}, result {result}",
                self.spec.queue
            ),
        }
    }

    fn prepared(&mut self, result: i32) {
        self.machine.prepared(result);
        if let Some(ready) = self.ready.take_if(|_| result >= 0) {
            ready();
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

    /// Tells the machine of each tag of a FETCH completion, with its descriptor and its verdict.
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
                verdict: (self.take_verdict)(tag),
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
        tracing::error!("queue {queue}: FETCH brought tag {tag}, which it has not");
    }
}

/// Registers the files that entries name by number, in the order of [`sqe::file`].
fn register_files(ring: &Ring<'_>, spec: &QueueSpec<'_>) -> io::Result<()> {
    let zero = File::open("/dev/zero")?;
    let mut files = [-1; sqe::file::COUNT];
    files[sqe::file::UBLK as usize] = spec.device.as_raw_fd();
    files[sqe::file::BACKING as usize] = spec.backend.file().unwrap_or(&zero).as_raw_fd();
    files[sqe::file::ZERO as usize] = zero.as_raw_fd();
    files[sqe::file::STOP as usize] = spec.stop.as_raw_fd();
    let cache = spec.cache.map_or(&zero, |handles| handles.device);
    files[sqe::file::CACHE as usize] = cache.as_raw_fd();
    let doorbell = spec
        .cache
        .map_or(spec.stop.as_raw_fd(), |handles| handles.doorbell.as_raw_fd());
    files[sqe::file::DOORBELL as usize] = doorbell;
    ring.submitter().register_files(&files)
}

const _: () = assert!(FETCHES as usize == memory::FETCH_BUFFERS);
