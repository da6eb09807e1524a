//! The queue threads, as the main thread sees them.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::Scope;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use ublk_bpf_abi::ServerCounters;

use super::isolation::protect_thread;
use super::panics;
use crate::backend::Backend;
use crate::control::DeviceInfo;
use crate::driver::uring::{CacheHandles, QueueSpec, Stop, run_queue};
use crate::policy::Classifier;
use crate::queue::{Ends, Written};

/// What every queue thread shares.
#[derive(Clone, Copy)]
pub(super) struct Shared<'a> {
    /// The device as the kernel made it.
    pub(super) info: &'a DeviceInfo,
    /// `/dev/ublkcN`.
    pub(super) device: &'a File,
    /// Where the bytes are.
    pub(super) backend: &'a Backend,
    /// What classifies the requests.
    pub(super) classifier: &'a Classifier,
    /// The cache, if there is one.
    pub(super) cache: Option<CacheHandles<'a>>,
    /// Where the files of backing and cache end by now.
    pub(super) ends: Ends<'a>,
    /// `--allow-lossy`.
    pub(super) lossy: bool,
    /// Ends all of them.
    pub(super) stop: &'a Stop,
}

/// What a queue thread tells the main thread.
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
            std::thread::Builder::new()
                .name(format!("{}-q{queue}", shared.info.id.disk_name()))
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
    // A panic is this queue's failure; the others have to be ended in good order.
    let result = catch_unwind(AssertUnwindSafe(|| serve(shared, queue, news)));
    let result = result.unwrap_or_else(|_| Err(format!("queue {queue}: its thread panicked")));
    // The main thread is gone only if it does not want to know.
    let _ = news.send(News::Ended(result));
}

fn serve(shared: &Shared<'_>, queue: u16, news: &UnboundedSender<News>) -> Result<(), String> {
    let classifier = shared.classifier;
    let spec = QueueSpec {
        queue,
        depth: shared.info.depth,
        descriptor_bytes: shared.info.descriptor_bytes,
        device: shared.device.as_fd(),
        backend: shared.backend,
        written: classifier
            .written()
            .map_or(Written::untracked(), |map| Written::new(map.words(), map.shift())),
        cache: shared.cache,
        ends: shared.ends,
        lossy: shared.lossy,
        stop: shared.stop,
    };
    let verdicts = classifier.verdicts().queue(queue);
    let published = classifier.counters().queue(queue);
    // Not zero where this server goes on after another.
    let before = published.published();
    let take_verdict = |tag| verdicts.take(tag);
    let ready = || drop(news.send(News::Ready));
    let end = if before == ServerCounters::default() && !panics::is_wanted() {
        run_queue(&spec, take_verdict, |counters| published.publish(counters), ready)
    } else {
        let publish = |counters: &ServerCounters| {
            panics::point();
            let mut sum = before;
            sum.add(counters);
            published.publish(&sum);
        };
        run_queue(&spec, take_verdict, publish, ready)
    };
    end.map(drop).map_err(|error| error.to_string())
}
