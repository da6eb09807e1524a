//! The server process: it opens its devices, starts them in order, and waits until all have ended.
//!
//! Each device runs on a thread of its own ([`Device::live`]). The main thread starts these threads, forwards signals
//! and collects their results.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, Scope};

use super::control_socket::{Asked, ControlSocket};
use super::device::NewDevice;
use super::error::ServeError;
use super::inbox::{Inbox, Outbox, Received};
use super::isolation::{isolate, protect_thread, settle_memory};
use super::life::{Device, DeviceEvent, Host, Ready};
use super::limits;
use super::metrics::Metrics;
use super::notify::Manager;
use super::panics;
use super::recover::OrphanedDevice;
use super::start::{Recipe, Start};
use crate::control::{Control, DeviceId, Features};
use crate::log;
use crate::metrics::Devices;
use crate::policy::ensure_bpffs;
use crate::registry::Record;
use crate::registry::lock::Lock;
use crate::registry::message::Request;
use crate::registry::owners::{self, Opening};

/// Serves devices until all have ended. A device ends when another process stops it or when it fails. SIGINT, SIGTERM and
/// SIGHUP end all of them; those with a recovery mode then wait for another server. `ready` is called once, when all devices
/// serve requests.
///
/// The process must have one thread. It leaves its mount namespace.
///
/// # Errors
/// If a device cannot be started (with [`Start::partly`]: if none can), or a signal arrives before all are ready: the
/// devices started so far are removed, even if they are in use; recovered ones wait for another server. If a device fails
/// later.
pub fn serve(start: &Start, ready: impl FnOnce(&[Ready])) -> Result<(), ServeError> {
    // If there is no ublk, errors in the options are reported first.
    let starting = Control::open().is_ok().then(start_lock).transpose()?;
    serve_started(start, starting, |devices| {
        ready(devices);
        true
    })
}

/// The lock of a start, for a process that has the privilege to serve: without it, the lock's file would be the first
/// thing refused, and its path no hint at the cause.
pub(super) fn start_lock() -> Result<Lock, ServeError> {
    limits::check_privilege()?;
    Ok(Lock::starting()?)
}

/// The same for a start in progress. If `ready` returns false, the start is cancelled.
pub(super) fn serve_started(
    start: &Start,
    starting: Option<Lock>,
    ready: impl FnOnce(&[Ready]) -> bool,
) -> Result<(), ServeError> {
    let ready = |devices: &[Ready]| {
        // Before the devices are announced: from now on `stop` finds them, and signals act as on a server.
        drop(starting);
        ready(devices)
    };
    limits::raise_open_files(start.devices.iter().map(Recipe::queues))?;
    for recipe in start.devices.iter().filter(|_| !start.partly) {
        if let Recipe::Recover(id) = recipe {
            // Report a missing record before taking the lock creates its file.
            Record::read(*id)?;
        }
    }
    // Errors in the options are reported before errors of the kernel.
    let control = kernel();
    let devices = open(start, control.as_ref().ok())?;
    let control = control?;
    let metrics = Metrics::open(start.metrics)?;
    ensure_bpffs()?;
    let manager = Manager::of_environment();
    prepare_process()?;
    serve_together(&control, devices, start, (manager, metrics), ready)
}

/// Opens the backings and caches of all devices by their paths, so before the process leaves its mounts. Without
/// `control`, waiting devices are skipped.
fn open(start: &Start, control: Option<&Control>) -> Result<Vec<OpenDevice>, ServeError> {
    let of = start.devices.len();
    let reserved: Vec<DeviceId> = start.devices.iter().filter_map(Recipe::wanted_id).collect();
    let mut opening = Opening::new(control, of);
    let mut devices = Vec::with_capacity(of);
    for (index, recipe) in start.devices.iter().enumerate() {
        opening.next_device();
        let device = recipe.open(control, &reserved, &mut opening);
        match device.map_err(|error| of_several(index, of, error)) {
            // The last one that could have been served.
            Err(error) if !start.partly || (index + 1 == of && devices.is_empty()) => return Err(error),
            Err(error) => tracing::error!("{error}"),
            Ok(device) => devices.extend(device),
        }
    }
    Ok(devices)
}

