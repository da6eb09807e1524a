//! What waits in the kernel for requests of a device of this process, done by another process.
//!
//! To remove a disk, or to change an attribute of its queue, the kernel waits until the requests in flight have ended, and
//! no signal ends that wait. If the server does it itself and is killed meanwhile, its queue threads end and the waiting
//! thread does not: it keeps `/dev/ublkcN` open, without whose release the kernel does not abort the requests that it
//! waits for (`ublk_ch_release` in `drivers/block/ublk_drv.c`). The process could then never be killed, nor the device
//! removed. So a helper, which has nothing of the device open, does these for all devices.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::control::{Control, ControlCommand, ControlError, DeviceId};
use crate::errno::Errno;
use crate::sys::helper::Helper;

/// Does what must not be done in this process; in it all the same once the helper has ended.
pub(super) struct Errands(Helper);

/// What can be asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Errand {
    Control(Command),
    Write { path: PathBuf, value: String },
}

/// Of the control plane.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Command {
    Stop { id: DeviceId, force: bool },
    Resize { id: DeviceId, sectors: u64 },
}

/// How it ended.
#[derive(Debug, Serialize, Deserialize)]
enum Outcome {
    Done,
    /// The kernel's error number.
    Refused(i32),
    /// A control command took longer than this many milliseconds.
    TimedOut {
        millis: u64,
        cancelled: bool,
    },
    /// It could not be tried.
    Failed,
}

impl Errands {
    /// Makes the helper. The process must have one thread.
    ///
    /// # Errors
    /// Those of [`Helper::start`].
    pub(super) fn start() -> io::Result<Self> {
        Helper::start(carry_out).map(Self)
    }

    /// [`Control::remove_disk`].
    pub(super) fn stop(&self, control: &Control, id: DeviceId, force: bool) -> Result<(), ControlError> {
        self.control(control, Command::Stop { id, force })
    }

    /// [`Control::update_size`].
    pub(super) fn resize(&self, control: &Control, id: DeviceId, sectors: u64) -> Result<(), ControlError> {
        self.control(control, Command::Resize { id, sectors })
    }

    /// Writes `value` to a file in sysfs.
    pub(super) fn write(&self, path: &Path, value: &str) -> io::Result<()> {
        let errand = Errand::Write {
            path: path.into(),
            value: value.to_owned(),
        };
        match self.send(&errand) {
            Outcome::Done => Ok(()),
            Outcome::Refused(errno) => Err(io::Error::from_raw_os_error(errno)),
            Outcome::TimedOut { .. } | Outcome::Failed => std::fs::write(path, value),
        }
    }

    fn control(&self, control: &Control, errand: Command) -> Result<(), ControlError> {
        let (command, id) = errand.name();
        let device = Some(id);
        match self.send(&Errand::Control(errand)) {
            Outcome::Done => Ok(()),
            Outcome::Refused(errno) if let Some(errno) = Errno::of_result(-errno) => {
                Err(ControlError::Refused {
                    command,
                    device,
                    errno,
                })
            }
            Outcome::TimedOut { millis, cancelled } => Err(ControlError::TimedOut {
                command,
                device,
                after: Duration::from_millis(millis),
                cancelled,
            }),
            Outcome::Refused(_) | Outcome::Failed => errand.execute(control),
        }
    }

    fn send(&self, errand: &Errand) -> Outcome {
        let request = serde_json::to_vec(errand).expect("an errand has a JSON form");
        let answer = self.0.ask(&request);
        let answer = answer.and_then(|answer| Ok(serde_json::from_slice(&answer)?));
        answer.unwrap_or_else(|error| {
            tracing::warn!("the process that stops devices has ended: {error}");
            Outcome::Failed
        })
    }
}

impl Command {
    /// The kernel's command, and its device.
    const fn name(self) -> (ControlCommand, DeviceId) {
        match self {
            Self::Stop { id, force: true } => (ControlCommand::Stop, id),
            Self::Stop { id, force: false } => (ControlCommand::TryStop, id),
            Self::Resize { id, .. } => (ControlCommand::UpdateSize, id),
        }
    }

    fn execute(self, control: &Control) -> Result<(), ControlError> {
        match self {
            Self::Stop { id, force } => control.remove_disk(id, force),
            Self::Resize { id, sectors } => control.update_size(id, sectors),
        }
    }
}

/// The helper's part.
fn carry_out(request: &[u8]) -> Vec<u8> {
    let outcome = serde_json::from_slice(request).map_or(Outcome::Failed, |errand| outcome(&errand));
    serde_json::to_vec(&outcome).expect("an outcome has a JSON form")
}

fn outcome(errand: &Errand) -> Outcome {
    let command = match errand {
        Errand::Control(command) => command,
        Errand::Write { path, value } => {
            return match std::fs::write(path, value) {
                Ok(()) => Outcome::Done,
                Err(error) => error.raw_os_error().map_or(Outcome::Failed, Outcome::Refused),
            };
        }
    };
    match Control::open().and_then(|control| command.execute(&control)) {
        Ok(()) => Outcome::Done,
        Err(ControlError::Refused { errno, .. }) => Outcome::Refused(errno.number()),
        Err(ControlError::TimedOut { after, cancelled, .. }) => Outcome::TimedOut {
            millis: u64::try_from(after.as_millis()).unwrap_or(u64::MAX),
            cancelled,
        },
        Err(_) => Outcome::Failed,
    }
}
