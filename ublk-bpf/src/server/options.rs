//! What a device is asked to be.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::target::Spec;

/// What a device is asked to be: the options of `ublk-bpf run`, each with a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Where its bytes are.
    pub backing: Spec,
    /// The policy: the name of a built-in one, or the path of a BPF object.
    pub policy: String,
    /// The wanted id; `None` for the lowest free one.
    pub id: Option<u32>,
    /// Hardware queues, at least 1; the kernel lowers it to the number of CPUs.
    pub queues: u16,
    /// Requests that a queue holds at once: 1 to 4096.
    pub depth: u16,
    /// Refuse writes.
    pub read_only: bool,
    /// What becomes of the device if its server dies.
    pub recovery: Recovery,
    /// The policy may lose data or fail requests.
    pub allow_lossy: bool,
}

/// What becomes of a device whose server dies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Recovery {
    /// The device goes away
    #[default]
    None,
    /// Requests wait for `run --recover`; unfinished ones are issued again
    Reissue,
    /// The device stays for `run --recover`; requests fail meanwhile
    Fail,
}

impl Recovery {
    /// The name that the command line and the record use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Reissue => "reissue",
            Self::Fail => "fail",
        }
    }
}

impl fmt::Display for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
