//! What a device is asked to be.

use crate::control::{DeviceId, Recovery};
use crate::target::Spec;

/// What a device is asked to be: the options of `ublk-bpf run`, each with a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Where its bytes are.
    pub backing: Spec,
    /// The policy: the name of a built-in one, or the path of a BPF object.
    pub policy: String,
    /// The wanted id; `None` for the lowest free one.
    pub id: Option<DeviceId>,
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
