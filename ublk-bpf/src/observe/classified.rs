//! Whether the device that was found first is still there.

use super::read::program;
use crate::policy::{Disk, PinDir, PolicyError};

/// A device by its classifier: another one belongs to another device of the same number.
pub(super) struct Classified {
    pins: PinDir,
    /// The classifier's program id.
    id: u32,
}

impl Classified {
    /// The device that the disk belongs to now.
    ///
    /// # Errors
    /// If no classifier is pinned for it.
    pub(super) fn of(disk: &Disk) -> Result<Self, PolicyError> {
        let pins = PinDir::open(disk)?;
        let found = program(&pins.classifier())?.ok_or_else(|| PolicyError::NotClassified {
            path: pins.path().to_owned(),
        })?;
        Ok(Self { pins, id: found.id })
    }

    /// Whether it still exists.
    pub(super) fn is_there(&self) -> bool {
        matches!(program(&self.pins.classifier()), Ok(Some(found)) if found.id == self.id)
    }
}
