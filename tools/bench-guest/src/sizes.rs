//! What every part measures with.

use std::time::Duration;

/// The size of each ram disk, sparse: of the backing, the fast device and dm-cache's metadata.
pub const RAM_DISK_MIB: u64 = 1024;
/// How much of a device is read and written, from its start.
pub const RANGE_MIB: u64 = 128;
/// What a boot leaves to be done later is done by then: a run within the first seconds cost up to twice as much. The
/// sleep takes no time, for the clock jumps to its end.
pub const SETTLE: Duration = Duration::from_secs(10);
