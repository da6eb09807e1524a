//! What servers leave in `/run/ublk-bpf` for other commands, and what commands do with it without the server.
//!
//! [`record`] describes a device, [`lock`] says whether its server is alive, [`stale`] removes what a dead server left,
//! [`dirty_pair`] outlives reboots. [`status`] and [`stop`](stop()) are the commands' view, [`ask`] has a running server do something, [`owners`] keeps two devices from sharing storage.

pub mod ask;
pub mod changes;
pub mod dirty_pair;
mod error;
pub mod lock;
pub mod logs;
pub mod message;
mod name;
mod options;
pub mod owners;
pub mod record;
pub(crate) mod run_dir;
pub mod stale;
pub mod status;
mod stop;
pub mod users;

pub use error::RecordError;
pub use name::{DeviceName, InvalidName};
pub use options::{CacheOptions, DeviceOptions, MAX_DIRTY, Role, Scheduler};
pub use record::Record;
pub(crate) use stop::stop_by;
pub use stop::{StopError, stop, stop_starts};
