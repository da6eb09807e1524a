//! Errors of a server.

use std::io;
use std::path::PathBuf;

use crate::backend::Size;
use crate::cache::Damaged;
use crate::cache::disk::DiskError;
use crate::control::{ControlError, DeviceId, Missing};
use crate::metrics::Address;
use crate::policy::PolicyError;
use crate::registry::dirty_pair::PairError;
use crate::registry::owners::StorageError;
use crate::registry::{DeviceName, RecordError};

/// Why a device could not be served, or failed. One line: what was wanted, what was found, what to do.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The backing or the cache cannot be used, or another device has it.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The control plane's.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The address for metrics cannot be used.
    #[error("cannot serve metrics at {address}: {source}: give --metrics another address")]
    Metrics {
        /// The address.
        address: Address,
        /// What the system says.
        source: io::Error,
    },
    /// This kernel's ublk lacks something.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// The waiting device on this backing was made with other options.
    #[error(
        "{} waits for a server and was made {was}, not {asked}: give the same options, recover it with `ublk-bpf run --recover \
         {id}`, or remove it with `ublk-bpf stop {id}`",
        id.disk_name()
    )]
    Otherwise {
        /// Which device.
        id: DeviceId,
        /// What it has.
        was: String,
        /// What it was to have.
        asked: String,
    },
    /// The device on this backing, which another process serves, was made with other options.
    #[error(
        "{} is served by process {process} and was made {was}, not {asked}: give the same options, or stop it with `ublk-bpf \
         stop {id}`",
        id.disk_name()
    )]
    ServedOtherwise {
        /// Which device.
        id: DeviceId,
        /// Its server.
        process: u32,
        /// What it has.
        was: String,
        /// What it was to have.
        asked: String,
    },
    /// Another device has the name.
    #[error(
        "{} has the name {name} already: give another --name, or stop that device with `ublk-bpf stop {name}`",
        id.disk_name()
    )]
    NameTaken {
        /// The name.
        name: DeviceName,
        /// Whose it is.
        id: DeviceId,
    },
    /// The classifier's or the policy's.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The cache's.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The run record's or the lock's.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// There is nothing to recover.
    #[error(
        "{} is not waiting for a server (it is {state}): only a device that was made with --recovery and whose server died can be recovered",
        id.disk_name()
    )]
    NotWaiting {
        /// Which device.
        id: DeviceId,
        /// What it is instead.
        state: String,
    },
    /// Its backing has changed.
    #[error(
        "{} cannot be recovered: {backing} has changed since the device was made: {difference}: restore it, or stop the device",
        id.disk_name()
    )]
    Changed {
        /// Which device.
        id: DeviceId,
        /// What its bytes are said to be on.
        backing: String,
        /// What is different.
        difference: String,
    },
    /// Privileges are missing that no later error would name.
    #[error("serving a device needs CAP_SYS_ADMIN, which this process does not have: run as root")]
    NoPrivilege,
    /// The process may not open enough files.
    #[error(
        "these devices need {needed} open files and the hard limit of this process is {limit}: raise it, for example with \
         `ulimit -Hn {needed}` or LimitNOFILE= in its unit"
    )]
    TooFewFiles {
        /// Upper bound of what is open at once.
        needed: u64,
        /// What RLIMIT_NOFILE allows.
        limit: u64,
    },
    /// The kernel refused the I/O scheduler.
    #[error(
        "cannot select the I/O scheduler {name}: {source}; the kernel offers {found}: choose one of these, or load its module"
    )]
    Scheduler {
        /// Which one.
        name: String,
        /// What the kernel offers, the present one in brackets.
        found: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("cannot {what}: {limit}")]
    NoThread {
        /// What was tried.
        what: &'static str,
        /// The limit that is reached, and how to raise it.
        limit: String,
    },
    /// Memory cannot be recovered.
    #[error(
        "a memory backing does not outlive its server: --recovery needs a file or a block device as backing"
    )]
    Forgetful,
    /// The system refused.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A queue could not be made ready.
    #[error("{0}")]
    NotReady(String),
    /// A queue failed.
    #[error("{0}; the device was removed")]
    Failed(String),
    /// A queue failed, or the device was taken from this server, and it can be recovered.
    #[error("{why}; {} waits for `ublk-bpf run --recover {id}`", id.disk_name())]
    Left {
        /// What happened.
        why: String,
        /// Which device.
        id: DeviceId,
    },
    /// One of the devices of a process could not be served.
    #[error("device {number} of {of}: {error}")]
    OneOf {
        /// Which one, counted from 1.
        number: usize,
        /// How many there were to be.
        of: usize,
        /// Why.
        error: Box<ServeError>,
    },
    /// A signal came too early.
    #[error("stopped by a signal before {} ready", match .0 { 1 => "the device was".to_owned(), of => format!("all {of} devices were") })]
    Interrupted(usize),
    /// Devices of a process failed. Each failure was logged when it happened.
    #[error("{failed} of {of} devices failed")]
    SomeFailed {
        /// How many failed.
        failed: usize,
        /// How many there were.
        of: usize,
    },
}

