//! The queue threads of a device.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Sender;
use std::thread::Scope;

use ublk_bpf_abi::{ServerCounters, TakenVerdict};

use super::isolation::protect_thread;
use super::life::DeviceEvent;
use super::{limits, panics};
use crate::control::DeviceInfo;
use crate::driver::{Engine, QueueHost};
use crate::policy::{Classifier, QueueCounters, QueueVerdicts};

/// What every queue thread shares.
#[derive(Clone, Copy)]
pub(super) struct Shared<'a> {
    /// The device as the kernel made it.
    pub(super) info: &'a DeviceInfo,
    /// Serves the queues.
    pub(super) engine: &'a Engine<'a>,
    /// Classifies the requests.
    pub(super) classifier: &'a Classifier,
}

/// Starts a thread for each queue.
pub(super) fn spawn<'scope>(
    scope: &'scope Scope<'scope, '_>,
    shared: &'scope Shared<'scope>,
    events: &Sender<DeviceEvent>,
) -> io::Result<()> {
    for queue in 0..shared.info.queues {
        let events = events.clone();
        limits::thread(format!("{}-q{queue}", shared.info.id.disk_name()))
            .spawn_scoped(scope, move || run(shared, queue, &events))?;
    }
    Ok(())
}

/// A queue thread's life.
fn run(shared: &Shared<'_>, queue: u16, events: &Sender<DeviceEvent>) {
    protect_thread();
    // A panic fails this queue; the others must still end cleanly.
    let result = catch_unwind(AssertUnwindSafe(|| serve(shared, queue, events)));
    let result = result.unwrap_or_else(|_| Err(format!("queue {queue}: its thread panicked")));
    // Fails only if the device's thread has ended.
    let _ = events.send(DeviceEvent::QueueEnded(result));
}

fn serve(shared: &Shared<'_>, queue: u16, events: &Sender<DeviceEvent>) -> Result<(), String> {
    let mut host = NewHost {
        verdicts: shared.classifier.verdicts().queue(queue),
        counters: shared.classifier.counters().queue(queue),
        events,
    };
    // Not zero if this server recovers the device from another.
    let before = host.counters.published();
    let end = if before == ServerCounters::default() && !panics::is_wanted() {
        shared.engine.run_queue(queue, &mut host)
    } else {
        shared.engine.run_queue(queue, &mut ResumedHost { host, before })
    };
    end.map(drop).map_err(|error| error.to_string())
}

/// A queue's part of its classifier's maps, and of its device's thread.
struct NewHost<'a> {
    verdicts: QueueVerdicts<'a>,
    counters: QueueCounters,
    events: &'a Sender<DeviceEvent>,
}

impl QueueHost for NewHost<'_> {
    #[inline]
    fn take_verdict(&mut self, tag: u16) -> TakenVerdict {
        self.verdicts.take(tag)
    }

    #[inline]
    fn publish(&mut self, counters: &ServerCounters) {
        self.counters.publish(counters);
    }

    fn ready(&mut self) {
        // Fails only if the device's thread has ended.
        let _ = self.events.send(DeviceEvent::QueueReady);
    }
}

/// The same for a queue whose counters start where an earlier server's ended. A type of its own, so that the loop of a
/// new device's queue does not add them; the same loop checks whether a test wants a panic.
struct ResumedHost<'a> {
    host: NewHost<'a>,
    before: ServerCounters,
}

impl QueueHost for ResumedHost<'_> {
    #[inline]
    fn take_verdict(&mut self, tag: u16) -> TakenVerdict {
        self.host.take_verdict(tag)
    }

    fn publish(&mut self, counters: &ServerCounters) {
        panics::point();
        let mut sum = self.before;
        sum.add(counters);
        self.host.publish(&sum);
    }

    fn ready(&mut self) {
        self.host.ready();
    }
}
