//! How the mover and the queues are woken.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

use crate::cache::QueueSet;

/// Wakes queues: each one's ring polls a descriptor of its own.
#[derive(Debug)]
pub(super) struct QueueBells(Box<[OwnedFd]>);

impl QueueBells {
    /// For so many queues. None was rung yet.
    ///
    /// # Errors
    /// If the process has no file descriptor to spare.
    pub(super) fn new(queues: u16) -> io::Result<Self> {
        let bell = |_| eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let bells: Result<_, _> = (0..queues).map(bell).collect();
        Ok(Self(bells?))
    }

    /// Wakes these queues, except for `caller`.
    pub(super) fn ring(&self, queues: QueueSet, caller: Option<u16>) {
        if queues.is_empty() {
            return;
        }
        for (queue, bell) in (0..).zip(&self.0) {
            if queues.contains(queue) && Some(queue) != caller {
                // It cannot fail: the counter is far from an overflow.
                let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
            }
        }
    }

    /// The descriptor to poll for a queue, which becomes and stays readable. Each ring is a wake-up of its own.
    pub(super) fn of(&self, queue: u16) -> RawFd {
        self.0.get(usize::from(queue)).map_or(-1, AsRawFd::as_raw_fd)
    }
}

/// Wakes the mover. A queue's ring writes to the descriptor, which costs the queue no system call.
#[derive(Debug)]
pub(super) struct Doorbell {
    eventfd: OwnedFd,
    stop: AtomicBool,
}

impl Doorbell {
    /// One that was not rung yet.
    ///
    /// # Errors
    /// If the process has no file descriptor to spare.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            // Blocking: the ring that reads it waits, not the thread.
            eventfd: eventfd(0, EventfdFlags::CLOEXEC)?,
            stop: AtomicBool::new(false),
        })
    }

    /// Asks the mover to finish what it has in flight and to end.
    ///
    /// # Errors
    /// None that an open eventfd is known to give.
    pub(super) fn stop(&self) -> io::Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        rustix::io::write(&self.eventfd, &1_u64.to_ne_bytes())?;
        Ok(())
    }

    /// Whether the mover was asked to end.
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

impl AsRawFd for Doorbell {
    fn as_raw_fd(&self) -> RawFd {
        self.eventfd.as_raw_fd()
    }
}
