//! One device's life: from its options to a disk that serves, and back to nothing.
//!
//! [`serve()`] has the order of things. What it leaves for others to find while the device lives is in [`record`];
//! what a server that died left behind is recognised and removed by [`leftover`].

mod background;
mod cache;
mod claim;
mod isolation;
pub mod leftover;
pub mod mounts;
mod options;
mod queues;
pub mod record;
mod serve;
mod signals;
pub mod status;
mod stop;
pub mod users;

pub use background::run_in_background;
pub use cache::CacheError;
pub use options::{CacheOptions, Options};
pub use record::Record;
pub use serve::{Ready, ServeError, Start, serve};
pub use stop::{StopError, stop};
