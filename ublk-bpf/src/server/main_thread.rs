//! The main thread of a server: the devices' threads, signals, and what clients ask.

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::thread::Scope;

use super::control_socket::{Answer, Asked};
use super::errands::Errands;
use super::error::ServeError;
use super::inbox::{Inbox, Outbox, Received};
use super::isolation::{protect_thread, settle_memory};
use super::life::{Device as _, DeviceEvent, Host, Ready};
use super::limits;
use super::notify::Manager;
use super::open::OpenDevice;
use super::panics;
use super::reload::{Audience, Reloads, Task};
use super::start::Start;
use crate::control::{Control, DeviceId};
use crate::metrics::Devices;
use crate::registry::message::{DeviceCommand, Request};

/// The devices of this process, as the main thread sees them.
pub(super) struct Server<'scope, 'env> {
    /// Of the threads.
    scope: &'scope Scope<'scope, 'env>,
    control: &'env Control,
    errands: &'env Errands,
    devices: Vec<DeviceThread>,
    /// How many devices were asked for.
    pub(super) of: usize,
    /// See [`Start::partly`].
    partly: bool,
    pub(super) manager: Manager,
    reloads: Reloads,
    /// For the devices' threads.
    outbox: Outbox<News>,
    inbox: Inbox<News>,
    /// A signal came.
    pub(super) stop_requested: bool,
    /// All are ready, and were announced.
    was_announced: bool,
    /// Those whose metrics are served.
    pub(super) metered: Devices,
}