impl Recipe {
    fn open(
        &self,
        control: Option<&Control>,
        reserved: &[DeviceId],
        opening: &mut Opening<'_>,
    ) -> Result<Option<OpenDevice>, ServeError> {
        let waiting = match (self, control) {
            (Self::MakeOrRecover(options), Some(control)) => owners::waiting_on(control, options)?,
            _ => None,
        };
        Ok(match (self, control, waiting) {
            (Self::Recover(id), Some(control), _) => Some(OpenDevice::Orphaned(Box::new(
                OrphanedDevice::open(control, *id, opening)?,
            ))),
            (Self::Recover(_), None, _) => None,
            (Self::MakeOrRecover(options), Some(control), Some(id)) => {
                let device = OrphanedDevice::open_described(control, id, options, opening)?;
                Some(OpenDevice::Orphaned(Box::new(device)))
            }
            (Self::Make(options) | Self::MakeOrRecover(options), ..) => Some(OpenDevice::New(Box::new(
                NewDevice::open(options, reserved, opening)?,
            ))),
        })
    }
}

/// A device with everything open that it is on.
enum OpenDevice {
    New(Box<NewDevice>),
    Orphaned(Box<OrphanedDevice>),
}

impl Device for OpenDevice {
    fn live(self, host: Host<'_>) -> Result<(), ServeError> {
        match self {
            Self::New(device) => device.live(host),
            Self::Orphaned(device) => device.live(host),
        }
    }
}

/// The control plane of a kernel that has everything a device needs.
fn kernel() -> Result<Control, ServeError> {
    let control = Control::open()?;
    let found = control.features()?;
    found.require(Features::NEEDED)?;
    Ok(control)
}

/// Makes the process one that can serve, when everything named by paths is open. It must have one thread.
fn prepare_process() -> Result<(), ServeError> {
    isolate();
    panics::prepare();
    // The first thread: it starts after the mounts were left, so that it does not hold them.
    // Without it a device would stall while its log cannot be written.
    log::write_in_background().map_err(limits::no_thread("start the log's thread"))
}

/// The main thread, from the first device to the last.
fn serve_together<D: Device>(
    control: &Control,
    devices: Vec<D>,
    start: &Start,
    (manager, metrics): (Manager, Metrics),
    ready: impl FnOnce(&[Ready]) -> bool,
) -> Result<(), ServeError> {
    let catch = |source| ServeError::System {
        what: "catch signals",
        source,
    };
    let (outbox, inbox) = Inbox::new().map_err(catch)?;
    inbox.wake_every(manager.interval()).map_err(catch)?;
    let socket = ControlSocket::open()?;
    // The devices' threads end however this returns: the scope waits for them.
    thread::scope(|scope| {
        // Both are closed before that.
        let (socket, metrics) = (socket, metrics);
        let of_clients = outbox.clone();
        socket.serve(scope, move |asked| of_clients.send(News::Asked(asked)))?;
        metrics.serve(scope)?;
        let mut server = Server::new((outbox, inbox), devices.len(), start.partly, manager);
        server.metered = metrics.devices();
        for device in devices {
            server.start(scope, control, device);
            while server.is_starting() {
                server.step();
            }
            if server.stop_requested || server.has_failed() {
                break;
            }
        }
        if !server.has_started() || !server.announce(ready) {
            return Err(server.give_up());
        }
        while server.is_alive() {
            // A panic here loses one event. The devices depend on no state that it could have broken.
            let _ = catch_unwind(AssertUnwindSafe(|| server.step()));
        }
        server.manager.stopping();
        server.end()
    })
}

