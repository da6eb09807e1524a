//! How a control command fails, in words.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::command::ControlCommand;
use super::device::{InvalidDevice, MalformedInfo};
use super::features::Missing;
use super::id::DeviceId;
use super::params::{InvalidParams, MalformedParams};
use crate::errno::Errno;

/// Why the control plane could not do something. Each is one line: what was wanted, what was found, what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The driver is not loaded, or not built.
    #[error(
        "ublk is not available: {CONTROL_PATH} does not exist; load the driver with `modprobe ublk_drv` \
         (batch I/O needs Linux >= 7.0)"
    )]
    NoDriver,

    /// `/dev/ublk-control` may not be opened by this user.
    #[error("no permission to open {CONTROL_PATH}: ublk needs CAP_SYS_ADMIN; run as root")]
    NoPermission,

    /// `/dev/ublk-control` cannot be opened.
    #[error("cannot open {CONTROL_PATH}: {0}")]
    Open(#[source] io::Error),

    /// io_uring does not work here.
    #[error(
        "cannot send {command} to ublk: io_uring does not work here ({source}); allow it with \
         `sysctl kernel.io_uring_disabled=0`, and the locked memory it needs"
    )]
    Ring {
        /// What was to be sent.
        command: ControlCommand,
        /// What io_uring said.
        source: io::Error,
    },

    /// The kernel refused a command.
    #[error("cannot {}: {} ({command}: {errno})", aim(*command, *device), meaning(*command, *errno))]
    Refused {
        /// What was sent.
        command: ControlCommand,
        /// For which device; `None`: for none, or one whose id the kernel was to choose.
        device: Option<DeviceId>,
        /// What came back.
        errno: Errno,
    },

    /// The kernel did not answer in time.
    #[error(
        "cannot {}: no answer within {} s: {} ({command}: {})",
        aim(*command, *device), after.as_secs_f32(), command.why_late(),
        if *cancelled { "cancelled" } else { "still running in the kernel" }
    )]
    TimedOut {
        /// What was sent.
        command: ControlCommand,
        /// For which device.
        device: Option<DeviceId>,
        /// How long it was waited for.
        after: Duration,
        /// Whether the kernel cancelled it. If not, it continues there, and this process cannot end before it.
        cancelled: bool,
    },

    /// The kernel answered what makes no sense.
    #[error("cannot make sense of the kernel's answer to {command} for device {device}: {source}")]
    MalformedInfo {
        /// What was sent.
        command: ControlCommand,
        /// For which device.
        device: DeviceOrAny,
        /// What is wrong with it.
        source: MalformedInfo,
    },

    /// The kernel holds parameters that make no sense, or none.
    #[error("cannot read the parameters of device {device}: {source}")]
    MalformedParams {
        /// Of which device.
        device: DeviceId,
        /// What is wrong with them.
        source: MalformedParams,
    },

    /// What was asked for cannot be.
    #[error(transparent)]
    InvalidDevice(#[from] InvalidDevice),

    /// What was asked for cannot be.
    #[error(transparent)]
    InvalidParams(#[from] InvalidParams),

    /// The kernel cannot do what a device needs.
    #[error(transparent)]
    Missing(#[from] Missing),

    /// The list of devices cannot be read.
    #[error("cannot list ublk devices: reading {path} failed: {source}", path = path.display())]
    List {
        /// What was read.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },

    /// A device node did not appear.
    #[error("{path} did not appear within {} s; is devtmpfs mounted on /dev?", after.as_secs_f32(), path = path.display())]
    NoNode {
        /// Which node.
        path: PathBuf,
        /// How long it was waited for.
        after: Duration,
    },

    /// Something else is where a device node should be, and keeps devtmpfs from making it.
    #[error("{path} is not a device node, though the kernel has that device: remove it", path = path.display())]
    NotANode {
        /// Its path.
        path: PathBuf,
    },

    /// A device node cannot be used.
    #[error("cannot open {path}: {}", node_trouble(source), path = path.display())]
    Node {
        /// Which node.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

/// Where the driver takes commands.
pub const CONTROL_PATH: &str = "/dev/ublk-control";

impl ControlError {
    /// The kernel's errno, where it refused a command.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// Whether the kernel says that there is no such device.
    pub fn is_no_device(&self) -> bool {
        self.errno() == Some(Errno::ENODEV)
    }
}

/// A device, or one whose id the kernel was to choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceOrAny(pub Option<DeviceId>);

impl fmt::Display for DeviceOrAny {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(id) => id.fmt(f),
            None => f.write_str("with any id"),
        }
    }
}

/// "start device 3", "add a device".
fn aim(command: ControlCommand, device: Option<DeviceId>) -> String {
    let purpose = command.purpose();
    match (command, device) {
        (ControlCommand::GetFeatures, _) => purpose.into(),
        (_, Some(id)) => format!("{purpose} device {id}"),
        (_, None) => format!("{purpose} a device"),
    }
}

fn meaning(command: ControlCommand, errno: Errno) -> String {
    match command.meaning(errno) {
        Some(words) => words.into(),
        // "File exists (os error 17)": the number is said in the caller's brackets.
        None => {
            let text = io::Error::from_raw_os_error(errno.number()).to_string();
            text.split(" (os error").next().unwrap_or_default().to_lowercase()
        }
    }
}

fn node_trouble(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EBUSY) => "another server has it open; end that server first".into(),
        Some(libc::EACCES | libc::EPERM) => "no permission; run as root".into(),
        _ => error.to_string(),
    }
}
