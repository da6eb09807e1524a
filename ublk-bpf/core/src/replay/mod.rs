//! Replays traces of requests through the server's own cache and mover, in virtual time.
//!
//! | what | file |
//! |---|---|
//! | reads a trace, in one of several formats | `read/` |
//! | a trace in memory | `trace.rs` |
//! | splits its requests at cache blocks | `stream.rs` |
//! | the classifier's, the queue's and the driver's part, around [`Cache`](crate::cache::Cache) and [`Mover`](crate::cache::Mover) | `device.rs` |
//! | the same, owning its cache, for tests of policies | `owned.rs` |
//! | replays a stream in one configuration | `run.rs` |
//! | replays many configurations at once | `job.rs` |
//! | LRU and Belady's algorithm, for comparison | `reference.rs` |

mod counts;
mod device;
mod job;
mod owned;
pub mod read;
mod reference;
mod run;
mod stream;
#[cfg(test)]
mod tests;
mod trace;

pub use counts::Counts;
pub use device::{Decide, Pace, PlacedRequest, ReplayDevice};
pub use job::{CacheSize, JobError, NativePolicy, Progress, ReplayJob, Row};
pub use owned::OwnedDevice;
pub use reference::Reference;
pub use run::{PolicyFn, Setup, replay};
pub use stream::{Part, Stream, TooManyBlocks, split};
pub use trace::{DEFAULT_RATE, Task, Trace, TraceRequest};
