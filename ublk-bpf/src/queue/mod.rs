//! The data plane of one hardware queue, as a state machine that does no I/O.
//!
//! A driver feeds [`Event`]s in and carries [`Effect`]s out; the contract between them stands at [`Machine`].
//! Nothing here knows io_uring, libc or the clock: the real driver and the simulated one run the same machine.
//!
//! The way of a request, and the file of each step:
//!
//! | step | file |
//! |---|---|
//! | its tag arrives: who owns it | `tag.rs` |
//! | the descriptor is parsed, or refused | `request.rs` |
//! | the verdict is checked against it: advice, or none and why | `verdict.rs` |
//! | advice and what the backing can do make a plan | `plan.rs`, `written.rs` |
//! | operations are issued until every byte has moved | `in_flight.rs`, `staging.rs` |
//! | a file that is truncated meanwhile fails what is beyond its end | `ends.rs`, `machine/cut.rs` |
//! | the outcome becomes a result in a batch, the batch a COMMIT | `commit.rs` |
//!
//! [`Machine`] itself (`machine.rs`) is the order of these; `todo.rs` holds what was not polled yet.

mod commit;
mod config;
mod ends;
mod event;
mod in_flight;
mod machine;
mod plan;
mod request;
mod staging;
mod tag;
mod todo;
mod verdict;
mod written;

pub use commit::Element;
pub use config::{Backing, BadConfig, Capabilities, Config};
pub use ends::Ends;
pub use event::{Arrival, Direct, Effect, Event, Io, QueueFailure, Staging, Tier, UserCopy, Way};
pub use machine::Machine;
pub use written::Written;

/// FETCH commands of a queue: while one has ended and is not yet issued again, the other takes tags.
pub const FETCHES: u8 = 2;
