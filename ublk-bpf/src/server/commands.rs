//! What a running device does for commands: one function for each, on the device's own thread.
//!
//! A command that takes long must not keep this thread, which also looks after the device's queues: it hands its
//! [`Answer`] to the thread that does the work.

use super::control_socket::Answer;
use super::disk_queue::DiskQueue;
use super::running::RunningDevice;
use crate::log;
use crate::policy::Watch;
use crate::registry::message::{DeviceCommand, Setting};
use crate::registry::{Record, RecordError, Scheduler};

impl RunningDevice<'_> {
    /// Carries out a command and answers it.
    pub(super) fn obey(&self, command: DeviceCommand, answer: Answer, files: &Watch) {
        answer.end(match command {
            DeviceCommand::Set(setting) => self.set(&setting),
            DeviceCommand::Resize(bytes) => self.resize(bytes, files).map_err(|error| error.to_string()),
        });
    }

    /// Changes an option, in the device and in its record.
    fn set(&self, setting: &Setting) -> Result<String, String> {
        match setting {
            Setting::PromoteLimit(limit) => self.limit_promotion(*limit)?,
            Setting::Scheduler(scheduler) => self.schedule(scheduler)?,
            Setting::Verbose(level) => log::set_verbosity(*level),
        }
        Ok(String::new())
    }

    fn schedule(&self, scheduler: &Scheduler) -> Result<(), String> {
        let queue = DiskQueue::of(self.info.id);
        let now = scheduler.name().ok_or(
            "the kernel chooses a scheduler when the disk is made: name one that /sys/block/*/queue/scheduler lists",
        )?;
        let before = queue.scheduler();
        queue.schedule(scheduler).map_err(|error| error.to_string())?;
        let noted = Record::change(self.info.id, |record| {
            record.note_change("scheduler", before, now);
            Ok::<_, RecordError>(())
        });
        noted.map_err(|error| error.to_string())
    }

    fn limit_promotion(&self, limit: Option<u64>) -> Result<(), String> {
        let disk = self.info.id.disk_name();
        let cache = self
            .cache
            .ok_or_else(|| format!("promote-limit applies to a cache, and {disk} has none"))?;
        let changed = Record::change(self.info.id, |record| {
            record.set_promote_limit(limit);
            Ok::<_, RecordError>(())
        });
        changed.map_err(|error| error.to_string())?;
        cache.limit_promotion(limit);
        Ok(())
    }
}
