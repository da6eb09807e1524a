//! What a running device does for commands: one function for each, on the device's own thread.
//!
//! A command that takes long must not keep this thread, which also looks after the device's queues: it hands its
//! [`Answer`] to the thread that does the work.

use super::control_socket::Answer;
use super::disk_queue::DiskQueue;
use super::life::End;
use super::running::RunningDevice;
use crate::control::Recovery;
use crate::log;
use crate::registry::message::{DeviceCommand, Setting};
use crate::registry::{Record, RecordError, Scheduler};

impl RunningDevice<'_> {
    /// Carries out a command and answers it. Returns an end that was asked for.
    pub(super) fn obey(&self, command: DeviceCommand, answer: Answer) -> Option<End> {
        let (result, end) = match command {
            DeviceCommand::Set(setting) => (self.set(&setting), None),
            DeviceCommand::Resize(bytes) => {
                let resized = self.resize(bytes);
                (resized.map_err(|error| error.to_string()), None)
            }
            DeviceCommand::Leave => {
                let left = self.may_leave();
                let end = left.is_ok().then_some(End::Left);
                (left.map(|()| String::new()), end)
            }
        };
        answer.end(result);
        end
    }

    /// Whether the device can be left to another server, which some command starts.
    fn may_leave(&self) -> Result<(), String> {
        let disk = self.info.id.disk_name();
        if self.record.recovery == Recovery::None {
            Err(format!(
                "{disk} was made without --recovery, so it cannot wait for another server: stop it, and run it with \
                 --recovery reissue"
            ))
        } else if std::env::var_os("NOTIFY_SOCKET").is_some() {
            Err(format!(
                "{disk} is served for a service manager, which would take this for the end of the service: restart that, as \
                 with `systemctl restart ublk-bpf.service`"
            ))
        } else {
            Ok(())
        }
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
