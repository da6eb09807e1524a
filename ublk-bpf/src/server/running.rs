//! A device while it is served: its queue threads, its mover, and what its own thread waits for.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::cache::{self, RunningCache};
use super::disk_queue::DiskQueue;
use super::drain::Drain;
use super::errands::Errands;
use super::error::ServeError;
use super::life::{DeviceEvent, End, Host, Ready};
use super::queues::{self, Shared};
use super::{limits, panics};
use crate::backend::Backend;
use crate::cache::Mode;
use crate::control::{Control, DeviceInfo, KernelState, Recovery, open_char_device, wait_for_block_device};
use crate::driver::{DeviceSpec, Engine};
use crate::errno::Errno;
use crate::log;
use crate::policy::{Classifier, Watch};
use crate::queue::Written;
use crate::registry::{Record, Scheduler, logs, users};

/// How long devtmpfs or udev may take to make a node.
const NODE_PATIENCE: Duration = Duration::from_secs(10);
/// Interval of the checks for a failed cache device and a truncated file.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);
/// How long the queue threads may take to give the kernel their tags.
const QUEUE_PATIENCE: Duration = Duration::from_secs(30);

/// Why a recovered device waits again.
const NOT_STARTED: &str = "another device of the same process could not be started";

/// Everything that the service needs.
pub(super) struct RunningDevice<'a> {
    pub(super) control: &'a Control,
    pub(super) errands: &'a Errands,
    pub(super) info: &'a DeviceInfo,
    pub(super) backend: &'a Backend,
    pub(super) classifier: &'a Classifier,
    pub(super) cache: Option<&'a RunningCache<'a>>,
    pub(super) record: &'a Record,
    /// Sectors that it has now; the record has those of the start.
    pub(super) sectors: AtomicU64,
    /// It is being stopped: its requests are kept no longer.
    pub(super) stopping: AtomicBool,
    /// The device was there before this process.
    pub(super) was_waiting: bool,
    /// The I/O scheduler of a new disk. One that waited keeps what it has.
    pub(super) scheduler: &'a Scheduler,
}

