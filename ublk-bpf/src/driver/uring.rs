//! The engine over io_uring: a thread and a ring for each hardware queue, and one of each for the mover.

mod config;
mod copy;
mod doorbell;
mod fetch;
mod memory;
mod mover;
mod queue;
mod ring;
mod sqe;
mod stop;
#[cfg(test)]
mod tests;

use std::io;

use ublk_bpf_abi::{CacheCounters, ServerCounters};

use self::doorbell::{Doorbell, QueueBells};
use self::queue::QueueSpec;
use self::stop::Stop;
use super::host::{DeviceSpec, QueueError, QueueHost};
use crate::backend::Access;
use crate::cache::Mover;

/// Whether this process may have a ring as a queue's thread makes it.
///
/// # Errors
/// The kernel's.
pub(crate) fn probe() -> io::Result<()> {
    ring::build(1).map(drop)
}

/// Serves one device. Its `run_` methods keep the calling thread, each of which the server starts.
#[derive(Debug)]
pub struct Engine<'a> {
    spec: DeviceSpec<'a>,
    stop: Stop,
    doorbell: Doorbell,
    bells: QueueBells,
}

impl<'a> Engine<'a> {
    /// An engine for this device. It does nothing before its threads run.
    ///
    /// # Errors
    /// If the process has no file descriptor to spare.
    pub fn new(spec: DeviceSpec<'a>) -> io::Result<Self> {
        Ok(Self {
            spec,
            stop: Stop::new()?,
            doorbell: Doorbell::new()?,
            bells: QueueBells::new(spec.queues)?,
        })
    }

    /// Serves hardware queue `queue` until the device or [`stop_queues`](Self::stop_queues) ends it. Returns the last
    /// counters.
    ///
    /// # Errors
    /// If the queue cannot be set up, or the kernel refuses one of its commands for good.
    pub fn run_queue(&self, queue: u16, host: &mut impl QueueHost) -> Result<ServerCounters, QueueError> {
        let spec = QueueSpec {
            queue,
            device: &self.spec,
            stop: &self.stop,
            doorbell: &self.doorbell,
            bells: &self.bells,
        };
        queue::run(&spec, host)
    }

    /// Fills the cache until [`stop_mover`](Self::stop_mover) is called and nothing is in flight. Calls `publish`
    /// with the counters each time before the thread may sleep, and at the end. Without a cache there is nothing to do.
    ///
    /// # Errors
    /// If there is no ring or memory, or the ring stops working.
    pub fn run_mover(
        &self,
        mover: &mut Mover<'_, '_>,
        publish: impl FnMut(&CacheCounters),
    ) -> io::Result<()> {
        let (Access::Ring { file, .. }, Some(handles)) = (self.spec.backend.access(), self.spec.cache) else {
            return Ok(());
        };
        let setup = mover::MoverSetup {
            backing: file,
            cache: handles.device,
            device: self.spec.device,
            block_bytes: 1 << handles.cache.shape().shift,
            doorbell: &self.doorbell,
            bells: &self.bells,
            shared: handles.cache,
        };
        mover::run(&setup, mover, publish)
    }

    /// Wakes the queues whose reads wait for the end of a claim. Call it after the cache was detached by another thread
    /// than a queue's or the mover's.
    pub fn wake_queues(&self) {
        if let Some(handles) = self.spec.cache {
            self.bells.ring(handles.cache.take_woken(), None);
        }
    }

    /// Asks every queue to give up: it waits for its operations in flight, commits what they finish, and leaves the
    /// other requests to the kernel. For a server that leaves its device to another one; otherwise STOP_DEV ends the
    /// queues.
    ///
    /// # Errors
    /// None that an open eventfd is known to give.
    pub fn stop_queues(&self) -> io::Result<()> {
        self.stop.pull()
    }

    /// Asks the mover to finish what it has in flight and to end.
    ///
    /// # Errors
    /// None that an open eventfd is known to give.
    pub fn stop_mover(&self) -> io::Result<()> {
        self.doorbell.stop()
    }
}
