//! The data plane of one hardware queue, as a state machine that does no I/O.
//!
//! A driver feeds [`Event`]s in and carries [`Effect`]s out; [`Machine`] documents their contract.
//! Nothing here knows io_uring, libc or the clock: the real driver and the simulated one run the same machine.
//!
//! The path of a request, and the file of each step:
//!
//! | step | file |
//! |---|---|
//! | its tag arrives: who owns it | `tag.rs` |
//! | the descriptor is parsed, or refused | `request.rs` |
//! | the verdict is checked against it: advice, or none and why | `verdict.rs` |
//! | advice and what the backing can do make a plan | `plan.rs`, `written.rs` |
//! | operations are issued until every byte has moved | `in_flight.rs`, `legs.rs`, `staging.rs` |
//! | a read that misses may fill the cache, and others wait for it | `fill.rs`, `machine/fills.rs` |
//! | requests beyond the new end of a truncated file fail | `ends.rs`, `machine/cut.rs` |
//! | the outcome becomes a result in a batch, the batch a COMMIT | `commit.rs` |
//!
//! [`Machine`] itself (`machine.rs`) puts these in order; `todo.rs` holds effects until the driver polls them.

mod commit;
mod config;
mod ends;
mod event;
mod fill;
mod in_flight;
mod legs;
mod machine;
mod plan;
mod request;
mod staging;
mod tag;
mod todo;
mod verdict;
mod written;

pub use commit::Element;
pub use config::{Backing, BadConfig, Capabilities, QueueConfig};
pub use ends::Ends;
pub use event::{
    Arrival, Direct, Effect, Event, FETCHES, FillBuffer, FillIo, Io, QueueFailure, Staging, Tier, UserCopy,
    Way,
};
pub use machine::Machine;
pub use written::Written;