/// Why a device cannot have that cache. One line: what was wanted, what was found, what to do.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// What is on the cache device cannot be used.
    #[error("the cache {device} {source}")]
    Disk {
        /// The cache device.
        device: String,
        /// What is wrong.
        source: DiskError,
    },
    /// A device with it would have larger blocks than its backing.
    #[error(
        "cache {device}: has blocks of {block} bytes and the backing of {backing}: a file system made on the backing \
         alone may not mount with it: use a cache with smaller blocks, or set --logical-block {block}"
    )]
    LargerBlocks {
        /// The cache device.
        device: String,
        /// Its logical block, in bytes.
        block: u32,
        /// The backing's.
        backing: u32,
    },
    /// There is nothing to copy.
    #[error(
        "null: stores nothing that could be cached: use a file, a block device or mem:SIZE as backing, or no cache"
    )]
    Null,
    /// A null device as cache.
    #[error("null: stores nothing and cannot be a cache: give a file, a block device or mem:SIZE")]
    NullCache,
    /// It cannot be written.
    #[error("the cache {0} is read-only: give a writable one")]
    ReadOnly(String),
    /// The index would be too large.
    #[error(
        "a device of {size} has too many cache blocks of {block}; the limit is 2^32: set a larger --cache-block"
    )]
    TooManyBlocks {
        /// The device's size.
        size: Size,
        /// The cache block's.
        block: Size,
    },
    /// Its dirty blocks would go with the server.
    #[error(
        "the cache {0} is memory, which would take with it what its backing lacks: give --cache a file or a block device, or \
         --cache-mode write-through"
    )]
    Forgetful(String),
    /// It is to take the place of a smaller one.
    #[error(
        "the cache {device} has slots for {size}, and the device has maps for {most}: give a file or a partition that is no \
         larger than the cache before"
    )]
    TooLarge {
        /// The cache device.
        device: String,
        /// What it has.
        size: Size,
        /// What there is room for.
        most: Size,
    },
    /// It is to take the place of one that failed with what its backing lacks.
    #[error(
        "{0} blocks of the cache that is detached are dirty, and another one in its place would lose them: stop the device, and \
         start it with the cache it had"
    )]
    StillDirty(usize),
    /// It holds dirty blocks, or may, and its backing cannot get them.
    #[error(
        "the cache {0} may hold what its backing lacks, and a read-only device cannot write that back: start it once without \
         --read-only and with --cache-mode write-through, which writes everything back"
    )]
    ReadOnlyBacking(String),
    /// The backing has gone on without its dirty blocks.
    #[error(
        "the dirty blocks of the cache {0} were abandoned, and its backing was used without them: they cannot be written back; \
         empty it with --cache-reset --abandon-dirty"
    )]
    Abandoned(String),
    /// The newest data is in a cache that is not given.
    #[error(
        "{} lacks what is dirty in the cache {} (id {id}): give it as --cache, or lose that data with --abandon-dirty",
        backing.display(),
        cache.display()
    )]
    Missing {
        /// The backing.
        backing: PathBuf,
        /// Where the cache was.
        cache: PathBuf,
        /// Its id.
        id: String,
    },
    /// The maps of a dead server contradict themselves.
    #[error(
        "the maps of the cache {device} cannot be trusted ({source}): the device cannot be recovered with them; stop it, and \
         start it anew with what the cache device itself says is dirty"
    )]
    Damaged {
        /// The cache device.
        device: String,
        /// What is wrong.
        source: Damaged,
    },
    /// The maps of a dead server are gone, and only they say what is dirty.
    #[error(
        "{error}: they say what is dirty in the cache {device}, so the device cannot be recovered without them; stop it, and \
         start it anew with what the cache device itself says is dirty"
    )]
    NoMaps {
        /// The cache device.
        device: String,
        /// What is wrong.
        error: Box<PolicyError>,
    },
    /// The records of dirty caches cannot be used.
    #[error(transparent)]
    Pair(#[from] PairError),
    /// More writes could be in flight than a block can count.
    #[error(
        "{queues} queues of depth {depth} exceed the {most} tags of a device with a cache: set fewer --queues or a lower --depth"
    )]
    TooManyTags {
        /// Queues.
        queues: u16,
        /// Tags in each.
        depth: u16,
        /// The most of them in all.
        most: u32,
    },
    /// The cache of the device to recover has changed.
    #[error("the cache is {found} and was {wanted}: restore it, or stop the device")]
    Changed {
        /// What it was.
        wanted: String,
        /// What is there.
        found: String,
    },
    /// What was written cannot be made durable.
    #[error("cannot sync the backing of the cache: {0}")]
    Sync(io::Error),
    /// The backing cannot be identified.
    #[error("cannot identify the backing of the cache: {0}")]
    Identity(io::Error),
}
