//! What a device is: what it is made with, what the kernel says of it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::features::Features;
use super::id::DeviceId;
use crate::sys::process::page_size;
use crate::sys::uapi::{
    IO_DESC_BYTES, RawDevInfo, UBLK_IO_BUF_BITS, UBLK_MAX_NR_QUEUES, UBLK_MAX_QUEUE_DEPTH, UBLK_S_DEV_DEAD,
    UBLK_S_DEV_FAIL_IO, UBLK_S_DEV_LIVE, UBLK_S_DEV_QUIESCED,
};

/// What happens to a device without its server, and to the requests for it.
///
/// In the kernel's words (`Documentation/block/ublk.rst`) these are no flag, `UBLK_F_USER_RECOVERY`, that with
/// `UBLK_F_USER_RECOVERY_REISSUE`, and that with `UBLK_F_USER_RECOVERY_FAIL_IO`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recovery {
    /// It is removed with its server
    #[default]
    None,
    /// It waits for a new server: requests in flight are reissued, new ones wait
    Reissue,
    /// It waits for a new server: requests in flight fail, new ones wait (`fail` in earlier versions)
    #[serde(alias = "fail")]
    FailInFlight,
    /// It waits for a new server: requests in flight fail, and new ones fail until it starts
    FailAll,
}

impl fmt::Display for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::Reissue => "reissue",
            Self::FailInFlight => "fail-in-flight",
            Self::FailAll => "fail-all",
        })
    }
}

impl Recovery {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::None, Self::Reissue, Self::FailInFlight, Self::FailAll];

    /// What happens to requests while the device waits for a server, as the end of a sentence.
    #[must_use]
    pub const fn meanwhile(self) -> &'static str {
        match self {
            Self::None => "fail: the device is removed with its server",
            Self::Reissue => "wait for the next server, those in flight included",
            Self::FailInFlight => "wait for the next server; those in flight have failed",
            Self::FailAll => "fail until the next server starts",
        }
    }

    /// The flags that ask for it. A device that can be recovered can be quiesced too.
    pub fn flags(self) -> Features {
        match self {
            Self::None => Features::empty(),
            Self::Reissue => Features::RECOVERY | Features::RECOVERY_REISSUE | Features::QUIESCE,
            Self::FailInFlight => Features::RECOVERY | Features::QUIESCE,
            Self::FailAll => Features::RECOVERY | Features::RECOVERY_FAIL_IO | Features::QUIESCE,
        }
    }
}

/// The least depth of a queue in batch mode. The kernel keeps arrived tags in a FIFO of as many entries as the queue
/// has tags (`ublk_io_evts_init` in `drivers/block/ublk_drv.c`), and its FIFOs have at least two (`__kfifo_alloc` in
/// `lib/kfifo.c`): ADD_DEV with a depth of 1 is `EINVAL`.
pub const MIN_BATCH_DEPTH: u16 = 2;

/// What a new device is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddDevice {
    /// Its id; `None`: the lowest free one.
    pub id: Option<DeviceId>,
    /// Hardware queues, 1 to 4096. The kernel lowers it to the number of CPUs without a word.
    pub queues: u16,
    /// Tags of each queue, [`MIN_BATCH_DEPTH`] to 4096.
    pub depth: u16,
    /// Most bytes of a request: a multiple of the page size, up to 32 MiB (what a user-copy position can say).
    pub max_io_bytes: u32,
    /// What happens to it when its server dies.
    pub recovery: Recovery,
    /// Features on top of [`Features::SERVED`] and those of `recovery`.
    pub extra: Features,
}

impl Default for AddDevice {
    /// One queue of 128 tags with requests of up to 1 MiB, at the lowest free id.
    fn default() -> Self {
        let recovery = Recovery::None;
        Self {
            id: None,
            queues: 1,
            depth: 128,
            max_io_bytes: 1 << 20,
            recovery,
            extra: Features::empty(),
        }
    }
}

impl AddDevice {
    /// Every feature the device needs.
    pub fn flags(&self) -> Features {
        Features::SERVED | self.recovery.flags() | self.extra
    }

    /// The kernel's form of it, where the kernel would take it.
    pub(super) fn to_raw(self) -> Result<RawDevInfo, InvalidDevice> {
        if self.queues == 0 || self.queues > UBLK_MAX_NR_QUEUES {
            return Err(InvalidDevice::Queues(self.queues));
        }
        if !(MIN_BATCH_DEPTH..=UBLK_MAX_QUEUE_DEPTH).contains(&self.depth) {
            return Err(InvalidDevice::Depth(self.depth));
        }
        let page = page_size();
        let bytes = self.max_io_bytes;
        if bytes == 0 || bytes > 1 << UBLK_IO_BUF_BITS || !(bytes as usize).is_multiple_of(page) {
            return Err(InvalidDevice::MaxIo { bytes, page });
        }
        Ok(RawDevInfo {
            nr_hw_queues: self.queues,
            queue_depth: self.depth,
            max_io_buf_bytes: bytes,
            dev_id: self.id.map_or(u32::MAX, DeviceId::number),
            ublksrv_pid: -1,
            flags: self.flags().bits(),
            ..RawDevInfo::default()
        })
    }
}

