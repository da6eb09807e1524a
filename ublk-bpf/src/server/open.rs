//! What a recipe comes to, with everything open that it names by path.

use super::cache::CacheDevice;
use super::device::NewDevice;
use super::error::ServeError;
use super::life::{Device, Host};
use super::recover::OrphanedDevice;
use super::start::Recipe;
use crate::control::{Control, DeviceId};
use crate::registry::owners::{self, Opening};

impl Recipe {
    /// Opens everything by its path. `reserved` are ids that other devices of the process need. Without `control`, a
    /// waiting device is none.
    pub(super) fn open(
        &self,
        control: Option<&Control>,
        reserved: &[DeviceId],
        opening: &mut Opening<'_>,
    ) -> Result<Option<OpenDevice>, ServeError> {
        let waiting = match (self, control) {
            (Self::MakeOrRecover(options), Some(control)) => owners::waiting_on(control, options)?,
            _ => None,
        };
        Ok(match (self, control, waiting) {
            (Self::Recover(id), Some(control), _) => Some(OpenDevice::Orphaned(Box::new(
                OrphanedDevice::open(control, *id, opening)?,
            ))),
            (Self::Recover(_), None, _) => None,
            (Self::MakeOrRecover(options), Some(control), Some(id)) => {
                let device = OrphanedDevice::open_described(control, id, options, opening)?;
                Some(OpenDevice::Orphaned(Box::new(device)))
            }
            (Self::Make(options) | Self::MakeOrRecover(options), ..) => Some(OpenDevice::New(Box::new(
                NewDevice::open(options, reserved, opening)?,
            ))),
        })
    }
}

/// A device with everything open that it is on.
pub(super) enum OpenDevice {
    New(Box<NewDevice>),
    Orphaned(Box<OrphanedDevice>),
}

impl OpenDevice {
    /// Whether writes may end in its cache.
    pub(super) fn is_written_back(&self) -> bool {
        let cache = match self {
            Self::New(device) => device.cache(),
            Self::Orphaned(device) => device.cache(),
        };
        cache.is_some_and(CacheDevice::is_written_back)
    }
}

impl Device for OpenDevice {
    fn live(self, host: Host<'_>) -> Result<(), ServeError> {
        match self {
            Self::New(device) => device.live(host),
            Self::Orphaned(device) => device.live(host),
        }
    }
}
