//! A server's life, in order.
//!
//! Each step is undone by the drop of what it returned, in the reverse order: a failure anywhere leaves nothing
//! behind, and a clean stop is the same way back.

use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

use ublk_bpf_abi::SECTOR_SIZE;

use super::cache::{self, CacheDevice, CacheError, CacheService, MapsBefore};
use super::claim::Claim;
use super::isolation::isolate;
use super::leftover;
use super::queues::{Queues, Shared};
use super::record::{CacheRecord, Lock, RecordError};
use super::signals::StopSignals;
use super::{Options, Record, users};
use crate::control::{
    Control, DeviceId, DeviceInfo, Error as ControlError, Features, Missing, Recovery, State,
    open_char_device, wait_for_block_device,
};
use crate::driver::uring::Stop;
use crate::policy::{self, Classifier, DEFAULT_POLICY, Disk, Policy, PolicyError, WrittenSpec, ensure_bpffs};
use crate::queue::Written;
use crate::target::{Error as TargetError, Kind, NullReads, Size, Target};

/// Blocks of 64 KiB in the map of what may hold data: 2 MiB of map for a TiB of device.
const WRITTEN_SHIFT: u32 = 16;
/// How long devtmpfs or udev may take to make a node.
const NODE_PATIENCE: Duration = Duration::from_secs(10);
/// How long the kernel may take to let go of a server that is gone.
const RELEASE_PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);
/// How often it is looked whether the cache device has failed, so that others can be told.
const CACHE_WATCH: Duration = Duration::from_millis(200);
/// How long the queue threads may take to give the kernel their tags.
const QUEUE_PATIENCE: Duration = Duration::from_secs(30);

/// What to serve.
#[derive(Clone, Debug)]
pub enum Start {
    /// A device that is to be made.
    New(Options),
    /// A device whose server died, with the options that it was made with.
    Recover(DeviceId),
}

/// A device that has just become ready.
#[derive(Clone, Debug)]
pub struct Ready {
    /// What others find about it.
    pub record: Record,
    /// What its bytes are on.
    pub kind: Kind,
}

/// Why a device could not be served, or no longer. One line: what was wanted, what was found, what to do.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The control plane's.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// This kernel's ublk lacks something.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// The backing cannot serve.
    #[error(transparent)]
    Target(#[from] TargetError),
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
        "{} is not waiting for a server (it is {state}): only a device made with --recovery whose server died can be recovered",
        id.disk_name()
    )]
    NotWaiting {
        /// Which device.
        id: DeviceId,
        /// What it is instead.
        state: String,
    },
    /// What its bytes are on is not what it was made on.
    #[error(
        "{} cannot be recovered: {backing} is not what the device was made on: {difference}: bring that back, or stop the device",
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
    /// Memory cannot be recovered.
    #[error("memory is gone with its server: --recovery needs a file or a block device as backing")]
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
    #[error("{0}; the device is gone")]
    Failed(String),
    /// A queue failed, or the device was taken away, and it is to be recovered.
    #[error("{why}; {} waits for `ublk-bpf run --recover {id}`", id.disk_name())]
    Left {
        /// What happened.
        why: String,
        /// Which device.
        id: DeviceId,
    },
}

/// Serves a device until it is stopped: by SIGINT or SIGTERM, by another process, or by a failure. `ready` is called
/// once, when requests are served.
///
/// The process must have one thread, and will have left its mount namespace.
///
/// # Errors
/// Everything that can go wrong on the way. Nothing is left behind then, but for a device that is to wait for
/// another server.
pub fn serve(start: &Start, ready: impl FnOnce(&Ready)) -> Result<(), ServeError> {
    match start {
        Start::New(options) => serve_new(options, ready),
        Start::Recover(id) => serve_again(*id, ready),
    }
}

/// The control plane of a kernel that has everything a device needs.
fn kernel() -> Result<Control, ServeError> {
    let control = Control::open()?;
    let found = control.features()?;
    found.require(Features::SERVED | Features::SAFE_STOP)?;
    ensure_bpffs()?;
    Ok(control)
}

