//! What the engine and the server know of each other.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64};

use ublk_bpf_abi::{ServerCounters, TakenVerdict};

use crate::backend::Backend;
use crate::cache::Cache;
use crate::queue::{BadConfig, Ends, QueueFailure, Written};

/// A device to serve: what all its queues and its mover share.
#[derive(Clone, Copy, Debug)]
pub struct DeviceSpec<'a> {
    /// Hardware queues.
    pub queues: u16,
    /// Tags of each queue: 1 to 4096, as the device's info says.
    pub depth: u16,
    /// Bytes from one descriptor to the next (`io_desc_size` of the device's info).
    pub descriptor_bytes: u16,
    /// `/dev/ublkcN`.
    pub device: BorrowedFd<'a>,
    /// The backing.
    pub backend: &'a Backend,
    /// Which blocks the server knows to read as zeroes.
    pub written: Written<'a>,
    /// The cache, if the device has one.
    pub cache: Option<CacheHandles<'a>>,
    /// Its present number of sectors, which may grow.
    pub sectors: &'a AtomicU64,
    /// It is about to be stopped: no request is kept for longer, whatever the policy says.
    pub stopping: &'a AtomicBool,
    /// Where the files of the backing and the cache end now.
    pub ends: Ends<'a>,
    /// The policy may lose data and fail requests (`--allow-lossy`).
    pub lossy: bool,
}

/// A device's cache.
#[derive(Clone, Copy, Debug)]
pub struct CacheHandles<'a> {
    /// Which blocks are cached, and in which slots.
    pub cache: &'a Cache<'a>,
    /// The cache device.
    pub device: &'a File,
}

/// What a queue's thread asks of the server. The engine is generic over it: these calls are on the path of each request.
pub trait QueueHost {
    /// Takes the classifier's verdict for a tag that has arrived, and clears its slot.
    fn take_verdict(&mut self, tag: u16) -> TakenVerdict;

    /// Publishes the counters. Called each time before the thread may sleep, and at the end.
    fn publish(&mut self, counters: &ServerCounters);

    /// The kernel has every tag of the queue. Called at most once; the device can start when all queues are ready.
    fn ready(&mut self);
}

/// Why a queue ended before its device did.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// A resource of the queue could not be had, or its ring stopped working.
    #[error("queue {queue}: cannot {what}: {source}")]
    System {
        /// Which queue.
        queue: u16,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The device has a property that no queue can serve.
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
