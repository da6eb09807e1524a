//! The mover's thread: it copies blocks from the backing device to the cache device.

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use ublk_bpf_abi::CacheCounters;

use super::doorbell::{Doorbell, QueueBells};
use super::memory::StagingMemory;
use crate::cache::{Cache, Mover, MoverIo, Rest};

/// `user_data` of the doorbell's read; a job's is its number.
const DOORBELL: u64 = u64::MAX;

/// The longest sleep: heat decays even if nothing is promoted.
const TICK: Duration = Duration::from_secs(1);

/// The mover's devices.
#[derive(Clone, Copy, Debug)]
pub(super) struct MoverSetup<'a> {
    /// The source.
    pub(super) backing: &'a File,
    /// The destination.
    pub(super) cache: &'a File,
    /// `/dev/ublkcN`. The kernel gives the device to no other server while this thread's ring holds it, and the ring
    /// holds it until its last operation has completed. So a killed server's last write to a slot is complete before
    /// its successor reads the slot.
    pub(super) device: BorrowedFd<'a>,
    /// Bytes of a cache block.
    pub(super) block_bytes: u32,
    /// Wakes and stops it.
    pub(super) doorbell: &'a Doorbell,
    /// Wakes queues.
    pub(super) bells: &'a QueueBells,
    /// What it shares with them.
    pub(super) shared: &'a Cache<'a>,
}

/// Promotes until the doorbell says stop and nothing is in flight. Calls `publish` with the counters each time before
/// the thread may sleep, and at the end.
///
/// # Errors
/// If there is no ring or memory, or the ring stops working.
pub(super) fn run(
    setup: &MoverSetup<'_>,
    mover: &mut Mover<'_, '_>,
    mut publish: impl FnMut(&CacheCounters),
) -> io::Result<()> {
    let jobs = mover.jobs();
    let staging = StagingMemory::map(mover.buffers(), setup.block_bytes)?;
    let ring = IoUring::builder().dontfork().build(u32::from(jobs) + 1)?;
    ring.submitter().register_files(&[setup.device.as_raw_fd()])?;
    // The kernel may access it as long as the ring exists.
    let kept = ManuallyDrop::new(Box::new((staging, AtomicU64::new(0))));
    let mut thread = Thread {
        setup,
        mover,
        ring,
        staging: &kept.0,
        rung: kept.1.as_ptr().cast(),
        is_armed: false,
    };
    let end = thread.serve(&mut publish);
    drop(thread);
    if end.is_ok() {
        drop(ManuallyDrop::into_inner(kept));
    }
    end
}

struct Thread<'t, 'c, 'm> {
    setup: &'t MoverSetup<'t>,
    mover: &'t mut Mover<'c, 'm>,
    ring: IoUring,
    staging: &'t StagingMemory,
    /// Receives the doorbell's count.
    rung: *mut u8,
    is_armed: bool,
}