/// Makes a device, serves it, and deletes it.
fn serve_new(options: &Options, ready: impl FnOnce(&Ready)) -> Result<(), ServeError> {
    let policy = Policy::parse(&options.policy)?;
    let (target, cache) = open_devices(options)?;
    let control = &kernel()?;
    isolate();
    let mut claim = Claim::make(control, options)?;
    let facts = target.facts();
    let params = facts.params(claim.info.max_io_bytes);
    let params = cache.as_ref().map_or(params, |cache| cache.adapt(params));
    control.set_params(&claim.info, &params)?;
    let spec = classifier_spec(&claim.info, &target, facts.sectors, cache.as_ref())?;
    let mut classifier = Classifier::load(&spec)?;
    mark_data(&target, &classifier)?;
    policy::swap(&spec.disk, &policy)?;
    let cached = cache.as_ref().zip(classifier.cache());
    let service = cached.map(|(cache, maps)| {
        let entries = cache.warm(&target)?;
        CacheService::new(cache, (&target, facts.sectors), maps, entries, MapsBefore::New)
    });
    let service = service.transpose()?;
    let cache = cache.as_ref().map(CacheDevice::record);
    let record = Record::new(&claim.info, options, facts.sectors, target.identity(), cache);
    record.write()?;
    let server = Server {
        control,
        info: &claim.info,
        target: &target,
        classifier: &classifier,
        cache: service.as_ref(),
        record,
    };
    let end = server.run(Control::start, ready);
    drop(service);
    if let Err(ServeError::Left { .. }) = end {
        claim.leave();
        classifier.leave_pinned();
    }
    end
}

/// Goes on where a dead server stopped. What fails before the device has its new server leaves it as it was.
fn serve_again(id: DeviceId, ready: impl FnOnce(&Ready)) -> Result<(), ServeError> {
    // A record that is not there is told before the lock makes its file.
    Record::read(id)?;
    let control = &kernel()?;
    let lock = Lock::serve(id)?;
    // Until the record is written again, nobody else changes the policy.
    let policy_lock = Lock::change_policy(id)?;
    let before = Record::read(id)?;
    let mut options = before.options();
    let info = waiting(control, id)?;
    let policy = Policy::parse(&options.policy);
    let (target, cache) = open_devices(&options)?;
    check_unchanged(control, &before, &target)?;
    if let Some((cache, before)) = cache.as_ref().zip(before.cache.as_ref()) {
        cache.check_unchanged(before)?;
    }
    isolate();
    start_recovery(control, id)?;
    let spec = classifier_spec(&info, &target, before.sectors, cache.as_ref())?;
    let mut classifier = match Classifier::reopen(&spec) {
        Ok(classifier) => classifier,
        Err(error) => {
            tracing::warn!("{error}: loading the classifier afresh");
            let mut classifier = Classifier::load(&spec)?;
            classifier.leave_pinned();
            classifier
        }
    };
    classifier.verdicts().clear();
    mark_data(&target, &classifier)?;
    if options.policy != DEFAULT_POLICY && !classifier.pins().policy_link().exists() {
        // Data matters more than advice about it.
        if let Err(error) = policy.and_then(|policy| policy::swap(&spec.disk, &policy)) {
            tracing::warn!("{error}: everything passes through until `ublk-bpf policy swap {id}`");
            DEFAULT_POLICY.clone_into(&mut options.policy);
        }
    }
    let mut claim = Claim::take_over(control, info, lock);
    let detached = before.cache.as_ref().and_then(|cache| cache.detached.clone());
    let cached = cache.as_ref().zip(classifier.cache());
    let service = cached.map(|(cache, maps)| {
        let entries = cache.survivors(&target, maps);
        CacheService::new(
            cache,
            (&target, before.sectors),
            maps,
            entries,
            MapsBefore::Served {
                was_detached: detached.is_some(),
            },
        )
    });
    let service = service.transpose()?;
    let cache = cache.as_ref().map(|cache| CacheRecord {
        detached,
        ..cache.record()
    });
    let record = Record::new(&claim.info, &options, before.sectors, target.identity(), cache);
    record.write()?;
    drop(policy_lock);
    let server = Server {
        control,
        info: &claim.info,
        target: &target,
        classifier: &classifier,
        cache: service.as_ref(),
        record,
    };
    let end = server.run(Control::end_recovery, ready);
    drop(service);
    if end.is_ok() {
        claim.delete_when_dropped();
        classifier.remove_when_dropped();
    }
    end
}

/// The kernel says that a device waits a moment before it lets another server have it.
fn start_recovery(control: &Control, id: DeviceId) -> Result<(), ServeError> {
    let deadline = Instant::now() + RELEASE_PATIENCE;
    loop {
        match control.start_recovery(id) {
            Err(error) if error.errno() == Some(libc::EBUSY) && Instant::now() < deadline => {
                thread::sleep(POLL);
            }
            other => return Ok(other?),
        }
    }
}

