//! Making and unmaking devices by `/dev/ublk-control`.
//!
//! A server [adds](Control::add) a device, [opens its character device](open_char_device), [says what it can
//! do](Control::set_params), readies its queues, and [starts](Control::start) it. In the end it is
//! [stopped](Control::stop) and [deleted](Control::delete). Another process may do each of these but open and
//! serve it.
//!
//! Every command is bounded in time, and every answer of the kernel is parsed.

mod command;
mod device;
mod error;
mod features;
mod id;
mod node;
mod params;
#[cfg(test)]
mod tests;
mod transport;

use std::ffi::OsStr;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use zerocopy::{FromBytes, FromZeros, IntoBytes};

pub use self::command::ControlCommand;
pub use self::device::{
    AddDevice, DeviceInfo, InvalidDevice, KernelState, MIN_BATCH_DEPTH, MalformedInfo, Recovery,
};
pub use self::error::{CONTROL_PATH, ControlError, DeviceOrAny};
pub use self::features::{FEATURES, Feature, Features, Missing};
pub use self::id::{DeviceId, InvalidDeviceId};
pub use self::node::{open_char_device, wait_for_block_device};
pub use self::params::{Discard, InvalidParams, MalformedParams, Params};
use self::transport::{Kernel, Transport};
use crate::errno::Errno;
use crate::sys::command::NoReply;
use crate::sys::uapi::{CtrlCmd, PARAMS_BYTES, RawDevInfo, RawParams, UBLK_FEATURES_LEN};

/// Where the kernel lists character devices of ublk.
const CLASS_PATH: &str = "/sys/class/ublk-char";

/// The control plane of this kernel's ublk. Any number of threads may use one at the same time.
pub struct Control {
    transport: Box<dyn Transport>,
    patience: Option<Duration>,
}

impl Control {
    /// Opens `/dev/ublk-control`. Errors: there is no ublk here, or this user may not use it.
    pub fn open() -> Result<Self, ControlError> {
        Ok(Self {
            transport: Box::new(Kernel::open()?),
            patience: None,
        })
    }

    /// The same, with this long for each command in place of the command's own patience (5 to 30 seconds).
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    /// What this kernel's ublk can do. Linux >= 6.5 answers.
    pub fn features(&self) -> Result<Features, ControlError> {
        let word = [0; UBLK_FEATURES_LEN as usize];
        let (_, answer) = self.send(ControlCommand::GetFeatures, None, 0, word)?;
        Ok(Features::from_bits_retain(u64::from_ne_bytes(answer)))
    }

    /// Makes a device and its character device. It has no block device until it is [started](Control::start).
    ///
    /// The answer contains the id and the number of queues that the kernel chose. A kernel that lacks a feature drops
    /// its flag without a word: then the device is deleted and the feature named.
    pub fn add(&self, device: &AddDevice) -> Result<DeviceInfo, ControlError> {
        let raw = device.to_raw()?;
        let (_, answer) = self.send(ControlCommand::Add, device.id, 0, raw)?;
        let info = DeviceInfo::parse(&answer, device.id).map_err(|source| {
            let device = DeviceOrAny(device.id);
            ControlError::MalformedInfo {
                command: ControlCommand::Add,
                device,
                source,
            }
        });
        let checked = info.and_then(|info| {
            info.flags
                .require(device.flags())
                .map(|()| info)
                .map_err(ControlError::from)
        });
        if checked.is_err()
            && let Some(id) = DeviceId::new(answer.dev_id)
        {
            // What is wrong with it matters more than why it cannot be deleted.
            self.delete(id).ok();
        }
        checked
    }

    /// Says what the device can do; before it starts. `device` is what [`Control::add`] returned.
    pub fn set_params(&self, device: &DeviceInfo, params: &Params) -> Result<(), ControlError> {
        let raw = params.to_raw(device.max_io_bytes)?;
        self.send(ControlCommand::SetParams, Some(device.id), 0, raw)
            .map(drop)
    }

    /// What the device can do.
    pub fn params(&self, id: DeviceId) -> Result<Params, ControlError> {
        let ask = RawParams {
            len: PARAMS_BYTES,
            ..RawParams::default()
        };
        let (_, answer) = self.send(ControlCommand::GetParams, Some(id), 0, ask)?;
        Params::parse(&answer).map_err(|source| ControlError::MalformedParams { device: id, source })
    }