impl Thread<'_, '_, '_> {
    fn serve(&mut self, publish: &mut impl FnMut(&CacheCounters)) -> io::Result<()> {
        let start = Instant::now();
        loop {
            if self.setup.doorbell.is_stopped() {
                self.mover.stop();
            }
            self.arm()?;
            let rest = self.begin(start)?;
            self.setup.bells.ring(self.setup.shared.take_woken(), None);
            publish(self.mover.counters());
            if let Some(failure) = self.mover.take_clean_failure() {
                tracing::error!("{failure}");
            }
            if self.setup.doorbell.is_stopped() && self.mover.is_idle() {
                return Ok(());
            }
            self.wait(rest, start.elapsed())?;
            self.take_completions()?;
        }
    }

    /// Reads the doorbell, unless a read is already out.
    fn arm(&mut self) -> io::Result<()> {
        if self.is_armed {
            return Ok(());
        }
        let doorbell = Fd(self.setup.doorbell.as_raw_fd());
        self.is_armed = true;
        self.push(
            &opcode::Read::new(doorbell, self.rung, 8)
                .build()
                .user_data(DOORBELL),
        )
    }

    /// Starts every promotion that may start now.
    fn begin(&mut self, start: Instant) -> io::Result<Rest> {
        loop {
            match self.mover.poll(start.elapsed()) {
                Ok(effect) => self.carry_out(effect)?,
                Err(rest) => return Ok(rest),
            }
        }
    }

    fn carry_out(&mut self, effect: MoverIo) -> io::Result<()> {
        let backing = Fd(self.setup.backing.as_raw_fd());
        let cache = Fd(self.setup.cache.as_raw_fd());
        let (job, entry) = match effect {
            MoverIo::Load {
                job,
                offset,
                skip,
                len,
            } => (job, self.read(backing, offset, job, skip, len)),
            MoverIo::LoadSlot {
                job,
                buffer,
                offset,
                skip,
                len,
            } => (job, self.read(cache, offset, buffer, skip, len)),
            MoverIo::Store {
                job,
                offset,
                skip,
                len,
            } => {
                let from = self.staging.range(job, skip, len);
                (job, opcode::Write::new(cache, from, len).offset(offset).build())
            }
            MoverIo::StoreBacking {
                job,
                buffer,
                offset,
                len,
            } => {
                let from = self.staging.range(buffer, 0, len);
                (job, opcode::Write::new(backing, from, len).offset(offset).build())
            }
            MoverIo::FlushBacking { job } => (job, flush(backing)),
            MoverIo::FlushCache { job } => (job, flush(cache)),
            MoverIo::StoreRecord { job, offset, len } => (
                job,
                store_pages(cache, self.setup.shared.record(), len, offset, true),
            ),
            MoverIo::StorePages {
                job,
                offset,
                len,
                is_durable,
            } => (
                job,
                store_pages(cache, self.mover.pages(), len, offset, is_durable),
            ),
            MoverIo::Compare { job, buffer, len } => {
                // SAFETY: both reads of this job have completed, and no other job has these buffers.
                let is_same = unsafe { self.staging.is_same(job, buffer, len) };
                return match self.mover.compared(job, is_same) {
                    Some(next) => self.carry_out(next),
                    None => Ok(()),
                };
            }
        };
        self.push(&entry.user_data(job.into()))
    }

    /// From a device to a staging buffer.
    fn read(&self, from: Fd, offset: u64, buffer: u16, skip: u32, len: u32) -> squeue::Entry {
        let to = self.staging.range(buffer, skip, len);
        opcode::Read::new(from, to, len).offset(offset).build()
    }

    /// There is room for an operation of each job and the doorbell.
    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: the memory that an entry names is a staging buffer, which is its job's until it completes, the doorbell's
        // count, or pages of the log, which stay as they are until the job that writes them is told so; all outlive the ring.
        unsafe { self.ring.submission().push(entry) }.map_err(|_| io::ErrorKind::OutOfMemory.into())
    }

    /// Submits, and sleeps until a completion or the time in `rest`.
    fn wait(&mut self, rest: Rest, now: Duration) -> io::Result<()> {
        let most = match rest {
            Rest::UntilWoken => TICK,
            Rest::Until(then) => then.saturating_sub(now).min(TICK),
        };
        let most = Timespec::from(most);
        let args = SubmitArgs::new().timespec(&most);
        match self.ring.submitter().submit_with_args(1, &args) {
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
            Ok(_) => Ok(()),
        }
    }

    fn take_completions(&mut self) -> io::Result<()> {
        loop {
            let completion = self.ring.completion().next();
            let Some(completion) = completion else {
                return Ok(());
            };
            if completion.user_data() == DOORBELL {
                self.is_armed = false;
                continue;
            }
            let next = u16::try_from(completion.user_data())
                .ok()
                .and_then(|job| self.mover.done(job, completion.result()));
            if let Some(effect) = next {
                self.carry_out(effect)?;
            }
        }
    }
}

fn flush(device: Fd) -> squeue::Entry {
    opcode::Fsync::new(device).flags(FsyncFlags::DATASYNC).build()
}

/// Pages of the log to the cache device.
fn store_pages(to: Fd, from: *const u8, len: u32, offset: u64, is_durable: bool) -> squeue::Entry {
    let flags = if is_durable { libc::RWF_DSYNC } else { 0 };
    opcode::Write::new(to, from, len)
        .offset(offset)
        .rw_flags(flags)
        .build()
}