/// Whether a device that was promised to its clients can be served on `target`: the same one, with no less of anything.
fn check_unchanged(control: &Control, before: &Record, target: &Target) -> Result<(), ServeError> {
    let (id, facts) = (before.id(), target.facts());
    let promised = control.params(id)?;
    let bytes = |sectors: u64| Size(sectors * SECTOR_SIZE);
    let difference = if target.identity() != before.identity {
        format!("it is {} and was {}", target.identity(), before.identity)
    } else if facts.sectors < before.sectors {
        format!(
            "it has {} and had {}",
            bytes(facts.sectors),
            bytes(before.sectors)
        )
    } else if facts.logical_block > promised.logical_block {
        format!(
            "it has blocks of {} bytes and had {}",
            facts.logical_block, promised.logical_block
        )
    } else if facts.memory_align > promised.dma_alignment {
        format!(
            "it wants memory aligned to {} bytes and wanted {}",
            facts.memory_align, promised.dma_alignment
        )
    } else if facts.read_only && !promised.read_only {
        "it can only be read now".to_owned()
    } else if facts.volatile_cache && !promised.volatile_cache {
        "it has a volatile cache now".to_owned()
    } else {
        return Ok(());
    };
    Err(ServeError::Changed {
        id,
        backing: before.backing.to_string(),
        difference,
    })
}

/// The device, if it waits for a server.
fn waiting(control: &Control, id: DeviceId) -> Result<DeviceInfo, ServeError> {
    match leftover::settled(control, id)? {
        Some(info) if info.state.is_recoverable() => Ok(info),
        other => {
            let state = other.map_or_else(|| "gone".to_owned(), |info| info.state.to_string());
            Err(ServeError::NotWaiting { id, state })
        }
    }
}

/// Opens what the bytes are on, and where some of them are twice. By their paths, so before the process leaves its
/// mounts.
fn open_devices(options: &Options) -> Result<(Target, Option<CacheDevice>), ServeError> {
    let mut target = Target::open(&options.backing, options.read_only)?;
    if target.kind() == Kind::Memory && options.recovery != Recovery::None {
        return Err(ServeError::Forgetful);
    }
    let cache = options.cache.as_ref();
    let cache = cache.map(|of| CacheDevice::open(of, &mut target)).transpose()?;
    Ok((target, cache))
}

/// `sectors` is the device's size.
fn classifier_spec(
    info: &DeviceInfo,
    target: &Target,
    sectors: u64,
    cache: Option<&CacheDevice>,
) -> Result<policy::Spec, CacheError> {
    let is_tracked = matches!(
        target.kind(),
        Kind::File | Kind::Memory | Kind::Null(NullReads::Zeroes)
    );
    if cache.is_some() {
        cache::check_tags(info)?;
    }
    Ok(policy::Spec {
        disk: Disk::ublk(info.id.number()),
        queues: info.queues,
        depth: info.depth,
        written: WrittenSpec::for_device(sectors, WRITTEN_SHIFT).filter(|_| is_tracked),
        cache: cache.map(|cache| cache.maps(sectors)).transpose()?,
    })
}

/// Marks what already holds data.
fn mark_data(target: &Target, classifier: &Classifier) -> Result<(), ServeError> {
    let Some(map) = classifier.written() else {
        return Ok(());
    };
    let written = Written::new(map.words(), map.shift());
    target
        .for_each_data_range(|range| {
            if !range.is_empty() {
                written.mark(range.start, range.end - range.start);
            }
        })
        .map_err(|source| ServeError::System {
            what: "find out where the backing holds data",
            source,
        })
}

/// Everything that the service needs.
struct Server<'a> {
    control: &'a Control,
    info: &'a DeviceInfo,
    target: &'a Target,
    classifier: &'a Classifier,
    cache: Option<&'a CacheService<'a>>,
    record: Record,
}

/// How the kernel gets to know that the queues are ready.
type Begin = fn(&Control, DeviceId, u32) -> Result<(), ControlError>;