/// A device with its thread.
struct DeviceThread {
    /// `None`: the device must end.
    events: Option<EventSender>,
    /// Since it is ready.
    ready: Option<Ready>,
    /// Since it has ended.
    end: Option<Result<(), ServeError>>,
    /// The reload that waits for it to be ready.
    awaited: Option<Sender<Result<Ready, String>>>,
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
pub(super) enum News {
    /// Of a device's thread.
    Report(DeviceReport),
    /// Of a client of the control socket.
    Asked(Asked),
    /// Of a reload: a device to start, and who waits for it.
    Make(Box<OpenDevice>, Sender<Result<Ready, String>>),
    /// A reload has ended.
    Reloaded,
}

/// What a device's thread reports to the main thread.
pub(super) struct DeviceReport {
    /// Of the device.
    index: usize,
    what: Milestone,
}

enum Milestone {
    Ready(Box<Ready>),
    Ended(Result<(), ServeError>),
}

impl<'scope, 'env> Server<'scope, 'env> {
    pub(super) fn new(
        (scope, control, errands): (&'scope Scope<'scope, 'env>, &'env Control, &'env Errands),
        (outbox, inbox): (Outbox<News>, Inbox<News>),
        start: &Start,
        manager: Manager,
        reloads: Reloads,
    ) -> Self {
        Self {
            scope,
            control,
            errands,
            devices: Vec::with_capacity(start.devices.len()),
            of: start.devices.len(),
            partly: start.partly,
            manager,
            reloads,
            outbox,
            inbox,
            stop_requested: false,
            was_announced: false,
            metered: Devices::default(),
        }
    }

    /// Starts the next device's thread.
    pub(super) fn start(&mut self, device: OpenDevice) {
        let (control, errands) = (self.control, self.errands);
        let (sender, events) = channel();
        let index = self.devices.len();
        let outbox = self.outbox.clone();
        let of_device = EventSender(sender.clone());
        let life = move || {
            protect_thread();
            let report = |what| outbox.send(News::Report(DeviceReport { index, what }));
            let host = Host {
                control,
                errands,
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
        let thread = thread.spawn_scoped(self.scope, life);
        let no_thread = limits::no_thread("start a device's thread");
        let end = thread.err().map(|error| Err(no_thread(error)));
        self.devices.push(DeviceThread {
            events: Some(of_device),
            ready: None,
            end,
            awaited: None,
        });
    }

    /// Waits for the next event.
    pub(super) fn step(&mut self) {
        match self.inbox.next() {
            Ok(Some(Received::News(news))) => self.take(news),
            Ok(Some(Received::Signal)) => {
                panics::point();
                self.pass_on();
            }
            Ok(Some(Received::Hangup)) => self.reloads.ask_by_signal(),
            Ok(None) => {}
            Err(error) => unreachable!("the write end of the socket is here: {error}"),
        }
        self.manager.alive();
        if self.was_announced && !self.stop_requested && self.reloads.is_asked_by_signal() {
            self.reload(Audience::Log, self.reloads.home());
        }
    }

    fn take(&mut self, news: News) {
        match news {
            News::Report(report) => self.note(report),
            News::Asked(asked) => match asked.request {
                Request::Device { id, command } => self.ask(id, command, asked.answer),
                Request::Reload => self.reload(Audience::Client(asked.answer), asked.descriptor),
            },
            News::Make(device, awaited) => self.add(*device, awaited),
            News::Reloaded => {
                self.reloads.end();
                settle_memory();
                self.manager.serves(&self.alive());
            }
        }
    }

    /// Starts a thread that reads the configuration again, with paths as they are in the mount namespace `mounts`.
    fn reload(&mut self, audience: Audience, mounts: Option<OwnedFd>) {
        let is_ready = self.was_announced && !self.stop_requested;
        let ready = |device: &DeviceThread| {
            let events = device.events.as_ref().filter(|_| device.end.is_none())?;
            Some((device.ready.as_ref()?.record.id(), events.0.clone()))
        };
        let task = Task {
            control: self.control,
            errands: self.errands,
            devices: self.devices.iter().filter_map(ready).collect(),
            main: self.outbox.clone(),
        };
        self.reloads.begin(self.scope, task, (audience, mounts), is_ready);
    }

    /// Starts a device for a reload.
    fn add(&mut self, device: OpenDevice, awaited: Sender<Result<Ready, String>>) {
        if self.stop_requested {
            // The reload does not wait: the server ends.
            return;
        }
        self.of += 1;
        self.start(device);
        if let Some(device) = self.devices.last_mut() {
            device.awaited = Some(awaited);
            device.tell();
        }
    }

    /// Passes what a client wants to the device's thread.
    fn ask(&self, id: DeviceId, command: DeviceCommand, answer: Answer) {
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
            Some(events) => drop(events.0.send(DeviceEvent::Asked(command, answer))),
            None => answer.end(Err(format!(
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
                device.tell();
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
                device.tell();
            }
        }
    }

    /// Whether the last one is neither ready nor at its end.
    pub(super) fn is_starting(&self) -> bool {
        let last = self.devices.last();
        last.is_some_and(|device| device.ready.is_none() && device.end.is_none())
    }

    /// Whether a device has not ended, or may come.
    pub(super) fn is_alive(&self) -> bool {
        self.reloads.is_running() || self.devices.iter().any(|device| device.end.is_none())
    }

    /// The devices that are ready and have not ended.
    fn alive(&self) -> Vec<Ready> {
        let alive = self.devices.iter().filter(|device| device.end.is_none());
        alive.filter_map(|device| device.ready.clone()).collect()
    }

    /// Whether the start has failed.
    pub(super) fn has_failed(&self) -> bool {
        let failed = self.devices.iter().filter(|device| device.has_failed()).count();
        failed > 0 && (!self.partly || failed == self.of)
    }

    /// Whether every device is ready and no signal came.
    pub(super) fn has_started(&self) -> bool {
        self.devices.len() == self.of && !self.stop_requested && !self.has_failed()
    }

    /// Removes all devices, and returns the reason.
    pub(super) fn give_up(mut self) -> ServeError {
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
    pub(super) fn announce(&mut self, ready: impl FnOnce(&[Ready]) -> bool) -> bool {
        self.was_announced = true;
        settle_memory();
        let all = self.alive();
        let is_wanted = ready(&all);
        if is_wanted {
            self.manager.ready(&all);
        }
        is_wanted
    }

    /// The result, when all devices have ended.
    pub(super) fn end(self) -> Result<(), ServeError> {
        let failed = self.devices.iter().filter(|device| device.has_failed()).count();
        if failed > 0 && self.of > 1 {
            return Err(ServeError::SomeFailed { failed, of: self.of });
        }
        self.devices.into_iter().filter_map(|device| device.end).collect()
    }
}

impl DeviceThread {
    /// Tells the reload that waits for the device that it is ready, or why not. It has failed then, and not the server.
    fn tell(&mut self) {
        let result = match (&self.ready, self.end.take()) {
            (Some(ready), end) => {
                self.end = end;
                Ok(ready.clone())
            }
            (None, Some(end)) if self.awaited.is_some() => {
                self.end = Some(Ok(()));
                Err(end.map_or_else(|error| error.to_string(), |()| "it was stopped".to_owned()))
            }
            (None, end) => {
                self.end = end;
                return;
            }
        };
        if let Some(awaited) = self.awaited.take() {
            // The reload waits.
            let _ = awaited.send(result);
        }
    }

    fn has_failed(&self) -> bool {
        matches!(self.end, Some(Err(_)))
    }
}

/// The error of one of `of` devices.
pub(super) fn of_several(index: usize, of: usize, error: ServeError) -> ServeError {
    if of == 1 {
        return error;
    }
    ServeError::OneOf {
        number: index + 1,
        of,
        error: Box::new(error),
    }
}
