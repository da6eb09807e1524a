//! The control commands: their names, numbers, patience, and what the kernel means by each of its errors.

use std::fmt;
use std::time::Duration;

use crate::errno::Errno;
use crate::sys::uapi;

/// A command of `/dev/ublk-control`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlCommand {
    /// Report the features of the driver.
    GetFeatures,
    /// Make a device.
    Add,
    /// Say what it can do.
    SetParams,
    /// Read back what it can do.
    GetParams,
    /// Make its block device.
    Start,
    /// Remove its block device.
    Stop,
    /// Remove its block device unless it is open.
    TryStop,
    /// Delete it.
    Delete,
    /// Delete it without waiting until its id is free.
    DeleteAsync,
    /// Report its state.
    GetInfo,
    /// Report its state, given the path of its character device.
    GetInfoByPath,
    /// Begin to give it a new server.
    StartRecovery,
    /// Let the new server take over.
    EndRecovery,
    /// Take it from its server.
    Quiesce,
    /// Change its size.
    UpdateSize,
}

impl ControlCommand {
    /// Its ioctl number.
    pub(super) fn code(self) -> u32 {
        match self {
            Self::GetFeatures => uapi::UBLK_U_CMD_GET_FEATURES,
            Self::Add => uapi::UBLK_U_CMD_ADD_DEV,
            Self::SetParams => uapi::UBLK_U_CMD_SET_PARAMS,
            Self::GetParams => uapi::UBLK_U_CMD_GET_PARAMS,
            Self::Start => uapi::UBLK_U_CMD_START_DEV,
            Self::Stop => uapi::UBLK_U_CMD_STOP_DEV,
            Self::TryStop => uapi::UBLK_U_CMD_TRY_STOP_DEV,
            Self::Delete => uapi::UBLK_U_CMD_DEL_DEV,
            Self::DeleteAsync => uapi::UBLK_U_CMD_DEL_DEV_ASYNC,
            Self::GetInfo => uapi::UBLK_U_CMD_GET_DEV_INFO,
            Self::GetInfoByPath => uapi::UBLK_U_CMD_GET_DEV_INFO2,
            Self::StartRecovery => uapi::UBLK_U_CMD_START_USER_RECOVERY,
            Self::EndRecovery => uapi::UBLK_U_CMD_END_USER_RECOVERY,
            Self::Quiesce => uapi::UBLK_U_CMD_QUIESCE_DEV,
            Self::UpdateSize => uapi::UBLK_U_CMD_UPDATE_SIZE,
        }
    }

