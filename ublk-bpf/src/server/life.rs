//! The life of a device in its process: what it is given, and how it ends.

use std::sync::mpsc::{Receiver, Sender};
use std::time::Instant;

use super::control_socket::Answer;
use super::errands::Errands;
use super::error::ServeError;
use crate::backend::BackingKind;
use crate::control::{Control, DeviceId, Recovery};
use crate::log;
use crate::registry::Record;
use crate::registry::message::DeviceCommand;

/// A device that can be started: everything that options name by path is open.
pub(super) trait Device: Send + 'static {
    /// Runs the device from start to end, on a thread of its own.
    fn live(self, host: Host<'_>) -> Result<(), ServeError>;
}

/// What the process gives a device.
pub(super) struct Host<'p> {
    pub(super) control: &'p Control,
    /// For what must not be done in this process.
    pub(super) errands: &'p Errands,
    /// What the device's thread waits for.
    pub(super) events: Receiver<DeviceEvent>,
    /// For the queue threads.
    pub(super) sender: Sender<DeviceEvent>,
    /// To be called once, when the device serves requests.
    pub(super) ready: &'p dyn Fn(Ready),
}

impl Host<'_> {
    /// The next event; `None` if there is none until `deadline`.
    pub(super) fn next(&self, deadline: Option<Instant>) -> Option<DeviceEvent> {
        match deadline {
            Some(deadline) => {
                let timeout = deadline.saturating_duration_since(Instant::now());
                self.events.recv_timeout(timeout).ok()
            }
            // It has a sender itself, so this does not end otherwise.
            None => self.events.recv().ok(),
        }
    }
}

/// An event for a device's thread, from the main thread or one of its queues.
pub(super) enum DeviceEvent {
    /// A signal asks the device to stop.
    Signal,
    /// The start was cancelled: remove the device, even if it is in use.
    Cancel,
    /// A command asks for something. Only a device that is ready is asked.
    Asked(DeviceCommand, Answer),
    /// The kernel has every tag of a queue.
    QueueReady,
    /// The mover of a device with write-back has failed, and why.
    MoverEnded(String),
    /// A queue's thread is at its end, and why.
    QueueEnded(Result<(), String>),
}

/// A device that has become ready.
#[derive(Clone, Debug)]
pub struct Ready {
    /// Its record, as other commands read it.
    pub record: Record,
    /// The kind of its backing.
    pub kind: BackingKind,
    /// When it became so.
    pub at: Instant,
}

/// How a device ended, if nothing failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The block device was removed; the caller removes the rest.
    Stopped,
    /// The device waits for another server.
    Left,
}

impl End {
    /// Prints that the device waits, whatever the log level. A device that was removed needs no message.
    pub(super) fn say(self, id: DeviceId, recovery: Recovery) {
        if self == Self::Left {
            log::say(format_args!(
                "{} waits for a server; requests {}: recover it with `ublk-bpf run --recover {id}`, or remove it with `ublk-bpf stop {id}`",
                id.disk_name(),
                recovery.meanwhile()
            ));
        }
    }
}