/// The devices of this process, as the main thread sees them.
struct Server {
    devices: Vec<DeviceThread>,
    /// How many devices were asked for.
    of: usize,
    /// See [`Start::partly`].
    partly: bool,
    manager: Manager,
    /// For the devices' threads.
    outbox: Outbox<News>,
    inbox: Inbox<News>,
    /// A signal came.
    stop_requested: bool,
    /// All are ready, and were announced.
    was_announced: bool,
    /// Those whose metrics are served.
    metered: Devices,
}

/// A device with its thread.
struct DeviceThread {
    /// `None`: the device must end.
    events: Option<EventSender>,
    /// Since it is ready.
    ready: Option<Ready>,
    /// Since it has ended.
    end: Option<Result<(), ServeError>>,
}

/// The main thread's end of a device's events. When it is dropped, the device is removed.
struct EventSender(Sender<DeviceEvent>);

impl Drop for EventSender {
    fn drop(&mut self) {
        // One that has ended does not listen.
        let _ = self.0.send(DeviceEvent::Cancel);
    }
}

/// What other threads have for the main thread.
enum News {
    /// Of a device's thread.
    Report(DeviceReport),
    /// Of a client of the control socket.
    Asked(Asked),
}

/// What a device's thread reports to the main thread.
struct DeviceReport {
    /// Of the device.
    index: usize,
    what: Milestone,
}

enum Milestone {
    Ready(Box<Ready>),
    Ended(Result<(), ServeError>),
}

impl Server {
    fn new((outbox, inbox): (Outbox<News>, Inbox<News>), of: usize, partly: bool, manager: Manager) -> Self {
        Self {
            devices: Vec::with_capacity(of),
            of,
            partly,
            manager,
            outbox,
            inbox,
            stop_requested: false,
            was_announced: false,
            metered: Devices::default(),
        }
    }

    /// Starts the next device's thread.
    fn start<'scope, 'env>(
        &mut self,
        scope: &'scope Scope<'scope, 'env>,
        control: &'env Control,
        device: impl Device,
    ) {
        let (sender, events) = channel();
        let index = self.devices.len();
        let outbox = self.outbox.clone();
        let of_device = EventSender(sender.clone());
        let life = move || {
            protect_thread();
            let report = |what| outbox.send(News::Report(DeviceReport { index, what }));
            let host = Host {
                control,
                events,
                sender,
                ready: &|ready| report(Milestone::Ready(Box::new(ready))),
            };
            // A panic fails this device; the others continue.
            let end = catch_unwind(AssertUnwindSafe(|| device.live(host)));
            let panicked = |_| Err(ServeError::Failed("the device's thread panicked".to_owned()));
            report(Milestone::Ended(end.unwrap_or_else(panicked)));
        };
        let thread = limits::thread(format!("device-{}", index + 1));
        let thread = thread.spawn_scoped(scope, life);
        let no_thread = limits::no_thread("start a device's thread");
        let end = thread.err().map(|error| Err(no_thread(error)));
        self.devices.push(DeviceThread {
            events: Some(of_device),
            ready: None,
            end,
        });
    }

    /// Waits for the next event.
    fn step(&mut self) {
        match self.inbox.next() {
            Ok(Some(Received::News(News::Report(report)))) => self.note(report),
            Ok(Some(Received::News(News::Asked(asked)))) => self.ask(asked),
            Ok(Some(Received::Signal)) => {
                panics::point();
                self.pass_on();
            }
            Ok(None) => {}
            Err(error) => unreachable!("the write end of the socket is here: {error}"),
        }
        self.manager.alive();
    }

    /// Passes what a client wants to the device's thread.
    fn ask(&self, asked: Asked) {
        let Request::Device { id, command } = asked.request;
        let is_meant = |device: &&DeviceThread| {
            let ready = device.ready.as_ref().filter(|_| device.end.is_none());
            ready.is_some_and(|ready| ready.record.id() == id)
        };
        match self
            .devices
            .iter()
            .find(is_meant)
            .and_then(|device| device.events.as_ref())
        {
            // If it ends instead, the answer is dropped, which answers too.
            Some(events) => drop(events.0.send(DeviceEvent::Asked(command, asked.answer))),
            None => asked.answer.end(Err(format!(
                "{} is not ready: it starts or ends; try again when `ublk-bpf list` says live",
                id.disk_name()
            ))),
        }
    }

