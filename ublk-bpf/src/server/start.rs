//! What a server is asked to serve.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::control::DeviceId;
use crate::metrics::Address;
use crate::registry::DeviceOptions;

/// What to serve: devices in this order.
#[derive(Clone, Debug)]
pub struct Start {
    /// How to get each device.
    pub devices: Vec<Recipe>,
    /// Serve those that can be, if not all can: the others are logged. Without this, one that cannot start ends all.
    pub partly: bool,
    /// Where to serve the devices' metrics, if anywhere.
    pub metrics: Option<Address>,
    /// What describes the devices, to be read again by a reload.
    pub configuration: Option<Configuration>,
}

/// A description of devices that may change while they are served.
#[derive(Clone)]
pub struct Configuration {
    file: PathBuf,
    /// Where relative paths in it lead from.
    directory: PathBuf,
    read: Arc<ReadDevices>,
}

type ReadDevices = dyn Fn() -> Result<Vec<DeviceOptions>, String> + Send + Sync;

impl Configuration {
    /// That in `file`, which `read` reads. Both know paths from the present working directory.
    pub fn new(
        file: PathBuf,
        read: impl Fn() -> Result<Vec<DeviceOptions>, String> + Send + Sync + 'static,
    ) -> Self {
        Self {
            file,
            // Only relative paths need it.
            directory: std::env::current_dir().unwrap_or_else(|_| "/".into()),
            read: Arc::new(read),
        }
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The devices that it describes now.
    pub(super) fn devices(&self) -> Result<Vec<DeviceOptions>, String> {
        (self.read)()
    }
}

impl fmt::Debug for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Configuration")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

/// How to get a device.
#[derive(Clone, Debug)]
pub enum Recipe {
    /// Make it.
    Make(DeviceOptions),
    /// Recover the device that waits for a server on the same backing, or else make one.
    MakeOrRecover(DeviceOptions),
    /// Recover this device, whose server died, with the options it was made with.
    Recover(DeviceId),
}

impl Start {
    /// Devices to be made.
    #[must_use]
    pub fn make(devices: Vec<DeviceOptions>) -> Self {
        Self::all(devices.into_iter().map(Recipe::Make).collect())
    }

    /// Devices to be recovered if they wait, or else made.
    #[must_use]
    pub fn make_or_recover(devices: Vec<DeviceOptions>) -> Self {
        Self::all(devices.into_iter().map(Recipe::MakeOrRecover).collect())
    }

    /// A device to be recovered.
    #[must_use]
    pub fn recover(id: DeviceId) -> Self {
        Self::all(vec![Recipe::Recover(id)])
    }

    /// Devices to be recovered, or those of them that can be.
    #[must_use]
    pub fn recover_all(ids: Vec<DeviceId>) -> Self {
        let devices = ids.into_iter().map(Recipe::Recover).collect();
        Self {
            devices,
            partly: true,
            metrics: None,
            configuration: None,
        }
    }

    /// The same devices, with their metrics served.
    #[must_use]
    pub fn with_metrics(self, metrics: Option<Address>) -> Self {
        Self { metrics, ..self }
    }

    /// The same devices, with what describes them.
    #[must_use]
    pub fn configured(self, configuration: Configuration) -> Self {
        let configuration = Some(configuration);
        Self {
            configuration,
            ..self
        }
    }

    const fn all(devices: Vec<Recipe>) -> Self {
        Self {
            devices,
            partly: false,
            metrics: None,
            configuration: None,
        }
    }
}

impl Recipe {
    /// The id that was asked for.
    pub(super) const fn wanted_id(&self) -> Option<DeviceId> {
        match self {
            Self::Make(options) | Self::MakeOrRecover(options) => options.id,
            Self::Recover(_) => None,
        }
    }

    /// The queues that it asks for; the maximum for a waiting device.
    pub(super) const fn queues(&self) -> u16 {
        match self {
            Self::Make(options) | Self::MakeOrRecover(options) => options.queues,
            Self::Recover(_) => u16::MAX,
        }
    }
}
