//! A drain that a command has asked for: the device's thread looks at it at intervals and tells the client how far it is.

use std::time::{Duration, Instant};

use super::cache::RunningCache;
use super::control_socket::Answer;
use super::running::RunningDevice;
use crate::backend::Size;
use crate::cache::DrainProgress;
use crate::registry::message::AfterDrain;

/// How often the client is told.
const SAY_EVERY: Duration = Duration::from_secs(1);
/// How long nothing may be left but blocks that cannot be written back.
const PATIENCE: Duration = Duration::from_secs(10);

/// A drain, and the client that waits for it.
pub(super) struct Drain {
    then: AfterDrain,
    answer: Answer,
    begun: Instant,
    /// What was dirty then.
    first: DrainProgress,
    said: Instant,
    /// When some block was last seen that could be written back.
    moved: Instant,
}

impl RunningDevice<'_> {
    /// Begins a drain, unless there is nothing to wait for.
    pub(super) fn drain(&self, then: AfterDrain, answer: Answer) -> Option<Drain> {
        let disk = self.info.id.disk_name();
        let Some(cache) = self.cache else {
            answer.end(Err(format!("{disk} has no cache, so nothing of it is dirty")));
            return None;
        };
        if let Some(failure) = cache.failure().filter(|_| then == AfterDrain::Detach) {
            answer.end(Err(format!("the cache of {disk} is detached: {failure}")));
            return None;
        }
        cache.start_drain();
        let now = Instant::now();
        Some(Drain {
            then,
            answer,
            begun: now,
            first: cache.drain_progress(),
            said: now,
            moved: now,
        })
    }
}

impl Drain {
    /// Looks how far it is. Returns it while it goes on.
    pub(super) fn look(mut self, cache: &RunningCache<'_>, wake_queues: impl FnOnce()) -> Option<Self> {
        let progress = cache.drain_progress();
        if progress.is_done {
            self.finish(cache, wake_queues);
            return None;
        }
        let now = Instant::now();
        if progress.stuck < progress.blocks {
            self.moved = now;
        }
        if now - self.moved >= PATIENCE {
            cache.end_drain();
            self.answer.end(Err(failed(&progress)));
            return None;
        }
        if now - self.said >= SAY_EVERY {
            self.said = now;
            if !self.answer.progress(self.so_far(&progress)) {
                tracing::info!("a drain is ended: its command has gone");
                cache.end_drain();
                return None;
            }
        }
        Some(self)
    }

    fn finish(self, cache: &RunningCache<'_>, wake_queues: impl FnOnce()) {
        match self.then {
            AfterDrain::Resume => cache.end_drain(),
            AfterDrain::Hold => {}
            AfterDrain::Detach => {
                cache.detach();
                wake_queues();
            }
        }
        let words = match self.then {
            AfterDrain::Detach => format!(
                "the cache {} is detached: the server has it open until the device stops",
                cache.name()
            ),
            AfterDrain::Resume | AfterDrain::Hold if self.first.blocks == 0 => "nothing is dirty".to_owned(),
            AfterDrain::Resume | AfterDrain::Hold => format!(
                "{} blocks, {}, are written back in {:.1} s",
                self.first.blocks,
                Size(self.first.bytes),
                self.begun.elapsed().as_secs_f64()
            ),
        };
        self.answer.end(Ok(words));
    }

    /// The percentage is the first word, for a bar.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "for people to read"
    )]
    fn so_far(&self, progress: &DrainProgress) -> String {
        let done = self.first.bytes.saturating_sub(progress.bytes);
        let percent = 100 * done / self.first.bytes.max(1);
        let seconds = self.begun.elapsed().as_secs_f64();
        let rate = done as f64 / seconds;
        let mut words = format!(
            "{percent} % written back, {} left, {} a second",
            Size(progress.bytes),
            Size((rate as u64).next_multiple_of(1 << 10))
        );
        if rate >= 1.0 {
            words.push_str(&format!(", {:.0} s to go", progress.bytes as f64 / rate));
        }
        if progress.stuck != 0 {
            words.push_str(&format!("; {} blocks fail and are tried again", progress.stuck));
        }
        words
    }
}

fn failed(progress: &DrainProgress) -> String {
    format!(
        "{} blocks, {}, cannot be written back: a device fails, see the server's log; they stay in the cache, and the drain \
         is ended",
        progress.blocks,
        Size(progress.bytes)
    )
}
