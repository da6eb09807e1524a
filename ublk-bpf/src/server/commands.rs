//! What a running device does for commands: one function for each, on the device's own thread.
//!
//! A command that takes long must not keep this thread, which also looks after the device's queues: it hands its
//! [`Answer`] to the thread that does the work.

use super::cache::RunningCache;
use super::control_socket::Answer;
use super::disk_queue::DiskQueue;
use super::drain::Drain;
use super::life::End;
use super::running::RunningDevice;
use crate::cache::Mode;
use crate::control::Recovery;
use crate::log;
use crate::policy::Watch;
use crate::registry::message::{DeviceCommand, Setting};
use crate::registry::{CacheOptions, Record, RecordError, Scheduler};

/// Ranges that are listed at most: a reply has a limit, and a device that fails may have millions.
const MOST_RANGES: usize = 64;

impl RunningDevice<'_> {
    /// Carries out a command and answers it. Returns an end that was asked for.
    pub(super) fn obey(
        &self,
        command: DeviceCommand,
        answer: Answer,
        files: &Watch,
        drain: &mut Option<Drain>,
    ) -> Option<End> {
        let (result, end) = match command {
            DeviceCommand::Set(setting) => (self.set(&setting), None),
            DeviceCommand::Resize(bytes) => {
                let resized = self.resize(bytes, files);
                (resized.map_err(|error| error.to_string()), None)
            }
            DeviceCommand::Drain(then) => {
                if drain.is_some() {
                    (
                        Err(format!("{} is being drained already", self.info.id.disk_name())),
                        None,
                    )
                } else {
                    *drain = self.drain(then, answer);
                    return None;
                }
            }
            DeviceCommand::Failing => (Ok(self.failing()), None),
            DeviceCommand::EndDrain => {
                if let Some(cache) = self.cache {
                    cache.end_drain();
                }
                (Ok(String::new()), None)
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

    /// The dirty ranges that cannot be written back.
    fn failing(&self) -> String {
        let ranges = self.cache.map(|cache| cache.failing_ranges(MOST_RANGES));
        serde_json::to_string(&ranges.unwrap_or_default()).expect("ranges have a JSON form")
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
            Setting::PromoteLimit(limit) => {
                let cache = self.cache_for("promote-limit")?;
                self.record_change(|record| record.set_promote_limit(*limit))?;
                cache.limit_promotion(*limit);
            }
            Setting::CacheEviction(algorithm) => {
                let cache = self.cache_for("cache-eviction")?;
                self.record_change(|record| record.set_eviction(*algorithm))?;
                cache.evict_by(*algorithm);
            }
            Setting::CacheMode(mode) => self.set_mode(*mode)?,
            Setting::DirtyHigh(percent) => {
                let cache = self.written_back("dirty-high")?;
                cache.adopt(&self.record_change(|record| record.set_dirty_high(*percent))?);
            }
            Setting::CleanLimit(limit) => {
                let cache = self.written_back("clean-limit")?;
                cache.adopt(&self.record_change(|record| record.set_clean_limit(*limit))?);
            }
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
        queue
            .schedule(scheduler, self.errands)
            .map_err(|error| error.to_string())?;
        let noted = Record::change(self.info.id, |record| {
            record.note_change("scheduler", before, now);
            Ok::<_, RecordError>(())
        });
        noted.map_err(|error| error.to_string())
    }

    fn set_mode(&self, mode: Mode) -> Result<(), String> {
        let cache = self.cache_for("cache-mode")?;
        cache.check_mode(mode).map_err(|has| {
            format!(
                "{} was made for {has}, which has no {}: stop it, and run it with --cache-mode {}",
                self.info.id.disk_name(),
                mode.name(),
                mode.name()
            )
        })?;
        let record = self.record_change(|record| record.set_cache_mode(mode))?;
        if mode != Mode::WriteAround {
            DiskQueue::of(self.info.id).keep_pages_stable(self.errands);
        }
        cache.adopt(&record);
        Ok(())
    }

    /// The cache that an option is of.
    fn cache_for(&self, option: &str) -> Result<&RunningCache<'_>, String> {
        let disk = self.info.id.disk_name();
        self.cache
            .ok_or_else(|| format!("{option} applies to a cache, and {disk} has none"))
    }

    /// The same, if writes may end in it.
    fn written_back(&self, option: &str) -> Result<&RunningCache<'_>, String> {
        let disk = self.info.id.disk_name();
        let cache = self.cache_for(option)?;
        cache.is_written_back().then_some(cache).ok_or_else(|| {
            format!(
                "{option} applies to write-back, and {disk} was made without: stop it, and run it with --cache-mode write-back"
            )
        })
    }

    /// Changes the record. Returns the options of its cache since then.
    fn record_change(&self, change: impl FnOnce(&mut Record)) -> Result<CacheOptions, String> {
        let changed = Record::change(self.info.id, |record| {
            change(record);
            Ok::<_, RecordError>(record.cache.as_ref().map(|cache| cache.options.clone()))
        });
        let changed = changed.map_err(|error| error.to_string())?;
        changed.ok_or_else(|| format!("the record of {} has no cache", self.info.id.disk_name()))
    }
}