    /// Makes the block device. Waits until every queue is ready, so it must not be called on a queue's thread; `server`
    /// is the process that has the character device open.
    pub fn start(&self, id: DeviceId, server: u32) -> Result<(), ControlError> {
        self.command(ControlCommand::Start, id, server.into())
    }

    /// Removes the block device even if it is open; waits for requests in flight, which the server must still
    /// complete. A device that is not started is not changed.
    pub fn stop(&self, id: DeviceId) -> Result<(), ControlError> {
        self.command(ControlCommand::Stop, id, 0)
    }

    /// Removes the block device unless it is open (then the error's errno is EBUSY). Linux >= 7.0.
    pub fn try_stop(&self, id: DeviceId) -> Result<(), ControlError> {
        self.command(ControlCommand::TryStop, id, 0)
    }

    /// [`stop`](Self::stop), or without `force` [`try_stop`](Self::try_stop).
    ///
    /// # Errors
    /// Theirs.
    pub fn remove_disk(&self, id: DeviceId, force: bool) -> Result<(), ControlError> {
        if force { self.stop(id) } else { self.try_stop(id) }
    }

    /// Stops the device and deletes it, and waits until its id is free: not before its server has closed the character
    /// device and unmapped the descriptors.
    pub fn delete(&self, id: DeviceId) -> Result<(), ControlError> {
        self.command(ControlCommand::Delete, id, 0)
    }

    /// The same without waiting: the id is free when the last user of the device has closed it, who gets errors until
    /// then.
    pub fn delete_async(&self, id: DeviceId) -> Result<(), ControlError> {
        self.command(ControlCommand::DeleteAsync, id, 0)
    }

    /// What the device is and in which state.
    pub fn info(&self, id: DeviceId) -> Result<DeviceInfo, ControlError> {
        let mut command = ControlCommand::GetInfo;
        let mut result = self
            .send(command, Some(id), 0, RawDevInfo::default())
            .map(|(_, raw)| raw);
        // A device that belongs to a user without privileges does not answer unless its path is given.
        if result
            .as_ref()
            .is_err_and(|error| error.errno() == Some(Errno::EINVAL))
        {
            command = ControlCommand::GetInfoByPath;
            result = self.info_by_path(id);
        }
        DeviceInfo::parse(&result?, Some(id)).map_err(|source| {
            let device = DeviceOrAny(Some(id));
            ControlError::MalformedInfo {
                command,
                device,
                source,
            }
        })
    }