    /// Its name in `linux/ublk_cmd.h`, without the prefix.
    pub fn name(self) -> &'static str {
        match self {
            Self::GetFeatures => "GET_FEATURES",
            Self::Add => "ADD_DEV",
            Self::SetParams => "SET_PARAMS",
            Self::GetParams => "GET_PARAMS",
            Self::Start => "START_DEV",
            Self::Stop => "STOP_DEV",
            Self::TryStop => "TRY_STOP_DEV",
            Self::Delete => "DEL_DEV",
            Self::DeleteAsync => "DEL_DEV_ASYNC",
            Self::GetInfo => "GET_DEV_INFO",
            Self::GetInfoByPath => "GET_DEV_INFO2",
            Self::StartRecovery => "START_USER_RECOVERY",
            Self::EndRecovery => "END_USER_RECOVERY",
            Self::Quiesce => "QUIESCE_DEV",
            Self::UpdateSize => "UPDATE_SIZE",
        }
    }

    /// What it was to do, as in "cannot ..".
    pub(super) fn purpose(self) -> &'static str {
        match self {
            Self::GetFeatures => "ask ublk for its features",
            Self::Add => "add",
            Self::SetParams => "set the parameters of",
            Self::GetParams => "read the parameters of",
            Self::Start => "start",
            Self::Stop | Self::TryStop => "stop",
            Self::Delete | Self::DeleteAsync => "delete",
            Self::GetInfo | Self::GetInfoByPath => "ask for the state of",
            Self::StartRecovery => "begin the recovery of",
            Self::EndRecovery => "end the recovery of",
            Self::Quiesce => "quiesce",
            Self::UpdateSize => "resize",
        }
    }

    /// How long it may take. Those that only read do not wait; the others wait for a mutex, for queues to be
    /// ready, or for requests in flight to end.
    pub(super) fn patience(self) -> Duration {
        Duration::from_secs(match self {
            Self::GetFeatures | Self::GetInfo | Self::GetInfoByPath => 5,
            Self::GetParams | Self::SetParams | Self::StartRecovery | Self::UpdateSize => 10,
            Self::Add | Self::Start | Self::Stop | Self::TryStop => 30,
            Self::Delete | Self::DeleteAsync | Self::EndRecovery | Self::Quiesce => 30,
        })
    }

    /// What is most likely wrong when it takes longer, and what to do.
    pub(super) fn why_late(self) -> &'static str {
        match self {
            Self::Start | Self::EndRecovery => "not every queue of its server has become ready",
            Self::Stop | Self::TryStop => {
                "requests are in flight that its server does not complete; end the server"
            }
            Self::Delete => "its server still has it open or mapped; end the server",
            _ => "another command holds the device; end its server if it is stuck",
        }
    }

    /// What the kernel means by `errno` here, and what to do; `None` where the number says it all.
    ///
    /// Read in `drivers/block/ublk_drv.c` of Linux 7.3, the functions `ublk_ctrl_*`.
    pub(super) fn meaning(self, errno: Errno) -> Option<&'static str> {
        self.own_meaning(errno).or(match errno {
            Errno::EPERM | Errno::EACCES => Some("it needs CAP_SYS_ADMIN; run as root"),
            Errno::ENODEV => Some("there is no such device; see `ublk-bpf list`"),
            Errno::EOPNOTSUPP => Some("this kernel's ublk does not know the command"),
            Errno::EINTR => Some("it was interrupted; try again"),
            Errno::ENOMEM => Some("the kernel has no memory for it"),
            _ => None,
        })
    }

    /// What `errno` means from this command alone.
    fn own_meaning(self, errno: Errno) -> Option<&'static str> {
        Some(match (self, errno) {
            (Self::GetFeatures, Errno::EOPNOTSUPP | Errno::ENODEV | Errno::EINVAL) => {
                "this kernel's ublk is too old to report them; boot Linux 7.0 or later"
            }
            (Self::Add, Errno::EEXIST) => {
                "its id is in use; choose another, or delete the device that has it"
            }
            (Self::Add, Errno::EINVAL) => {
                "the kernel refuses this combination of queues, depth, flags and id"
            }
            (Self::Add, Errno::ENOSPC) => "every id is in use; delete a device",
            (Self::Add, Errno::ENOMEM) => {
                "the kernel has no memory for its queues; choose fewer queues or a lower depth"
            }
            (Self::SetParams, Errno::EACCES) => "it is already started; parameters must be set before that",
            (Self::SetParams, Errno::EINVAL) => "the kernel refuses the parameters",
            (Self::Start, Errno::EINVAL) => {
                "no parameters are set, or the process that was named as its server does not have its character \
                 device open"
            }
            (Self::Start, Errno::EEXIST) => "it is already started",
            (Self::Start, Errno::EBUSY) => {
                "it is being stopped; its server has to close the character device first"
            }
            (Self::Start | Self::EndRecovery, Errno::EINTR) => {
                "not every queue of its server has become ready"
            }
            (Self::TryStop, Errno::EBUSY) => "it is in use; unmount or close it first",
            (Self::TryStop | Self::Quiesce | Self::UpdateSize, Errno::ENODEV) => {
                "it does not exist, or is not started"
            }
            (Self::Delete, Errno::EINTR) => {
                "its server still has it open or mapped; it is deleted when the server ends"
            }
            (Self::StartRecovery, Errno::EINVAL) => "it was made without recovery; delete it",
            (Self::StartRecovery, Errno::EBUSY) => {
                "it is not waiting for a server; end its old one, or try again in a moment"
            }
            (Self::EndRecovery, Errno::EINVAL) => {
                "it was made without recovery, or the process that was named as its server does not have its \
                 character device open"
            }
            (Self::EndRecovery, Errno::EBUSY) => "it is not waiting for a server",
            (Self::Quiesce, Errno::EOPNOTSUPP) => "it was made without recovery, so it cannot be quiesced",
            (Self::Quiesce, Errno::EBUSY) => "its server did not give up its requests in time; try again",
            (
                Self::Stop | Self::TryStop | Self::Delete | Self::GetParams | Self::UpdateSize,
                Errno::EINVAL,
            ) => "it belongs to a user without privileges; use the program that made it",
            _ => return None,
        })
    }
}

impl fmt::Display for ControlCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
