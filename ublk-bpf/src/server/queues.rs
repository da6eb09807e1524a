//! The queue threads, as the main thread sees them.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::Scope;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use ublk_bpf_abi::{ServerCounters, TakenVerdict};

use super::isolation::protect_thread;
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

/// What a queue thread reports to its device's thread.
enum News {
    /// The kernel has every tag.
    Ready,
    /// The thread is at its end, and why.
    Ended(Result<(), String>),
}

/// The queue threads of a device.
pub(super) struct Queues {
    news: UnboundedReceiver<News>,
    /// Threads that have not ended.
    running: u16,
    count: u16,
}

impl Queues {
    /// Starts a thread for each queue.
    pub(super) fn spawn<'scope>(
        scope: &'scope Scope<'scope, '_>,
        shared: &'scope Shared<'scope>,
    ) -> io::Result<Self> {
        let (sender, news) = unbounded_channel();
        let count = shared.info.queues;
        for queue in 0..count {
            let sender = sender.clone();
            limits::thread(format!("{}-q{queue}", shared.info.id.disk_name()))
                .spawn_scoped(scope, move || run(shared, queue, &sender))?;
        }
        Ok(Self {
            news,
            running: count,
            count,
        })
    }

    /// Waits until the kernel has every tag of every queue.
    pub(super) async fn ready(&mut self, within: Duration) -> Result<(), String> {
        let all = async {
            for _ in 0..self.count {
                match self.news.recv().await {
                    Some(News::Ready) => {}
                    Some(News::Ended(Err(why))) => return Err(why),
                    Some(News::Ended(Ok(()))) | None => {
                        return Err("a queue ended before it was ready".to_owned());
                    }
                }
            }
            Ok(())
        };
        match tokio::time::timeout(within, all).await {
            Ok(result) => result,
            Err(_) => Err(format!("the queues were not ready within {} s", within.as_secs())),
        }
    }

    /// Waits until every thread has ended, or one has failed.
    pub(super) async fn ended(&mut self) -> Result<(), String> {
        while self.running > 0 {
            match self.news.recv().await {
                Some(News::Ready) => {}
                Some(News::Ended(Ok(()))) => self.running -= 1,
                Some(News::Ended(Err(why))) => return Err(why),
                None => break,
            }
        }
        Ok(())
    }
}

/// A queue thread's life.
fn run(shared: &Shared<'_>, queue: u16, news: &UnboundedSender<News>) {
    protect_thread();
    // A panic fails this queue; the others must still end cleanly.
    let result = catch_unwind(AssertUnwindSafe(|| serve(shared, queue, news)));
    let result = result.unwrap_or_else(|_| Err(format!("queue {queue}: its thread panicked")));
    // Fails only if the main thread has ended.
    let _ = news.send(News::Ended(result));
}

fn serve(shared: &Shared<'_>, queue: u16, news: &UnboundedSender<News>) -> Result<(), String> {
    let mut host = Host {
        verdicts: shared.classifier.verdicts().queue(queue),
        counters: shared.classifier.counters().queue(queue),
        news,
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
struct Host<'a> {
    verdicts: QueueVerdicts<'a>,
    counters: QueueCounters,
    news: &'a UnboundedSender<News>,
}

impl QueueHost for Host<'_> {
    #[inline]
    fn take_verdict(&mut self, tag: u16) -> TakenVerdict {
        self.verdicts.take(tag)
    }

    #[inline]
    fn publish(&mut self, counters: &ServerCounters) {
        self.counters.publish(counters);
    }

    fn ready(&mut self) {
        // Fails only if the device's thread has gone.
        let _ = self.news.send(News::Ready);
    }
}

/// The same for a queue whose counters start where an earlier server's ended. A type of its own, so that the loop of a
/// new device's queue does not add them; the same loop checks whether a test wants a panic.
struct ResumedHost<'a> {
    host: Host<'a>,
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
