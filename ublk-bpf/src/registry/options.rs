//! What a device is asked to be.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::backend::Spec;
use crate::cache::Mode;
use crate::cache::evict::Algorithm;
use crate::control::{DeviceId, Recovery};

/// What a device is asked to be: the options of `ublk-bpf run`, each with a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceOptions {
    /// Where its bytes are.
    pub backing: Spec,
    /// The policy: the name of a built-in one, or the path of a BPF object.
    pub policy: String,
    /// Bytes that the maps of a policy of a user's own may take.
    pub policy_memory: u64,
    /// The wanted id; `None` for the lowest free one.
    pub id: Option<DeviceId>,
    /// Hardware queues, at least 1; the kernel lowers it to the number of CPUs.
    pub queues: u16,
    /// Requests that a queue holds at once: 1 to 4096.
    pub depth: u16,
    /// The logical block in bytes, a power of two from 512 to 4096; `None`: what the backing demands.
    pub logical_block: Option<u32>,
    /// Refuse writes.
    pub read_only: bool,
    /// What becomes of the device if its server dies.
    pub recovery: Recovery,
    /// The policy may lose data or fail requests.
    pub allow_lossy: bool,
    /// The cache before the backing, if there is to be one.
    pub cache: Option<CacheOptions>,
}

/// What a device's cache is asked to be: the options of `ublk-bpf run` that begin with `--cache`, and
/// `--promote-limit`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheOptions {
    /// Where the copies are.
    #[serde(with = "crate::backend::spec_text")]
    pub device: Spec,
    /// Bytes of a cache block: a power of two from 4 KiB to 1 MiB.
    pub block: u32,
    /// What writes do to cached blocks.
    pub mode: Mode,
    /// Which block goes where there is no room.
    pub eviction: Algorithm,
    /// Bytes that may be promoted in a second; `None`: as fast as they come.
    pub promote_limit: Option<u64>,
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
            reset: false,
        }
    }

    /// A cache block's bytes as a power of two.
    #[must_use]
    pub const fn shift(&self) -> u32 {
        self.block.trailing_zeros()
    }
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
