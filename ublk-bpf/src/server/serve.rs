//! The server process: it opens its devices, starts them in order, and waits until all have ended.
//!
//! Each device runs on a thread of its own. The main thread starts these threads, forwards signals and collects their
//! results (`main_thread.rs`).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use super::control_socket::ControlSocket;
use super::errands::Errands;
use super::error::ServeError;
use super::inbox::Inbox;
use super::isolation::{isolate, lock_all_memory};
use super::life::Ready;
use super::limits;
use super::main_thread::{News, Server, of_several};
use super::metrics::Metrics;
use super::notify::Manager;
use super::open::OpenDevice;
use super::panics;
use super::reload::Reloads;
use super::start::{Recipe, Start};
use crate::control::{Control, DeviceId, Features};
use crate::log;
use crate::policy::ensure_bpffs;
use crate::registry::Record;
use crate::registry::lock::Lock;
use crate::registry::owners::Opening;

/// Serves devices until all have ended. A device ends when another process stops it or when it fails. SIGINT, SIGTERM and
/// SIGHUP end all of them; those with a recovery mode then wait for another server. With a
/// [configuration](Start::configured) and no terminal, SIGHUP is for a reload. `ready` is called once, when all devices serve
/// requests.
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
    let outside = Outside {
        manager: Manager::of_environment(),
        metrics,
        reloads: Reloads::of(start),
    };
    // A reload may add a device with write-back.
    let records_dirty = start.configuration.is_some() || devices.iter().any(OpenDevice::is_written_back);
    let errands = prepare_process(records_dirty)?;
    serve_together((&control, &errands), devices, start, outside, ready)
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

/// The control plane of a kernel that has everything a device needs.
fn kernel() -> Result<Control, ServeError> {
    let control = Control::open()?;
    let found = control.features()?;
    found.require(Features::NEEDED)?;
    Ok(control)
}

/// Makes the process one that can serve, when everything named by paths is open. It must have one thread.
fn prepare_process(records_dirty: bool) -> Result<Errands, ServeError> {
    isolate(records_dirty);
    // A copy of locked memory would be in memory twice.
    let errands = Errands::start().map_err(limits::no_thread("start the process that stops devices"))?;
    lock_all_memory();
    panics::prepare();
    // The first thread: it starts after the mounts were left, so that it does not hold them.
    // Without it a device would stall while its log cannot be written.
    log::write_in_background().map_err(limits::no_thread("start the log's thread"))?;
    Ok(errands)
}

/// What is opened before the process leaves its mounts, beside the devices.
struct Outside {
    manager: Manager,
    metrics: Metrics,
    reloads: Reloads,
}

/// The main thread, from the first device to the last.
fn serve_together(
    (control, errands): (&Control, &Errands),
    devices: Vec<OpenDevice>,
    start: &Start,
    outside: Outside,
    ready: impl FnOnce(&[Ready]) -> bool,
) -> Result<(), ServeError> {
    let catch = |source| ServeError::System {
        what: "catch signals",
        source,
    };
    let Outside {
        manager,
        metrics,
        reloads,
    } = outside;
    let (outbox, mut inbox) = Inbox::new(reloads.by_signal()).map_err(catch)?;
    inbox.wake_every(manager.interval());
    let socket = ControlSocket::open()?;
    // The devices' threads end however this returns: the scope waits for them.
    thread::scope(|scope| {
        // Both are closed before that.
        let (socket, metrics) = (socket, metrics);
        let of_clients = outbox.clone();
        socket.serve(scope, move |asked| of_clients.send(News::Asked(asked)))?;
        metrics.serve(scope)?;
        let mut server = Server::new(
            (scope, control, errands),
            (outbox, inbox),
            start,
            manager,
            reloads,
        );
        server.of = devices.len();
        server.metered = metrics.devices();
        for device in devices {
            server.start(device);
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
