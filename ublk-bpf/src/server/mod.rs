//! The life of devices: from their options to disks that serve, and back to nothing.
//!
//! [`serve()`] has the process's order of things, `device` that of one device. What a server leaves for others to find while the device lives is in [`record`];
//! what a server that died left behind is recognised and removed by [`stale`].

mod background;
mod cache;
mod claim;
mod device;
mod error;
mod isolation;
mod limits;
pub mod lock;
pub mod mounts;
mod options;
mod owners;
mod panics;
mod queues;
pub mod record;
mod recover;
mod run_dir;
mod running;
mod serve;
mod signals;
pub mod stale;
pub mod status;
mod stop;
pub mod users;

pub use background::run_in_background;
pub use cache::CacheError;
pub use error::{Role, ServeError};
pub use options::{CacheOptions, DeviceOptions};
pub use record::Record;
pub use serve::{Ready, Recipe, Start, serve};
pub use stop::{StopError, stop, stop_starts};
