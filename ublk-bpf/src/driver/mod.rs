//! The engine: it serves a device's hardware queues and fills its cache.
//!
//! It carries out the effects of the machines in [`queue`](crate::queue) and [`cache`](crate::cache), and decides
//! nothing about a request. [`Engine`] uses io_uring; `tests/sim` drives the same machines over a model of a device.

mod host;
mod uring;

pub use host::{CacheHandles, DeviceSpec, QueueError, QueueHost};
pub use uring::Engine;
pub(crate) use uring::probe;