impl Server<'_> {
    /// Serves until the end. The queue threads have ended when this returns, and `/dev/ublkcN` is closed.
    fn run(self, begin: Begin, ready: impl FnOnce(&Ready)) -> Result<(), ServeError> {
        let system = |what| move |source| ServeError::System { what, source };
        let device = open_char_device(self.info.id, NODE_PATIENCE)?;
        let stop = Stop::new().map_err(system("make an eventfd"))?;
        let shared = Shared {
            info: self.info,
            device: &device,
            target: self.target,
            classifier: self.classifier,
            cache: self.cache.map(CacheService::ways),
            lossy: self.record.allow_lossy,
            stop: &stop,
        };
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder
            .enable_all()
            .build()
            .map_err(system("start the main thread's runtime"))?;
        let mut promoter = None;
        let end = thread::scope(|scope| {
            // Whatever happens here, the threads end: the scope waits for them.
            let _end = PullOnDrop(&stop);
            let _promoter = self.cache.map(StopOnDrop);
            let promoting = self.cache.map(|cache| cache.spawn(scope, cache.promoter()));
            let promoting = promoting.transpose().map_err(system("start the promoter"))?;
            let queues = Queues::spawn(scope, &shared).map_err(system("start a queue thread"))?;
            let end = runtime.block_on(self.live(queues, begin, ready));
            if let Some((cache, thread)) = self.cache.zip(promoting) {
                cache.stop();
                promoter = thread.join().ok();
            }
            end
        });
        // Every thread has ended: what is in the slots stays as it is.
        if let (Ok(()), Some(cache), Some(promoter)) = (&end, self.cache, promoter) {
            cache.save(&promoter);
        }
        end
    }

    /// The main thread, from the first queue to the last.
    async fn live(
        &self,
        mut queues: Queues,
        begin: Begin,
        ready: impl FnOnce(&Ready),
    ) -> Result<(), ServeError> {
        let id = self.info.id;
        let mut signals = StopSignals::catch().map_err(|source| ServeError::System {
            what: "catch SIGINT and SIGTERM",
            source,
        })?;
        queues.ready(QUEUE_PATIENCE).await.map_err(ServeError::NotReady)?;
        begin(self.control, id, std::process::id())?;
        wait_for_block_device(id, NODE_PATIENCE)?;
        ready(&Ready {
            record: self.record.clone(),
            kind: self.target.kind(),
        });
        let mut was_asked = false;
        let mut watch = tokio::time::interval(CACHE_WATCH);
        let mut cache = self.cache.filter(|_| !self.record.is_detached());
        loop {
            tokio::select! {
                _ = watch.tick(), if cache.is_some() => {
                    if let Some(failure) = cache.and_then(CacheService::failure) {
                        cache::note_detached(&self.record, failure);
                        cache = None;
                    }
                }
                end = queues.ended() => return self.ended(end),
                () = signals.next() => match self.stop(was_asked)? {
                    Stopped::Yes => return Ok(()),
                    Stopped::InUse => was_asked = true,
                },
            }
        }
    }

    /// A signal came. The first one respects who has the device open, the second one does not.
    fn stop(&self, was_asked: bool) -> Result<Stopped, ServeError> {
        let id = self.info.id;
        if was_asked {
            self.control.stop(id)?;
            return Ok(Stopped::Yes);
        }
        match self.control.try_stop(id) {
            Err(error) if error.errno() == Some(libc::EBUSY) => {
                // A word to the person at the terminal, not a matter of the log's level; nobody has to listen.
                let _ = writeln!(
                    io::stderr(),
                    "ublk-bpf: {} is still in use by {}: unmount or close it and ask again; to ask again now stops it all the same, and fails its I/O",
                    id.disk_name(),
                    users::in_words(id)
                );
                Ok(Stopped::InUse)
            }
            // No disk: another process stops it at the same time.
            Err(error) if !error.is_no_device() => Err(error.into()),
            _ => Ok(Stopped::Yes),
        }
    }

    /// The queues have ended by themselves: by the device's end at the hands of another process, or by a failure.
    fn ended(&self, end: Result<(), String>) -> Result<(), ServeError> {
        let id = self.info.id;
        let why = match end {
            Err(why) => why,
            Ok(()) => match self.control.info(id) {
                Ok(info) if info.state == State::Dead => return Ok(()),
                Err(error) if error.is_no_device() => return Ok(()),
                _ => "the device was taken from this server".to_owned(),
            },
        };
        if self.record.recovery == Recovery::None {
            Err(ServeError::Failed(why))
        } else {
            Err(ServeError::Left { why, id })
        }
    }
}

/// Whether a signal had its effect.
enum Stopped {
    Yes,
    InUse,
}

/// Ends the promoter, however the main thread leaves.
struct StopOnDrop<'a>(&'a CacheService<'a>);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Ends the queue threads, however the main thread leaves.
struct PullOnDrop<'a>(&'a Stop);

impl Drop for PullOnDrop<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.pull() {
            tracing::error!("cannot end the queue threads: {error}");
        }
    }
}