/// An [`AddDevice`] that no kernel would take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDevice {
    /// Number of queues.
    #[error("a device cannot have {0} queues: 1 to 4096 are possible")]
    Queues(u16),
    /// Queue depth.
    #[error("a queue cannot have a depth of {0}: 2 to 4096 are possible")]
    Depth(u16),
    /// Most bytes of a request.
    #[error("a request cannot have up to {bytes} bytes: a multiple of {page} up to 33554432 is possible")]
    MaxIo {
        /// What was asked for.
        bytes: u32,
        /// The page size.
        page: usize,
    },
}

/// What state a device is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelState {
    /// It has no block device: not started yet, or stopped.
    Dead,
    /// It has a block device and a server.
    Live,
    /// It lost its server and waits for another; requests wait too.
    Quiesced,
    /// It lost its server and waits for another; requests fail.
    FailIo,
}

impl KernelState {
    fn parse(raw: u16) -> Result<Self, MalformedInfo> {
        match raw {
            UBLK_S_DEV_DEAD => Ok(Self::Dead),
            UBLK_S_DEV_LIVE => Ok(Self::Live),
            UBLK_S_DEV_QUIESCED => Ok(Self::Quiesced),
            UBLK_S_DEV_FAIL_IO => Ok(Self::FailIo),
            unknown => Err(MalformedInfo::State(unknown)),
        }
    }

    /// Whether a new server can take the device over.
    pub fn is_recoverable(self) -> bool {
        matches!(self, Self::Quiesced | Self::FailIo)
    }
}

impl fmt::Display for KernelState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Dead => "dead",
            Self::Live => "live",
            Self::Quiesced => "quiesced",
            Self::FailIo => "fail-io",
        })
    }
}

/// What the kernel says of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its id.
    pub id: DeviceId,
    /// Its hardware queues: what was asked for, at most one for each CPU.
    pub queues: u16,
    /// Tags of each queue.
    pub depth: u16,
    /// Its state.
    pub state: KernelState,
    /// Bytes from one descriptor to the next.
    pub descriptor_bytes: u16,
    /// Most bytes of a request.
    pub max_io_bytes: u32,
    /// The server's process id in this pid namespace; `None` where the device is not live or the server cannot be
    /// seen from here.
    pub server: Option<u32>,
    /// What it was made with.
    pub flags: Features,
    /// The user that made it.
    pub owner_uid: u32,
    /// The group of the user that made it.
    pub owner_gid: u32,
}

impl DeviceInfo {
    /// Parses what the kernel answered about device `expected` (`None`: it chose the id).
    pub(super) fn parse(raw: &RawDevInfo, expected: Option<DeviceId>) -> Result<Self, MalformedInfo> {
        let id = DeviceId::new(raw.dev_id).ok_or(MalformedInfo::Id(raw.dev_id))?;
        if expected.is_some_and(|expected| expected != id) {
            return Err(MalformedInfo::Id(raw.dev_id));
        }
        if raw.nr_hw_queues == 0 || raw.nr_hw_queues > UBLK_MAX_NR_QUEUES {
            return Err(MalformedInfo::Queues(raw.nr_hw_queues));
        }
        if raw.queue_depth == 0 || raw.queue_depth > UBLK_MAX_QUEUE_DEPTH {
            return Err(MalformedInfo::Depth(raw.queue_depth));
        }
        let state = KernelState::parse(raw.state)?;
        // A device without a server keeps the number of its last one, which may be another process's by now.
        let server = u32::try_from(raw.ublksrv_pid)
            .ok()
            .filter(|pid| *pid != 0 && state == KernelState::Live);
        Ok(Self {
            id,
            queues: raw.nr_hw_queues,
            depth: raw.queue_depth,
            state,
            descriptor_bytes: parse_descriptor_bytes(raw.io_desc_size)?,
            max_io_bytes: raw.max_io_buf_bytes,
            server,
            flags: Features::from_bits_retain(raw.flags),
            owner_uid: raw.owner_uid,
            owner_gid: raw.owner_gid,
        })
    }

    /// What happens to the device when its server dies.
    pub fn recovery(&self) -> Recovery {
        if self.flags.contains(Features::RECOVERY_REISSUE) {
            Recovery::Reissue
        } else if self.flags.contains(Features::RECOVERY_FAIL_IO) {
            Recovery::FailAll
        } else if self.flags.contains(Features::RECOVERY) {
            Recovery::FailInFlight
        } else {
            Recovery::None
        }
    }
}

