//! A recording: the requests of a live device, from the recorder to a trace.

use std::fs::File;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::classified::Classified;
use crate::policy::{Disk, PolicyError, Recorder};
use crate::sys::bpf::ktime_ns;
use crate::trace::{Header, TracedRequest, Writer};

/// Why a recording could not be started or continued.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The recorder cannot be attached or read.
    #[error(transparent)]
    Recorder(#[from] PolicyError),
    /// The trace cannot be written.
    #[error("writing the trace failed: {0}: what was written before is a valid trace")]
    Write(#[from] io::Error),
}

/// The device that is recorded.
#[derive(Clone, Copy, Debug)]
pub struct Recorded {
    /// Its capacity in sectors.
    pub sectors: u64,
    /// Bytes of its cache block, if it has a cache.
    pub block_bytes: Option<u32>,
}

/// What a recording has. The names of its fields, as JSON has them, are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Requests in the trace.
    pub recorded: u64,
    /// Requests that are missing: the ring was full, or the request cannot be on this device.
    pub dropped: u64,
    /// Requests of any disk for which the kernel did not run the recorder, because it already ran on their CPU.
    pub skipped: u64,
}

/// A recording in progress.
pub struct Recording {
    recorder: Recorder,
    writer: Writer<File>,
    classified: Classified,
    sectors: u64,
    /// The recorder's clock when it started.
    start: u64,
    /// Requests to record at most.
    limit: u64,
    /// Requests that were not on the device.
    impossible: u64,
}

impl Recording {
    /// Attaches the recorder to a disk and starts a trace in an empty file. The kernel holds `ring_bytes` of requests
    /// until [`poll`](Self::poll) writes them.
    ///
    /// # Errors
    /// If there is no classifier of this version, or the file cannot be written.
    pub fn start(
        disk: &Disk,
        device: Recorded,
        file: File,
        ring_bytes: u32,
        limit: Option<u64>,
    ) -> Result<Self, RecordingError> {
        let classified = Classified::of(disk)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let header = Header {
            device_sectors: device.sectors,
            block_bytes: device.block_bytes,
            started_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
            end: None,
        };
        let mut writer = Writer::new(file, header)?;
        // From now on the file is a trace, even if this is killed.
        writer.flush()?;
        let start = ktime_ns();
        Ok(Self {
            recorder: Recorder::attach(disk, ring_bytes)?,
            writer,
            classified,
            sectors: device.sectors,
            start,
            limit: limit.unwrap_or(u64::MAX),
            impossible: 0,
        })
    }

    /// Writes the requests that were issued since the last call. Returns whether more will come: neither is the limit
    /// reached, nor has the device ended.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn poll(&mut self) -> Result<bool, RecordingError> {
        let is_there = self.classified.is_there();
        self.drain()?;
        Ok(is_there && self.writer.recorded() < self.limit)
    }

    /// Detaches the recorder, writes what it still holds, and ends the trace.
    ///
    /// # Errors
    /// If the file cannot be written, or the kernel refuses.
    pub fn finish(mut self) -> Result<Summary, RecordingError> {
        let skipped = self.recorder.skipped()?;
        self.recorder.detach();
        self.drain()?;
        let summary = Summary {
            recorded: self.writer.recorded(),
            dropped: self.recorder.dropped()?.saturating_add(self.impossible),
            skipped,
        };
        self.writer.finish(summary.dropped)?;
        Ok(summary)
    }

    fn drain(&mut self) -> Result<(), RecordingError> {
        while self.writer.recorded() < self.limit
            && let Some(bytes) = self.recorder.take()
        {
            match TracedRequest::from_bytes(&bytes, self.sectors) {
                Ok(mut request) => {
                    request.time_ns = request.time_ns.saturating_sub(self.start);
                    self.writer.push(&request)?;
                }
                Err(what) => {
                    tracing::debug!("a request that cannot be on this device: {what}");
                    self.impossible += 1;
                }
            }
        }
        self.writer.flush()?;
        Ok(())
    }
}
