//! The data plane of one hardware queue, as a state machine that does no I/O.
//!
//! A driver feeds [`Event`]s in and carries [`Effect`]s out. Nothing here knows io_uring, libc or the clock:
//! the real driver and the simulated one run the same machine.

mod event;

pub use event::{Arrival, Device, Effect, Event, Io, Staging, TakenVerdict};