    /// A signal came.
    fn pass_on(&mut self) {
        self.stop_requested = true;
        if !self.was_announced {
            return self.dismiss();
        }
        for events in self.devices.iter().filter_map(|device| device.events.as_ref()) {
            // One that has ended does not listen.
            let _ = events.0.send(DeviceEvent::Signal);
        }
    }

    /// Cancels the start: all devices must end.
    fn dismiss(&mut self) {
        for device in &mut self.devices {
            device.events = None;
        }
    }

    fn note(&mut self, report: DeviceReport) {
        let device = &mut self.devices[report.index];
        match report.what {
            Milestone::Ready(ready) => {
                self.metered.add(ready.record.id());
                device.ready = Some(*ready);
            }
            Milestone::Ended(end) => {
                if let Some(ready) = &device.ready {
                    self.metered.remove(ready.record.id());
                }
                // The other devices may run for long.
                if let (Err(error), true) = (&end, self.of > 1 && (self.was_announced || self.partly)) {
                    let ready = device.ready.as_ref();
                    let name = ready.map(|ready| ready.record.id().disk_name());
                    let name = name.unwrap_or_else(|| format!("device {} of {}", report.index + 1, self.of));
                    tracing::error!("{name}: {error}");
                }
                device.end = Some(end);
            }
        }
    }

    /// Whether the last one is neither ready nor at its end.
    fn is_starting(&self) -> bool {
        let last = self.devices.last();
        last.is_some_and(|device| device.ready.is_none() && device.end.is_none())
    }

    fn is_alive(&self) -> bool {
        self.devices.iter().any(|device| device.end.is_none())
    }

    /// Whether the start has failed.
    fn has_failed(&self) -> bool {
        let failed = self.devices.iter().filter(|device| device.has_failed()).count();
        failed > 0 && (!self.partly || failed == self.of)
    }

    /// Whether every device is ready and no signal came.
    fn has_started(&self) -> bool {
        self.devices.len() == self.of && !self.stop_requested && !self.has_failed()
    }

    /// Removes all devices, and returns the reason.
    fn give_up(mut self) -> ServeError {
        let first = self.devices.iter().position(DeviceThread::has_failed);
        let failed = first.filter(|_| !self.stop_requested);
        self.dismiss();
        while self.is_alive() {
            self.step();
        }
        let why = failed.and_then(|index| Some((index, self.devices.swap_remove(index).end?.err()?)));
        why.map_or(ServeError::Interrupted(self.of), |(index, error)| {
            of_several(index, self.of, error)
        })
    }

    /// Announces the devices that are ready. Returns false if the start must be cancelled.
    fn announce(&mut self, ready: impl FnOnce(&[Ready]) -> bool) -> bool {
        self.was_announced = true;
        settle_memory();
        let alive = self.devices.iter().filter(|device| device.end.is_none());
        let all: Vec<Ready> = alive.filter_map(|device| device.ready.clone()).collect();
        let is_wanted = ready(&all);
        if is_wanted {
            self.manager.ready(&all);
        }
        is_wanted
    }

    /// The result, when all devices have ended.
    fn end(self) -> Result<(), ServeError> {
        let failed = self.devices.iter().filter(|device| device.has_failed()).count();
        if failed > 0 && self.of > 1 {
            return Err(ServeError::SomeFailed { failed, of: self.of });
        }
        self.devices.into_iter().filter_map(|device| device.end).collect()
    }
}

impl DeviceThread {
    fn has_failed(&self) -> bool {
        matches!(self.end, Some(Err(_)))
    }
}

/// The error of one of `of` devices.
fn of_several(index: usize, of: usize, error: ServeError) -> ServeError {
    if of == 1 {
        return error;
    }
    ServeError::OneOf {
        number: index + 1,
        of,
        error: Box::new(error),
    }
}