/// Before Linux 7.3 the field was padding: zero, and descriptors had 24 bytes.
fn parse_descriptor_bytes(raw: u16) -> Result<u16, MalformedInfo> {
    match raw {
        0 => Ok(IO_DESC_BYTES),
        bytes if bytes >= IO_DESC_BYTES && bytes.is_multiple_of(8) => Ok(bytes),
        bytes => Err(MalformedInfo::Descriptor(bytes)),
    }
}

/// An answer of the kernel about a device that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedInfo {
    /// Another device's id, or none that a device can have.
    #[error("it speaks of device {0}")]
    Id(u32),
    /// Number of queues.
    #[error("it says the device has {0} queues")]
    Queues(u16),
    /// Queue depth.
    #[error("it says the queues have a depth of {0}")]
    Depth(u16),
    /// Device state.
    #[error("it says the device is in state {0}, and 0 to 3 are known")]
    State(u16),
    /// Descriptor size.
    #[error("it says descriptors have {0} bytes")]
    Descriptor(u16),
}

#[cfg(test)]
impl DeviceInfo {
    /// One of this program whose server has died.
    pub(crate) fn dead(id: DeviceId, queues: u16, depth: u16) -> Self {
        Self {
            id,
            queues,
            depth,
            state: KernelState::Dead,
            descriptor_bytes: 24,
            max_io_bytes: 1 << 20,
            server: None,
            flags: Features::SERVED,
            owner_uid: 0,
            owner_gid: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw() -> RawDevInfo {
        RawDevInfo {
            nr_hw_queues: 2,
            queue_depth: 64,
            dev_id: 3,
            state: 1,
            ublksrv_pid: -1,
            ..RawDevInfo::default()
        }
    }

    #[test]
    fn nonsense_devices_are_refused_in_words() {
        let with = |change: fn(&mut AddDevice)| {
            let mut device = AddDevice::default();
            change(&mut device);
            device.to_raw().unwrap_err().to_string()
        };
        assert_eq!(
            with(|d| d.queues = 0),
            "a device cannot have 0 queues: 1 to 4096 are possible"
        );
        assert_eq!(
            with(|d| d.depth = 4097),
            "a queue cannot have a depth of 4097: 2 to 4096 are possible"
        );
        assert!(with(|d| d.max_io_bytes = 1000).starts_with("a request cannot have up to 1000 bytes"));
        assert!(with(|d| d.max_io_bytes = (32 << 20) + 4096).contains("up to 33554432"));
    }

    #[test]
    fn what_the_kernel_says_is_parsed() {
        let info = DeviceInfo::parse(&raw(), DeviceId::new(3)).unwrap();
        assert_eq!(
            (info.state, info.server, info.descriptor_bytes),
            (KernelState::Live, None, 24)
        );
        let server = |state| {
            DeviceInfo::parse(
                &RawDevInfo {
                    ublksrv_pid: 9,
                    state,
                    ..raw()
                },
                None,
            )
            .unwrap()
            .server
        };
        assert_eq!(
            (server(UBLK_S_DEV_LIVE), server(UBLK_S_DEV_QUIESCED)),
            (Some(9), None)
        );
        let said = |raw: RawDevInfo| DeviceInfo::parse(&raw, DeviceId::new(3)).unwrap_err();
        assert_eq!(said(RawDevInfo { state: 4, ..raw() }), MalformedInfo::State(4));
        assert_eq!(said(RawDevInfo { dev_id: 4, ..raw() }), MalformedInfo::Id(4));
        assert_eq!(
            said(RawDevInfo {
                nr_hw_queues: 0,
                ..raw()
            }),
            MalformedInfo::Queues(0)
        );
        assert_eq!(
            said(RawDevInfo {
                queue_depth: 4097,
                ..raw()
            }),
            MalformedInfo::Depth(4097)
        );
        assert_eq!(
            said(RawDevInfo {
                io_desc_size: 25,
                ..raw()
            }),
            MalformedInfo::Descriptor(25)
        );
    }

    #[test]
    fn recovery_is_read_back_from_the_flags() {
        for recovery in Recovery::ALL {
            let raw = RawDevInfo {
                flags: recovery.flags().bits(),
                ..raw()
            };
            assert_eq!(DeviceInfo::parse(&raw, None).unwrap().recovery(), recovery);
        }
    }

    #[test]
    fn recovery_has_the_same_names_everywhere() {
        for recovery in Recovery::ALL {
            let name = recovery.to_string();
            assert_eq!(serde_json::to_value(recovery).unwrap(), name.as_str());
            assert_eq!(serde_json::from_value::<Recovery>(name.into()).unwrap(), recovery);
        }
        // Records and configurations of earlier versions.
        let old = serde_json::from_value::<Recovery>("fail".into()).unwrap();
        assert_eq!(old, Recovery::FailInFlight);
    }
}
