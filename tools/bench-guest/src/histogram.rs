//! The kernel's own histograms of its tracepoints: Documentation/trace/histogram.rst. Counting costs instructions, so
//! nothing else is measured meanwhile.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The guest has tracefs there.
const EVENTS: &str = "/sys/kernel/tracing/events";

/// A count that is going on; dropped, it ends.
pub(crate) struct Histogram {
    event: PathBuf,
    trigger: String,
}

impl Histogram {
    /// Counts an event, `block/block_rq_issue`, from 0 by what follows `hist:`.
    pub(crate) fn start(event: &str, what: &str) -> Result<Self> {
        let histogram = Self {
            event: Path::new(EVENTS).join(event),
            trigger: format!("hist:{what}"),
        };
        histogram
            .write(&histogram.trigger)
            .with_context(|| format!("cannot count {event}"))?;
        Ok(histogram)
    }

    /// What was counted so far, as the kernel prints it.
    pub(crate) fn text(&self) -> Result<String> {
        let path = self.event.join("hist");
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    fn write(&self, text: &str) -> Result<()> {
        let path = self.event.join("trigger");
        fs::write(&path, text).with_context(|| format!("cannot write {text} to {}", path.display()))
    }
}

impl Drop for Histogram {
    fn drop(&mut self) {
        // One that stays counts on, and the next start says that it is there.
        let _ = self.write(&format!("!{}", self.trigger));
    }
}
