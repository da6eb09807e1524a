//! What a running device does for commands: one function for each, on the device's own thread.
//!
//! A command that takes long must not keep this thread, which also looks after the device's queues: it hands its
//! [`Answer`] to the thread that does the work.

use super::control_socket::Answer;
use super::running::RunningDevice;
use crate::registry::message::{DeviceCommand, Setting};
use crate::registry::{Record, RecordError};

impl RunningDevice<'_> {
    /// Carries out a command and answers it.
    pub(super) fn obey(&self, command: DeviceCommand, answer: Answer) {
        answer.end(match command {
            DeviceCommand::Set(setting) => self.set(&setting),
        });
    }

    /// Changes an option, in the device and in its record.
    fn set(&self, setting: &Setting) -> Result<String, String> {
        match setting {
            Setting::PromoteLimit(limit) => self.limit_promotion(*limit)?,
        }
        Ok(String::new())
    }

    fn limit_promotion(&self, limit: Option<u64>) -> Result<(), String> {
        let disk = self.info.id.disk_name();
        let cache = self
            .cache
            .ok_or_else(|| format!("promote-limit applies to a cache, and {disk} has none"))?;
        let changed = Record::change(self.info.id, |record| {
            if let Some(cache) = &mut record.cache {
                cache.options.promote_limit = limit;
            }
            Ok::<_, RecordError>(())
        });
        changed.map_err(|error| error.to_string())?;
        cache.limit_promotion(limit);
        Ok(())
    }
}