    /// Every ublk device of the system, by id.
    pub fn list(&self) -> Result<Vec<DeviceInfo>, ControlError> {
        let mut devices = Vec::new();
        for id in ids_in(Path::new(CLASS_PATH))? {
            match self.info(id) {
                Ok(info) => devices.push(info),
                // Deleted since the folder was read.
                Err(error) if error.is_no_device() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(devices)
    }

    /// Begins to give a device whose server has died a new one: checks that the old one is gone. Then open the character
    /// device, ready the queues, and [end the recovery](Control::end_recovery).
    pub fn start_recovery(&self, id: DeviceId) -> Result<(), ControlError> {
        self.command(ControlCommand::StartRecovery, id, 0)
    }

    /// Lets the new server take over. Waits, like [`Control::start`], until every queue is ready.
    pub fn end_recovery(&self, id: DeviceId, server: u32) -> Result<(), ControlError> {
        self.command(ControlCommand::EndRecovery, id, server.into())
    }

    /// Takes a live device from its server, which sees its fetches end with ENODEV and has to close the character
    /// device; then another one can recover it. `timeout` is the kernel's own (not used in batch mode), at least 1 ms.
    ///
    /// Not under load: in batch mode requests that are issued between this and the new server's commands fail with EIO,
    /// recovery flags or not (`ublk_batch_cancel_queue` of Linux 7.3 sets `force_abort`).
    pub fn quiesce(&self, id: DeviceId, timeout: Duration) -> Result<(), ControlError> {
        let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1);
        self.command(ControlCommand::Quiesce, id, millis)
    }

    /// Changes the size of a started device, in sectors of 512 bytes.
    pub fn update_size(&self, id: DeviceId, sectors: u64) -> Result<(), ControlError> {
        self.command(ControlCommand::UpdateSize, id, sectors)
    }

    /// A command with a number and no buffer.
    fn command(&self, command: ControlCommand, id: DeviceId, data: u64) -> Result<(), ControlError> {
        self.send(command, Some(id), data, [0u8; 0]).map(drop)
    }

    /// The path goes before the info in the buffer, with its NUL.
    fn info_by_path(&self, id: DeviceId) -> Result<RawDevInfo, ControlError> {
        let mut buffer = id.char_path().into_os_string().into_encoded_bytes();
        buffer.push(0);
        let path_len = buffer.len();
        buffer.resize(path_len + size_of::<RawDevInfo>(), 0);
        let header = CtrlCmd {
            dev_path_len: u16::try_from(path_len).expect("`/dev/ublkcN` is short"),
            ..header(Some(id), 0)
        };
        let (_, answer) = self.send_raw(ControlCommand::GetInfoByPath, Some(id), header, buffer.into())?;
        let mut info = RawDevInfo::new_zeroed();
        info.as_mut_bytes().copy_from_slice(&answer[path_len..]);
        Ok(info)
    }

    /// Sends a command whose buffer holds a `T`, and returns the command's result and the buffer's `T`.
    fn send<T: IntoBytes + FromBytes + zerocopy::Immutable>(
        &self,
        command: ControlCommand,
        device: Option<DeviceId>,
        data: u64,
        mut value: T,
    ) -> Result<(i32, T), ControlError> {
        let buffer = value.as_bytes().into();
        let (result, buffer) = self.send_raw(command, device, header(device, data), buffer)?;
        value.as_mut_bytes().copy_from_slice(&buffer);
        Ok((result, value))
    }

    fn send_raw(
        &self,
        command: ControlCommand,
        device: Option<DeviceId>,
        header: CtrlCmd,
        buffer: Box<[u8]>,
    ) -> Result<(i32, Box<[u8]>), ControlError> {
        let within = self.patience.unwrap_or_else(|| command.patience());
        match self.transport.send(command.code(), header, buffer, within) {
            Ok(answer) => match Errno::of_result(answer.result) {
                None => Ok((answer.result, answer.buffer)),
                Some(errno) => Err(ControlError::Refused {
                    command,
                    device,
                    errno,
                }),
            },
            Err(NoReply::Ring(source)) => Err(ControlError::Ring { command, source }),
            Err(NoReply::TimedOut { cancelled }) => Err(ControlError::TimedOut {
                command,
                device,
                after: within,
                cancelled,
            }),
        }
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control")
            .field("patience", &self.patience)
            .finish_non_exhaustive()
    }
}

/// The command area of a command that is for no queue.
fn header(device: Option<DeviceId>, data: u64) -> CtrlCmd {
    CtrlCmd {
        dev_id: device.map_or(u32::MAX, DeviceId::number),
        queue_id: u16::MAX,
        data: [data],
        ..CtrlCmd::default()
    }
}

/// The ids of the `ublkcN` in a folder, in order. A folder that is not there has none: the class comes with the driver.
fn ids_in(folder: &Path) -> Result<Vec<DeviceId>, ControlError> {
    let error = |source| ControlError::List {
        path: folder.into(),
        source,
    };
    let entries = match folder.read_dir() {
        Ok(entries) => entries,
        Err(missing)
            if missing.kind() == std::io::ErrorKind::NotFound && Path::new("/sys/class").exists() =>
        {
            return Ok(Vec::new());
        }
        Err(source) => return Err(error(source)),
    };
    let mut ids = Vec::new();
    for entry in entries {
        ids.extend(char_device_id(&entry.map_err(error)?.file_name()));
    }
    ids.sort_unstable();
    Ok(ids)
}

fn char_device_id(name: &OsStr) -> Option<DeviceId> {
    let digits = name.to_str()?.strip_prefix("ublkc")?;
    DeviceId::new(digits.parse().ok()?)
}
