//! The serving process: from the options of its devices to disks that serve, and back.
//!
//! [`serve()`] is the order of the process, `device` and `recover` that of one device. What a server leaves for other
//! commands is in [`registry`](crate::registry).

mod background;
mod cache;
mod claim;
mod commands;
mod compare;
mod control_socket;
mod described;
mod device;
mod disk_queue;
mod drain;
mod errands;
mod error;
mod inbox;
mod isolation;
mod life;
mod limits;
mod main_thread;
mod metrics;
mod notify;
mod open;
mod panics;
mod prepared;
mod queues;
mod recover;
mod reload;
mod resize;
mod running;
mod serve;
mod start;

pub use background::{BackgroundError, run_in_background};
pub use described::not_served;
pub use error::{CacheError, ServeError};
pub use life::Ready;
pub(crate) use limits::open_files;
pub use recover::waiting_devices;
pub use serve::serve;
pub use start::{Configuration, Recipe, Start};