impl RunningDevice<'_> {
    /// Serves until the end. The queue threads have ended when this returns, and `/dev/ublkcN` is closed.
    pub(super) fn run(self, host: &Host<'_>) -> Result<End, ServeError> {
        let system = |what| move |source| ServeError::System { what, source };
        let device = open_char_device(self.info.id, NODE_PATIENCE)?;
        let watch = Watch::over(self.regular_files());
        let written = self.classifier.written();
        let engine = Engine::new(DeviceSpec {
            queues: self.info.queues,
            depth: self.info.depth,
            descriptor_bytes: self.info.descriptor_bytes,
            device: device.as_fd(),
            backend: self.backend,
            written: written.map_or(Written::untracked(), |map| Written::new(map.words(), map.shift())),
            cache: self.cache.map(RunningCache::handles),
            sectors: &self.sectors,
            stopping: &self.stopping,
            ends: watch.ends(),
            lossy: self.record.allow_lossy,
        })
        .map_err(system("make an eventfd"))?;
        let shared = Shared {
            info: self.info,
            engine: &engine,
            classifier: self.classifier,
        };
        let mut mover = None;
        let serve = || {
            thread::scope(|scope| {
                // The threads end however this returns: the scope waits for them.
                let _end = StopOnDrop(&engine);
                let moving = self.cache.map(|cache| {
                    let name = format!("{}-mover", self.info.id.disk_name());
                    cache.spawn(scope, name, cache.mover(), &engine, host.sender.clone())
                });
                let moving = moving.transpose().map_err(limits::no_thread("start the mover"))?;
                queues::spawn(scope, &shared, &host.sender)
                    .map_err(limits::no_thread("start a queue thread"))?;
                let end = self.live(host, &watch, &engine);
                if let Some(thread) = moving {
                    stop_mover(&engine);
                    mover = thread.join().ok();
                }
                end
            })
        };
        // A panic of this thread fails the device, as one of a queue's thread does. Without the catch, drops during the
        // unwinding would remove a recoverable device.
        let end = catch_unwind(AssertUnwindSafe(serve))
            .unwrap_or_else(|_| self.ended(Err("the device's thread panicked".to_owned())));
        // Every thread has ended: what is in the slots stays as it is. The next server of a device that waits has the maps.
        match (&end, self.cache, mover) {
            (Ok(End::Stopped), Some(cache), Some(mover)) => cache.save(&mover),
            (_, Some(cache), _) => cache.leave(),
            (_, None, _) => {}
        }
        // The log of a device that failed or waits is kept for the user.
        if let Ok(End::Stopped) = end {
            logs::remove_log(self.info.id);
        }
        end
    }

    /// The device's thread, from the first queue to the last.
    fn live(&self, host: &Host<'_>, files: &Watch, engine: &Engine<'_>) -> Result<End, ServeError> {
        let id = self.info.id;
        self.wait_for_queues(host).map_err(ServeError::NotReady)?;
        let begin = if self.was_waiting {
            Control::end_recovery
        } else {
            Control::start
        };
        begin(self.control, id, std::process::id())?;
        wait_for_block_device(id, NODE_PATIENCE)?;
        self.tune()?;
        (host.ready)(Ready {
            record: self.record.clone(),
            kind: self.backend.kind(),
            at: Instant::now(),
        });
        let mut queues = self.info.queues;
        let mut stop_requested = false;
        let mut checks = Checks::of(self);
        loop {
            let by_signal = match host.next(checks.next) {
                None => {
                    checks.run(self, files, engine);
                    continue;
                }
                Some(DeviceEvent::QueueReady) => continue,
                Some(DeviceEvent::MoverEnded(why)) => return self.ended(Err(why)),
                Some(DeviceEvent::QueueEnded(end)) => {
                    queues -= 1;
                    if end.is_err() || queues == 0 {
                        return self.ended(end);
                    }
                    continue;
                }
                Some(DeviceEvent::Asked(command, answer)) => {
                    if let Some(end) = self.obey(command, answer, files, &mut checks.drain) {
                        return Ok(end);
                    }
                    checks.schedule();
                    continue;
                }
                Some(DeviceEvent::Signal) => true,
                Some(DeviceEvent::Cancel) => false,
            };
            if let Some(end) = self.asked(by_signal, stop_requested)? {
                return Ok(end);
            }
            stop_requested = true;
        }
    }

    /// Waits until the kernel has every tag of every queue.
    fn wait_for_queues(&self, host: &Host<'_>) -> Result<(), String> {
        let deadline = Instant::now() + QUEUE_PATIENCE;
        for _ in 0..self.info.queues {
            match host.next(Some(deadline)) {
                Some(DeviceEvent::QueueReady) => {}
                Some(DeviceEvent::QueueEnded(Err(why)) | DeviceEvent::MoverEnded(why)) => return Err(why),
                Some(DeviceEvent::QueueEnded(Ok(()))) => {
                    return Err("a queue ended before it was ready".to_owned());
                }
                Some(DeviceEvent::Signal | DeviceEvent::Cancel | DeviceEvent::Asked(..)) => {
                    return Err("the start was cancelled".to_owned());
                }
                None => {
                    let limit = QUEUE_PATIENCE.as_secs();
                    return Err(format!("the queues were not ready within {limit} s"));
                }
            }
        }
        Ok(())
    }

    /// The files of the backing and the cache, which other programs may truncate; `None` if not a regular file.
    fn regular_files(&self) -> [Option<&File>; 2] {
        [
            self.backend.regular_file(),
            self.cache.and_then(RunningCache::regular_file),
        ]
    }

    /// Checks the sizes of the files, and logs a backing that is too short.
    fn has_shrunk(&self, files: &Watch) -> bool {
        files.look(self.regular_files());
        let (end, needed) = (files.ends().backing(), self.bytes());
        if end < needed {
            tracing::error!(
                "{}: the backing {} was truncated to {end} of {needed} bytes by another program: the data behind them is lost, and requests for it will fail",
                self.info.id.disk_name(),
                self.record.backing
            );
        }
        end < needed
    }

    /// Sets what the kernel cannot know about a disk that this server is behind.
    fn tune(&self) -> Result<(), ServeError> {
        let queue = DiskQueue::of(self.info.id);
        if !self.was_waiting {
            queue.schedule(self.scheduler, self.errands)?;
        }
        let facts = self.backend.facts();
        if let Some(latency_usec) = facts.throttle {
            queue.throttle(latency_usec, self.errands);
        }
        let cache = self.record.cache.as_ref();
        let is_through =
            cache.is_some_and(|cache| cache.options.mode != Mode::WriteAround || cache.writes_back);
        if is_through || facts.stable_writes {
            queue.keep_pages_stable(self.errands);
        }
        Ok(())
    }

    /// Handles a signal, or a cancelled start. `None`: the device is in use and stays.
    fn asked(&self, by_signal: bool, stop_requested: bool) -> Result<Option<End>, ServeError> {
        if !by_signal && self.was_waiting {
            // Its users and data are older than this process.
            let (why, id) = (NOT_STARTED.to_owned(), self.info.id);
            return Err(ServeError::Left { why, id });
        }
        if by_signal && self.record.recovery != Recovery::None {
            // Users of the device wait for the next server, so that a restart by a supervisor fails no request.
            return Ok(Some(End::Left));
        }
        self.stop(!by_signal || stop_requested)
    }

    /// Removes the block device, with `force` even if it is in use. `None`: it is in use.
    fn stop(&self, force: bool) -> Result<Option<End>, ServeError> {
        let id = self.info.id;
        // The kernel waits for each request.
        self.stopping.store(true, Ordering::Relaxed);
        match self.errands.stop(self.control, id, force) {
            Err(error) if error.errno() == Some(Errno::EBUSY) => {
                self.stopping.store(false, Ordering::Relaxed);
                log::say(format_args!(
                    "{} is in use by {}: unmount or close it and signal again; another signal now stops it and fails its I/O",
                    id.disk_name(),
                    users::in_words(id)
                ));
                Ok(None)
            }
            // No disk: another process has stopped it.
            Err(error) if !error.is_no_device() => Err(error.into()),
            _ => Ok(Some(End::Stopped)),
        }
    }

    /// The queues have ended without a request of this process: another process stopped the device, or a queue failed.
    fn ended(&self, end: Result<(), String>) -> Result<End, ServeError> {
        let id = self.info.id;
        let why = match end {
            Err(why) => why,
            Ok(()) => match self.control.info(id) {
                Ok(info) if info.state == KernelState::Dead => return Ok(End::Stopped),
                Err(error) if error.is_no_device() => return Ok(End::Stopped),
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

/// What is checked at intervals: a cache device that failed, files that other programs may truncate, and a drain.
struct Checks<'a> {
    /// When to check next; `None` if nothing is left to check.
    next: Option<Instant>,
    cache: Option<&'a RunningCache<'a>>,
    may_shrink: bool,
    /// A drain that a client waits for.
    drain: Option<Drain>,
}

impl<'a> Checks<'a> {
    fn of(device: &RunningDevice<'a>) -> Self {
        let mut checks = Self {
            next: None,
            cache: device.cache.filter(|_| !device.record.is_detached()),
            may_shrink: device.regular_files().iter().any(Option::is_some),
            drain: None,
        };
        checks.schedule();
        checks
    }

    fn schedule(&mut self) {
        let is_needed = self.cache.is_some() || self.may_shrink || self.drain.is_some();
        self.next = is_needed.then(|| Instant::now() + CHECK_INTERVAL);
    }

    fn run(&mut self, device: &RunningDevice<'_>, files: &Watch, engine: &Engine<'_>) {
        panics::point();
        if let (Some(cache), Some(drain)) = (device.cache, self.drain.take()) {
            self.drain = drain.look(cache, || engine.wake_queues());
        }
        self.schedule();
        self.may_shrink = self.may_shrink && !device.has_shrunk(files);
        if let Some(failure) = self.cache.and_then(RunningCache::failure) {
            cache::note_detached(device.record, failure);
            self.cache = None;
        }
    }
}

/// Ends the queue threads and the mover, however the device's thread leaves.
struct StopOnDrop<'a>(&'a Engine<'a>);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        stop_mover(self.0);
        if let Err(error) = self.0.stop_queues() {
            tracing::error!("cannot end the queue threads: {error}");
        }
    }
}

fn stop_mover(engine: &Engine<'_>) {
    if let Err(error) = engine.stop_mover() {
        tracing::error!("cannot stop the mover: {error}");
    }
}
