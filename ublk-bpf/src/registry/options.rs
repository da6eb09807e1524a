//! The options of a device.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::name::DeviceName;
use crate::backend::Spec;
use crate::cache::Mode;
use crate::cache::evict::Algorithm;
use crate::control::{DeviceId, Recovery};
use crate::policy::Observe;

/// The options of a device, as given to `ublk-bpf run`, with defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceOptions {
    /// Its backing.
    pub backing: Spec,
    /// The policy: the name of a built-in one, or the path of a BPF object.
    pub policy: String,
    /// Memory limit for the maps of a policy loaded from a file, in bytes.
    pub policy_memory: u64,
    /// The wanted id; `None` for the lowest free one.
    pub id: Option<DeviceId>,
    /// Its name; `None`: it has only a number.
    pub name: Option<DeviceName>,
    /// Hardware queues, at least 1; the kernel lowers it to the number of CPUs.
    pub queues: u16,
    /// Requests that a queue holds at once: 1 to 4096.
    pub depth: u16,
    /// The logical block in bytes, a power of two from 512 to 4096; `None`: what the backing demands.
    pub logical_block: Option<u32>,
    /// Refuse writes.
    pub read_only: bool,
    /// Its I/O scheduler. Not in the record: a recovered device keeps its disk with the scheduler that it has.
    pub scheduler: Scheduler,
    /// What happens to the device if its server dies.
    pub recovery: Recovery,
    /// The policy may lose data or fail requests.
    pub allow_lossy: bool,
    /// What is counted of its requests.
    pub observe: Observe,
    /// The cache, if one is wanted.
    pub cache: Option<CacheOptions>,
    /// Lose what a cache holds dirty that is not given, or is to be emptied. Not a property of the device that is made.
    pub abandon_dirty: bool,
}

/// The I/O scheduler of a device's disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Scheduler(Option<String>);

impl Scheduler {
    /// The word for the scheduler that the kernel has chosen.
    const KERNEL: &'static str = "kernel";
    /// `ELV_NAME_MAX` in `block/elevator.h`, without the terminating zero.
    const MAX_NAME: usize = 15;

    /// The name to write to `queue/scheduler`; `None`: leave the kernel's choice.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

/// The backing's own queue sorts the requests.
impl Default for Scheduler {
    fn default() -> Self {
        Self(Some("none".to_owned()))
    }
}

impl From<Scheduler> for String {
    fn from(scheduler: Scheduler) -> Self {
        scheduler.0.unwrap_or_else(|| Scheduler::KERNEL.to_owned())
    }
}

impl TryFrom<String> for Scheduler {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if text == Self::KERNEL {
            Ok(Self(None))
        } else if (1..=Self::MAX_NAME).contains(&text.len()) && text.bytes().all(is_name) {
            Ok(Self(Some(text)))
        } else {
            Err(format!(
                "{text:?} is not the name of an I/O scheduler: give none, kernel, or a name that /sys/block/*/queue/scheduler lists"
            ))
        }
    }
}

impl FromStr for Scheduler {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.to_owned().try_into()
    }
}

/// The options of a cache: those of `ublk-bpf run` that begin with `--cache`, and the limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheOptions {
    /// Where the copies are.
    #[serde(with = "crate::backend::spec_text")]
    pub device: Spec,
    /// Bytes of a cache block: a power of two from 4 KiB to 1 MiB.
    pub block: u32,
    /// How writes treat cached blocks.
    pub mode: Mode,
    /// The eviction algorithm.
    pub eviction: Algorithm,
    /// Limit of promoted bytes per second; `None`: no limit.
    pub promote_limit: Option<u64>,
    /// Percent of the slots that may be dirty, with write-back: 1 to [`MAX_DIRTY`].
    #[serde(default = "default_dirty_high")]
    pub dirty_high: u8,
    /// Limit of dirty bytes that are written back in a second, but for those that requests wait for; `None`: no limit.
    #[serde(default)]
    pub clean_limit: Option<u64>,
    /// Begin empty, whatever is on the device. Not a property of the device that is made.
    #[serde(skip)]
    pub reset: bool,
}

impl CacheOptions {
    /// A cache on `device` as it is where nothing else is said.
    #[must_use]
    pub fn on(device: Spec) -> Self {
        Self {
            device,
            block: 64 << 10,
            mode: Mode::default(),
            eviction: Algorithm::default(),
            promote_limit: None,
            dirty_high: default_dirty_high(),
            clean_limit: None,
            reset: false,
        }
    }

    /// A cache block's bytes as a power of two.
    #[must_use]
    pub const fn shift(&self) -> u32 {
        self.block.trailing_zeros()
    }
}

/// The highest share of a cache that may be dirty, in percent: what is dirty cannot be evicted.
pub const MAX_DIRTY: u8 = 90;

const fn default_dirty_high() -> u8 {
    50
}

/// What a device has a backend for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Its bytes are there.
    Backing,
    /// Copies of some of them are there.
    Cache,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Backing => "backing",
            Self::Cache => "cache",
        })
    }
}
